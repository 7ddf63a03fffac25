"""When each residue is decoded: orders, ranks, wavefronts, graph coloring, the rows of each step.

Visibility is expressed by ranks: neighbor j is visible to residue i where rank_j < rank_i. Tied
residues share a rank and see nothing of one another. Nothing here needs torch.

Shapes: N samples, L residues of one structure, R rows of all structures, K neighbors, M rows of a
step or of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpnn.sampling import Job

Order = Literal["random", "graph-coloring"]
"""Distributions over decoding orders: the published one, and `graph_coloring`."""

FIXED_WEIGHT = 1e-4  # (chain_M + 0.0001)·|r|: fixed residues come first in practice

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Graph = tuple[IntArray, NDArray[np.bool_]]
"""Neighbors E_idx [L, K] within one structure, and False where a neighbor slot is padding."""


def decoding_order(designed: NDArray[np.bool_], normal: FloatArray) -> IntArray:
    """The published order: argsort((chain_M + 0.0001)·|r|), [L] positions, first decoded first.

    Args:
        designed: [L], True where a residue type is sampled (chain_M · mask).
        normal: [L] standard normals.
    """
    return np.argsort((designed + FIXED_WEIGHT) * np.abs(normal), kind="stable")


def rank_of(order: IntArray, tie_group: IntArray | None = None) -> IntArray:
    """Turns an order [L] into ranks [L]; a tied group takes the rank of its first member to come.

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


def wavefront(
    rank: IntArray,
    designed: NDArray[np.bool_],
    E_idx: IntArray,
    real: NDArray[np.bool_],
    tie_group: IntArray,
) -> IntArray:
    """Step at which each residue of a structure can be decoded; a step has no dependencies in it.

    A residue depends on the earlier ones among its K neighbors only. Residues of known type that
    come before every designed one depend on no sample: they are step 0, and the designed ones
    begin with step 1.

    Args:
        rank: [N, L].
        designed: [L].
        E_idx: [L, K].
        real: [L, K], False where the neighbor is padding.
        tie_group: [L]; the members of a group are decoded together.

    Returns:
        [N, L] steps.
    """
    N, L = rank.shape
    step = np.zeros((N, L), np.int64)
    if not designed.any():
        return step
    first = np.where(designed, rank, L).min(1)  # [N] rank of the first designed residue
    depends = real & (rank[:, E_idx] < rank[:, :, None])  # [N, L, K]
    members = _members(tie_group)  # [G, M]
    row = np.arange(N)[:, None, None]
    group_rank = rank[:, members[:, 0]]  # [N, G]
    fixed = int((group_rank < first[:, None]).sum(1).min())  # groups before any designed one
    for groups in np.argsort(group_rank, axis=1, kind="stable").T[fixed:]:
        i = members[groups]  # [N, M]
        earliest = (step[row, E_idx[i]] * depends[row[..., 0], i]).max((1, 2)) + 1
        started = rank[row[:, 0, 0], i[:, 0]] >= first
        step[row[..., 0], i] = (earliest * started)[:, None]
    return step


def graph_coloring(
    rank: IntArray, designed: NDArray[np.bool_], E_idx: IntArray, real: NDArray[np.bool_]
) -> IntArray:
    """Graph-coloring order: another legal order, with as many steps as there are colors.

    Designed residues take, in the order of their ranks, the smallest color that none of their
    neighbors has (j is a neighbor of i where either lists the other); then colors are decoded
    one after another. Any order is a legal one for the network, but this is another distribution
    over orders than the published one, so it has a name of its own and its recovery is measured.

    Args:
        rank: [N, L], all different.
        designed: [L]; the others stay in front in their order.
        E_idx: [L, K].
        real: [L, K], False where the neighbor is padding.

    Returns:
        [N, L] ranks.
    """
    N, L = rank.shape
    neighbors = _symmetric(E_idx, real)  # [L, M], filled up with L
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


def _symmetric(E_idx: IntArray, real: NDArray[np.bool_]) -> IntArray:
    """Neighbors in either direction, [L, M], short rows filled up with L."""
    L = len(E_idx)
    i, j = np.nonzero(real)[0], E_idx[real]
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


def steps_of(job: Job, graphs: Sequence[Graph], known_first: bool = True) -> IntArray:
    """Wavefront step of every row of a job, [N, R].

    Args:
        job: of all structures.
        graphs: `Engine.neighbors` of each structure.
        known_first: give step 0 to the residues of known type that precede every designed one, to
            be computed in one pass; otherwise they take steps from 1 on like all others.
    """
    step, start = np.zeros_like(job.rank), 0
    for E_idx, real in graphs:
        rows = slice(start, start + len(E_idx))
        designed = job.designed[rows] if known_first else np.ones(len(E_idx), bool)
        ties = job.tie_group[rows] - start
        step[:, rows] = wavefront(job.rank[:, rows], designed, E_idx, real, ties)
        start = rows.stop
    return step


@dataclass(frozen=True, eq=False)
class StepRows:
    """Rows [M] of a job, sorted by decoding step, with all that is needed to sample them.

    Row n·R + i is residue i of sample n.

    Attributes:
        sizes: rows in each step.
        row: int64 [M].
        residue: int64 [M], row modulo R.
        designed: bool [M].
        gumbel: float64 [M, 21].
        temperature: float64 [M].
        bias: float64 [M, 21].
        group: int64 [M], number of each row's tied group within its step; None where nothing is
            tied.
        weight: float64 [M], of each row's logits in its group's mean.
    """

    sizes: list[int]
    row: IntArray
    residue: IntArray
    designed: NDArray[np.bool_]
    gumbel: FloatArray
    temperature: FloatArray
    bias: FloatArray
    group: IntArray | None
    weight: FloatArray

    @classmethod
    def of(cls, job: Job, step: IntArray) -> StepRows:
        """Gathers the rows of steps 1, 2, … of a job; rows of step 0 are left out.

        Args:
            job: N samples of R residues.
            step: [N, R], at least 0.
        """
        step, R = step.ravel(), job.rank.shape[1]
        row = np.flatnonzero(step > 0)
        row = row[np.argsort(step[row], kind="stable")]
        sample, residue = np.divmod(row, R)
        group = None
        if job.tied:
            group = _groups_in_steps(step[row], sample, job.tie_group[residue])
        return cls(
            sizes=[int(n) for n in np.unique(step[row], return_counts=True)[1]],
            row=row,
            residue=residue,
            designed=job.designed[residue],
            gumbel=job.gumbel[sample, residue],
            temperature=job.temperature[sample],
            bias=job.bias[residue],
            group=group,
            weight=job.tie_weight[residue],
        )

    def steps(self) -> Iterator[StepRows]:
        """Cuts the rows into their steps."""
        names = [f.name for f in fields(self)[1:]]
        for first, last in pairwise(np.cumsum([0, *self.sizes]).tolist()):
            arrays = {name: getattr(self, name) for name in names}
            cut: dict[str, Any] = {
                name: x if x is None else x[first:last] for name, x in arrays.items()
            }
            yield replace(self, sizes=[last - first], **cut)


def _groups_in_steps(step: IntArray, sample: IntArray, head: IntArray) -> IntArray:
    """Number of each row's tied group within its step, for rows [M] sorted by step.

    Args:
        step: [M], ascending.
        sample: [M].
        head: [M] first residue of the row's tied group.
    """
    groups, number = np.unique(np.stack([step, sample, head]), axis=1, return_inverse=True)
    counted: IntArray = number - np.searchsorted(groups[0], step)  # from the step's first group
    return counted
