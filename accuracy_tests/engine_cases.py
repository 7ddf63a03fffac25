"""Structures, jobs and engines for the tests that every engine has to pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from published_arrays import CONFIGS
from synthetic_files import with_gaps

from mpnn.backbone import Backbone
from mpnn.config import ModelConfig
from mpnn.equality import flips, largest_difference
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations import ENGINES, Engine, load_engine
from mpnn.optimizations.native import toolchain
from mpnn.sampling import Constraints, Job, Key, Samples, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

CONFIG = CONFIGS["2x64_k12"]  # of the published arrays: one network for all tests
STRUCTURES: dict[str, list[Backbone]] = {
    "one chain": [synthetic_backbone(50)],
    "shorter than K": [synthetic_backbone(9)],
    "one residue": [synthetic_backbone(1)],
    "several": [
        synthetic_backbone(45, chains=3),
        with_gaps(synthetic_backbone(40), 3, 4, 30, 39),
        with_gaps(synthetic_backbone(26), *range(3, 20)),  # fewer complete residues than K
        synthetic_backbone(1, seed=1),
        synthetic_backbone(11, seed=2),
    ],
}
KINDS = ("free", "fixed", "tied", "biased")
TOLERANCE = {"float32": 2e-5, "float64": 1e-10}
BANDS = {"half": 0.02, "bfloat16": 0.2, "mixed": 0.005, "int8": 0.4, "exact-bfloat16": 0.2}
"""Largest |Δ log p| in nats of each close engine from the reference, with `CONFIG`."""

SLOW = ("compiled", "mlx", "mlx-fused")
"""Engines that build code for many seconds."""

NAMES = [name for name, spec in ENGINES.items() if spec.networks is ModelConfig]
NAMES.remove("exact-torch")  # the same class as exact
CLOSE = [name for name in NAMES if ENGINES[name].close and name != "coreml"]
EQUAL = [name for name in NAMES if name not in CLOSE] + ["traced"]
"""Equal engines; "coreml" is its bucket network in torch, "traced" is "compiled" without builds."""


def each(names: Sequence[str]) -> Any:
    """Parametrizes a test by engines, those that build code marked slow."""
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks[name in SLOW]) for name in names]
    )


def flat_of(structures: str) -> Flat:
    """The structures of one case laid end to end."""
    return Flat.from_backbones(STRUCTURES[structures])


def constraints_of(backbones: Sequence[Backbone], kind: str) -> list[Constraints]:
    """Free, fixed, tied or biased constraints of every structure."""
    constraints = []
    for backbone in backbones:
        c, length = Constraints.free(backbone.mask), len(backbone)
        half = length // 2
        if kind == "fixed":
            c.designed[np.arange(length) % 10 > 0] = False
        if kind == "tied":
            tied = np.arange(0, half, 3)
            tied = tied[c.designed[tied] & c.designed[tied + half]]
            c.tie_group[tied + half] = tied
            c.tie_weight[tied] = 0.5
        if kind == "biased":
            c.bias[:, 0] -= 1.1
            c.bias[half, 5] += 3.0
        constraints.append(c)
    return constraints


def job_of(
    backbones: Sequence[Backbone], kind: str = "free", samples: int = 3, temperature: float = 0.3
) -> Job:
    """A job of the structures."""
    keys = [Key(7, n, temperature) for n in range(samples)]
    S = Flat.from_backbones(backbones).S
    return make_job(S, constraints_of(backbones, kind), keys)


def network(dtype: str = "float32", config: ModelConfig = CONFIG) -> ProteinMPNN:
    """A network with deterministic weights."""
    return formula_weights(config).to(getattr(torch, dtype))


def engine_of(name: str, dtype: str = "float32", config: ModelConfig = CONFIG) -> Engine:
    """One engine for all tests, so that each program is compiled once; skips what is missing."""
    return _engine_of(name, dtype, config)


@functools.cache
def _engine_of(name: str, dtype: str, config: ModelConfig) -> Engine:
    model = network(dtype, config)
    try:
        if name == "coreml":
            return core_ml_in_torch(model, 16, 64, 128)
        return traced(model) if name == "traced" else load_engine(model, name)
    except InputError as error:
        pytest.skip(str(error))


def traced(model: ProteinMPNN) -> Engine:
    """torch.compile with what it traced run by torch itself: same programs, built in no time."""
    if not (toolchain.runs("g++") or toolchain.runs("clang++")):
        pytest.skip("no C++ compiler")
    from mpnn.optimizations.compiled import CompiledEngine

    engine = CompiledEngine(model)
    engine.compiled = {
        name: torch.compile(stage, fullgraph=True, backend="eager")
        for name, stage in engine.stages.items()
    }
    return engine


class TorchPredictor:
    """The functions of a Core ML package as they are before conversion."""

    def __init__(self, model: ProteinMPNN, *buckets: int, layout: str = "batch") -> None:
        from mpnn.optimizations.coreml.network import LAYOUTS, BucketNetwork

        parts, self.layout = BucketNetwork(model), LAYOUTS[layout]
        self.functions = {n: f for b in buckets for n, f in parts.functions(b, self.layout).items()}
        self.dtype = np.dtype(str(model.W_e.weight.dtype).partition(".")[2])
        self.calls: list[str] = []

    @torch.inference_mode()
    def __call__(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        self.calls.append(function)
        called = self.functions[function]
        assert {n: x.shape for n, x in inputs.items()} == called.inputs
        found = called.module(*(torch.from_numpy(inputs[n]) for n in called.inputs))
        found = found if isinstance(found, tuple) else (found,)
        return {n: x.numpy() for n, x in zip(called.outputs, found, strict=True)}


def core_ml_in_torch(model: ProteinMPNN, *buckets: int, layout: str = "batch") -> Any:
    """The Core ML engine with the functions of its package run by torch."""
    pytest.importorskip("coremltools")
    from mpnn.optimizations.coreml import CoreMLEngine

    predictor = TorchPredictor(model, *buckets, layout=layout)
    return CoreMLEngine(model, predictor=predictor, buckets=buckets)


def reference_samples(structures: str, kind: str, dtype: str = "float32") -> Samples:
    """What the reference samples, computed once."""
    return _reference_samples(structures, kind, dtype)


@functools.cache
def _reference_samples(structures: str, kind: str, dtype: str) -> Samples:
    engine = engine_of("reference", dtype)
    return engine.sample(engine.encode(flat_of(structures)), job_of(STRUCTURES[structures], kind))


def assert_same(
    job: Job,
    expected: Samples,
    actual: Samples,
    tolerance: float,
    lengths: Sequence[int] | None = None,
) -> None:
    """Sequences are equal but for near-ties that rounding flips, which are named."""
    found = flips(job, expected, actual, lengths)
    assert all(flip.is_rounding for flip in found), found
    assert len(found) <= 1, f"more near-ties than can be chance: {found}"
    assert largest_difference(expected, actual) < tolerance
