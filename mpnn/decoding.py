"""Order, noise, schedule, and the draw: what every engine's sampler has in common.

The noise is part of the interface. Every number a sample needs comes from the counter-based
generator Philox keyed by (seed, sample), at a counter given by the residue. So one draw depends on
(seed, sample, residue) alone: not on the engine, the batch, the device or how a job was split.

Visibility is expressed by ranks: neighbor j is visible to residue i where rank_j < rank_i. Tied
residues share a rank, and see nothing of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.config import NUM_LETTERS, UNKNOWN
from mpnn.errors import InputError

Order = Literal["random", "coloured"]
"""Distributions over decoding orders: the published one, and color classes (`coloured`)."""

FIXED_WEIGHT = 1e-4  # (chain_M + 0.0001)·|r|: fixed residues come first in practice
OMITTED = -1e8  # added to the logits of letters that must not be drawn
WORDS = 24  # 64-bit words for each residue: 21 for the letters, 2 for the order, 1 spare

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def noise(seed: int, sample: int, length: int) -> tuple[FloatArray, FloatArray]:
    """Gumbel noise [L, 21] for the draws and standard normals [L] for the order.

    Row i is the same for every `length` > i.
    """
    words = np.random.Philox(key=np.array([seed, sample], np.uint64)).random_raw(length * WORDS)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53  # (0, 1), 53 bits
    uniform = uniform.reshape(length, WORDS)
    gumbel = -np.log(-np.log(uniform[:, :NUM_LETTERS]))
    u, v = uniform[:, NUM_LETTERS], uniform[:, NUM_LETTERS + 1]
    return gumbel, np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)  # Box–Muller


def decoding_order(designed: NDArray[np.bool_], normal: FloatArray) -> IntArray:
    """The published order: argsort((chain_M + 0.0001)·|r|), [L] positions, first decoded first.

    Args:
        designed: [L], True where a letter is to be drawn (chain_M · mask).
        normal: [L] standard normals.
    """
    return np.argsort((designed + FIXED_WEIGHT) * np.abs(normal), kind="stable")


def rank_of(order: IntArray, tie_group: IntArray | None = None) -> IntArray:
    """Turns an order [L] into ranks [L]; members of a tie take the rank of the first to come.

    Args:
        order: [L] positions, first decoded first.
        tie_group: [L] index of each residue's group, its own index where it is free.
    """
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    if tie_group is None:
        return rank
    first = np.full(len(order), len(order), np.int64)
    np.minimum.at(first, tie_group, rank)
    return first[tie_group]


@dataclass(frozen=True, eq=False)
class Constraints:
    """What a user asks of one structure of L residues.

    Attributes:
        designed: bool [L], True where a letter is to be drawn; the others keep theirs.
        bias: float64 [L, 21], added to the logits before the temperature; `OMITTED` forbids.
        tie_group: int64 [L], first residue of each residue's tied group, its own index where free.
        tie_weight: float64 [L], weight of a residue's logits in its group's mean.
    """

    designed: NDArray[np.bool_]
    bias: FloatArray
    tie_group: IntArray
    tie_weight: FloatArray

    @classmethod
    def free(cls, mask: NDArray[np.bool_]) -> Constraints:
        """All residues with coordinates designed, X forbidden, nothing tied."""
        length = len(mask)
        bias = np.zeros((length, NUM_LETTERS))
        bias[:, UNKNOWN] = OMITTED
        return cls(mask.copy(), bias, np.arange(length), np.ones(length))


@dataclass(frozen=True)
class Key:
    """One sample: the seed and the number that key its noise, and its temperature."""

    seed: int
    sample: int
    temperature: float


@dataclass(frozen=True, eq=False)
class Job:
    """N samples of each of B structures, as host arrays padded to L residues.

    Attributes:
        S: int64 [B, L], letters that residues keep where they are not designed.
        designed: bool [B, L], False for padding.
        rank: int64 [B, N, L].
        gumbel: float64 [B, N, L, 21].
        temperature: float64 [N].
        bias: float64 [B, L, 21].
        tie_group: int64 [B, L].
        tie_weight: float64 [B, L].
    """

    S: IntArray
    designed: NDArray[np.bool_]
    rank: IntArray
    gumbel: FloatArray
    temperature: FloatArray
    bias: FloatArray
    tie_group: IntArray
    tie_weight: FloatArray

    @property
    def tied(self) -> bool:
        """Whether any two residues share a draw."""
        return bool((self.tie_group != np.arange(self.tie_group.shape[1])).any())


@dataclass(frozen=True, eq=False)
class Samples:
    """What a sampler returns, on the host.

    Attributes:
        S: int64 [B, N, L] letters.
        log_probs: float [B, N, L, 21], of every letter at the moment of the draw, without
            temperature and bias. They equal the teacher-forced ones of S under the same ranks.
    """

    S: IntArray
    log_probs: NDArray[np.floating]


def on_device(x: NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array as a tensor; copied where it is a read-only view, such as a broadcast."""
    t = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    if t.dtype == torch.float64 and device.type == "mps":  # which has no float64
        t = t.float()
    return t.to(device)


