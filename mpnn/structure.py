"""From a structure file, its text or an object in memory to a `Backbone`.

Author chain names and author residue numbers are used throughout. `polymer` says which residues
are in a chain and in which order; beyond that:

* A modified residue has its parent's letter where gemmi's table names a standard one, else X; names
  that force fields give to states of protonation (HIE, CYX, …) count as their residues'.
* A residue without finite N, CA, C and O is masked and keeps its letter; a coordinate that cannot
  be read, or runs over its columns, is not finite, and atoms that lie on one another are none.
* A number missing between two residues in a row becomes a masked X, once per number and only if it
  occurs nowhere in the chain; where numbering runs backwards nothing is filled. A jump is filled
  whatever its length, up to `MAX_GAP` positions a chain; beyond that the file is refused.

Whatever was masked, mapped, chosen, joined, skipped or filled is said in `Backbone.notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import ATOMS, MAX_GAP, Backbone, Chain, assemble, check_chain_names
from mpnn.bonds import (
    PEPTIDE_BOND,
    Notes,
    Polymer,
    hidden_breaks,
    read_polymer,
    split_at_breaks,
    with_insertion_codes,
)
from mpnn.errors import InputError
from mpnn.residues import is_standard, one_letter
from mpnn.sources import Source, Tree, name_of, read_tree

__all__ = ["ATOMS", "MAX_GAP", "Backbone", "Chain", "assemble", "name_of", "read_structure"]

BOND_RANGE = (1.2, 1.8)
"""Å that N–CA (1.46) and CA–C (1.53) of any usable structure lie between."""

_MASKED = "incomplete residues masked"
_MODIFIED = "modified residues mapped to their parent amino acid"
_UNKNOWN = "unknown residues read as X"
_HIGHEST = "alternate conformations, the one with the highest occupancy kept"
_MOST_COMPLETE = "alternate conformations, the most complete one kept"
_OXYGEN = "C-terminal oxygen of another name read as O"
_GEOMETRY = f"implausible bonds, N–CA or CA–C not {BOND_RANGE[0]} to {BOND_RANGE[1]} Å"
_END_TO_END = "chains bonded end to end"
_BACKWARDS = "numbers run backwards without a bond"


def read_structure(
    source: Source,
    chains: Sequence[str] | None = None,
    model: int | None = None,
    *,
    split_breaks: bool = False,
    name: str | None = None,
) -> Backbone:
    """Read a structure: PDB, mmCIF or mmJSON, plain or gzipped, told by its content, or an object.

    Args:
        source: a path, the text itself (a string with line breaks), an open file, a
            `gemmi.Structure`, or a biotite `AtomArray` or `AtomArrayStack`. It stays as it is.
        chains: author names of the chains to keep, in this order; all protein chains if None.
            A chain without a name in the file is called "_".
        model: number of the model to read; the first that has atoms if None.
        split_breaks: start a new chain, under a free name, where two residues in a row have no
            peptide bond although their numbers leave no gap between them.
        name: what to call the structure; the file's name without its ending if None.

    Raises:
        InputError: the source cannot be read as a structure, holds no protein chain or only CA
            atoms, is not in Å, lacks a chain or the model asked for, names two residues alike, or
            has other atoms after END.
    """
    tree = read_tree(source)
    picked = _pick_model(tree, model)
    notes = [*tree.notes, *_model_notes(tree.structure, picked)]
    polymers = _proteins(picked, tree.where)
    if without := [c.name or "_" for c in picked if (c.name or "_") not in polymers]:
        notes.append(f"chains without protein left out ({len(without)}): {_listed(without)}")
    if split_breaks:
        polymers = split_at_breaks(polymers, [chain.name for chain in picked], tree.where)
    if chains is not None:
        polymers = _selected(polymers, chains, tree.where)
    whole = [with_insertion_codes(polymer, tree.where) for polymer in polymers.values()]
    _check_atoms(whole, tree.where)
    notes += [*_residue_notes(whole), *_break_notes(whole), *_end_to_end_notes(whole)]
    return assemble(name or tree.name, [_as_chain(polymer) for polymer in whole], notes)


def _selected(
    polymers: dict[str, Polymer], chains: Sequence[str], where: str
) -> dict[str, Polymer]:
    """The chains of some names, in their order."""
    asked = chains.split(",") if isinstance(chains, str) else chains
    order = [chain.strip() for chain in asked]
    check_chain_names(where, order, list(polymers))
    return {chain: polymers[chain] for chain in order}


def _pick_model(tree: Tree, number: int | None) -> gemmi.Model:
    """The model of a number, or the first with atoms."""
    with_atoms = [model for model in tree.structure if len(model)]
    if number is None:
        return with_atoms[0]
    for model in with_atoms:
        if model.num == number:
            return model
    there = [model.num for model in with_atoms]
    raise InputError(
        f"{tree.where}: there is no model {number}; it has {_listed(there)} ({len(there)} in all)"
    )


def _model_notes(structure: gemmi.Structure, picked: gemmi.Model) -> list[str]:
    if len(structure) == 1:
        return []
    empty = [model.num for model in structure if not len(model)]
    without = f"; without atoms: {_listed(empty)}" if empty else ""
    return [f"model {picked.num} read, of {len(structure)}{without}"]


def _proteins(model: gemmi.Model, where: str) -> dict[str, Polymer]:
    """Each chain that has protein, by name, in file order."""
    found = {chain.name or "_": read_polymer(chain, where) for chain in model}
    if len(found) < len(model):
        raise InputError(
            f"{where}: two chains have the same name; there are {_listed(list(found))}"
        )
    proteins = {name: polymer for name, polymer in found.items() if polymer.sites}
    if not proteins:
        names = {residue.name for chain in model for residue in chain}
        nucleic = any(gemmi.find_tabulated_residue(name).is_nucleic_acid() for name in names)
        kind = "nucleic acid" if nucleic else "no polymer of amino acids"
        held = f"chains {_listed(list(found))} hold {kind} ({_listed(sorted(names))})"
        raise InputError(f"{where}: no protein chain; {held}")
    return proteins


def _check_atoms(polymers: Sequence[Polymer], where: str) -> None:
    """Refuse a structure without a single complete residue, or one that is not in Å."""
    xyz = np.concatenate([polymer.xyz for polymer in polymers])
    complete = xyz[_complete(xyz)]
    if not len(complete):
        present = np.isfinite(xyz[..., 0]).any(0)
        if present.tolist() == [atom == "CA" for atom in ATOMS]:
            raise InputError(
                f"{where}: a CA-only trace; the network needs N, CA, C and O of each residue, so "
                "rebuild the backbone first"
            )
        raise InputError(f"{where}: no residue has all of N, CA, C and O, which are needed")
    outside = _implausible(complete)
    if 2 * outside.sum() > len(complete):
        n_ca, ca_c = np.median(_bonds(complete), axis=0)
        nanometers = n_ca < BOND_RANGE[0] / 5
        raise InputError(
            f"{where}: N–CA is {n_ca:.3f} and CA–C {ca_c:.3f} Å long in the median residue, not "
            f"{BOND_RANGE[0]} to {BOND_RANGE[1]} Å in {outside.sum()} of {len(complete)} residues; "
            + (
                "these are nanometers: multiply coordinates by 10"
                if nanometers
                else "give the coordinates of a backbone in Å"
            )
        )


def _bonds(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of N–CA and CA–C in Å, [R, 2]."""
    lengths: NDArray[np.float64] = np.linalg.norm(xyz[:, 1:3] - xyz[:, 0:2], axis=-1)
    return lengths


