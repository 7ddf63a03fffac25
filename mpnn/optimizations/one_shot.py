"""Networks that letters never enter: one pass, whatever is asked, then all draws at once.

Such a network was trained with every neighbor unseen, so its distributions are p(s_i | X). Ranks
and letters are left out here, at one place, for every engine and every caller: no job can make
the network look at letters that it was never shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpnn.batch import Batch
from mpnn.decoding import IntArray, Job, Samples, draw, on_device, slot_of
from mpnn.optimizations import Engine


class OneShotEngine:
    """Another engine, asked for its unconditional distributions alone."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.device, self.dtype = engine.device, engine.dtype

    def encode(self, batch: Batch) -> Any:
        """What the other engine encodes."""
        return self.engine.encode(batch)

    def neighbors(self, encoding: Any, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b on the host, and False where a slot is padding."""
        return self.engine.neighbors(encoding, b)

    def synchronize(self) -> None:
        """Waits for the other engine."""
        self.engine.synchronize()

    def log_probs(self, encoding: Any, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """p(s_i | X) as [B, N, L, 21], whatever the N letters and ranks of a structure."""
        log_probs = self.engine.log_probs(encoding, S[:, :1], np.zeros_like(rank[:, :1]))
        return np.repeat(log_probs, S.shape[1], axis=1)

    def sample(self, encoding: Any, job: Job) -> Samples:
        """All samples from one pass."""
        return draw_all(self.log_probs(encoding, job.S[:, None], job.rank[:, :1])[:, 0], job)


def draw_all(log_probs: NDArray[np.floating], job: Job) -> Samples:
    """Draws every letter of a job from the structures' distributions [B, L, 21]."""
    B, N, L = job.rank.shape
    host = torch.device("cpu")
    everyone = np.broadcast_to(log_probs[:, None], (B, N, *log_probs.shape[1:]))
    group = np.broadcast_to(job.tie_group[:, None], (B, N, L))
    sample = np.arange(B * N).reshape(B, N, 1)
    gumbel = np.take_along_axis(job.gumbel, group[..., None], 2)  # that of the group's first

    def rows(x: NDArray[np.generic], *shape: int) -> torch.Tensor:
        flat = on_device(np.broadcast_to(x, (B, N, L, *shape)).reshape(B * N * L, *shape), host)
        return flat.to(logits.dtype) if flat.is_floating_point() else flat

    logits = on_device(everyone.reshape(B * N * L, -1), host)
    drawn = draw(
        logits,
        rows(gumbel, gumbel.shape[-1]),
        rows(job.temperature[:, None]),
        rows(job.bias[:, None], job.bias.shape[-1]),
        slot_of(rows(sample * L + group)) if job.tied else None,
        rows(job.tie_weight[:, None]),
    )
    S = np.where(job.designed[:, None], drawn.numpy().reshape(B, N, L), job.S[:, None])
    return Samples(S, everyone.copy())