def make_job(S: IntArray, constraints: Sequence[Constraints], keys: Sequence[Key]) -> Job:
    """Draws the noise and the random orders for every structure and key.

    Args:
        S: [B, L] native letters, padded.
        constraints: one for each structure, of its own length.
        keys: one for each sample.
    """
    B, L = S.shape
    N = len(keys)
    designed = np.zeros((B, L), bool)
    rank = np.tile(np.arange(L), (B, N, 1))
    gumbel = np.zeros((B, N, L, NUM_LETTERS))
    bias = np.zeros((B, L, NUM_LETTERS))
    tie_group = np.tile(np.arange(L), (B, 1))
    tie_weight = np.ones((B, L))
    drawn = [noise(key.seed, key.sample, L) for key in keys]
    for b, c in enumerate(constraints):
        length = len(c.designed)
        designed[b, :length] = c.designed
        bias[b, :length] = c.bias
        tie_group[b, :length] = c.tie_group
        tie_weight[b, :length] = c.tie_weight
        for n, (letters, normal) in enumerate(drawn):
            gumbel[b, n, :length] = letters[:length]
            order = decoding_order(c.designed, normal[:length])
            rank[b, n, :length] = rank_of(order, c.tie_group)
    temperature = np.array([key.temperature for key in keys])
    return Job(S, designed, rank, gumbel, temperature, bias, tie_group, tie_weight)


