"""Synthetic, protein-like backbones of any size, for speed workloads and for tests without data.

A chain grows by fragments, each a short loop followed by a helix, a strand or a two-stranded
hairpin, with ideal bond lengths and angles. Each step tries some hundred random fragments and adds
the one with the most contacts that does not clash, so that chains are as compact and dense as real
ones; if none fits, the last residues are removed.

CA–CA distance in Å from a residue to its k-th neighbor (itself the first), over the residues of
150 real chains of different families, 60 to 400 residues long, and of synthetic ones of the same
lengths; and the radius of gyration over 2.2 Å · L^0.38, over chains:

|                   | k = 8 | k = 16 | k = 30 | k = 48 | radius |
|-------------------|-------|--------|--------|--------|--------|
| mean, real        |  6.82 |   9.99 |  13.15 |  16.46 |   1.13 |
| mean, synthetic   |  6.86 |  10.19 |  13.48 |  16.86 |   1.10 |
| median, real      |  6.45 |   9.63 |  12.50 |  15.50 |   1.03 |
| median, synthetic |  6.48 |   9.94 |  12.97 |  16.29 |   1.10 |

The 10th and 90th percentiles of the distances agree within 4 % and 6 %.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.errors import InputError

Floats = NDArray[np.float64]

# Bond lengths in Å and angles of Engh and Huber (Acta Cryst. A47:392, 1991).
N_CA, CA_C, C_N, C_O = 1.458, 1.525, 1.329, 1.231
N_CA_C, CA_C_N, C_N_CA, CA_C_O = np.deg2rad([111.2, 116.2, 121.7, 120.8])
BEND_SPREAD = 0.5  # standard deviation of C–N–CA in degrees: a quarter of that of real proteins, so
# that hairpins stay paired; at 0, all CA–CA distances along the chain would tie

# (phi, psi) in degrees. Strands of a hairpin alternate outwards from its turn between residues that
# are hydrogen-bonded and others. The type I' turn was fitted so that they pair: CA atoms are
# alternately about 5.4 and 4.4 Å apart, N and O atoms of the former about 3 Å.
HELIX, STRAND = (-63.0, -42.0), (-118.0, 132.0)
HAIRPIN_OUT, HAIRPIN_IN = (-135.0, 143.0), (-65.0, 114.0)
HAIRPIN_TURN = ((54.0, 26.0), (79.0, 5.0))
LOOP = ((-65.0, -40.0), (-120.0, 135.0), (-70.0, 145.0), (60.0, 40.0), (-95.0, 0.0))
LOOP_SHARES = (0.25, 0.27, 0.33, 0.06, 0.09)  # of the centers of the Ramachandran plot above
ELEMENT_SHARES = (0.50, 0.05, 0.45)  # helices, single strands and hairpins

FRAGMENTS = 1280  # sampled for the library, before those that clash with themselves are removed
MAX_FRAGMENT = 23  # residues: a loop of five and a helix of eighteen
CANDIDATES = 160  # fragments tried per step; with 48, the 48th neighbors are 10 % farther away
TRIES = 16  # candidates, best first, whose distances are checked atom by atom

# Distances in Å.
MIN_CA, MIN_HEAVY = 4.2, 2.8  # minimum of CA atoms, and of any atoms, two or more residues apart
MIN_BONDED = 2.6  # the same for any atoms of one fragment, which may be hydrogen-bonded
CONTACT = 12.0  # CA–CA distance that counts as a contact
REACH = 55.0  # from the CA that a fragment is joined to; atoms farther away cannot clash with it

OWN_CHAIN, OTHER_CHAIN = 6, 1  # weights of a contact; if equal, chains intertwine
UNCOUNTED = (
    4  # last residues of a chain that the grids leave out: all that follow are close to them
)

FREQUENCIES = {
    "A": 8.25, "R": 5.53, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.72, "G": 7.07,
    "H": 2.27, "I": 5.91, "L": 9.65, "K": 5.80, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.65,
    "T": 5.36, "W": 1.10, "Y": 2.92, "V": 6.86,
}  # fmt: skip
"""Natural amino-acid frequencies in % (UniProtKB/Swiss-Prot statistics)."""


@functools.lru_cache(maxsize=32)
def synthetic_backbone(length: int, chains: int = 1, seed: int = 0) -> Backbone:
    """A compact synthetic backbone; the same arguments give the same one (and it is cached).

    Args:
        length: total number of residues, L.
        chains: number of chains, of equal lengths up to one residue, each touching another;
            named A, B, …, Z, AA, AB, …
        seed: random seed.

    Raises:
        InputError: chains is below 1, or exceeds length.
    """
    if not 1 <= chains <= length:
        raise InputError(
            f"{length} residues in {chains} chains: each chain needs at least one residue"
        )
    rng = np.random.default_rng((seed, length, chains))
    ends = np.arange(chains + 1) * length // chains
    coords = np.zeros((length, 4, 3))
    crowd = _Crowd(length)
    for start, stop in itertools.pairwise(ends.tolist()):
        _grow_chain(coords, start, stop, crowd, rng)
    coords -= coords[:, 1].mean(axis=0)
    shares = np.array(list(FREQUENCIES.values()))
    residues = rng.choice(list(FREQUENCIES), size=length, p=shares / shares.sum())
    sizes = np.diff(ends)
    return Backbone(
        name=f"synthetic_{length}x{chains}_{seed}",
        coords=coords.astype(np.float32),
        mask=np.ones(length, dtype=bool),
        sequence="".join(residues),
        chain_ids=tuple(itertools.islice(_chain_names(), chains)),
        chain_index=np.repeat(np.arange(chains), sizes),
        numbers=np.concatenate([np.arange(1, size + 1) for size in sizes]),
        insertion_codes=np.full(length, "", dtype="<U1"),
    )


def _chain_names() -> Iterator[str]:
    for size in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=size))


class _Grid:
    """Number of points within a radius of each cell of a periodic cubic grid."""

    def __init__(self, radius: float, spacing: float, width: float) -> None:
        self._spacing = spacing
        steps = np.arange(-int(radius / spacing), int(radius / spacing) + 1)
        ball = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
        self._ball = ball[(ball**2).sum(1) * spacing**2 < radius**2]
        self._counts = np.zeros((math.ceil(width / spacing),) * 3, dtype=np.int16)

    def add(self, points: Floats, worth: int) -> None:
        for cell in self._cells(points):
            self._counts[self._index(cell + self._ball)] += worth

    def at(self, points: Floats) -> NDArray[np.int16]:
        return self._counts[self._index(self._cells(points))]

    def _cells(self, points: Floats) -> NDArray[np.int64]:
        return np.floor(points / self._spacing).astype(np.int64)

    def _index(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        x, y, z = np.moveaxis(cells % len(self._counts), -1, 0)
        return x, y, z


class _Crowd:
    """The residues that a growing chain can touch: its own, and those of earlier chains.

    Counts on grids take the same time for long chains as for short ones, and integers make every
    choice the same on every machine.
    """

    def __init__(self, length: int) -> None:
        width = max(10.0 * length**0.38, 100.0)
        self._contacts = _Grid(CONTACT, 2.0, width)
        self._clashes = _Grid(MIN_CA - 0.5, 1.0, width)
        self._followed = 0

    def follow(self, chain: Floats, size: int) -> None:
        """Counts exactly the first `size` residues of the growing chain [n, 4, 3]."""
        size = max(size, 0)
        self._add(chain[self._followed : size], OWN_CHAIN)
        self._add(chain[size : self._followed], -OWN_CHAIN)
        self._followed = size

    def finish(self, chain: Floats) -> None:
        """Counts a complete chain as one of the earlier ones."""
        self.follow(chain, len(chain))
        self._add(chain, OTHER_CHAIN - OWN_CHAIN)
        self._followed = 0

    def _add(self, residues: Floats, worth: int) -> None:
        self._contacts.add(residues[:, 1], worth)
        self._clashes.add(residues[:, 1], worth)

    def score(self, moved: Floats, size: NDArray[np.int64]) -> Floats:
        """Contacts per new residue of candidates [M, n + 1, 4, 3]; -1 if they clash; [M]."""
        new = moved[:, 1:, 1]
        inside = np.arange(new.shape[1]) < size[:, None]
        clash = ((self._clashes.at(new) > 0) & inside).any(1)
        contacts = (self._contacts.at(new) * inside).sum(1) / size
        return np.where(clash, -1.0, contacts)


def _grow_chain(
    coords: Floats, start: int, stop: int, crowd: _Crowd, rng: np.random.Generator
) -> None:
    """Fills coords[start:stop] with a chain in contact with those in coords[:start]."""
    fragments, sizes = _library()
    pos, failures = start, 0
    while pos < stop:
        crowd.follow(coords[start:stop], pos - start - UNCOUNTED)
        if pos == start:
            coords[pos] = _first_residue(coords[:start], fragments[0, 0], rng)
            pos += 1
            continue
        pick = rng.choice(len(sizes), CANDIDATES, replace=False)
        size = np.minimum(sizes[pick], stop - pos)
        last = coords[pos - 1]
        moved = fragments[pick, : size.max() + 1] @ _frame(*last[:3]).T + last[1]
        score = crowd.score(moved, size)
        order = [m for m in (-score).argsort(kind="stable")[:TRIES] if score[m] >= 0]
        best = next((m for m in order if _fits(moved[m, : size[m] + 1], coords[:pos], start)), None)
        if best is not None:
            last[3] = moved[best, 0, 3]
            coords[pos : pos + size[best]] = moved[best, 1 : size[best] + 1]
            pos, failures = pos + int(size[best]), 0
        elif failures < 2:
            failures += 1
        else:
            pos, failures = max(start, pos - int(rng.integers(10, 40))), 0
    crowd.finish(coords[start:stop])


def _first_residue(others: Floats, residue: Floats, rng: np.random.Generator) -> Floats:
    """The residue [4, 3] moved to the least crowded of some points 10 Å from other chains."""
    if not len(others):
        return residue
    ways = rng.normal(size=(CANDIDATES, 3))
    ways *= 10.0 / np.linalg.norm(ways, axis=1, keepdims=True)
    spots = others[rng.integers(len(others), size=CANDIDATES), 1] + ways
    d2 = _squared_distances(spots, others[:, 1])
    crowd = (d2 < 15.0**2).sum(1) + len(others) * (d2.min(1) < 8.0**2)
    turn = _frame(*rng.normal(size=(3, 3)))
    moved: Floats = residue @ turn.T + spots[crowd.argmin()]
    return moved


def _fits(fragment: Floats, placed: Floats, start: int) -> bool:
    """Whether a fragment fits without clashes.

    Args:
        fragment: [n + 1, 4, 3], a copy of the last residue, then n new ones.
        placed: [P, 4, 3], residues of earlier chains, then those of this chain from `start` on.
        start: first residue of this chain.
    """
    anchor = placed[-1, 1]
    old = placed[: max(len(placed) - 1, start)]
    old = old[((old[:, 1] - anchor) ** 2).sum(-1) < REACH**2]
    if not len(old):
        return True
    ca_d2 = _squared_distances(fragment[1:, 1] - anchor, old[:, 1] - anchor)
    atoms = fragment.reshape(-1, 3)[3:]  # of the last residue only the new O
    d2 = _squared_distances(atoms - anchor, old.reshape(-1, 3) - anchor)
    if len(placed) - 2 >= start:
        d2[0, -4:] = np.inf  # that O and the residue bonded to its own
    return bool(ca_d2.min() >= MIN_CA**2 and d2.min() >= MIN_HEAVY**2)


@functools.lru_cache(maxsize=1)
def _library() -> tuple[Floats, NDArray[np.int64]]:
    """Fragments [M, MAX_FRAGMENT + 1, 4, 3] in the frame of their residue 0, and sizes [M].

    Residue 0 is the residue that the fragment is joined to; it does not count in the size.
    """
    rng = np.random.default_rng(0)
    torsions = np.zeros((FRAGMENTS, MAX_FRAGMENT + 1, 2))
    sizes = np.zeros(FRAGMENTS, dtype=np.int64)
    for m in range(FRAGMENTS):
        sampled = _sample_torsions(rng)
        sizes[m] = len(sampled) - 1
        torsions[m, : len(sampled)] = sampled
    bend = C_N_CA + rng.normal(0.0, np.deg2rad(BEND_SPREAD), size=torsions.shape[:2])
    fragments = _build(np.deg2rad(torsions), bend)
    first = fragments[0, 0]
    fragments = (fragments - first[1]) @ _frame(*first[:3])
    fits = _clear_of_itself(fragments, sizes)
    return fragments[fits], sizes[fits]


def _sample_torsions(rng: np.random.Generator) -> Floats:
    """(phi, psi) in degrees [n + 1, 2] of residue 0, a loop and a secondary-structure element."""
    loop = np.array(LOOP)[rng.choice(len(LOOP), size=rng.integers(3, 7), p=LOOP_SHARES)]
    element = rng.choice(3, p=ELEMENT_SHARES)
    if element == 0:
        ideal, spread = [HELIX] * int(rng.integers(8, 19)), 3.0
    elif element == 1:
        ideal, spread = [STRAND] * int(rng.integers(4, 8)), 8.0
    else:
        outwards = ([HAIRPIN_OUT, HAIRPIN_IN] * 4)[: rng.integers(4, 8)]
        ideal, spread = [*outwards[::-1], *HAIRPIN_TURN, *outwards], 2.0
    return np.concatenate([rng.normal(loop, 12.0), rng.normal(ideal, spread)])


def _build(torsions: Floats, bend: Floats) -> Floats:
    """Backbones [M, n, 4, 3] with ideal bonds and trans peptides.

    Args:
        torsions: [M, n, 2], phi and psi in radians.
        bend: [M, n], angle C–N–CA of each residue.
    """
    m, n = bend.shape
    trans = np.full(m, np.pi)
    out = np.zeros((m, n, 4, 3))
    out[:, 0, 1, 0] = N_CA
    out[:, 0, 2] = out[:, 0, 1] + CA_C * np.array([-np.cos(N_CA_C), np.sin(N_CA_C), 0.0])
    for i in range(n):
        N, CA, C = out[:, i, 0], out[:, i, 1], out[:, i, 2]
        psi = torsions[:, i, 1]
        out[:, i, 3] = _place((N, CA, C), C_O, CA_C_O, psi + np.pi)
        if i + 1 < n:
            next_N = _place((N, CA, C), C_N, CA_C_N, psi)
            next_CA = _place((CA, C, next_N), N_CA, bend[:, i + 1], trans)
            next_C = _place((C, next_N, next_CA), CA_C, N_CA_C, torsions[:, i + 1, 0])
            out[:, i + 1, :3] = np.stack([next_N, next_CA, next_C], axis=1)
    return out


def _place(
    atoms: tuple[Floats, Floats, Floats], length: float, angle: Floats | float, torsion: Floats
) -> Floats:
    """The point [M, 3] bonded to c of atoms a, b, c by length, angle at c and torsion about b–c."""
    a, b, c = atoms
    x = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
    normal = np.cross(b - a, x)
    z = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    y = np.cross(z, x)
    around = np.cos(torsion)[:, None] * y + np.sin(torsion)[:, None] * z
    bend = np.asarray(angle)[..., None]
    placed: Floats = c + length * (-np.cos(bend) * x + np.sin(bend) * around)
    return placed


def _frame(N: Floats, CA: Floats, C: Floats) -> Floats:
    """The axes of a residue as columns [3, 3]."""
    x = (C - CA) / np.linalg.norm(C - CA)
    normal = np.cross(x, N - CA)
    z = normal / np.linalg.norm(normal)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _clear_of_itself(fragments: Floats, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which fragments keep `MIN_CA` and (but for hydrogen bonds) `MIN_HEAVY` within, [M]."""
    m, n = fragments.shape[:2]
    index = np.arange(n)
    apart = np.abs(index[:, None] - index)
    inside = index <= sizes[:, None]
    both = inside[:, :, None] & inside[:, None, :]
    ca = fragments[:, :, 1]
    ca_d2 = _squared_distances(ca, ca)
    atoms = fragments.reshape(m, n * 4, 3)
    d2 = _squared_distances(atoms, atoms).reshape(m, n, 4, n, 4).min((2, 4))
    clash = ((ca_d2 < MIN_CA**2) | (d2 < MIN_BONDED**2)) & (apart >= 2) & both
    clear: NDArray[np.bool_] = ~clash.any((1, 2))
    return clear


def _squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared distances [..., A, B] between points [..., A, 3] and [..., B, 3].

    In float64, so that thresholds give the same choices on every machine, and as one matmul with
    |a|² and |b|² as additional columns, which takes a third of the time.
    """
    ones_a, ones_b = np.ones_like(a[..., :1]), np.ones_like(b[..., :1])
    left = np.concatenate([-2 * a, (a * a).sum(-1, keepdims=True), ones_a], axis=-1)
    right = np.concatenate([b, ones_b, (b * b).sum(-1, keepdims=True)], axis=-1)
    d2: Floats = left @ right.swapaxes(-1, -2)
    return d2
