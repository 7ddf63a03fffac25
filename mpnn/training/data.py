"""Training chains, the crops sampled from them, and ragged batches of crops.

Every crop is a pure function of (seed, number): cluster, chain, residues, coordinate noise and
decoding order. A run therefore resumes from two counters, and the same seed gives the same run.
Shapes: R residues of all crops of a batch laid end to end without padding, K neighbors, V = 21
residue types.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
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

MIN_LENGTH = 20  # complete residues of known type that a training chain needs
CHAINS, ROUNDS = 2**62, 2**63
"""First random keys of the choice of a chain and of shuffled clusters; those of crops are lower."""

SAMPLING_VERSION = 2
"""Version of the sampling of crops, stored in the state of a run: a run resumes with the crops it
began with. In version 1, chain and decoding order came from the same random bits."""

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

RESIDUE_TYPE: IntArray = np.full(256, UNKNOWN, np.int64)
RESIDUE_TYPE[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(len(ALPHABET))


class TrainingChains(ChainSet):
    """A chain set and its clusters.

    Attributes:
        clusters: chains [n] of every cluster; chains with fewer than `MIN_LENGTH` complete
            residues of known type are left out.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads the file.

        Raises:
            InputError: see `ChainSet`; or no chain is long enough.
        """
        super().__init__(path)
        usable = self._arrays["complete"] & (RESIDUE_TYPE[self._arrays["sequence"]] != UNKNOWN)
        counts = np.add.reduceat(usable, self.offsets[:-1], dtype=int)
        long_enough = np.flatnonzero(counts >= MIN_LENGTH)
        if not len(long_enough):
            raise InputError(
                f"{path}: no chain has {MIN_LENGTH} complete residues of known type; training "
                "needs at least one such chain"
            )
        cluster = self.cluster[long_enough]
        by_cluster = np.argsort(cluster, kind="stable")
        starts = np.flatnonzero(np.diff(cluster[by_cluster])) + 1
        self.clusters: list[IntArray] = np.split(long_enough[by_cluster], starts)


@dataclass(frozen=True, eq=False)
class Residues:
    """Complete residues of one chain; `residue_idx` keeps the gaps left by incomplete ones."""

    coords: FloatArray  # [L, 4, 3] N, CA, C, O in Å
    S: IntArray  # [L] residue types
    residue_idx: IntArray  # [L]

    def __len__(self) -> int:
        return len(self.S)

    @classmethod
    def of(cls, backbone: Backbone) -> Residues:
        """The complete residues of a single-chain backbone."""
        S = RESIDUE_TYPE[np.frombuffer(backbone.sequence.encode(), np.uint8)]
        return cls(backbone.coords, S, backbone.residue_idx).take(np.flatnonzero(backbone.mask))

    def take(self, rows: IntArray) -> Residues:
        """The residues `rows`."""
        return Residues(self.coords[rows], self.S[rows], self.residue_idx[rows])


@dataclass(frozen=True, eq=False)
class Crop:
    """L residues of a chain with noise on their coordinates, and a decoding order."""

    chain: int  # index in the chain set
    residues: Residues  # [L]
    rows: IntArray  # [L] indices among the complete residues of the chain
    rank: IntArray  # [L], comparable but with gaps where residues are left out
    order: int | None  # number of the order among the fixed ones of the chain, None if random
    uniform: FloatArray  # [L, 2] in [0, 1): selects the residues to mutate, and their new types

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class CropConfig:
    """How crops are sampled."""

    seed: int = 0
    noise: float = 0.02  # Å, standard deviation on every coordinate
    max_length: int = 256  # residues of a crop
    orders: int | None = None  # decoding orders per chain; None: a new one each time
    rounds: int | None = None  # rounds after which a cluster's chains repeat; None: never


def generator(first: int, second: int) -> np.random.Generator:
    """An independent random generator for every pair of numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([first, second], np.uint64)))


def fixed_rank(length: int, chain: int, order: int) -> IntArray:
    """Rank [L] of the complete residues of a chain in its fixed order number `order`."""
    return rank_of(generator(chain, order).permutation(length))


def next_crop(chains: TrainingChains, config: CropConfig, number: int) -> Crop:
    """Crop `number` of the run: clusters in random order, each once per round.

    A crop is the residues nearest to a random one, so that most keep all their neighbors.
    """
    chain = _sampled_chain(chains, config, number)
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
    return Crop(chain, moved, rows, rank[rows], order, rng.random((len(rows), 2), np.float32))