def draw(
    logits: Tensor,
    gumbel: Tensor,
    temperature: Tensor,
    bias: Tensor,
    slot: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """One letter for each row by the Gumbel-max rule, one for all rows of a tied group.

    Args:
        logits: [R, 21] of the residues of this step.
        gumbel: [R, 21]; rows of one group bring the same noise.
        temperature: [R].
        bias: [R, 21].
        slot: [R] int64 number of each row's group in this step; None where nothing is tied.
        weight: [R] weight of each row in its group's mean.

    Returns:
        [R] int64 letters.
    """
    if slot is None or weight is None:
        return ((logits + bias) / temperature[:, None] + gumbel).argmax(-1)
    pooled = torch.zeros_like(logits).index_add_(0, slot, logits * weight[:, None] + bias)
    members = torch.zeros_like(temperature).index_add_(0, slot, torch.ones_like(temperature))
    mean = pooled[slot] / members[slot, None]
    return (mean / temperature[:, None] + gumbel).argmax(-1)


def slots_in_steps(step: IntArray, sample: IntArray, leader: IntArray) -> IntArray:
    """Number of each row's tied group within its step, for rows [M] sorted by step.

    Args:
        step: [M], ascending.
        sample: [M].
        leader: [M] residue that leads the row's tied group.
    """
    groups, slot = np.unique(np.stack([step, sample, leader]), axis=1, return_inverse=True)
    counted: IntArray = slot - np.searchsorted(groups[0], step)  # from the step's first group
    return counted


def slot_of(group: Tensor) -> Tensor:
    """Numbers the distinct groups of a step 0, 1, …: group [R] -> slot [R], for `draw`."""
    slot: Tensor = torch.unique(group, return_inverse=True)[1]
    return slot


def wavefront(
    rank: IntArray,
    designed: NDArray[np.bool_],
    E_idx: IntArray,
    blocks: NDArray[np.bool_],
    tie_group: IntArray,
) -> IntArray:
    """Step at which each residue can be decoded; residues of one step wait for nobody in it.

    A residue waits for the earlier ones among its K neighbors only. Residues whose letter is
    known and that come before every designed one wait for nothing: they are step 0, and the
    designed ones begin with step 1.

    Args:
        rank: [N, L].
        designed: [L].
        E_idx: [L, K].
        blocks: [L, K], False where the neighbor is padding.
        tie_group: [L]; the members of a group are decoded together.

    Returns:
        [N, L] steps.
    """
    N, L = rank.shape
    step = np.zeros((N, L), np.int64)
    if not designed.any():
        return step
    first = np.where(designed, rank, L).min(1)  # [N] rank of the first designed residue
    waits = blocks & (rank[:, E_idx] < rank[:, :, None])  # [N, L, K]
    members = _members(tie_group)  # [G, M]
    row = np.arange(N)[:, None, None]
    group_rank = rank[:, members[:, 0]]  # [N, G]
    fixed = int((group_rank < first[:, None]).sum(1).min())  # groups before any designed one
    for groups in np.argsort(group_rank, axis=1, kind="stable").T[fixed:]:
        i = members[groups]  # [N, M]
        earliest = (step[row, E_idx[i]] * waits[row[..., 0], i]).max((1, 2)) + 1
        started = rank[row[:, 0, 0], i[:, 0]] >= first
        step[row[..., 0], i] = (earliest * started)[:, None]
    return step


def coloured(
    rank: IntArray, designed: NDArray[np.bool_], E_idx: IntArray, blocks: NDArray[np.bool_]
) -> IntArray:
    """Color-class order: another legal order, with as many steps as there are colors.

    Designed residues take, in the order of their ranks, the smallest color that none of their
    neighbors has (j is a neighbor of i where either lists the other); then colors are decoded
    one after another. Any order is a legal one for the network, but this is another distribution
    over orders than the published one, so it has a name of its own and its recovery is measured.

    Args:
        rank: [N, L], all different.
        designed: [L]; the others stay in front in their order.
        E_idx: [L, K].
        blocks: [L, K], False where the neighbor is padding.

    Returns:
        [N, L] ranks.
    """
    N, L = rank.shape
    neighbors = _symmetric(E_idx, blocks)  # [L, M], filled up with L
    color = np.full((N, L + 1), -1)
    row = np.arange(N)[:, None]
    for i in np.argsort(rank, axis=1).T:  # [N]
        taken = np.zeros((N, neighbors.shape[1] + 2), bool)
        taken[row, color[row, neighbors[i]]] = True  # −1, no color, is the last column
        taken[:, -1] = False
        color[row[:, 0], i] = np.where(designed[i], taken.argmin(1), -1)
    color = color[:, :L]
    order = np.lexsort((rank, color), axis=1)
    result = np.empty_like(rank)
    result[row, order] = np.arange(L)
    return result


def with_coloured_order(job: Job, graphs: Sequence[tuple[IntArray, NDArray[np.bool_]]]) -> Job:
    """The same job under the color-class order (`coloured`).

    Args:
        job: without ties.
        graphs: for each structure, what `Engine.neighbors` says of it.

    Raises:
        InputError: residues are tied; a group would need one color for all its members.
    """
    if job.tied:
        raise InputError("the coloured order takes no tied residues; use the random order")
    rank = job.rank.copy()
    for b, (E_idx, real) in enumerate(graphs):
        length = len(E_idx)
        rank[b, :, :length] = coloured(rank[b, :, :length], job.designed[b, :length], E_idx, real)
    return replace(job, rank=rank)


def _symmetric(E_idx: IntArray, blocks: NDArray[np.bool_]) -> IntArray:
    """Neighbors in either direction, [L, M], short rows filled up with L."""
    L = len(E_idx)
    i, j = np.nonzero(blocks)[0], E_idx[blocks]
    i, j = np.divmod(np.unique(np.concatenate([i * L + j, j * L + i])), L)
    count = np.bincount(i, minlength=L)
    neighbors = np.full((L, int(count.max())), L)
    neighbors[i, np.arange(len(i)) - (np.cumsum(count) - count)[i]] = j
    return neighbors


def _members(tie_group: IntArray) -> IntArray:
    """Residues of each group [G, M], short groups filled up with their first residue."""
    groups, sizes = np.unique(tie_group, return_counts=True)
    members = np.tile(groups[:, None], (1, int(sizes.max())))
    for row in np.flatnonzero(sizes > 1):
        members[row, : sizes[row]] = np.flatnonzero(tie_group == groups[row])
    return members


def negative_log_likelihood(
    log_probs: NDArray[np.floating], S: IntArray, weights: NDArray[np.bool_]
) -> FloatArray:
    """Mean of −log p of the letters where `weights` is True: the published `score`, in nats.

    Args:
        log_probs: [..., L, 21].
        S: [..., L].
        weights: [..., L] or [L], residues that count.

    Returns:
        [...]; NaN where no residue counts.
    """
    nll = -np.take_along_axis(log_probs, S[..., None], -1)[..., 0].astype(np.float64)
    counted = np.broadcast_to(weights, nll.shape)
    total = np.where(counted, nll, 0.0).sum(-1)
    count = counted.sum(-1)
    mean: FloatArray = np.full_like(total, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
