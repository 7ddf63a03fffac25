"""Structures and jobs of every kind for the tests of the compiled engine."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from native_build import native_library
from synthetic_files import with_gaps

from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.optimizations import Engine, load_engine
from mpnn.optimizations.native.engine import NativeEngine
from mpnn.sampling import Constraints, Job, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

SMALL = ModelConfig(2, 3, 64, 24)
WIDE = ModelConfig(3, 3, 128, 48)
TOLERANCE = 3e-5  # nats, deterministic weights

BACKBONES = {
    "one chain": [synthetic_backbone(70)],
    "three chains": [synthetic_backbone(75, chains=3)],
    "shorter than K": [synthetic_backbone(15)],
    "one residue": [synthetic_backbone(1)],
    "masked residues": [with_gaps(synthetic_backbone(60), 3, 4, 30, 59)],
    "fewer complete residues than K": [
        with_gaps(synthetic_backbone(33), *range(3, 22)),
        synthetic_backbone(40, seed=1),
    ],
    "nothing but gaps": [with_gaps(synthetic_backbone(12), *range(12))],
    "different lengths": [synthetic_backbone(n, seed=n) for n in (50, 11, 33, 1)],
}
KINDS = ("free", "fixed", "tied", "biased")


@functools.cache
def native(config: ModelConfig, threads: int = 1) -> NativeEngine:
    return NativeEngine(formula_weights(config), threads=threads, library=native_library())


@functools.cache
def reference(config: ModelConfig) -> Engine:
    return load_engine(formula_weights(config), "reference")


@functools.cache
def structures(name: str) -> Flat:
    return Flat.from_backbones(BACKBONES[name])


def constraints(backbone: Any, kind: str) -> Constraints:
    """What a job of one kind asks of one structure."""
    c, L = Constraints.free(backbone.mask), len(backbone)
    half = L // 2
    if kind == "fixed":
        c.designed[np.arange(L) % 10 > 0] = False
    if kind == "tied":  # groups of two and three, some members fixed or masked, a negative weight
        c.designed[::7] = False
        c.tie_group[half : 2 * half] = np.arange(half)
        c.tie_group[L - 1] = c.tie_group[0]
        c.tie_weight[:half] = 0.5
        c.tie_weight[1::5] = -0.7
    if kind == "biased":
        c.bias[:, 0] -= 1.1
        c.bias[half, 5] += 3.0
        c.bias[: half // 2, 7] = -1e8
    return c


@functools.cache
def jobs(name: str, kind: str, samples: int = 3) -> Job:
    """A job of one kind, every sample at another temperature."""
    keys = [Key(7, n, 0.2 + 0.1 * n) for n in range(samples)]
    each = [constraints(b, kind) for b in BACKBONES[name]]
    return make_job(structures(name).S, each, keys)


@functools.cache
def expected(name: str, kind: str, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    engine = reference(config)
    return sampled(engine, engine.encode(structures(name)), jobs(name, kind))


def draw(name: str, kind: str, config: ModelConfig = SMALL, threads: int = 1) -> tuple[Any, Any]:
    engine = native(config, threads)
    return sampled(engine, engine.encode(structures(name)), jobs(name, kind))


def sampled(engine: Engine, encoding: Any, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Residue types [N, R] and log-probabilities [N, R, 21] of a job."""
    samples = engine.sample(encoding, job)
    return samples.S, samples.log_probs


def subset(job: Job, rows: slice, samples: slice) -> Job:
    """Some samples of one structure of a job."""
    return Job(
        job.S[rows], job.designed[rows], job.rank[samples, rows], job.gumbel[samples, rows],
        job.temperature[samples], job.bias[rows], job.tie_group[rows] - rows.start,
        job.tie_weight[rows],
    )  # fmt: skip
