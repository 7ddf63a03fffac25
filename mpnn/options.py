"""Options of the command line, as dataclasses that a command takes whole.

A field is an option: its name, with dashes, is the option's, and its annotation holds the help. The
options for rules come from the fields of `mpnn.Rules`. `from __future__ import annotations` is
missing on purpose: annotations are read at run time.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mpnn.rules import FLAG, JSON, NUMBER, TEXT_OR_JSON, Rules

STDOUT = "-"
"""Stands for standard output in place of a folder."""

DONE, SOME_FAILED, FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes: all files succeeded; some failed; all failed or nothing could start; Ctrl-C; SIGTERM.
"""

RULES_OF_SCORES = ("chains", "fixed", "redesigned")
"""Rules that matter where sequences are scored, not sampled."""


class Format(StrEnum):
    """Formats of output."""

    fasta = "fasta"
    json = "json"
    csv = "csv"


class DesignFormat(StrEnum):
    """The same, and the layouts of other pipelines (`mpnn.layouts`)."""

    fasta = "fasta"
    json = "json"
    csv = "csv"
    jsonl = "jsonl"
    ligandmpnn = "ligandmpnn"
    proteindj = "proteindj"
    foundry = "foundry"


class Order(StrEnum):
    """Decoding orders."""

    random = "random"
    graph_coloring = "graph-coloring"


class Structures(StrEnum):
    """Formats of structures, one for each design."""

    input = "input"
    pdb = "pdb"
    cif = "cif"


@dataclass(frozen=True)
class Option:
    """How the command line shows a field."""

    help: str
    metavar: str | None = None


@dataclass(frozen=True)
class RunOptions:
    """Options of designing and scoring."""

    weights: Annotated[
        str | None,
        Option("Shipped or published name, or path of a checkpoint.", metavar="NAME|PATH"),
    ] = None
    engine: Annotated[
        str | None, Option("How to run the network; exact by default, or ssm for such weights.")
    ] = None
    device: Annotated[str, Option("cpu, mps or cuda.")] = "cpu"
    seed: Annotated[str, Option("Keys all random numbers; several with commas.", metavar="S")] = "0"
    rules: Annotated[
        str | None,
        Option(
            "JSON or CSV file of structure -> rules, named as these options with underscores. They "
            "replace the options' for that structure.",
            metavar="FILE",
        ),
    ] = None
    published_rules: Annotated[
        list[str] | None,
        Option(
            "A file of ProteinMPNN's helper scripts, recognized by its content: chain_id, "
            "fixed_positions, tied_positions, omit_AA, bias_AA, bias_by_res or pssm. Repeat the "
            "option for several files.",
            metavar="FILE",
        ),
    ] = None
    fixed_labels: Annotated[
        bool, Option('Fix the residues that "REMARK PDBinfo-LABEL: n FIXED" lines name.')
    ] = False
    structure_model: Annotated[
        int | None, Option("Model number in an NMR file; the first by default.", metavar="N")
    ] = None
    split_breaks: Annotated[
        bool, Option("Start a new chain where consecutive residues are not bonded.")
    ] = False
    workers: Annotated[
        int | None,
        Option(
            "Structures side by side, a process with one thread for each; all cores by default "
            "where there are many structures, otherwise the threads of one process.",
            metavar="N",
        ),
    ] = None
    shard: Annotated[
        str | None,
        Option(
            "Part I of N of the structures, by their names' order. Shards may share a folder; "
            "`mpnn collect` puts them together.",
            metavar="I/N",
        ),
    ] = None
    dask: Annotated[
        str | None,
        Option("Work on a Dask cluster: its scheduler, or scheduler file.", metavar="ADDRESS"),
    ] = None


