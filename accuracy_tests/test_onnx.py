"""ONNX Runtime against the reference, and the graphs that it runs."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from test_exact import BACKBONES, assert_same, job_of, on_valid
from test_parity import CONFIGS, INPUTS, Case

from mpnn.batch import Batch
from mpnn.decoding import Samples, rank_of
from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.optimizations.staged import STAGES
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mpnn.optimizations.onnx import PROVIDERS, OnnxEngine, load  # noqa: E402

CONFIG = CONFIGS["2x64_k12"]  # of the published arrays
TOLERANCE = 1e-5


@functools.cache
def engine() -> OnnxEngine:
    """One engine for all tests, so that each graph is exported once."""
    return OnnxEngine(formula_weights(CONFIG))


@functools.cache
def all_graphs() -> dict[str, bytes]:
    """The graphs of all three programs."""
    batch = Batch.from_backbones(BACKBONES["one chain"])
    encoding, job = engine().encode(batch), job_of(batch)
    engine().log_probs(encoding, engine().sample(encoding, job).S, job.rank)
    return engine().graphs


@pytest.mark.parametrize("kind", ["free", "fixed", "tied", "biased"])
@pytest.mark.parametrize("name", [*BACKBONES, "one residue"])
def test_same_sequences_and_scores_as_the_reference(name: str, kind: str) -> None:
    """Same seed, same sequences; scores of drawing and of a score pass are the reference's."""
    batch = Batch.from_backbones(BACKBONES.get(name, [made_up_backbone(1)]))
    job, reference = job_of(batch, kind), load_engine("reference", formula_weights(CONFIG))
    expected = on_valid(batch, reference.sample(reference.encode(batch), job))
    encoding = engine().encode(batch)
    assert_same(job, expected, on_valid(batch, engine().sample(encoding, job)), TOLERANCE)
    scored = Samples(expected.S, engine().log_probs(encoding, expected.S, job.rank))
    assert_same(job, expected, on_valid(batch, scored), TOLERANCE)


@pytest.mark.parametrize("given", INPUTS)
def test_published_values(given: str) -> None:
    """Teacher-forced and unconditional values are those of the published implementation."""
    case, runner = Case(given, "2x64_k12"), engine()
    rank = np.stack([rank_of(case.order), np.zeros(len(case.S), np.int64)])[None]
    S = np.broadcast_to(case.S, rank.shape)
    actual = runner.log_probs(runner.encode(case.batch), S, rank)[0]
    assert case.worst(actual[0], "log_probs") < TOLERANCE
    assert case.worst(actual[1], "unconditional_log_probs") < TOLERANCE


def test_each_program_is_a_graph_exported_once() -> None:
    """Encoder, score pass and step are graphs of their own, compiled apart from running."""
    assert all_graphs().keys() == engine().compile_seconds.keys() == STAGES.keys()
    before = dict(engine().compile_seconds)
    assert all(seconds > 0 for seconds in before.values())
    engine().encode(Batch.from_backbones(BACKBONES["three chains"]))
    assert engine().compile_seconds == before


@pytest.mark.parametrize("stage", STAGES)
def test_graphs_are_valid_and_of_any_length(stage: str) -> None:
    """The checker takes a graph; the first axis of every input varies and no other does."""
    model = onnx.load_from_string(all_graphs()[stage])
    onnx.checker.check_model(model, full_check=True)
    for given in model.graph.input:
        first, *rest = given.type.tensor_type.shape.dim
        assert first.dim_param, given.name
        assert all(d.dim_value for d in rest), given.name
    assert "TopK" not in {node.op_type for node in model.graph.node}


def test_a_device_without_its_provider_is_refused() -> None:
    """Where this build lacks what a device needs, the engine says so and what it has."""
    missing = next(
        d for d, p in PROVIDERS.items() if p not in onnxruntime.get_available_providers()
    )
    with pytest.raises(InputError, match=f"needs {PROVIDERS[missing]}.*has .*CPUExecution"):
        OnnxEngine(formula_weights(CONFIG), missing)
    with pytest.raises(InputError, match="device xpu needs an execution provider"):
        OnnxEngine(formula_weights(CONFIG), "xpu")


def test_core_ml_is_chosen_for_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a build that has it, device "mps" means Core ML first and the CPU for the rest."""
    asked: dict[str, Any] = {}

    def session(_: bytes, __: object, providers: list[str]) -> None:
        asked["providers"] = providers

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runner = OnnxEngine(formula_weights(CONFIG), "mps")
    assert runner.provider == "CoreMLExecutionProvider"
    assert runner.device == torch.device("cpu")
    load(b"", runner.provider)
    assert asked["providers"] == ["CoreMLExecutionProvider", "CPUExecutionProvider"]


def one_operation(name: str, kind: int) -> bytes:
    """A graph of a single operation on one number of an ONNX type."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(name, ["x"], ["y"])
    graph = onnx.helper.make_graph([node], name, [value("x", kind, [1])], [value("y", kind, [1])])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def test_more_neighbors_than_the_graphs_hold_are_refused() -> None:
    """A batch may bring as many neighbors as the network has, not more."""
    k = CONFIG.k_neighbors + 1
    batch = Batch.from_backbones([made_up_backbone(40)])
    given = dataclasses.replace(batch, E_idx=torch.arange(k).expand(1, 40, k))
    with pytest.raises(InputError, match=rf"brings {k} neighbors .* built for {k - 1}"):
        engine().encode(given)


def test_float64_is_refused() -> None:
    """ONNX Runtime has no Erf in float64, and the engine takes float32 alone."""
    with pytest.raises(InputError, match=r"float32 weights, not torch\.float64"):
        OnnxEngine(formula_weights(CONFIG).double())
    with pytest.raises(Exception, match=r"Could not find an implementation for Erf"):
        load(one_operation("Erf", onnx.TensorProto.DOUBLE), PROVIDERS["cpu"])


@pytest.mark.parametrize("flushed", [True, False])
def test_denormal_numbers_are_treated_as_before(flushed: bool) -> None:
    """The first session of a process leaves it to its maker whether they count as zero."""
    code = f"""
import sys, torch
from mpnn.optimizations.exact.workers import denormals_are_flushed
from mpnn.optimizations.onnx import PROVIDERS, load

torch.set_flush_denormal({flushed})
load(sys.stdin.buffer.read(), PROVIDERS["cpu"])
assert denormals_are_flushed() == {flushed}
"""
    graph = one_operation("Relu", onnx.TensorProto.FLOAT)
    subprocess.run([sys.executable, "-c", code], input=graph, check=True)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime is not installed the error is a sentence with the install command."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "mpnn.optimizations.onnx")
    with pytest.raises(InputError, match=r"pip install 'mpnn\[onnx\]'"):
        load_engine("mpnn.optimizations.onnx:OnnxEngine", formula_weights(CONFIG))
