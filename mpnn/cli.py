"""The command line: mpnn design | score | train | distill | weights | report | variants.

Heavy imports stand in the commands, so that help comes at once. Typer reads annotations, so those
of commands are not postponed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mpnn.errors import InputError
from mpnn.options import (
    FAILED,
    INTERRUPTED,
    DesignOptions,
    Files,
    ScoreOptions,
    takes_options,
)

app = typer.Typer(
    help="Design protein sequences for backbones, and score them: ProteinMPNN made fast.",
    epilog="Exit code: 0 all is well, 1 some files failed, 2 nothing could be done, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Entry point of `mpnn`."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stdout.flush()
            os._exit(INTERRUPTED)  # workers in the middle of a batch would keep Python waiting
        raise


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turns a user's mistake and Ctrl-C into one line and an exit code."""
    try:
        yield
    except InputError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from error


@app.command()
@takes_options(DesignOptions)
def design(files: Files, options: DesignOptions) -> None:
    """Draw sequences for structures; one file each, in the form that ProteinMPNN writes."""
    with _user_errors():
        from mpnn import jobs

        raise typer.Exit(jobs.design(files, options))


@app.command()
@takes_options(ScoreOptions)
def score(files: Files, options: ScoreOptions) -> None:
    """Score structures' own sequences, or given ones, with probabilities for every residue."""
    with _user_errors():
        from mpnn import jobs

        raise typer.Exit(jobs.score(files, options))


Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting.", metavar="NAME=VALUE")
]


@app.command()
def train(config: str, changes: Settings = None) -> None:
    """Train a network; CONFIG is a TOML file with settings of `mpnn.training.TrainConfig`.

    A run that was stopped goes on from its last saved step.
    """
    with _user_errors():
        from mpnn.training import job

        job.train([config], changes or [], distill=False)


@app.command()
def distill(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG...")], changes: Settings = None
) -> None:
    """Train a network on the answers of another: as `train`, with `teacher` set.

    Several students of one teacher learn in lockstep, from one answer for all.
    """
    with _user_errors():
        from mpnn.training import job

        job.train(configs, changes or [], distill=True)


@app.command()
def report(
    runs: Annotated[str, typer.Argument(help="Folder of the stored runs.")] = "baselines",
    out: Annotated[str, typer.Option(help="The page to write.")] = "report.html",
    readme: Annotated[
        str | None, typer.Option(help="A README whose ten rows are to be renewed as well.")
    ] = None,
    results: Annotated[
        str | None, typer.Option(help="Write every table to this Markdown file as well.")
    ] = None,
) -> None:
    """Write claims, measurements and verdicts of the stored runs as one HTML page."""
    with _user_errors():
        from mpnn.regression.page import write_html
        from mpnn.regression.report import renew_readme, renew_results

        for path, renew in ((readme, renew_readme), (results, renew_results)):
            if path is not None:
                renewed = renew(Path(runs), Path(path))
                typer.echo(f"{path}: {'renewed' if renewed else 'is up to date'}")
        write_html(Path(runs), Path(out))
        typer.echo(out)


@app.command()
def variants() -> None:
    """List the variants that claims are about: architecture, engine, batch, device."""
    with _user_errors():
        from mpnn.variants import VARIANTS

        for name, v in VARIANTS.items():
            typer.echo(f"{name:24}{v.architecture:16}{v.engine:12}batch {v.batch:<4}{v.device}")


weights = typer.Typer(help="Find, fetch and check weights.", no_args_is_help=True)
app.add_typer(weights, name="weights")


@weights.command("list")
def list_weights() -> None:
    """List the names that --weights takes, and where each one is."""
    with _user_errors():
        from mpnn.weights import locations

        for name, where in locations().items():
            typer.echo(f"{name:24}{where}")


@weights.command("fetch")
def fetch_weights(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Download published weights into the user's cache; a broken download is gone on with."""
    with _user_errors():
        from mpnn.files import fetch_all

        for path in fetch_all(names):
            typer.echo(path)


@weights.command("verify")
def verify_weights(
    names: Annotated[list[str], typer.Argument(metavar="NAME|PATH...")],
) -> None:
    """Load checkpoints as design would, and say what they are."""
    with _user_errors():
        from rich.pretty import pretty_repr

        from mpnn.weights import find_weights, load_weights

        for name in names:
            path = find_weights(name)
            network, card = load_weights(path)
            typer.echo(f"{path}: {network.config}\n{pretty_repr(card)}")
