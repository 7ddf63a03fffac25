"""Are two engines' samples the same? Where they differ, is it a near-tie that rounding flipped?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpnn.sampling import Job, Samples
from mpnn.schedule import FloatArray

ROUNDING = 1e-4
"""Log-probabilities of two exact engines in float32 may differ by this, in nats.

With published weights on 5L33 either engine is 3e-5 (5e-6 root mean square) from float64.
"""


@dataclass(frozen=True)
class Flip:
    """The first residue, in decoding order, at which one sample differs between two engines."""

    sample: int
    residue: int
    """Row of the structures laid end to end."""

    margin: float
    """By how much the first engine preferred its residue type, in nats at temperature 1."""

    @property
    def is_rounding(self) -> bool:
        """True where differences in rounding alone can have changed the sample."""
        return abs(self.margin) <= 2 * ROUNDING


def flips(job: Job, a: Samples, b: Samples, lengths: Sequence[int] | None = None) -> list[Flip]:
    """The first difference of every sample of every structure; empty when all sequences are equal.

    Residues after a flip see other residue types and may differ for that reason, so only the first
    says anything about the engines.

    Args:
        job: what both engines sampled.
        a: by the first engine.
        b: by the second.
        lengths: residues of each structure; None where there is one.
    """
    found = []
    ends = np.cumsum(lengths or [len(job.S)])
    for start, end in zip([0, *ends], ends, strict=False):
        differs = (a.S != b.S) & (np.arange(len(job.S)) >= start) & (np.arange(len(job.S)) < end)
        for n in np.flatnonzero(differs.any(1)):
            residues = np.flatnonzero(differs[n])
            i = int(residues[job.rank[n, residues].argmin()])
            preference = _preference(job, a, int(n), i)
            margin = preference[a.S[n, i]] - preference[b.S[n, i]]
            found.append(Flip(int(n), i, float(margin * job.temperature[n])))
    return found


def largest_difference(a: Samples, b: Samples) -> float:
    """Largest |Δ log p| over the samples whose sequences are equal; NaN where none is."""
    same = (a.S == b.S).all(-1)
    if not same.any():
        return float("nan")
    return float(np.abs(a.log_probs[same] - b.log_probs[same]).max())


def _preference(job: Job, samples: Samples, n: int, i: int) -> FloatArray:
    """The 21 values of which the sample at residue i is the largest, [21]."""
    group = np.flatnonzero(job.tie_group == job.tie_group[i])
    weighted = samples.log_probs[n, group] * job.tie_weight[group, None]
    logits = (weighted + job.bias[group]).mean(0)
    preference: FloatArray = logits / job.temperature[n] + job.gumbel[n, i]
    return preference
