"""PDB text as programs write it, made into what gemmi reads without loss.

Only the records that hold atoms, ends of chains and models are passed on, so that score lines,
leftover ANISOU and remarks cannot be taken for something else. Every repair that could change what
is read is said in a note.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mpnn.errors import InputError
from mpnn.residues import PARENTS, tabulated

_RECORD = re.compile(r"ATOM|HETATM|TER(?![A-Z0-9])|MODEL(?![A-Z])|ENDMDL|END(?![A-Z0-9])")
_LOWER_CASE = re.compile(r"^(?:atom  |hetatm)(?=[ \d]{5})", re.M)
_END_LINE = re.compile(r"^END(?![A-Z0-9])", re.M)
_MODEL_NUMBER = re.compile(r"MODEL\s*(\d+)")

_ATOM = r"^((?:ATOM..|HETATM).{24})"
_USUAL = r"(?:(?=[ \d-]{4}\.) *-?\d+\.\d{3}){3}"
"""Three coordinates as nearly all are: passed over before anything is taken apart."""
_UNUSUAL_LINE = re.compile(_ATOM + rf"(?!{_USUAL})(.{{8}})(.{{8}})(.{{8}})", re.M)
_COORDINATE = re.compile(r"\s*[-+]?(\d{1,4}(\.\d*)?|\.\d+)(e[-+]?\d+)?\s*", re.I)  # of %8.3f

COORDINATES_END = 54
"""Columns of an ATOM line up to and with its coordinates."""


@dataclass
class _Model:
    """Records of one model; `number` is None where no MODEL record stands before them."""

    number: int | None
    records: list[str]


def clean_pdb(text: str, where: str) -> tuple[str, list[str]]:
    """PDB text that gemmi reads whole, and notes on what was changed or guessed.

    Coordinates that cannot be read become nan, where gemmi would take what it can; four-letter
    residue names become those of their parents; models are numbered apart.

    Raises:
        InputError: an atom's line is cut off before its coordinates end, or other atoms than those
            before it follow an END.
    """
    if "atom  " in text or "hetatm" in text:
        text = _LOWER_CASE.sub(lambda record: record.group().upper(), text)
    records = [line for line in text.split("\n") if _RECORD.match(line)]
    _check_lengths(records, text, where)
    records, notes = _with_three_letter_names(records)
    records, more = _with_numbered_models(records, text, where)
    return _UNUSUAL_LINE.sub(_with_nan, "\n".join(records)), notes + more


def _check_lengths(records: Sequence[str], text: str, where: str) -> None:
    for record in [record for record in records if len(record) < COORDINATES_END]:
        if record.startswith(("ATOM", "HETATM")):
            line = text.split("\n").index(record) + 1
            raise InputError(
                f"{where}: line {line} ends before the atom's coordinates do: {record.strip()!r}; "
                "the file is cut off or damaged, so write it again"
            )


def _with_nan(line: re.Match[str]) -> str:
    start, *fields = line.groups()
    if fields[2][-1].isdigit() and line.string[line.end() : line.end() + 1].isdigit():
        fields[2] = ""  # its last digits stand in the next columns
    return start + "".join(x if _COORDINATE.fullmatch(x) else "     nan" for x in fields)


def _with_three_letter_names(records: list[str]) -> tuple[list[str], list[str]]:
    """Records with the parents' names where four-letter ones run into the chain's columns."""
    if {record[20:21] for record in records} <= {"", " "}:
        return records, []
    columns = _four_letter_columns(records)
    seen: dict[str, str] = {}
    renamed = []
    for record in records:
        name = record[17:21].strip()
        if record[20:22] in columns and name in PARENTS:
            seen[name] = PARENTS[name]
            record = f"{record[:17]}{PARENTS[name]} {record[21:]}"
        renamed.append(record)
    listed = ", ".join(f"{name} as {parent}" for name, parent in seen.items())
    kind = "four-letter residue names mapped to their parent amino acid"
    return renamed, [f"{kind} ({len(seen)}): {listed}"] if seen else []


def _four_letter_columns(records: Sequence[str]) -> set[str]:
    """Texts of columns 21 and 22 that are a name's fourth letter and a chain, not a chain of two.

    They are where every amino acid that has them bears a known four-letter name, and where none
    has a number of the chain of one letter.
    """
    names: dict[str, set[str]] = {}
    numbers: dict[str, set[str]] = {}
    for record in records:
        if record.startswith("ENDMDL"):
            break
        if record.startswith(("ATOM", "HETATM")):
            names.setdefault(record[20:22], set()).add(record[17:21].strip())
            numbers.setdefault(record[20:22], set()).add(record[22:27])
    return {
        columns
        for columns, known in names.items()
        if columns[0] != " "
        and all(name in PARENTS for name in known if _is_amino_acid(name))
        and not numbers[columns] & numbers.get(f" {columns[1]}", set())
    }


def _is_amino_acid(name: str) -> bool:
    return name in PARENTS or tabulated(name[:3]).is_amino_acid()


def _with_numbered_models(
    records: Sequence[str], text: str, where: str
) -> tuple[list[str], list[str]]:
    """Records with each model between MODEL and ENDMDL, numbered apart."""
    models = _models(records)
    parted_by_end = len(models) > 1 and not any(r.startswith(("MODEL", "ENDMDL")) for r in records)
    if parted_by_end:
        _check_alike(models, text, where)
    if len(models) == 1 and models[0].number is None:
        return models[0].records, []
    numbers = [i if m.number is None else m.number for i, m in enumerate(models, 1)]
    notes = ["models parted by END records"] if parted_by_end else []
    if len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(models) + 1))
        notes.append(f"MODEL numbers used twice: counted from 1 to {len(models)} instead")
    wrapped = []
    for number, model in zip(numbers, models, strict=True):
        wrapped += [f"MODEL {number:8}", *model.records, "ENDMDL"]
    return wrapped, notes


def _models(records: Sequence[str]) -> list[_Model]:
    """The models of a file; without MODEL records ENDMDL or END parts them."""
    edges = [i for i, record in enumerate(records) if record[0] in "ME"]
    models = [_Model(None, list(records[: edges[0] if edges else len(records)]))]
    for start, stop in pairwise([*edges, len(records)]):
        number = _MODEL_NUMBER.match(records[start])
        part = list(records[start + 1 : stop])
        models.append(_Model(int(number[1]) if number else None, part))
    return [m for m in models if m.number is not None or _atoms(m)] or models[:1]


def _atoms(model: _Model) -> list[str]:
    return [record for record in model.records if record.startswith(("ATOM", "HETATM"))]


def _check_alike(models: Sequence[_Model], text: str, where: str) -> None:
    """Refuse atoms after END that are not those before it over again."""
    first, *others = [[atom[12:27] for atom in _atoms(model)] for model in models]
    if any(other != first for other in others):
        end = _END_LINE.search(text)
        line = text.count("\n", 0, end.start() if end else 0) + 1
        raise InputError(
            f"{where}: line {line}: END ends a PDB file, but other atoms follow; take out the line,"
            " or all after it (models have the same atoms, or are parted by MODEL and ENDMDL)"
        )