@dataclass(frozen=True)
class DesignOptions(RunOptions):
    """Options of `mpnn design`."""

    num_seqs: Annotated[
        int, Option("Sequences per structure, seed and temperature.", metavar="N")
    ] = 1
    temperature: Annotated[
        str, Option("Sampling temperature; several with commas.", metavar="T")
    ] = "0.1"
    order: Annotated[
        Order, Option("Decoding order: random as published, or graph coloring in fewer steps.")
    ] = Order.random
    batch_size: Annotated[
        int | None,
        Option(
            "Sequences sampled at once; bounds memory, changes no sequence. By length by default.",
            metavar="N",
        ),
    ] = None
    out: Annotated[str, Option('Folder for one file per structure; "-" prints.', metavar="DIR")] = (
        "seqs"
    )
    format: Annotated[
        DesignFormat,
        Option(
            "Format of the files: fasta, json, csv, jsonl (a line per design), or the files that "
            "other pipelines read: ligandmpnn (ProtFlow, OVO), proteindj, foundry."
        ),
    ] = DesignFormat.fasta
    structures: Annotated[
        Structures | None,
        Option(
            "Write one structure per design to DIR/structures too, as pdb, cif, or in the format "
            "of the input where neither is named: the new residue names on the input's backbone, "
            "-log p of each residue in the B-factors."
        ),
    ] = None
    probs: Annotated[
        bool,
        Option("Write DIR/NAME.npz too, with the log-probabilities of each sequence as sampled."),
    ] = False


@dataclass(frozen=True)
class ScoreOptions(RunOptions):
    """Options of `mpnn score`."""

    fasta: Annotated[
        str | None,
        Option(
            'Sequences to score instead of the structure\'s own; "/" or ":" between chains.',
            metavar="FILE",
        ),
    ] = None
    conditional: Annotated[
        bool, Option("Score each residue given all other residues, one pass per residue.")
    ] = False
    pseudo_likelihood: Annotated[
        bool,
        Option(
            "Score each residue given all others in one pass in all, as Foundry's "
            "conditional_minus_self: close to --conditional, but a residue's own type reaches it "
            "through its neighbors from the second decoder layer on."
        ),
    ] = False
    unconditional: Annotated[bool, Option("Score each residue given the backbone alone.")] = False
    out: Annotated[str, Option('Folder for one file per structure; "-" prints.', metavar="DIR")] = (
        "scores"
    )
    format: Annotated[
        Format, Option("csv: a row per residue; json: everything; fasta: sequences.")
    ] = Format.csv
    probs: Annotated[
        bool, Option("Write DIR/NAME.npz too, with the log-probabilities of each sequence.")
    ] = False


def add_options(parser: argparse._ActionsContainer, kind: type) -> None:
    """Adds one option for each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        value_type, option = get_args(hints[field.name])
        arguments: dict[str, Any] = {"help": option.help, "default": field.default}
        if value_type is bool:
            arguments["action"] = "store_true"
        else:
            arguments |= _of_type(value_type) | {"metavar": option.metavar}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **arguments)


def with_optional_values(arguments: Sequence[str]) -> list[str]:
    """Arguments with the value of --structures filled in where it has none.

    argparse would take the file after it for its value.
    """
    named = [form.value for form in Structures]
    return [
        f"{word}=input" if word == "--structures" and after not in named else word
        for word, after in zip(arguments, [*arguments[1:], ""], strict=True)
    ]


def _of_type(value_type: Any) -> dict[str, Any]:
    """How argparse reads a value: `X | None` as X, list[X] from several options, enums by name."""
    one = next(t for t in (*get_args(value_type), value_type) if t is not type(None))
    if get_origin(one) is list or get_origin(value_type) is list:
        return {"action": "append"}
    if issubclass(one, StrEnum):
        return {"type": _member_of(one), "choices": list(one)}
    return {"type": one}


def _member_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def member(text: str) -> StrEnum:
        if text not in list(kind):
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(kind)}")
        return kind(text)

    return member


def add_rules(parser: argparse._ActionsContainer, names: Sequence[str] = ()) -> None:
    """Adds one option for each field of `mpnn.Rules`, or for the named ones."""
    for rule in dataclasses.fields(Rules):
        kind, text = rule.metadata["kind"], rule.metadata["help"]
        if kind is None or (names and rule.name not in names):
            continue
        flag = f"--{rule.name.replace('_', '-')}"
        if kind == FLAG:
            parser.add_argument(flag, action="store_true", help=text)
        elif kind == NUMBER:
            parser.add_argument(flag, type=float, help=text, metavar="X", default=rule.default)
        elif kind == JSON:
            text += " A JSON file, for all structures or of structure -> such an object."
            parser.add_argument(flag, help=text, metavar="FILE")
        else:
            if kind == TEXT_OR_JSON:
                text += " Or a JSON file of structure -> residues, as LigandMPNN takes."
            parser.add_argument(flag, help=text, metavar="TEXT", default="")


def taken(kind: type, values: dict[str, Any]) -> Any:
    """Makes the dataclass of the options that `add_options` added; removes them from `values`."""
    return kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
