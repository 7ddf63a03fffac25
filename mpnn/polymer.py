"""Finds the residues of a protein chain and chooses one conformation of each.

* Amino acids count, modified ones such as MSE included; other ligands, waters and nucleic acids are
  left out.
* One conformation per residue: most of the four atoms, then the highest mean occupancy, then first
  in the file. Atoms without a label are a conformation too, where labeled ones stand beside them.
* Residues that share a number and have no labels are different residues (their insertion codes were
  lost), unless they lie on one another.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gemmi

from mpnn.backbone import ATOMS
from mpnn.errors import InputError
from mpnn.residues import tabulated

OVERLAP = 2.0
"""Å between CA atoms below which two residues of one number are conformations of one residue; CA
atoms of neighbors are 2.9 Å (cis) or 3.8 Å apart."""

MAX_COORDINATE = 1e5
"""Å from the origin, per axis; float32 resolves 0.01 Å up to here. Atoms beyond count as absent."""

TERMINAL_OXYGEN = ("OXT", "OT1", "O1", "OC1")
"""Names of an oxygen at the C-terminus that stands for O where no atom has that name."""

C_O_BOND = 1.6
"""Å from C up to which such an atom is bonded to it."""

NO_LABEL = "\0"
"""How gemmi writes the alternate location of an atom that has none."""

_WANTED = frozenset((*ATOMS, *TERMINAL_OXYGEN))


class Site(NamedTuple):
    """One residue of a chain, its conformation chosen.

    Attributes:
        number: author number.
        code: insertion code, "" where there is none.
        name: residue name in the file, such as MSE.
        atoms: x, y, z in Å of those of N, CA, C and O that the file has.
        kept: label of the conformation kept where there was a choice, else "".
        complete_first: whether it was kept for its atoms and not for its occupancy.
        oxygen: name of the atom that stands for O, "" where O has its own.
        in_polymer: False for an amino acid that may be a ligand.
    """

    number: int
    code: str
    name: str
    atoms: dict[str, list[float]]
    kept: str = ""
    complete_first: bool = False
    oxygen: str = ""
    in_polymer: bool = True


def read_sites(chain: gemmi.Chain, name: str, where: str) -> list[Site]:
    """The residues of a chain, in file order.

    Raises:
        InputError: a residue has no number, or atoms twice that do not make two residues.
    """
    groups: dict[tuple[int, str], list[tuple[int, gemmi.Residue, bool]]] = {}
    for place, (residue, in_polymer) in enumerate(_amino_acids(chain)):
        seqid = residue.seqid
        number, code = seqid.num, seqid.icode.strip()
        if number is None:
            raise InputError(f"{where}: chain {name}, {residue.name}: a residue needs a number")
        groups.setdefault((number, code), []).append((place, residue, in_polymer))
    placed = []
    for (number, code), group in groups.items():
        if len(group) == 1 and (atoms := _plain_atoms(group[0][1])) is not None:
            place, residue, in_polymer = group[0]
            site = Site(number, code, residue.name, atoms, in_polymer=in_polymer)
            placed.append((place, 0, site))
            continue
        copies = _copies(group, f"{where}: chain {name}, residue {number}{code}")
        for index, copy in enumerate(copies):
            placed.append((copy.place, index, _choose(number, code, copy)))
    if len(placed) > len(groups):
        placed.sort(key=lambda entry: entry[:2])
    return [site for _, _, site in placed]


def _plain_atoms(residue: gemmi.Residue) -> dict[str, list[float]] | None:
    """Backbone atoms of a residue that leaves no choice, as nearly all do; None for others."""
    atoms: dict[str, list[float]] = {}
    for atom in residue:
        name = atom.name
        if name in _WANTED:
            if name in atoms or atom.altloc != NO_LABEL or name not in ATOMS:
                return None
            atoms[name] = atom.pos.tolist()
    return atoms if "O" in atoms else None


def _amino_acids(chain: gemmi.Chain) -> list[tuple[gemmi.Residue, bool]]:
    """Amino acids of a chain, and whether each is surely one of the polymer.

    Without TER records gemmi ends a polymer at the first odd residue, and begins it with a ligand
    that is written first: a HETATM among ATOM records is in the chain if its number is in place.
    """
    amino_acids = [residue for residue in chain if _is_amino_acid(residue)]
    numbers = [residue.seqid.num or 0 for residue in amino_acids]
    anchors = [i for i, residue in enumerate(amino_acids) if residue.het_flag == "A"]

    def is_sure(i: int) -> bool:
        residue = amino_acids[i]
        if residue.het_flag == "A":
            return True
        after = bisect.bisect(anchors, i)
        if after or not anchors:
            if residue.entity_type == gemmi.EntityType.Polymer:
                return True
            if after == len(anchors):
                return False
        before = numbers[anchors[after - 1]] if after else -math.inf
        return before <= numbers[i] <= numbers[anchors[after]]

    return [(residue, is_sure(i)) for i, residue in enumerate(amino_acids)]


def _is_amino_acid(residue: gemmi.Residue) -> bool:
    info = tabulated(residue.name)
    if info.is_amino_acid():
        return True
    if info.found() and (residue.het_flag != "A" or info.is_nucleic_acid()):
        return False
    return {"N", "CA", "C"} <= {atom.name for atom in residue}


_Part = dict[tuple[str, str], tuple[float, list[float]]]
"""Occupancy and x, y, z in Å of a residue's backbone atoms, by atom name and label."""


