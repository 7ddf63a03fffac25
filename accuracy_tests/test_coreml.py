"""Core ML: the bucket network in torch, the package op by op, and on a Mac every compute unit."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import TorchPredictor, core_ml_in_torch
from synthetic_files import with_gaps

from mpnn.config import ModelConfig
from mpnn.equality import flips, largest_difference
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations import Engine, load_engine
from mpnn.sampling import Constraints, Job, Key, Samples, make_job
from mpnn.schedule import steps_of
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights, load_weights

pytest.importorskip("coremltools")

import coremltools as ct
from mil_evaluator import OPERATIONS, MILEvaluator

from mpnn.optimizations.coreml import CoreMLEngine, network, package, plan
from mpnn.optimizations.coreml.engine import bucket_of
from mpnn.optimizations.coreml.gate import BANDS, require_parity
from mpnn.optimizations.coreml.network import LAYOUTS, STEP_ROWS, BucketNetwork
from mpnn.optimizations.coreml.package import BUCKETS, cached_package, save_package
from mpnn.optimizations.coreml.predictor import UNITS
from mpnn.optimizations.coreml.trial import differences

CONFIG = ModelConfig(2, 3, 32, 12)
TINY = ModelConfig(1, 2, 16, 6)
BUCKET = 16
DOUBLE = 1e-12
SINGLE = 1e-6  # the package's float32 weights, computed with in float64
MADE_OF = {
    "abs", "add", "concat", "conv", "gelu", "identity", "layer_norm", "matmul", "mul", "relu",
    "squeeze", "sub",
}  # fmt: skip
BESIDES = {"batch": {"expand_dims", "reduce_sum"}, "height": {"reshape"}}

SELECTION = network.selection

mac = platform.mac_ver()[0] != "" and platform.machine() == "arm64"


def model_of(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float64) -> ProteinMPNN:
    return formula_weights(config).to(dtype)


def laid(*lengths: int) -> Flat:
    return Flat.from_backbones([synthetic_backbone(n, seed=n) for n in lengths])


def job_of(flat: Flat, samples: int = 2) -> Job:
    """Most residues designed."""
    constraints = [Constraints.free(flat.mask[rows]) for rows in flat.slices]
    for c in constraints:
        c.designed[::5] = False
    return make_job(flat.S, constraints, [Key(3, n, 0.5) for n in range(samples)])


def score_and_sample(engine: Engine, flat: Flat, job: Job) -> tuple[np.ndarray, Samples]:
    """Scores under the job's order and with nothing visible, and samples."""
    encoding = engine.encode(flat)
    rank = np.concatenate([job.rank, np.zeros_like(job.rank[:1])])
    S = np.tile(job.S, (len(rank), 1))
    return engine.log_probs(encoding, S, rank), engine.sample(encoding, job)


# --- the bucket network ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bucket_network_is_the_reference(layout: str) -> None:
    """In float64 scores and samples are the reference's, whatever was padded."""
    backbones = [
        with_gaps(synthetic_backbone(30), 3, 4, 29),
        synthetic_backbone(7),
        synthetic_backbone(41),
    ]
    flat = Flat.from_backbones(backbones)
    job, model = job_of(flat), model_of()
    engine = core_ml_in_torch(model, 32, 64, layout=layout)
    log_probs, samples = score_and_sample(engine, flat, job)
    expected, right = score_and_sample(load_engine(model, "reference"), flat, job)
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=DOUBLE)
    alone = engine.log_probs(engine.encode(flat), job.S[None], job.rank[:1])
    np.testing.assert_allclose(alone, expected[:1], rtol=0, atol=DOUBLE)
    np.testing.assert_array_equal(samples.S, right.S)
    np.testing.assert_allclose(samples.log_probs, right.log_probs, rtol=0, atol=DOUBLE)


