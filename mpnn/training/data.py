"""Training chains, the draws made from them, and ragged batches of crops.

Every draw is a pure function of (seed, draw number): which cluster, which of its chains, which
crop, what coordinate noise, what decoding order. So a run is resumed from two counters, and the
same seed makes the same run. Shapes: R residues of all crops of a batch laid end to end without
padding, K neighbors, V = 21 letters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn import graph
from mpnn.backbone import Backbone
from mpnn.config import ALPHABET, UNKNOWN
from mpnn.datasets import ChainSet
from mpnn.errors import InputError
from mpnn.schedule import rank_of

MIN_LENGTH = 20  # complete residues of known letters that a chain needs to be drawn
CHAINS, ROUNDS = 2**62, 2**63
"""First keys of the choices of a chain, and of the shuffled clusters; those of crops begin at 0."""

DRAWS = 2
"""Number of this way to draw: a state keeps it, for a run is resumed with the draws it began with.
In the first, a chain and its order came from the same random bits."""

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

LETTER_INDEX: IntArray = np.full(256, UNKNOWN, np.int64)
LETTER_INDEX[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(len(ALPHABET))


class TrainingChains(ChainSet):
    """A chain set and its clusters.

    Attributes:
        clusters: chains [n] of every cluster; those of fewer than `MIN_LENGTH` complete residues
            of known letters are left out.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads the file.

        Raises:
            InputError: see `ChainSet`; or no chain is long enough.
        """
        super().__init__(path)
        told = self._arrays["complete"] & (LETTER_INDEX[self._arrays["sequence"]] != UNKNOWN)
        usable = np.flatnonzero(np.add.reduceat(told, self.offsets[:-1], dtype=int) >= MIN_LENGTH)
        if not len(usable):
            raise InputError(
                f"{path}: no chain has {MIN_LENGTH} complete residues whose letter is known"
            )
        cluster = self.cluster[usable]
        by_cluster = np.argsort(cluster, kind="stable")
        starts = np.flatnonzero(np.diff(cluster[by_cluster])) + 1
        self.clusters: list[IntArray] = np.split(usable[by_cluster], starts)


@dataclass(frozen=True, eq=False)
class Residues:
    """Complete residues of one chain; incomplete ones are left out, but their places count."""

    coords: FloatArray  # [L, 4, 3] N, CA, C, O in Å
    S: IntArray  # [L] letters
    residue_idx: IntArray  # [L]

    def __len__(self) -> int:
        return len(self.S)

    @classmethod
    def of(cls, backbone: Backbone) -> Residues:
        """The complete residues of a backbone of one chain."""
        S = LETTER_INDEX[np.frombuffer(backbone.sequence.encode(), np.uint8)]
        return cls(backbone.coords, S, backbone.residue_idx).take(np.flatnonzero(backbone.mask))

    def take(self, rows: IntArray) -> Residues:
        """The residues `rows`."""
        return Residues(self.coords[rows], self.S[rows], self.residue_idx[rows])


@dataclass(frozen=True, eq=False)
class Crop:
    """One draw: L residues of a chain with noise on their atoms, and an order to decode them in."""

    chain: int  # place in the chain set
    residues: Residues  # [L]
    rows: IntArray  # [L] their places among the complete residues of the chain
    rank: IntArray  # [L], comparable but with gaps where residues are left out
    order: int | None  # number of the order among the fixed ones of the chain, None if free
    lot: FloatArray  # [L, 2] uniform: which letters a teacher replaces, and by which
    key: int = 0  # of the draws of the neighbors that are shown

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class DrawConfig:
    """How crops are drawn."""

    seed: int = 0
    noise: float = 0.02  # Å, standard deviation on every coordinate
    max_length: int = 256  # residues of a crop
    orders: int | None = None  # orders per chain; None draws a new one each time
    rounds: int | None = None  # rounds after which a cluster's chains repeat; None: never


def generator(first: int, second: int) -> np.random.Generator:
    """Random numbers of their own for every pair of numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([first, second], np.uint64)))


def fixed_rank(length: int, chain: int, order: int) -> IntArray:
    """Rank [L] of the complete residues of a chain in its fixed order number `order`."""
    return rank_of(generator(chain, order).permutation(length))


def draw(chains: TrainingChains, config: DrawConfig, number: int) -> Crop:
    """Draw `number` of the run: clusters in random order, each once per round.

    A crop is the residues nearest to a random one, so that most keep all their neighbors.
    """
    chain = _drawn_chain(chains, config, number)
    rng = generator(config.seed, number)
    whole = Residues.of(chains[chain])
    order = None if config.orders is None else int(rng.integers(config.orders))
    if order is None:
        rank = rank_of(rng.permutation(len(whole)))
    else:
        rank = fixed_rank(len(whole), chain, order)
    rows = _nearest_rows(whole, config.max_length, rng)
    part = whole.take(rows)
    noise = rng.standard_normal(part.coords.shape, np.float32) * np.float32(config.noise)
    moved = Residues(part.coords + noise, part.S, part.residue_idx)
    lot = rng.random((len(rows), 2), np.float32)
    return Crop(chain, moved, rows, rank[rows], order, lot, int(rng.integers(2**63)))


def whole_chain(chains: TrainingChains, chain: int) -> Crop:
    """All complete residues of a chain as they are, in the first of its fixed orders."""
    whole = Residues.of(chains[chain])
    rank = fixed_rank(len(whole), chain, 0)
    return Crop(chain, whole, np.arange(len(whole)), rank, 0, np.ones((len(whole), 2), np.float32))