_Atoms = dict[str, tuple[float, list[float]]]
"""The same of one conformation, by atom name."""


@dataclass(slots=True)
class _Copy:
    """One of the residues that share a number: its parts by residue name, in file order."""

    place: int
    in_polymer: bool
    parts: list[tuple[str, _Part]]

    def has(self, *atoms: str) -> bool:
        """Whether there are all of some atoms, under any label."""
        return set(atoms) <= {atom for _, part in self.parts for atom, _ in part}


def _copies(group: Sequence[tuple[int, gemmi.Residue, bool]], where: str) -> list[_Copy]:
    """Tells residues that share a number from conformations of one residue."""
    copies: list[_Copy] = []
    for place, residue, in_polymer in group:
        for part in _parts(residue):
            copy = next((c for c in copies if _conformations_of_one(c, residue.name, part)), None)
            if copy is None:
                copies.append(_Copy(place, in_polymer, [(residue.name, part)]))
                continue
            copy.in_polymer |= in_polymer
            same = [p for name, p in copy.parts if name == residue.name and not p.keys() & part]
            if same:
                same[0].update(part)
            else:
                copy.parts.append((residue.name, part))
    if len(copies) > 1:
        whole = [copy for copy in copies if copy.has("N", "CA", "C")]
        if any(copy.in_polymer for copy in copies if copy not in whole):
            raise InputError(
                f"{where} has atoms twice, and not N, CA and C of two residues; take out those "
                "that do not belong there, or number the residues apart"
            )
        copies = whole
    return copies


def _parts(residue: gemmi.Residue) -> list[_Part]:
    """A residue's backbone atoms; the second atom of a name and label goes into a second part."""
    first: _Part = {}
    parts = [first]
    for atom in residue:
        name = atom.name
        if name in _WANTED:
            key = (name, atom.altloc)
            if key in first:
                if all(key in part for part in parts):
                    parts.append({})
                part = next(part for part in parts if key not in part)
            else:
                part = first
            part[key] = (atom.occ, atom.pos.tolist())
    return parts


def _conformations_of_one(copy: _Copy, name: str, part: _Part) -> bool:
    """Whether a part is a conformation of the residue: by its labels, or as it lies on it."""
    there = {key for _, other in copy.parts for key in other}
    labels = {label for _, label in (*there, *part)}
    if labels != {NO_LABEL}:
        return not there & part.keys()
    ours, theirs = part.get(("CA", NO_LABEL)), copy.parts[0][1].get(("CA", NO_LABEL))
    if ours is None or theirs is None:
        return copy.parts[0][0] == name and not there & part.keys()
    return bool(math.dist(ours[1], theirs[1]) < OVERLAP)


def _choose(number: int, code: str, copy: _Copy) -> Site:
    """The residue with the conformation that has most atoms, then the highest occupancy."""
    oxygen = ""
    candidates = []
    for name, part in copy.parts:
        if ("O", NO_LABEL) not in part:
            oxygen = _name_terminal_oxygen(part) or oxygen
        candidates += [(name, label, atoms) for label, atoms in _conformations(part)]
    if len(candidates) == 1:
        name, _, atoms = candidates[0]
        xyz = {atom: place for atom, (_, place) in atoms.items()}
        return Site(number, code, name, xyz, oxygen=oxygen, in_polymer=copy.in_polymer)
    ranks = [_rank(atoms) for _, _, atoms in candidates]
    best = ranks.index(max(ranks))
    name, label, atoms = candidates[best]
    kept = "without label" if label == NO_LABEL else label
    return Site(
        number,
        code,
        name,
        {atom: place for atom, (_, place) in atoms.items()},
        kept if len(copy.parts) == 1 else f"{name} {kept}",
        ranks[best][1] < max(occupancy for _, occupancy in ranks),
        oxygen,
        copy.in_polymer,
    )


def _rank(atoms: _Atoms) -> tuple[int, float]:
    """Number of usable atoms and their mean occupancy, by which conformations are compared."""
    usable = [
        occupancy for occupancy, xyz in atoms.values() if all(abs(x) <= MAX_COORDINATE for x in xyz)
    ]
    return len(usable), sum(usable) / max(len(usable), 1)


def _name_terminal_oxygen(part: _Part) -> str:
    """Calls the oxygen of a C-terminus O where there is none; returns the name that it had."""
    if any(name == "O" for name, _ in part):
        return ""
    carbons = [xyz for (name, _), (_, xyz) in part.items() if name == "C"]
    for name in TERMINAL_OXYGEN:
        keys = [key for key in part if key[0] == name]
        if any(math.dist(part[key][1], carbon) <= C_O_BOND for key in keys for carbon in carbons):
            for key in keys:
                part["O", key[1]] = part.pop(key)
            return name
    return ""


def _conformations(part: _Part) -> Iterator[tuple[str, _Atoms]]:
    """Label and backbone atoms of each conformation, in file order."""
    names = Counter(name for name, _ in part if name in ATOMS)
    shared = any(names[name] > 1 for name, label in part if label == NO_LABEL)
    labels = dict.fromkeys(
        label for name, label in part if name in ATOMS and (shared or label != NO_LABEL)
    )
    for label in labels or [NO_LABEL]:
        # Atoms without a label belong to every conformation; a labeled one wins over them.
        chosen = {name: part.get((name, label)) or part.get((name, NO_LABEL)) for name in names}
        yield label, {name: atom for name, atom in chosen.items() if atom}