class Dirty(TorchPredictor):
    """Fills the padding with synthetic numbers before every call."""

    filled = 0

    def __call__(self, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        rng = np.random.default_rng(len(self.calls))
        filled = {name: x.copy() for name, x in inputs.items()}
        inside = inputs["mask"][0, 0] > 0  # [1, L]
        weights = [inputs[name] for name in inputs if name.endswith("_weight")]
        counts = sum(self.layout.slots_first(weight)[:, 0, 0] for weight in weights) > 0
        slot = inside & counts  # [K, L]
        for name in {"E", "h_E", "see", "types"} & inputs.keys():
            at_edges = self.layout.slots_first(filled[name]).transpose(0, 3, 1, 2)
            at_edges[~slot] = rng.normal(size=at_edges[~slot].shape)
        if "h_V" in inputs:
            at_nodes = filled["h_V"].transpose(2, 3, 0, 1)
            at_nodes[~inside] = rng.normal(size=at_nodes[~inside].shape)
        neighbors = self.layout.slots_first(filled["E_idx"])[:, 0, 0]
        neighbors[~slot] = rng.integers(inside.size, size=neighbors[~slot].shape)
        self.filled += int((~slot).sum())
        return super().__call__(function, filled)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [7, 25])
def test_padding_changes_nothing(length: int, layout: str) -> None:
    """Whatever stands in the padding, and however long it is, results are the same."""
    model = model_of()
    flat = laid(length)
    job = job_of(flat)
    expected, samples = score_and_sample(core_ml_in_torch(model, 32), flat, job)
    predictor = Dirty(model, 32, layout=layout)
    dirty = CoreMLEngine(model, predictor=predictor, buckets=[32])
    for engine in (dirty, core_ml_in_torch(model, 64, layout=layout)):
        log_probs, others = score_and_sample(engine, flat, job)
        np.testing.assert_allclose(log_probs, expected, rtol=0, atol=DOUBLE)
        np.testing.assert_array_equal(others.S, samples.S)
    assert predictor.filled > 0


@pytest.mark.parametrize(
    ("name", "defect"),
    [
        ("neighbors_of", lambda h_V, P, _: (h_V.squeeze(2) @ P.roll(1, 1)).unsqueeze(2)),
        ("gelu", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("SLOT_WEIGHT", 1 / 30),
        ("selection", lambda E_idx, L: 1.01 * SELECTION(E_idx, L)),
    ],
    ids=["shifted", "tanh GELU", "weight", "selection"],
)
def test_planted_defects_are_seen(monkeypatch: pytest.MonkeyPatch, name: str, defect: Any) -> None:
    """A graph that is a little different is told from the reference."""
    model = model_of()
    assert differences(model, TorchPredictor(model, 32), [32])[32] < DOUBLE
    monkeypatch.setattr(network, name, defect)
    assert differences(model, TorchPredictor(model, 32), [32])[32] > 1e-5


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, 64), (64, 64), (65, 128), (128, 128), (257, 512), (512, 512)]
)
def test_dispatch_by_length(length: int, bucket: int) -> None:
    """A structure goes to the shortest bucket that holds it."""
    assert bucket_of(length, BUCKETS) == bucket


def test_each_structure_of_a_batch_has_its_bucket() -> None:
    """A single sequence is one score; several share one encoding; each length is its own."""
    engine = core_ml_in_torch(model_of(), 16, 32, 64)
    flat = laid(40, 9, 33)
    encoding, S = engine.encode(flat), flat.S
    assert not engine.predictor.calls
    engine.log_probs(encoding, S[None], np.arange(len(S))[None])
    assert engine.predictor.calls == ["score_64", "score_16", "score_64"]
    engine.log_probs(encoding, np.tile(S, (2, 1)), np.tile(np.arange(len(S)), (2, 1)))
    done = engine.predictor.calls[3:]
    assert done == [f"{part}_{b}" for b in (64, 16, 64) for part in ("encode", "decode", "decode")]
    assert engine.device_seconds > 0


def test_more_neighbors_than_a_package_holds_are_refused() -> None:
    """As many neighbors as the network has may be given, not more."""
    k = TINY.k_neighbors + 1
    given = laid(30).with_neighbors(np.tile(np.arange(k), (30, 1)))
    with pytest.raises(InputError, match=rf"brings {k} neighbors .* built for {k - 1}"):
        core_ml_in_torch(model_of(TINY), 32).encode(given)


