"""Networks in which no residue sees another's type: one pass, then all residues at once.

Such a network was trained with every neighbor masked, so its distributions are p(s_i | X). Ranks
and residue types are dropped here, in one place, for every engine and every caller: no job can make
the network read residue types that it was never trained with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpnn.flat import Flat
from mpnn.sampling import Job, Samples, sample_all
from mpnn.schedule import Graph, IntArray

if TYPE_CHECKING:
    from mpnn.optimizations import Engine


class UnconditionalEngine:
    """Scores and samples from p(s_i | X) alone."""

    def unconditional(self, encoding: Any, S: IntArray) -> NDArray[np.floating]:
        """p(s_i | X) as log-probabilities [R, 21]; S [R] is any sequence of the structures."""
        raise NotImplementedError

    def log_probs(self, encoding: Any, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """p(s_i | X) as [N, R, 21], whatever the N sequences and ranks."""
        return np.repeat(self.unconditional(encoding, S[0])[None], len(rank), 0)

    def sample(self, encoding: Any, job: Job) -> Samples:
        """Samples all residues at once; all N sequences come from one pass."""
        return sample_all(self.unconditional(encoding, job.S), job)


class OneShotEngine(UnconditionalEngine):
    """Another engine that computes unconditional distributions alone."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.device, self.dtype = engine.device, engine.dtype

    def encode(self, flat: Flat) -> Any:
        """What the other engine encodes."""
        return self.engine.encode(flat)

    def neighbors(self, encoding: Any, b: int) -> Graph:
        """What the other engine finds."""
        return self.engine.neighbors(encoding, b)

    def synchronize(self) -> None:
        """Blocks until the other engine has finished all work."""
        self.engine.synchronize()

    def unconditional(self, encoding: Any, S: IntArray) -> NDArray[np.floating]:
        """The other engine's scores [R, 21] with no neighbor visible."""
        one = S[None]  # one sequence, as all give the same
        scored: NDArray[np.floating] = self.engine.log_probs(encoding, one, np.zeros_like(one))[0]
        return scored
