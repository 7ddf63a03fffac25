"""Bonds of a chain: the order of its residues, what belongs to it, and where it is broken.

* Residues are in file order, unless peptide bonds say that parts of the chain were written
  elsewhere.
* An amino acid that stands as HETATM outside the chain is in it where its number and a peptide bond
  say so; free ones are left out.
* Residues in a row that share a number had insertion codes, and get new ones.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import gemmi
import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import ATOMS
from mpnn.errors import InputError
from mpnn.polymer import MAX_COORDINATE, Site, read_sites

PEPTIDE_BOND = 2.0
"""Å between C and the next residue's N up to which the two are bonded."""

COINCIDENT = 0.1
"""Å below which two backbone atoms of a residue cannot both be where the file says."""

Notes = dict[str, list[str]]
"""What was done while reading, by kind: addresses of the residues, or words about them."""

JOINED = "HETATM residues bonded into the chain"
REORDERED = "residues put in the order of their bonds"
LEFT_OUT = "amino acids outside the chain left out"
CODES = "residues that share a number told apart by new insertion codes"
PARTED = "chains parted at breaks"

_ABSENT = [np.nan] * 3


@dataclass
class Polymer:
    """The protein of one chain, R residues in bonded order.

    Attributes:
        name: author chain name.
        sites: the residues.
        xyz: float64 [R, 4, 3], N, CA, C, O in Å, nan where absent.
        notes: what was done to find them.
    """

    name: str
    sites: list[Site]
    xyz: NDArray[np.float64]
    notes: Notes = field(default_factory=dict)

    def address(self, row: int) -> str:
        """How a selection names a residue: A52A, or AA:7 in a chain of a longer name."""
        return address(self.name, self.sites[row])

    def part(self, rows: Sequence[int] | slice, name: str | None = None) -> Polymer:
        """Some of the residues, in the order given."""
        index = range(len(self.sites))[rows] if isinstance(rows, slice) else rows
        sites = [self.sites[row] for row in index]
        return Polymer(name or self.name, sites, self.xyz[list(index)], self.notes)


def address(chain: str, site: Site) -> str:
    """How a selection names a residue: A52A, or AA:7 in a chain of a longer name."""
    return f"{chain}{'' if len(chain) == 1 else ':'}{site.number}{site.code}"


def read_polymer(chain: gemmi.Chain, where: str) -> Polymer:
    """The protein of a chain; it has no residues where there is none.

    Raises:
        InputError: a residue has no number, or an atom twice at places far apart.
    """
    name = chain.name or "_"
    sites = read_sites(chain, name, where)
    xyz = np.array([s.atoms.get(a, _ABSENT) for s in sites for a in ATOMS]).reshape(-1, 4, 3)
    polymer = Polymer(name, sites, _usable(xyz))
    return _without_free(_in_bonded_order(polymer))


