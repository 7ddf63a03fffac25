"""The command line: `mpnn COMMAND`, each command a function of this module.

Heavy imports are inside the commands, so that help appears at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mpnn.errors import InputError
from mpnn.options import (
    DONE,
    FAILED,
    INTERRUPTED,
    RULES_OF_SCORES,
    SOME_FAILED,
    TERMINATED,
    DesignOptions,
    ScoreOptions,
    add_options,
    add_rules,
    taken,
    with_optional_values,
)

DESCRIPTION = "Design protein sequences for backbones, and score them: ProteinMPNN made fast."
EPILOG = (
    "Exit code: 0 all files succeeded, 1 some files failed, 2 all failed or nothing could start, "
    "130 Ctrl-C, 143 SIGTERM."
)


def main() -> None:
    """Entry point of `mpnn`."""
    code = run(sys.argv[1:])
    started_processes = "multiprocessing.synchronize" in sys.modules  # which exit cleans up after
    if code in (INTERRUPTED, TERMINATED) and not started_processes:
        sys.stdout.flush()
        os._exit(code)  # threads in the middle of a batch would delay the exit
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; prints a user's mistake as one line.

    Raises:
        SystemExit: the arguments cannot be parsed (2), or ask for help (0).
    """
    if not arguments:
        parser().print_help(sys.stderr)
        return FAILED
    values = vars(parser().parse_args(with_optional_values(arguments)))
    command = values.pop("command")
    try:
        return command(**values) or 0
    except InputError as error:
        print_error(str(error))
        return FAILED
    except BrokenPipeError:  # a reader such as head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit fails, too
        return SOME_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def print_error(message: str) -> None:
    """Prints one line to standard error, in red on a terminal."""
    red, end = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    sys.stderr.write(f"{red}error: {message}{end}\n")


def _print(text: object) -> None:
    sys.stdout.write(f"{text}\n")


def design(**values: Any) -> int:
    """Design sequences for structures; writes one file each, in ProteinMPNN's format.

    A run over several structures keeps a manifest in its folder: run again, it does what is missing
    or has failed, and refuses other settings. One structure alone is designed anew each time.
    """
    from mpnn import campaign

    paths, options = values.pop("files"), taken(DesignOptions, values)
    return campaign.run(paths, values, options).exit_code


def score(**values: Any) -> int:
    """Score the structures' own sequences, or others, with probabilities for every residue."""
    from mpnn import campaign

    paths, options = values.pop("files"), taken(ScoreOptions, values)
    return campaign.run(paths, values, options).exit_code


def collect(folder: str, out: str | None, parquet: bool) -> int:
    """Put the shards of a run together: one table of all designs, best score first."""
    from mpnn.collect import write_tables

    collected = write_tables(Path(folder), out, parquet)
    for line in collected.report():
        _print(line)
    return SOME_FAILED if collected.failed or collected.missing else DONE


def train(config: str, changes: Sequence[str]) -> None:
    """Train a network; CONFIG is a TOML file with settings of `mpnn.training.TrainConfig`.

    An interrupted run resumes from its last saved step.
    """
    from mpnn.training import job

    job.train(config, changes, distill=False)


def distill(config: str, changes: Sequence[str]) -> None:
    """Train a network on the outputs of another: as `train`, with `teacher` set."""
    from mpnn.training import job

    job.train(config, changes, distill=True)


def report(runs: str, out: str, readme: str | None, results: str | None, show: bool) -> None:
    """Write claims, measurements and verdicts of the stored runs as one HTML page."""
    import webbrowser

    from mpnn.regression.page import write_html
    from mpnn.regression.report import renew_readme, renew_results

    for path, renew in ((readme, renew_readme), (results, renew_results)):
        if path is not None:
            renewed = renew(Path(runs), Path(path))
            _print(f"{path}: {'renewed' if renewed else 'is up to date'}")
    write_html(Path(runs), Path(out))
    _print(out)
    if show and not webbrowser.open(Path(out).resolve().as_uri()):
        raise InputError(f"no browser can be started here; open {out} yourself")


def mac_report(bundle: str, runs: str) -> None:
    """Read the file that `tox -e mac` made on a Mac: print its tables, store its run."""
    from mpnn.studies.mac_report import report

    for line in report(Path(bundle), Path(runs)):
        _print(line)


def variants() -> None:
    """List the variants that claims are about: architecture, engine, batch, device."""
    from mpnn.variants import VARIANTS

    for name, v in VARIANTS.items():
        _print(f"{name:24}{v.architecture:16}{v.engine:12}batch {v.batch:<4}{v.device}")


