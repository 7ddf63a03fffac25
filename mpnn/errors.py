"""Errors that a user can mend; the command line prints them without a traceback."""


class InputError(ValueError):
    """Bad input: the message names the place, the rule, what came, and the way out."""


class UnreachableError(InputError):
    """A server cannot be reached, or fell silent: this machine may be offline."""
