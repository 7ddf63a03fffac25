"""A file that was damaged, reordered, relabeled or merged never changes a design in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_files import pdb_text

from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone

Lines = list[str]
Change = Callable[[st.DrawFn, Lines], Lines]

LETTERS = "MKELHDCRYAGPSTVWFNQI"
PAIR = synthetic_backbone(48, 2)
PAIR = dataclasses.replace(PAIR, sequence="".join(LETTERS[i % 20] for i in range(48)))
FILE = pdb_text(PAIR).splitlines()[:-1]
INSERTED = (
    *("TER", "END", "ENDMDL", "MODEL        2", "MODEL        1", "model 1", "end", "ter", ""),
    *("atom_pair_constraint 1.25", "ANISOU    1  N   PRO A   1     1200", "REMARK A"),
)
FAR = synthetic_backbone(20, 1, seed=5)


def columns(line: str, start: int, text: str) -> str:
    """The line with a text from a column (the first is 1) on."""
    return line[: start - 1] + text + line[start - 1 + len(text) :]


def shifted(lines: Lines, by: float) -> Lines:
    return [columns(x, 31, f"{float(x[30:38]) + by:8.3f}") for x in lines]


def is_atom(line: str) -> bool:
    return line.startswith(("ATOM  ", "HETATM")) and len(line) >= 54


def residues(lines: Lines) -> list[Lines]:
    """Lines in blocks of one residue each; other lines stay with the block before."""
    blocks: list[Lines] = []
    for line in lines:
        if blocks and (not is_atom(line) or line[16:27] == blocks[-1][0][16:27]):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def joined(blocks: Iterable[Lines]) -> Lines:
    return [line for block in blocks for line in block]


def some_run(draw: st.DrawFn, blocks: list[Lines]) -> tuple[int, int]:
    """First residue of a run and the one after it, often at the end of a chain."""
    size = draw(st.integers(1, min(12, len(blocks))))
    last = len(blocks) - size
    ends = [min(max(row, 0), last) for row in (0, 24 - size, 24, last)]
    start = draw(st.integers(0, last) | st.sampled_from(ends))
    return start, start + size


def on_a_run(change: Callable[[st.DrawFn, list[Lines]], list[Lines]]) -> Change:
    """A change to the residues of some run."""

    def changed(draw: st.DrawFn, lines: Lines) -> Lines:
        blocks = residues(lines)
        start, stop = some_run(draw, blocks)
        return joined([*blocks[:start], *change(draw, blocks[start:stop]), *blocks[stop:]])

    return changed


def on_atoms(change: Callable[[str], str]) -> Callable[[list[Lines]], list[Lines]]:
    return lambda run: [[change(x) if is_atom(x) else x for x in block] for block in run]


def move_a_run(draw: st.DrawFn, lines: Lines) -> Lines:
    blocks = residues(lines)
    start, stop = some_run(draw, blocks)
    others = [*blocks[:start], *blocks[stop:]]
    to = draw(st.integers(0, len(others)))
    return joined([*others[:to], *blocks[start:stop], *others[to:]])


def shuffle(draw: st.DrawFn, lines: Lines) -> Lines:
    return joined(draw(st.permutations(residues(lines))))


def shuffle_atoms(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    return [draw(st.permutations(block)) for block in run]


def rename(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    names = ["MSE ", "HISE", "LYSH", "ASPP", "NALA", "HID ", "LSN ", "UNK ", "X#? ", "DAL ", "HOH "]
    name = draw(st.sampled_from(names))
    return on_atoms(lambda x: columns(x, 18, name))(run)


def as_hetero(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    name = draw(st.sampled_from(["", "MSE", "SEP"]))
    return on_atoms(lambda x: columns(columns(x, 1, "HETATM"), 18, name))(run)


def rename_chain(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    chain = draw(st.sampled_from([" A", " B", " C", "  ", "HA", " a"]))
    return on_atoms(lambda x: columns(x, 21, chain))(run)


def rename_all_chains(draw: st.DrawFn, lines: Lines) -> Lines:
    chain = draw(st.sampled_from([" A", "  ", "HA"]))
    return joined(on_atoms(lambda x: columns(x, 21, chain))([lines]))


def renumber(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    by = draw(st.integers(-30, 30) | st.sampled_from([1000, -1]))
    return on_atoms(lambda x: columns(x, 23, f"{int(x[22:26]) + by:4}"))(run)


def number_alike(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    number = draw(st.integers(1, 26))
    return on_atoms(lambda x: columns(x, 23, f"{number:4}"))(run)


def merge_chains(draw: st.DrawFn, lines: Lines) -> Lines:
    """All residues under one chain's name, their numbers going on."""
    first, chain = draw(st.integers(-20, 20)), draw(st.sampled_from("AC "))
    return joined(
        on_atoms(lambda x, to=number: columns(x, 22, f"{chain}{to:4}"))([block])[0]
        for number, block in enumerate(residues(lines), first)
    )


