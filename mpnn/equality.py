"""Are two engines' samples the same? Where they differ, is it a near-tie that rounding flipped?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpnn.decoding import FloatArray, Job, Samples

ROUNDING = 1e-4
"""Log-probabilities of two exact engines in float32 may differ by this, in nats.

With published weights on 5L33 either engine is 3e-5 (5e-6 root mean square) from float64.
"""


@dataclass(frozen=True)
class Flip:
    """The first residue, in decoding order, at which one sample differs between two engines."""

    structure: int
    sample: int
    residue: int
    margin: float
    """By how much the first engine preferred its letter, in nats at temperature 1."""

    @property
    def is_rounding(self) -> bool:
        """True where differences in rounding alone can have flipped the draw."""
        return abs(self.margin) <= 2 * ROUNDING


def flips(job: Job, a: Samples, b: Samples) -> list[Flip]:
    """The first difference of every sample that differs; empty when all sequences are equal.

    Residues after a flip see other letters and may differ for that reason, so only the first
    says anything about the engines.
    """
    found = []
    for s, n in zip(*np.nonzero((a.S != b.S).any(-1)), strict=True):
        differs = np.flatnonzero(a.S[s, n] != b.S[s, n])
        i = int(differs[job.rank[s, n, differs].argmin()])
        preference = _preference(job, a, int(s), int(n), i)
        margin = preference[a.S[s, n, i]] - preference[b.S[s, n, i]]
        found.append(Flip(int(s), int(n), i, float(margin * job.temperature[n])))
    return found


def largest_difference(a: Samples, b: Samples) -> float:
    """Largest |Δ log p| over the samples whose sequences are equal; NaN where none is."""
    same = (a.S == b.S).all(-1)
    if not same.any():
        return float("nan")
    return float(np.abs(a.log_probs[same] - b.log_probs[same]).max())


def _preference(job: Job, samples: Samples, s: int, n: int, i: int) -> FloatArray:
    """What the draw at residue i took the largest of, [21]."""
    group = np.flatnonzero(job.tie_group[s] == job.tie_group[s, i])
    weighted = samples.log_probs[s, n, group] * job.tie_weight[s, group, None]
    logits = (weighted + job.bias[s, group]).mean(0)
    preference: FloatArray = logits / job.temperature[n] + job.gumbel[s, n, job.tie_group[s, i]]
    return preference
