"""Options of the command line, as dataclasses that a command takes whole.

`from __future__ import annotations` is missing on purpose: typer reads the annotations.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

STDOUT = "-"
"""Stands for standard output in place of a folder."""

DONE, SOME_FAILED, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all is well; some files failed; nothing could be done; Ctrl-C."""


class Format(StrEnum):
    """Forms of output."""

    fasta = "fasta"
    json = "json"
    csv = "csv"


class Order(StrEnum):
    """Orders of decoding."""

    random = "random"
    graph_coloring = "graph-coloring"


Files = Annotated[
    list[str], Argument(help="PDB or mmCIF files (.gz too), or folders of them.", metavar="FILE")
]


@dataclass(frozen=True)
class RunOptions:
    """What designing and scoring share."""

    weights: Annotated[
        str | None,
        Option(help="Shipped or published name, or path of a checkpoint.", metavar="NAME|PATH"),
    ] = None
    engine: Annotated[
        str | None, Option(help="How the network is run; exact, or ssm for such weights.")
    ] = None
    device: Annotated[str, Option(help="cpu, mps or cuda.")] = "cpu"
    seed: Annotated[str, Option(help="Keys all randomness; several with commas.", metavar="S")] = (
        "0"
    )
    chains: Annotated[
        str, Option(help="Chains to design; the others are context. All if not given.")
    ] = ""
    fixed: Annotated[str, Option(help='Residues that keep their letter: "A1-10,B5".')] = ""
    structure_model: Annotated[
        int | None, Option(help="Model number in an NMR file; the first if not given.")
    ] = None


@dataclass(frozen=True)
class DesignOptions(RunOptions):
    """Options of `mpnn design`."""

    num_seqs: Annotated[int, Option(help="Sequences per structure, seed and temperature.")] = 1
    temperature: Annotated[
        str, Option(help="Sampling temperature; several with commas.", metavar="T")
    ] = "0.1"
    tied: Annotated[
        str, Option(help='Residues that share a letter, groups parted by "|": "A1,B1|A2,B2".')
    ] = ""
    homo_oligomer: Annotated[
        bool, Option("--homo-oligomer", help="Tie the designed chains residue by residue.")
    ] = False
    omit: Annotated[str, Option(help='Letters never drawn: "CM".')] = ""
    bias: Annotated[str, Option(help='Added to the logits of letters: "A:-1.1,F:0.7".')] = ""
    omit_per_residue: Annotated[
        str | None, Option(help='JSON file, letters never drawn by place: {"A12": "CP"}.')
    ] = None
    bias_per_residue: Annotated[
        str | None, Option(help='JSON file, bias by place: {"A12": {"F": 1.5}}.')
    ] = None
    order: Annotated[
        Order,
        Option(help="Order of decoding: random as published, or graph-coloring: fewer steps."),
    ] = Order.random
    batch_size: Annotated[
        int, Option(help="Sequences drawn side by side; bounds memory, changes no sequence.")
    ] = 8
    out: Annotated[
        str, Option(help='Folder for one file per structure; "-" prints.', metavar="DIR")
    ] = "seqs"
    format: Annotated[Format, Option(help="Form of the files: .fa, .json or .csv.")] = Format.fasta


@dataclass(frozen=True)
class ScoreOptions(RunOptions):
    """Options of `mpnn score`."""

    fasta: Annotated[
        str | None,
        Option(help="Sequences to score in place of the structure's own.", metavar="FILE"),
    ] = None
    conditional: Annotated[
        bool, Option("--conditional", help="Each residue sees all other letters.")
    ] = False
    unconditional: Annotated[
        bool, Option("--unconditional", help="Each residue sees no letters.")
    ] = False
    out: Annotated[
        str, Option(help='Folder for one file per structure; "-" prints.', metavar="DIR")
    ] = "scores"
    format: Annotated[
        Format, Option(help="csv: a row per residue; json: everything; fasta: sequences.")
    ] = Format.csv


def takes_options(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command of (arguments…, options) one option for each field of a dataclass."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(kind, include_extras=True)
        fields = [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
            )
            for f in dataclasses.fields(kind)
        ]
        *arguments, _ = inspect.signature(command, eval_str=True).parameters.values()

        @functools.wraps(command)
        def call(**values: Any) -> None:
            given = [values.pop(argument.name) for argument in arguments]
            command(*given, kind(**values))

        call.__signature__ = inspect.Signature([*arguments, *fields])  # type: ignore[attr-defined]
        return call

    return decorate