def bond_lengths(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Å from the C of each residue to the N of the next, [R - 1]; nan where one is absent."""
    lengths: NDArray[np.float64] = np.linalg.norm(xyz[1:, 0] - xyz[:-1, 2], axis=-1)
    return lengths


def _usable(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sets to nan the atoms that lie on another of their residue or too far out."""
    unusable = np.any(~(np.abs(xyz) <= MAX_COORDINATE), axis=-1)
    for i in range(len(ATOMS)):
        for j in range(i):
            close = np.linalg.norm(xyz[:, i] - xyz[:, j], axis=-1) <= COINCIDENT
            unusable[:, i] |= close
            unusable[:, j] |= close
    return np.where(unusable[..., None], np.nan, xyz)


def _in_bonded_order(polymer: Polymer) -> Polymer:
    """Parts of the chain that were written elsewhere, at the places where they are bonded."""
    segments = _segments(polymer)
    links = _links(polymer, segments)
    if not links:
        return polymer
    heads = [i for i in range(len(segments)) if i not in links.values()]
    order: dict[int, int] = {}  # segment -> place
    for start in (*heads, *range(len(segments))):  # the latter for rings
        at: int | None = start
        while at is not None and at not in order:
            order[at] = len(order)
            at = links.get(at)
    ordered = polymer.part([row for i in order for row in segments[i]])
    ordered.notes[REORDERED] = [
        f"{polymer.address(segments[i][-1])}–{polymer.address(segments[j][0])}"
        for i, j in sorted(links.items(), key=lambda link: order[link[0]])
    ]
    return ordered


def _segments(polymer: Polymer) -> list[range]:
    """Rows in file order, cut where a bond is missing (or unknown, and numbers do not go on)."""
    if not polymer.sites:
        return []
    lengths = bond_lengths(polymer.xyz)
    steps = np.diff([site.number for site in polymer.sites])
    unknown_but_next = np.isnan(lengths) & ((steps == 0) | (steps == 1))
    cuts = np.flatnonzero(~(lengths <= PEPTIDE_BOND) & ~unknown_but_next) + 1
    edges = [0, *cuts.tolist(), len(polymer.sites)]
    return [range(a, b) for a, b in pairwise(edges)]


def _links(polymer: Polymer, segments: Sequence[range]) -> dict[int, int]:
    """Segment that each is bonded to by its last C, to the nearest first N of another."""
    if len(segments) < 2:
        return {}
    xyz = polymer.xyz
    first_N = xyz[[segment[0] for segment in segments], 0]
    numbers = np.array([[polymer.sites[s[end]].number for end in (0, -1)] for s in segments])
    best: dict[int, tuple[float, int]] = {}
    for i, segment in enumerate(segments):
        d = np.linalg.norm(first_N - xyz[segment[-1], 2], axis=-1)
        d[i] = np.nan
        # A ring is bonded from its last number to its first; that does not put the first last.
        d[:i][numbers[:i, 0] < numbers[i, 1]] = np.nan
        if (d <= PEPTIDE_BOND).any():
            j = int(np.nanargmin(d))
            best[j] = min(best.get(j, (np.inf, -1)), (float(d[j]), i))
    return {i: j for j, (_, i) in best.items()}


def _without_free(polymer: Polymer) -> Polymer:
    """Leaves out amino acids outside the chain that no bond puts into it."""
    loose = [row for row, site in enumerate(polymer.sites) if not site.in_polymer]
    if not loose:
        return polymer
    joined = _joined(polymer, loose)
    kept = [row for row in range(len(polymer.sites)) if row not in loose or row in joined]
    whole = polymer.part(kept)
    free = [row for row in loose if row not in joined]
    for kind, rows in ((JOINED, [row for row in loose if row in joined]), (LEFT_OUT, free)):
        if rows:
            names = [f"{polymer.address(row)} {polymer.sites[row].name}" for row in rows]
            whole.notes[kind] = names
    return whole


def _joined(polymer: Polymer, loose: Sequence[int]) -> set[int]:
    """The loose residues that peptide bonds and numbers join to the polymer."""
    sites = polymer.sites
    # Row r is bonded to the one before if bonded[r]; both ends of the chain are not.
    bonded = [False, *(bond_lengths(polymer.xyz) <= PEPTIDE_BOND).tolist(), False]
    taken = {(site.number, site.code) for site in sites if site.in_polymer}
    joined: set[int] = set()
    for run in _bonded_runs(loose, bonded):
        ends = [(run[0] - 1, run[0])] if bonded[run[0]] else []
        ends += [(run[-1], run[-1] + 1)] if bonded[run[-1] + 1] else []
        next_to = any(abs(sites[a].number - sites[b].number) <= 1 for a, b in ends)
        if (next_to or len(ends) == 2) and taken.isdisjoint(
            (sites[row].number, sites[row].code) for row in run
        ):
            joined.update(run)
    return joined


def _bonded_runs(rows: Sequence[int], bonded: Sequence[bool]) -> list[list[int]]:
    """Rows in runs of consecutive ones that are bonded to each other."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1 and bonded[row]:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def hidden_breaks(polymer: Polymer) -> dict[int, float]:
    """Rows after which a peptide bond is missing where numbers leave no gap, and C–N in Å."""
    steps = np.diff([site.number for site in polymer.sites])
    lengths = bond_lengths(polymer.xyz)
    # Where an atom is absent, numbers that go on are taken at their word.
    apart = np.where(steps < 0, ~(lengths <= PEPTIDE_BOND), lengths > PEPTIDE_BOND)
    rows = np.flatnonzero(apart & (steps <= 1))
    return dict(zip(rows.tolist(), lengths[rows].tolist(), strict=True))


def split_at_breaks(
    polymers: dict[str, Polymer], taken: Sequence[str], where: str
) -> dict[str, Polymer]:
    """Chains parted at their hidden breaks; what follows one gets the next free name.

    Raises:
        InputError: there are more breaks than names.
    """
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits
    free = (x for x in (*letters, *(a + b for a in letters for b in letters)) if x not in taken)
    parts: dict[str, Polymer] = {}
    for name, polymer in polymers.items():
        edges = [0, *(row + 1 for row in hidden_breaks(polymer)), len(polymer.sites)]
        first, *others = (slice(a, b) for a, b in pairwise(edges))
        parts[name] = polymer.part(first)
        for rows in others:
            new = next(free, "")
            if not new:
                raise InputError(
                    f"{where}: chain {name} has {len(others)} breaks, too many to name a chain "
                    "after each; read it without splitting at breaks, or repair its backbone"
                )
            parts[new] = polymer.part(rows, new)
            parts[new].notes = {PARTED: [f"{polymer.address(rows.start)} on is chain {new}"]}
    return parts


def with_insertion_codes(polymer: Polymer, where: str) -> Polymer:
    """Residues in a row that share a number and code, told apart by insertion codes.

    Raises:
        InputError: two residues share a number and do not follow one another.
    """
    used = {(site.number, site.code) for site in polymer.sites}
    if len(used) == len(polymer.sites):
        return polymer
    sites: list[Site] = []
    seen: set[tuple[int, str]] = set()
    new: list[str] = []
    for site in polymer.sites:
        if (site.number, site.code) in seen:
            code = next((c for c in string.ascii_uppercase if (site.number, c) not in used), None)
            if sites[-1].number != site.number or code is None:
                raise InputError(
                    f"{where}: chain {polymer.name}, residue {site.number}{site.code} occurs twice;"
                    " give each chain a name of its own, or split chains at their breaks "
                    "(--split-breaks, split_breaks=True)"
                )
            site = site._replace(code=code)
            used.add((site.number, code))
            new.append(f"{address(polymer.name, site)} {site.name}")
        seen.add((site.number, site.code))
        sites.append(site)
    return Polymer(polymer.name, sites, polymer.xyz, {**polymer.notes, CODES: new})