def insertion_codes(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    first = draw(st.sampled_from("AX"))
    number = run[0][0][22:26]
    codes = (number + chr(ord(first) + i % 3) for i in range(len(run)))
    return [
        on_atoms(lambda x, to=code: columns(x, 23, to))([block])[0]
        for block, code in zip(run, codes, strict=True)
    ]


def alternate(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    """A second conformation, residue by residue or in a block."""
    labels = draw(st.sampled_from(["AB", " B", "BA", "  "]))
    share = draw(st.sampled_from([0.2, 0.5, 0.8]))
    first = on_atoms(lambda x: columns(columns(x, 17, labels[0]), 55, f"{share:6.2f}"))(run)
    second = [
        columns(columns(x, 17, labels[1]), 55, f"{1 - share:6.2f}")
        for x in joined(run)
        if is_atom(x)
    ]
    second = shifted(second, draw(st.sampled_from([0.4, 0.0])))
    if draw(st.booleans()):
        return [*first, *residues(second)]
    return [joined(pair) for pair in zip(first, residues(second), strict=False)]


def drop_atoms(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    name = draw(st.sampled_from([" N  ", " CA ", " C  ", " O  "]))
    return [[x for x in block if x[12:16] != name] for block in run]


def rename_atoms(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    names = st.sampled_from([" N  ", " CA ", " C  ", " O  ", " OXT", " OT1", " CB "])
    old, new = draw(names), draw(names)
    swap = {old: new, new: old}
    return on_atoms(lambda x: columns(x, 13, swap.get(x[12:16], x[12:16])))(run)


def spoil_coordinates(draw: st.DrawFn, run: list[Lines]) -> list[Lines]:
    at = draw(st.sampled_from([31, 39, 47]))
    bad = draw(st.sampled_from(["********", "        ", "     nan", "   0.0.1", " 1e9    "]))
    return on_atoms(lambda x: columns(x, at, bad))(run)


def write_in_lower_case(_: st.DrawFn, run: list[Lines]) -> list[Lines]:
    return on_atoms(str.lower)(run)


def repeat(draw: st.DrawFn, lines: Lines) -> Lines:
    """Some lines over again, there or at the end."""
    start = draw(st.integers(0, len(lines) - 1))
    part = lines[start : start + draw(st.integers(1, 200))]
    at = draw(st.sampled_from([start, len(lines)]))
    return [*lines[:at], *part, *lines[at:]]


def replace_a_character(draw: st.DrawFn, lines: Lines) -> Lines:
    """One character before the coordinates; no amino acid's name becomes another's."""
    row, column = draw(st.integers(0, len(lines) - 1)), draw(st.integers(1, 30))
    character = draw(st.sampled_from("#? " if 18 <= column <= 20 else "#? 17AZ-"))
    return [*lines[:row], columns(lines[row], column, character), *lines[row + 1 :]]


def shift_a_line(draw: st.DrawFn, lines: Lines) -> Lines:
    """A blank too many or too few, which shifts the columns after it."""
    row = draw(st.integers(0, len(lines) - 1))
    line = lines[row]
    blanks = [i for i, x in enumerate(line[:54]) if x == " "]
    if not blanks:
        return lines
    at = draw(st.sampled_from(blanks))
    new = line[:at] + draw(st.sampled_from(["", "  "])) + line[at + 1 :]
    return [*lines[:row], new, *lines[row + 1 :]]


def cut_a_line(draw: st.DrawFn, lines: Lines) -> Lines:
    row = draw(st.integers(0, len(lines) - 1))
    return [*lines[:row], lines[row][: draw(st.integers(0, 54))], *lines[row + 1 :]]


def insert(draw: st.DrawFn, lines: Lines) -> Lines:
    """A line that another program writes, or a record at a place of its own."""
    line = draw(st.sampled_from(INSERTED))
    at = draw(st.integers(0, len(lines)))
    return [*lines[:at], line, *lines[at:]]


def add_another(draw: st.DrawFn, lines: Lines) -> Lines:
    """Another protein or ligand, or the file again, under a chain's name, before or behind."""
    other = shifted(pdb_text(FAR).splitlines()[:-1], 200)
    kind = draw(st.sampled_from(["chain", "residue", "ligand", "water", "whole file"]))
    if kind == "whole file":
        other = list(lines)
    elif kind != "chain":
        other = other[:4]
    if kind in ("ligand", "water"):
        name = "GLY" if kind == "ligand" else "HOH"
        other = [columns(columns(x, 1, "HETATM"), 18, name) for x in other]
    by, chain = draw(st.sampled_from([0, 24, 100, -50])), draw(st.sampled_from("AB"))
    other = [columns(x, 22, f"{chain}{int(x[22:26]) + by:4}") if is_atom(x) else x for x in other]
    parts = [lines, draw(st.sampled_from([["TER"], [], ["END"]])), other]
    return joined(parts if draw(st.booleans()) else parts[::-1])


LAYOUT: tuple[Change, ...] = (
    *(move_a_run, shuffle, rename_all_chains, merge_chains, repeat, add_another),
    *map(on_a_run, (shuffle_atoms, rename, as_hetero, rename_chain, renumber, number_alike)),
    *map(on_a_run, (insertion_codes, alternate, drop_atoms, rename_atoms)),
)
"""Changes that leave every line well-formed, and may follow one another."""

DAMAGE: tuple[Change, ...] = (
    *(replace_a_character, shift_a_line, cut_a_line, insert),
    *map(on_a_run, (spoil_coordinates, write_in_lower_case)),
)


@st.composite
def changed_files(draw: st.DrawFn) -> str:
    """The text of a file after one to three changes."""
    count = draw(st.sampled_from([1, 1, 2, 3]))
    damaged = draw(st.integers(0, count))
    lines = FILE
    for i in range(count):
        change = draw(st.sampled_from(LAYOUT if i < count - damaged else DAMAGE))
        lines = change(draw, lines) or lines
    end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))
    return end.join(lines) + end + "\n"


def chains_of(backbone: Backbone) -> list[tuple[str, bytes, bytes]]:
    """What a design depends on, chain by chain and whatever the chains are called."""
    rows = [np.flatnonzero(backbone.chain_index == i) for i in range(len(backbone.chain_ids))]
    return sorted(
        (
            "".join(backbone.sequence[i] for i in part),
            backbone.mask[part].tobytes(),
            backbone.coords[part].tobytes(),
        )
        for part in rows
    )


@settings(max_examples=400)
@given(changed_files())
def test_no_design_changes_in_silence(text: str) -> None:
    """A changed file gives the clean file's design, or a note, or an InputError."""
    try:
        backbone = read_structure(text)
    except InputError:
        return
    if not backbone.notes:
        assert chains_of(backbone) == chains_of(read_structure("\n".join(FILE)))