def _implausible(xyz: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which residues have bonds outside `BOND_RANGE`, [R]; none where an atom is absent."""
    lengths = _bonds(xyz)
    outside: NDArray[np.bool_] = np.any(
        (lengths < BOND_RANGE[0]) | (lengths > BOND_RANGE[1]), axis=1
    )
    return outside


def _complete(xyz: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which residues have all four atoms, [R]."""
    complete: NDArray[np.bool_] = np.all(np.isfinite(xyz), axis=(1, 2))
    return complete


def _as_chain(polymer: Polymer) -> Chain:
    return Chain(
        name=polymer.name,
        coords=polymer.xyz.astype(np.float32),
        complete=_complete(polymer.xyz),
        letters="".join(one_letter(site.name) for site in polymer.sites),
        numbers=np.array([site.number for site in polymer.sites], dtype=np.int64),
        insertion_codes=np.array([site.code for site in polymer.sites], dtype="<U1"),
    )


def _residue_notes(polymers: Sequence[Polymer]) -> list[str]:
    """What was done to the residues as they were read, one sentence per kind."""
    notes: Notes = {}
    for polymer in polymers:
        for kind, items in polymer.notes.items():
            notes.setdefault(kind, []).extend(items)
        for row, kind, words in _remarks(polymer):
            notes.setdefault(kind, []).append(polymer.address(row) + words)
    return [f"{kind} ({len(items)}): {_listed(items)}" for kind, items in notes.items()]


def _remarks(polymer: Polymer) -> Iterator[tuple[int, str, str]]:
    """Row, kind and further words of each thing done to a residue."""
    for row in np.flatnonzero(~_complete(polymer.xyz)).tolist():
        yield row, _MASKED, ""
    for row, site in enumerate(polymer.sites):
        if not is_standard(site.name):
            letter = one_letter(site.name)
            as_letter = "" if letter == "X" else f" as {letter}"
            yield row, _MODIFIED if as_letter else _UNKNOWN, f" {site.name}{as_letter}"
        if site.kept:
            yield row, _MOST_COMPLETE if site.complete_first else _HIGHEST, f" {site.kept}"
        if site.oxygen:
            yield row, _OXYGEN, f" {site.oxygen}"
    for row in np.flatnonzero(_implausible(polymer.xyz)).tolist():
        yield row, _GEOMETRY, ""


def _break_notes(polymers: Sequence[Polymer]) -> list[str]:
    """Breaks that numbering hides, and places where it runs backwards for no bond."""
    consecutive: list[str] = []
    backwards: list[str] = []
    lengths: list[float] = []
    for polymer in polymers:
        for row, length in hidden_breaks(polymer).items():
            between = f"{polymer.address(row)}–{polymer.address(row + 1)}"
            if polymer.sites[row + 1].number < polymer.sites[row].number:
                backwards.append(between)
            else:
                consecutive.append(between)
                lengths.append(length)
    notes = []
    if consecutive:
        low, high = f"{min(lengths):.3g}", f"{max(lengths):.3g}"
        distance = high if len(lengths) == 1 else f"{low} to {high}"
        count = "" if len(lengths) == 1 else f" ({len(lengths)})"
        notes = [f"consecutive numbers, C–N {distance} Å{count}: {_listed(consecutive)}"]
    if backwards:
        notes.append(f"{_BACKWARDS} ({len(backwards)}): {_listed(backwards)}")
    return notes


def _end_to_end_notes(polymers: Sequence[Polymer]) -> list[str]:
    """Chains that go on from the end of another, as parts of one chain would."""
    last = np.array([polymer.xyz[-1, 2] for polymer in polymers])
    first = np.array([polymer.xyz[0, 0] for polymer in polymers])
    lengths = np.linalg.norm(last[:, None] - first, axis=-1)
    bonded = [
        f"{polymers[a].address(-1)}–{polymers[b].address(0)}"
        for a, b in np.argwhere(lengths <= PEPTIDE_BOND).tolist()
        if a != b
    ]
    return [f"{_END_TO_END} ({len(bonded)}): {_listed(bonded)}"] if bonded else []


def _listed(items: Sequence[object], limit: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, …"