def test_above_the_longest_bucket() -> None:
    """A longer structure is refused before a prediction, with the limit and the way out."""
    engine = core_ml_in_torch(model_of(TINY), 512)
    with pytest.raises(InputError, match=r"513 residues.*longest bucket is 512.*engine exact"):
        engine.encode(laid(513))
    assert not engine.predictor.calls


def test_sampling_takes_a_call_for_eight_rows() -> None:
    """A sample costs M rows a call; residues before all designed ones take one whole pass."""
    engine = core_ml_in_torch(model_of(), 32)
    flat = laid(25)
    job = job_of(flat, samples=1)
    encoding = engine.encode(flat)
    step = steps_of(job, [engine.neighbors(encoding, 0)])
    sizes = np.bincount(step[0])[1:]
    engine.sample(encoding, job)
    calls = engine.predictor.calls
    assert calls.count("step_32") == (-(-sizes // STEP_ROWS)).sum() > 5
    assert calls.count("decode_32") == int((step == 0).any())
    engine.sample(encoding, dataclasses.replace(job, designed=np.zeros_like(job.designed)))
    assert calls[-1] == "decode_32"
    assert calls.count("encode_32") == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wavefront_of_more_rows_takes_several_calls(layout: str) -> None:
    """Twenty residues tied together, masked ones and chains: the reference's samples in float64."""
    backbone = with_gaps(synthetic_backbone(45, chains=3), 3, 4, 30)
    flat = Flat.from_backbones([backbone])
    constraints = Constraints.free(flat.mask)
    tied = np.flatnonzero(constraints.designed)[:20]
    constraints.tie_group[tied] = tied[0]
    job = make_job(flat.S, [constraints], [Key(5, n, 0.5) for n in range(2)])
    model = model_of()
    engine = core_ml_in_torch(model, 64, layout=layout)
    samples = engine.sample(engine.encode(flat), job)
    reference = load_engine(model, "reference")
    right = reference.sample(reference.encode(flat), job)
    np.testing.assert_array_equal(samples.S, right.S)
    np.testing.assert_allclose(samples.log_probs, right.log_probs, rtol=0, atol=DOUBLE)


# --- the package, executed op by op ---------------------------------------------------------


FAST = ("float32", "batch"), ("float32", "height"), ("float16", "batch")
PACKAGES = [
    pytest.param(*package, marks=() if package in FAST else pytest.mark.slow)
    for package in itertools.product(BANDS, LAYOUTS)
]
"""Storage and layout; only three are converted among the fast tests, for seconds each."""

COMPRESSED = {
    "int8": "constexpr_blockwise_shift_scale",
    "palette6": "constexpr_lut_to_dense",
    "palette4": "constexpr_lut_to_dense",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a package the first time a storage is asked for; in float16 it has two buckets."""
    folder = tmp_path_factory.mktemp("packages")

    def packed(weights: Any, layout: str = "batch") -> Path:
        return converted(weights, layout)  # one key, whether the layout is passed or not

    @functools.cache
    def converted(weights: Any, layout: str) -> Path:
        path = folder / f"{weights}-{layout}.mlpackage"
        two = weights == "float16" and layout == "batch"
        buckets = [BUCKET, 2 * BUCKET] if two else [BUCKET]
        save_package(path, formula_weights(TINY), buckets, weights, LAYOUTS[layout])
        return path

    return packed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_converted_graph_is_the_reference(packages: Callable[..., Path], layout: str) -> None:
    """In exact arithmetic the package's float32 functions are the reference network."""
    evaluator = MILEvaluator(packages("float32", layout), exact=True, layout=LAYOUTS[layout])
    assert differences(model_of(TINY), evaluator, [BUCKET])[BUCKET] < SINGLE
    assert set(evaluator.calls) == {
        f"{part}_{BUCKET}" for part in ("score", "encode", "decode", "step")
    }


TINY_BANDS = {"float32": 1e-5, "float16": 0.01, "int8": 0.05, "palette6": 0.2, "palette4": 0.6}
"""A few times what was measured, and well inside the bands for real networks."""


@pytest.mark.parametrize(("weights", "layout"), PACKAGES)
def test_rounded_arithmetic_is_in_its_band(
    packages: Callable[..., Path], weights: str, layout: str
) -> None:
    """With every result rounded to its stored type, each package is near the reference."""
    model = formula_weights(TINY)
    evaluator = MILEvaluator(packages(weights, layout), exact=False, layout=LAYOUTS[layout])
    found = differences(model, evaluator, [BUCKET])[BUCKET]
    assert found < TINY_BANDS[weights] < BANDS[weights]
    if weights != "float32":
        assert found > SINGLE  # the rounding is really there


@pytest.mark.parametrize(
    ("weights", "layout"),
    [
        ("float16", "batch"),
        ("float32", "height"),
        pytest.param("float16", "height", marks=pytest.mark.slow),
    ],
)
def test_no_operation_leaves_the_neural_engine(
    packages: Callable[..., Path], weights: str, layout: str
) -> None:
    """No gather and no cast: convolutions, matmuls and arithmetic, and one way to sum."""
    evaluator = MILEvaluator(packages(weights, layout), exact=False)
    for function, body in evaluator.program.functions.items():
        operations = evaluator.operations(function)
        assert {op.op_type for op in operations} <= MADE_OF | BESIDES[layout]
        assert {x.dtype for x in body.inputs.values()} == {op.outputs[0].dtype for op in operations}


def test_neighbors_are_selected_once_in_a_score(packages: Callable[..., Path]) -> None:
    """score_L builds P once, as the encoder alone does, and edges are no input or output of it."""
    evaluator = MILEvaluator(packages("float16"), exact=False)
    functions = evaluator.program.functions
    assert set(functions) == {
        f"{part}_{b}"
        for part in ("score", "encode", "decode", "step")
        for b in (BUCKET, 2 * BUCKET)
    }
    for part in ("score", "encode", "decode"):
        operations = evaluator.operations(f"{part}_{BUCKET}")
        assert [op.op_type for op in operations].count("abs") == 1
    score = functions[f"score_{BUCKET}"]
    assert "h_E" not in score.inputs
    assert [var.name for var in score.outputs] == ["logits"]


def test_no_layer_norm_meets_zeros(
    packages: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variances in padding too are far above what a device without subnormals would divide by."""
    least: list[float] = []
    layer_norm = OPERATIONS["layer_norm"]

    def watched(x: np.ndarray, axes: np.ndarray, **others: Any) -> Any:
        least.append(float(x.var(tuple(axes)).min()))
        return layer_norm(x, axes=axes, **others)

    monkeypatch.setitem(OPERATIONS, "layer_norm", watched)
    model = formula_weights(TINY)
    evaluator = MILEvaluator(packages("float16"), exact=False)
    engine = CoreMLEngine(model, predictor=evaluator, buckets=[BUCKET])
    backbones = [with_gaps(synthetic_backbone(11), 2, 3), synthetic_backbone(4)]
    score_and_sample(engine, (flat := Flat.from_backbones(backbones)), job_of(flat, 1))
    assert len(least) > 20
    assert min(least) > 1e-4  # ten times the epsilon


def weight_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("weight.bin"))


def test_weights_are_stored_once(packages: Callable[..., Path]) -> None:
    """A second bucket adds no weights: both lengths read the same ones."""
    numbers = sum(p.numel() for p in BucketNetwork(formula_weights(TINY)).parameters())
    assert numbers < weight_bytes(packages("float16")) / 2 < 1.4 * numbers


@pytest.mark.slow
@pytest.mark.parametrize("weights", COMPRESSED)
def test_weights_are_compressed(packages: Callable[..., Path], weights: str) -> None:
    """Weights are stored in reduced precision, and are what the functions compute with."""
    evaluator = MILEvaluator(packages(weights), exact=False)
    for function, body in evaluator.program.functions.items():
        found = [op.op_type for op in body.operations].count(COMPRESSED[weights])
        convs = [op.inputs["weight"] for op in body.operations if op.op_type == "conv"]
        large = [w for w in convs if np.prod(w.shape) > package.LARGEST_UNCOMPRESSED]
        assert found == len(large) > 0, function
    assert weight_bytes(packages(weights)) < weight_bytes(packages("float32"))


def test_engine_end_to_end(packages: Callable[..., Path]) -> None:
    """Scores and samples through the package are the reference's, but for near-ties in float16."""
    model = formula_weights(TINY)
    evaluator = MILEvaluator(packages("float16"), exact=False)
    engine = CoreMLEngine(model, predictor=evaluator, buckets=[BUCKET, 2 * BUCKET])
    flat = laid(14, 18)
    job = job_of(flat)
    log_probs, samples = score_and_sample(engine, flat, job)
    expected, right = score_and_sample(load_engine(model, "reference"), flat, job)
    band = TINY_BANDS["float16"]
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=band)
    assert all(abs(flip.margin) < 2 * band for flip in flips(job, right, samples, flat.lengths))
    assert largest_difference(right, samples) < band
    assert samples.log_probs.dtype == np.float32


def test_plan_of_one_function(packages: Callable[..., Path], tmp_path: Path) -> None:
    """A function is made the default one for its plan, and the package computes what it did."""
    path = tmp_path / "function.mlpackage"
    plan.with_default(packages("float16"), f"encode_{BUCKET}", path)
    evaluator = MILEvaluator(path, exact=False)
    description = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert description.defaultFunctionName == f"encode_{BUCKET}"
    assert len(description.functions) == 8
    same = MILEvaluator(packages("float16"), exact=False)
    model = formula_weights(TINY)
    assert differences(model, evaluator, [BUCKET]) == differences(model, same, [BUCKET])


# --- slow, and on a Mac ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("weights", BANDS)
def test_real_network_is_in_its_band(tmp_path: Path, weights: str) -> None:
    """The shipped minimal network, bucket of 64: each storage is in the band that the gate asks."""
    model = load_weights("minimal")[0]
    path = tmp_path / "network.mlpackage"
    save_package(path, model, [64], weights)
    evaluator = MILEvaluator(path, exact=False)
    assert differences(model, evaluator, [64])[64] < BANDS[weights] / 1.4
    assert max(evaluator.largest.values()) < np.finfo(np.float16).max / 100


@pytest.mark.slow
def test_every_bucket_of_the_published_size(tmp_path: Path) -> None:
    """All sixteen functions of the 3+3/128 network convert, and compute the reference exactly."""
    model = formula_weights(ModelConfig())
    path = tmp_path / "network.mlpackage"
    save_package(path, model, BUCKETS, "float32")
    evaluator = MILEvaluator(path, exact=True)
    found = differences(model.double(), evaluator, BUCKETS)
    assert list(found) == list(BUCKETS)
    assert max(found.values()) < 10 * SINGLE


@pytest.fixture(scope="module")
def real_package() -> Path:
    """The shipped minimal network's package, in the user's cache as for any user."""
    return cached_package(load_weights("minimal")[0]).path


@pytest.mark.macos
@pytest.mark.slow
@pytest.mark.skipif(not mac, reason="needs macOS on Apple Silicon")
@pytest.mark.parametrize("unit", UNITS)
def test_unit_on_a_mac(real_package: Path, unit: str) -> None:
    """Every compute unit is in the band in every bucket, tried in a process of its own."""
    found = require_parity(real_package, unit, "float16")
    assert [int(bucket) for bucket in found] == list(BUCKETS)


@pytest.mark.macos
@pytest.mark.slow
@pytest.mark.skipif(not mac, reason="needs macOS on Apple Silicon")
@pytest.mark.parametrize("function", [f"score_{b}" for b in BUCKETS])
def test_where_operations_run_on_a_mac(real_package: Path, function: str) -> None:
    """On the CPU alone nothing is elsewhere; with the Neural Engine most of the work is on it."""
    cpu = plan.placements(real_package, function, "CPU_ONLY")
    assert {p.device for p in cpu} <= {"CPU", ""}
    assert plan.share(plan.placements(real_package, function, "CPU_AND_NE"), "NE") > 0.5