def _drawn_chain(chains: TrainingChains, config: DrawConfig, number: int) -> int:
    """A random chain of the cluster whose turn it is."""
    clusters = chains.clusters

    def turns(round_: int) -> IntArray:
        return generator(config.seed, ROUNDS + round_).permutation(len(clusters))

    round_, place = divmod(number, len(clusters))
    cluster = int(turns(round_)[place])
    if config.rounds is not None:
        round_ %= config.rounds
        number = round_ * len(clusters) + int(np.flatnonzero(turns(round_) == cluster)[0])
    return int(generator(config.seed, CHAINS + number).choice(clusters[cluster]))


def _nearest_rows(residues: Residues, max_length: int, rng: np.random.Generator) -> IntArray:
    """Rows of the `max_length` residues nearest to a random one, in chain order."""
    if len(residues) <= max_length:
        return np.arange(len(residues))
    ca = residues.coords[:, graph.CA]
    squared = ((ca - ca[rng.integers(len(ca))]) ** 2).sum(-1)
    return np.sort(np.argsort(squared, kind="stable")[:max_length])


def draws_for_step(
    chains: TrainingChains, config: DrawConfig, first: int, tokens: int
) -> tuple[list[Crop], int]:
    """Crops from draw number `first` on, of `tokens` residues at most but at least one crop.

    Returns:
        The crops and the number of the next draw.
    """
    crops: list[Crop] = []
    total, number = 0, first
    while True:
        crop = draw(chains, config, number)
        if crops and total + len(crop) > tokens:
            return crops, number
        crops.append(crop)
        total += len(crop)
        number += 1


def packed(crops: Sequence[Crop], tokens: int) -> Iterator[list[Crop]]:
    """Groups of crops in their order, each of `tokens` residues at most but at least one crop."""
    group: list[Crop] = []
    for crop in crops:
        if group and sum(len(c) for c in group) + len(crop) > tokens:
            yield group
            group = []
        group.append(crop)
    if group:
        yield group


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """Crops laid end to end: R residues, K neighbors each within its own crop."""

    X: Tensor  # [R, 4, 3] Å
    S: Tensor  # [R] int64
    E_idx: Tensor  # [R, K] int64, row of the neighbor; the residue itself where there is none
    neighbor_mask: Tensor  # [R, K] float, weight of the neighbor; 0 where a short crop has none
    offset_class: Tensor  # [R, K] int64, see graph.relative_positions
    rank: Tensor  # [R] int64, comparable within a crop

    @classmethod
    def from_crops(
        cls, crops: Sequence[Crop], k: int, device: str | torch.device = "cpu", shown: float = 1.0
    ) -> RaggedBatch:
        """Lays `crops` end to end and finds the k nearest residues of each by CA distance.

        Args:
            crops: at least one.
            k: neighbors, the residue itself among them.
            device: where the batch goes.
            shown: share of the k that are kept, at least the residue itself and one more. The
                others are left out by lot, and weights make up for them, so that sums over
                neighbors are as large as without; K is the number of those kept.
        """
        starts = np.cumsum([0, *(len(c) for c in crops)])
        pieces = [_neighbors(c, k, shown) for c in crops]
        tensors = (
            torch.from_numpy(np.concatenate([c.residues.coords for c in crops])),
            torch.from_numpy(np.concatenate([c.residues.S for c in crops])),
            torch.cat([E + int(start) for (E, _, _), start in zip(pieces, starts, strict=False)]),
            torch.cat([mask for _, mask, _ in pieces]),
            torch.cat([offsets for _, _, offsets in pieces]),
            torch.from_numpy(np.concatenate([c.rank for c in crops])),
        )
        return cls(*(tensor.to(device) for tensor in tensors))


def _neighbors(crop: Crop, k: int, shown: float) -> tuple[Tensor, Tensor, Tensor]:
    """E_idx, neighbor_mask and offset_class [L, K] of one crop, rows counted within it."""
    residues = crop.residues
    length = len(residues)
    ca = torch.from_numpy(residues.coords[:, graph.CA])
    D = graph.distance(ca[:, None], ca[None])
    found = D.topk(min(k, length), dim=-1, largest=False).indices
    E_idx = torch.arange(length)[:, None].repeat(1, _kept(k, shown))
    mask = torch.zeros(E_idx.shape)
    kept = _kept(found.shape[1], shown)
    mask[:, :kept] = 1
    if kept < found.shape[1]:
        mask[:, 1:kept] = (found.shape[1] - 1) / (kept - 1)
        lot = torch.from_numpy(generator(crop.key, 0).random(found.shape, np.float32))
        lot[:, 0] = -1  # the residue itself
        found = found.gather(1, lot.topk(kept, dim=-1, largest=False).indices)
    E_idx[:, :kept] = found
    residue_idx = torch.from_numpy(residues.residue_idx)
    offset = residue_idx[:, None] - residue_idx[E_idx] + graph.MAX_OFFSET
    return E_idx, mask, offset.clamp(0, 2 * graph.MAX_OFFSET)


def _kept(count: int, shown: float) -> int:
    """How many of `count` neighbors are kept: the residue itself and, if there is one, another."""
    return min(count, max(2, round(count * shown)))
