"""Runs engines of the padded Batch interface as those of `Flat`: goes when all take `Flat`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mpnn.batch import Batch
from mpnn.decoding import Job, Samples
from mpnn.flat import Flat


@dataclass(frozen=True)
class FlatJob:
    """A job of `Flat` structures: fields as the agreed `Job`."""

    S: Any
    designed: Any
    rank: Any
    gumbel: Any
    temperature: Any
    bias: Any
    tie_group: Any
    tie_weight: Any


def flat_job(job: Job, flat: Flat) -> FlatJob:
    """A padded job laid end to end."""
    lengths = flat.lengths

    def rows(x):  # [B, L, ...] -> [R, ...]
        return np.concatenate([x[b, :n] for b, n in enumerate(lengths)])

    def samples(x):  # [B, N, L, ...] -> [N, R, ...]
        return np.concatenate([x[b, :, :n] for b, n in enumerate(lengths)], axis=1)

    heads = [
        job.tie_group[b, :n] + start
        for b, (n, start) in enumerate(zip(lengths, flat.offsets, strict=True))
    ]
    return FlatJob(
        rows(job.S), rows(job.designed), samples(job.rank), samples(job.gumbel), job.temperature,
        rows(job.bias), np.concatenate(heads), rows(job.tie_weight),
    )  # fmt: skip


def padded_batch(flat: Flat) -> Batch:
    """The structures side by side."""
    B, L = len(flat.lengths), max(flat.lengths)
    valid = np.arange(L) < np.array(flat.lengths)[:, None]

    def padded(x, fill=0):
        out = np.full((B, L, *x.shape[1:]), fill, x.dtype)
        out[valid] = x
        return torch.from_numpy(out)

    E_idx = None
    if flat.E_idx is not None:
        start = np.repeat(flat.offsets, flat.lengths)[:, None]
        E_idx = padded(flat.E_idx - start)
    return Batch(
        padded(flat.X),
        padded(flat.mask.astype(np.float32)),
        padded(flat.residue_idx),
        padded(flat.chain_encoding),
        padded(flat.S, 20),
        torch.from_numpy(valid),
        E_idx,
    )


class FlatEngine:
    """A padded engine behind the agreed interface."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def encode(self, flat: Flat) -> Any:
        """Encodes the structures side by side."""
        batch = padded_batch(flat)
        dtype = self.engine.dtype
        batch = replace(batch, X=batch.X.to(dtype), mask=batch.mask.to(dtype))
        return flat, self.engine.encode(batch)

    def _padded(self, flat: Flat, x: np.ndarray) -> np.ndarray:
        """[N, R] -> [B, N, L]."""
        out = np.zeros((len(flat.lengths), len(x), max(flat.lengths)), x.dtype)
        for b, (start, length) in enumerate(zip(flat.offsets, flat.lengths, strict=True)):
            out[b, :, :length] = x[:, start : start + length]
        return out

    def _flat(self, flat: Flat, x: np.ndarray) -> np.ndarray:
        """[B, N, L, ...] -> [N, R, ...]."""
        return np.concatenate([x[b, :, :n] for b, n in enumerate(flat.lengths)], axis=1)

    def log_probs(self, encoding: Any, S: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Teacher-forced log-probabilities [N, R, 21]."""
        flat, inner = encoding
        padded = self.engine.log_probs(inner, self._padded(flat, S), self._padded(flat, rank))
        return self._flat(flat, padded)

    def sample(self, encoding: Any, job: Job) -> Samples:
        """Draws a padded job; S [N, R] and log_probs [N, R, 21]."""
        flat, inner = encoding
        samples = self.engine.sample(inner, job)
        return Samples(self._flat(flat, samples.S), self._flat(flat, samples.log_probs))
