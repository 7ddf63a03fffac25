"""Helpers for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import typer.testing

from mpnn.cli import app
from mpnn.synthetic import made_up_backbone

DIMER = made_up_backbone(24, chains=2)


def run(*arguments: object) -> typer.testing.Result:
    """Runs the command line; anything but an orderly end fails the test."""
    result = typer.testing.CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def sequences(path: Path) -> list[str]:
    """The sequences of a FASTA file with one line each."""
    return path.read_text().splitlines()[1::2]