def engines() -> None:
    """List the engines, the networks they run, and whether they can run on this machine."""
    from mpnn.optimizations.availability import lines

    for line in lines():
        _print(line)


def list_weights() -> None:
    """List the names that --weights takes in groups, and where each file is."""
    from mpnn.weights import locations

    for group, names in locations().items():
        _print(f"{group}:")
        for name, where in names.items():
            _print(f"  {name:22}{where}")


def show_weights(names: Sequence[str]) -> None:
    """Print license, source and blob id of weights, where they are, and what they are."""
    from rich.pretty import pretty_repr

    from mpnn.weights import describe

    for name in names:
        for key, value in describe(name).items():
            _print(f"{key:14}{value if isinstance(value, str) else pretty_repr(value)}")


def fetch_weights(names: Sequence[str]) -> None:
    """Download published weights into the user's cache."""
    from mpnn.files import fetch_all

    for path in fetch_all(names):
        _print(path)


def verify_weights(names: Sequence[str]) -> None:
    """Load checkpoints as `design` does, and print what they are."""
    from rich.pretty import pretty_repr

    from mpnn.weights import find_weights, load_weights

    for name in names:
        path = find_weights(name)
        network, card = load_weights(path)
        _print(f"{path}: {network.config}\n{pretty_repr(card)}")


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=_Help,
            epilog=settings.pop("epilog", EPILOG),
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        print_error(f"{message}; see {self.prog} --help")
        sys.exit(FAILED)


class _Help(argparse.HelpFormatter):
    """Help with the default of each option that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.option_strings and action.default not in (None, False, "", argparse.SUPPRESS)
        return f"{text} [default: {action.default}]" if shown else text


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = Parser(prog="mpnn", description=DESCRIPTION)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command, options, rules in (
        (design, DesignOptions, ()),
        (score, ScoreOptions, RULES_OF_SCORES),
    ):
        its = _add(commands, command)
        its.usage = f"{its.prog} [OPTION]... FILE..."
        its.add_argument(
            "files",
            nargs="+",
            metavar="FILE",
            help="PDB or mmCIF files (.gz too), or folders of them.",
        )
        add_rules(its.add_argument_group("rules"), rules)
        add_options(its, options)
    its = _add(commands, collect)
    its.add_argument("folder", metavar="DIR", help="The --out folder of the run.")
    its.add_argument("--out", metavar="FILE", help="The table; DIR/designs.csv by default.")
    its.add_argument("--parquet", action="store_true", help="Write FILE with .parquet as well.")
    _add_training(commands)
    its = _add(commands, report)
    its.add_argument("runs", nargs="?", default="baselines", help="Folder of the stored runs.")
    its.add_argument("--out", default="report.html", help="The page to write.")
    its.add_argument("--open", dest="show", action="store_true", help="Open the page in a browser.")
    its.add_argument("--readme", metavar="FILE", help="A README whose ten rows to renew as well.")
    its.add_argument("--results", metavar="FILE", help="A Markdown file for every table.")
    its = _add(commands, mac_report, "mac-report")
    its.add_argument("bundle", metavar="BUNDLE", help="The zip file.")
    its.add_argument("--runs", default="baselines", help="Folder of the stored runs.")
    _add(commands, variants)
    _add(commands, engines)
    _add_weights(commands)
    return top


def _add(commands: Any, command: Callable[..., int | None], name: str = "") -> Parser:
    """Adds a command; its docstring is its help, the first line in the list of commands."""
    text = command.__doc__ or ""
    its: Parser = commands.add_parser(
        name or command.__name__, help=text.split("\n")[0], description=" ".join(text.split())
    )
    its.set_defaults(command=command)
    return its


def _add_training(commands: Any) -> None:
    for command in (train, distill):
        its = _add(commands, command)
        its.add_argument("config", metavar="CONFIG", help="TOML file of settings.")
        its.add_argument(
            "--set",
            dest="changes",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="Change one setting.",
        )


def _add_weights(commands: Any) -> None:
    text = "Find, fetch and check weights."
    its = commands.add_parser("weights", help=text, description=text)
    its = its.add_subparsers(metavar="COMMAND", required=True)
    _add(its, list_weights, "list")
    _add(its, show_weights, "info").add_argument("names", nargs="+", metavar="NAME|PATH")
    _add(its, fetch_weights, "fetch").add_argument("names", nargs="+", metavar="NAME")
    _add(its, verify_weights, "verify").add_argument("names", nargs="+", metavar="NAME|PATH")