def whole_chain(chains: TrainingChains, chain: int) -> Crop:
    """All complete residues of a chain without noise, in the first of its fixed orders."""
    whole = Residues.of(chains[chain])
    rank = fixed_rank(len(whole), chain, 0)
    return Crop(chain, whole, np.arange(len(whole)), rank, 0, np.ones((len(whole), 2), np.float32))


def _sampled_chain(chains: TrainingChains, config: CropConfig, number: int) -> int:
    """A random chain of the cluster whose turn it is."""
    clusters = chains.clusters

    def shuffled(round_: int) -> IntArray:
        return generator(config.seed, ROUNDS + round_).permutation(len(clusters))

    round_, position = divmod(number, len(clusters))
    cluster = int(shuffled(round_)[position])
    if config.rounds is not None:
        round_ %= config.rounds
        number = round_ * len(clusters) + int(np.flatnonzero(shuffled(round_) == cluster)[0])
    return int(generator(config.seed, CHAINS + number).choice(clusters[cluster]))


def _nearest_rows(residues: Residues, max_length: int, rng: np.random.Generator) -> IntArray:
    """Rows of the `max_length` residues nearest to a random one, in chain order."""
    if len(residues) <= max_length:
        return np.arange(len(residues))
    ca = residues.coords[:, graph.CA]
    squared = ((ca - ca[rng.integers(len(ca))]) ** 2).sum(-1)
    return np.sort(np.argsort(squared, kind="stable")[:max_length])


def crops_for_step(
    chains: TrainingChains, config: CropConfig, first: int, tokens: int
) -> list[Crop]:
    """Crops from number `first` on, with at most `tokens` residues but at least one crop."""
    return next(packed((next_crop(chains, config, n) for n in itertools.count(first)), tokens))


def packed(crops: Iterable[Crop], tokens: int) -> Iterator[list[Crop]]:
    """Consecutive crops in groups of at most `tokens` residues but at least one crop."""
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
    E_idx: Tensor  # [R, K] int64, row of the neighbor; the residue itself in unused slots
    neighbor_mask: Tensor  # [R, K] float, 1 for a neighbor, 0 in the unused slots of a short crop
    offset_class: Tensor  # [R, K] int64, see graph.relative_positions
    rank: Tensor  # [R] int64, comparable within a crop

    @classmethod
    def from_crops(
        cls, crops: Sequence[Crop], k: int, device: str | torch.device = "cpu"
    ) -> RaggedBatch:
        """Lays `crops` end to end and finds the k nearest residues of each by CA distance.

        Args:
            crops: at least one.
            k: neighbors, the residue itself among them.
            device: where the batch goes.
        """
        starts = np.cumsum([0, *(len(c) for c in crops)])
        pieces = [_neighbors(c, k) for c in crops]
        tensors = (
            torch.from_numpy(np.concatenate([c.residues.coords for c in crops])),
            torch.from_numpy(np.concatenate([c.residues.S for c in crops])),
            torch.cat([E + int(start) for (E, _, _), start in zip(pieces, starts, strict=False)]),
            torch.cat([mask for _, mask, _ in pieces]),
            torch.cat([offsets for _, _, offsets in pieces]),
            torch.from_numpy(np.concatenate([c.rank for c in crops])),
        )
        return cls(*(tensor.to(device) for tensor in tensors))


def _neighbors(crop: Crop, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """E_idx, neighbor_mask and offset_class [L, K] of one crop, rows counted within it."""
    length = len(crop)
    ca = torch.from_numpy(crop.residues.coords[:, graph.CA])
    D = graph.distance(ca[:, None], ca[None])
    count = min(k, length)
    E_idx = torch.arange(length)[:, None].repeat(1, k)
    E_idx[:, :count] = D.topk(count, dim=-1, largest=False).indices
    mask = torch.zeros(E_idx.shape)
    mask[:, :count] = 1
    residue_idx = torch.from_numpy(crop.residues.residue_idx)
    offset = residue_idx[:, None] - residue_idx[E_idx] + graph.MAX_OFFSET
    return E_idx, mask, offset.clamp(0, 2 * graph.MAX_OFFSET)
