"""Helpers for tests of the command line."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from mpnn import cli
from mpnn.synthetic import synthetic_backbone

DIMER = synthetic_backbone(24, chains=2)


@dataclass(frozen=True)
class Run:
    """What a run of the command line left."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Everything that was printed."""
        return self.stdout + self.stderr


def run(*arguments: object) -> Run:
    """Runs the command line; anything but an orderly end fails the test."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        try:
            code = cli.run([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Run(code, out.getvalue(), errors.getvalue())


def sequences(path: Path) -> list[str]:
    """The sequences of a FASTA file with one line each."""
    return path.read_text().splitlines()[1::2]
