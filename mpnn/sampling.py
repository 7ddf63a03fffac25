"""Sampling: keyed noise, the job an engine is given, the sampling rule, and scores.

The noise is part of the interface. Every number that a sample needs comes from the counter-based
generator Philox keyed by (seed, sample), at a counter given by the residue. A residue type thus
depends on (seed, sample, residue) alone: not on the engine, the batch, the device or how a job was
split. Nothing here needs torch.

Shapes: B structures, N samples, R rows (residues laid end to end), V = 21 residue types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS, UNKNOWN
from mpnn.errors import InputError
from mpnn.schedule import FloatArray, Graph, IntArray, decoding_order, graph_coloring, rank_of

OMITTED = -1e8  # added to the logits of residue types that must not be sampled
WORDS = 24  # 64-bit words for each residue: 21 for the types, 2 for the order, 1 spare
COLDEST, HOTTEST = 1e-6, 100.0
"""Temperatures allowed. Below, float32 loses the noise; above, omitted types might be sampled."""


def noise(seed: int, sample: int, length: int) -> tuple[FloatArray, FloatArray]:
    """Returns Gumbel noise [L, 21] for residue types and standard normals [L] for the order.

    Row i is the same for every `length` > i.
    """
    words = np.random.Philox(key=np.array([seed, sample], np.uint64)).random_raw(length * WORDS)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53  # (0, 1), 53 bits
    uniform = uniform.reshape(length, WORDS)
    gumbel = -np.log(-np.log(uniform[:, :NUM_LETTERS]))
    u, v = uniform[:, NUM_LETTERS], uniform[:, NUM_LETTERS + 1]
    return gumbel, np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)  # Box–Muller


@dataclass(frozen=True, eq=False)
class Constraints:
    """What one structure of L residues may become.

    Attributes:
        designed: bool [L], True where a residue type is sampled; the others keep theirs.
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
    """N samples of each of some structures, which are laid end to end as in `mpnn.flat.Flat`.

    Attributes:
        S: int64 [R], residue types kept where a residue is not designed.
        designed: bool [R].
        rank: int64 [N, R], within each structure; neighbor j is visible to residue i where
            rank_j < rank_i. Members of a tied group share the group's rank.
        gumbel: float64 [N, R, 21]; members of a tied group have the noise of its first residue.
        temperature: float64 [N].
        bias: float64 [R, 21], added to the logits before the temperature.
        tie_group: int64 [R], row of the first residue of each row's group, its own row where free.
        tie_weight: float64 [R], weight of a row's logits in its group's mean.
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
        """Whether any two residues share a residue type."""
        return bool((self.tie_group != np.arange(len(self.tie_group))).any())

    def part(self, samples: slice) -> Job:
        """The same job for some of its samples."""
        return replace(
            self,
            rank=self.rank[samples],
            gumbel=self.gumbel[samples],
            temperature=self.temperature[samples],
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """What an engine samples, as host arrays.

    Attributes:
        S: int64 [N, R] residue types.
        log_probs: float [N, R, 21] of the raw logits when the residue was sampled, without
            temperature and bias; equal to the teacher-forced ones of S under the same ranks.
    """

    S: IntArray
    log_probs: NDArray[np.floating]


def make_job(S: IntArray, constraints: Sequence[Constraints], keys: Sequence[Key]) -> Job:
    """Makes the noise and the random orders of every structure and sample.

    Args:
        S: [R] native residue types.
        constraints: one for each structure, in the order of the rows.
        keys: one for each sample.
    """
    lengths = [len(c.designed) for c in constraints]
    starts = np.cumsum([0, *lengths[:-1]])
    tie_group = np.concatenate([c.tie_group + s for c, s in zip(constraints, starts, strict=True)])
    gumbel = np.empty((len(keys), len(S), NUM_LETTERS))
    rank = np.empty((len(keys), len(S)), np.int64)
    for n, key in enumerate(keys):
        types, normal = noise(key.seed, key.sample, max(lengths))
        for c, start, length in zip(constraints, starts, lengths, strict=True):
            rows = slice(start, start + length)
            order = decoding_order(c.designed, normal[:length])
            gumbel[n, rows], rank[n, rows] = types[c.tie_group], rank_of(order, c.tie_group)
    return Job(
        S=S,
        designed=np.concatenate([c.designed for c in constraints]),
        rank=rank,
        gumbel=gumbel,
        temperature=np.array([key.temperature for key in keys]),
        bias=np.concatenate([c.bias for c in constraints]),
        tie_group=tie_group,
        tie_weight=np.concatenate([c.tie_weight for c in constraints]),
    )


def with_graph_coloring(job: Job, graphs: Sequence[Graph]) -> Job:
    """Returns the same job under the graph-coloring order (`mpnn.schedule.graph_coloring`).

    Args:
        job: without ties.
        graphs: `Engine.neighbors` of each structure.

    Raises:
        InputError: residues are tied; a group would need one color for all its members.
    """
    if job.tied:
        raise InputError("the graph-coloring order takes no tied residues; use the random order")
    rank, start = job.rank.copy(), 0
    for E_idx, real in graphs:
        rows = slice(start, start + len(E_idx))
        rank[:, rows] = graph_coloring(rank[:, rows], job.designed[rows], E_idx, real)
        start = rows.stop
    return replace(job, rank=rank)


def sample_types(
    logits: Any, gumbel: Any, temperature: Any, bias: Any, group: Any = None, weight: Any = None
) -> Any:
    """Samples a residue type for each row by the Gumbel-max rule, one for a whole tied group.

    All arrays are numpy's, all are torch's on one device, or all are MLX's.

    Args:
        logits: [M, 21] of the rows of one decoding step.
        gumbel: [M, 21]; rows of one group have the same noise.
        temperature: [M].
        bias: [M, 21].
        group: [M] int64, number of each row's tied group within the step; None where nothing is
            tied.
        weight: [M] weight of each row in its group's mean.

    Returns:
        [M] int64 residue types.
    """
    if group is None:
        return ((logits + bias) / temperature[:, None] + gumbel).argmax(-1)
    total = _sum_by_group(logits * weight[:, None] + bias, group)
    members = _sum_by_group(temperature * 0 + 1, group)
    mean = total[group] / members[group, None]
    return (mean / temperature[:, None] + gumbel).argmax(-1)


def _sum_by_group(x: Any, group: Any) -> Any:
    """Sums rows [M, ...] of the same group: [M, ...], in the first rows one for each group."""
    if isinstance(x, np.ndarray):
        total = np.zeros_like(x)
        np.add.at(total, group, x)
        return total
    if hasattr(x, "index_add"):  # torch
        return x.new_zeros(x.shape).index_add_(0, group, x)
    return (x * 0).at[group].add(x)  # MLX


def sample_all(log_probs: NDArray[np.floating], job: Job) -> Samples:
    """Samples every residue of a job from distributions [R, 21] that see no other residue."""
    N, R = job.rank.shape
    dtype = log_probs.dtype
    group = np.unique(job.tie_group, return_inverse=True)[1] if job.tied else None
    S = np.empty((N, R), np.int64)
    for n in range(N):
        S[n] = sample_types(
            log_probs,
            job.gumbel[n].astype(dtype),
            np.full(R, job.temperature[n], dtype),
            job.bias.astype(dtype),
            group,
            job.tie_weight.astype(dtype),
        )
    return Samples(np.where(job.designed, S, job.S), np.repeat(log_probs[None], N, 0))


def check_sampling(
    num_seqs: int,
    temperature: float | Sequence[float],
    seed: int | Sequence[int],
    batch_size: int | None = None,
) -> tuple[list[float], list[int]]:
    """Checks how many samples are wanted; returns the temperatures and the seeds as lists.

    Raises:
        InputError: a value is out of range.
    """
    for name, count in (("num_seqs", num_seqs), ("batch_size", batch_size)):
        if name == "batch_size" and count is None:  # chosen by length
            continue
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise InputError(f"{name} is {count!r}; it must be a whole number, at least 1")
    temperatures = np.atleast_1d(temperature).tolist()
    if not temperatures:
        raise InputError("no temperature is given; 0.1 is usual")
    for t in temperatures:
        if not COLDEST <= t <= HOTTEST:  # NaN is outside too
            raise InputError(f"temperature {t}: it must lie between {COLDEST} and {HOTTEST:g}")
    return temperatures, check_seeds(seed)


def check_seeds(seed: object) -> list[int]:
    """Checks one seed or several; returns them as a list.

    Raises:
        InputError: one is not a whole number from 0 to 2**63 - 1, or none is given.
    """
    given = seed.tolist() if isinstance(seed, np.ndarray) else seed
    seeds: list[Any] = list(given) if isinstance(given, Sequence) else [given]
    if not seeds or not all(isinstance(s, (int, np.integer)) and 0 <= s < 2**63 for s in seeds):
        raise InputError(f"seed {seed!r}: one or more whole numbers from 0 to 2**63 - 1 are needed")
    return [int(s) for s in seeds]


def negative_log_likelihood(
    log_probs: NDArray[np.floating], S: IntArray, weights: NDArray[np.bool_]
) -> FloatArray:
    """Mean of −log p of the residue types where `weights` is True: the published `score`, in nats.

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
