"""ONNX Runtime: the graphs that it runs, devices and types."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from engine_cases import CONFIG, STRUCTURES, engine_of, flat_of, job_of

from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations.staged import STAGES
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mpnn.optimizations.onnx import PROVIDERS, OnnxEngine, load  # noqa: E402


def engine() -> OnnxEngine:
    """One engine for all tests, so that each graph is exported once."""
    return engine_of("onnx")


def all_graphs() -> dict[str, bytes]:
    """The graphs of all three programs."""
    if engine().graphs.keys() != STAGES.keys():
        flat, job = flat_of("shorter than K"), job_of(STRUCTURES["shorter than K"])
        encoding = engine().encode(flat)
        engine().log_probs(encoding, engine().sample(encoding, job).S, job.rank)
    return engine().graphs


def test_each_program_is_a_graph_exported_once() -> None:
    """Encoder, score pass and step are graphs of their own, compiled apart from running."""
    assert all_graphs().keys() == engine().compile_seconds.keys() == STAGES.keys()
    before = dict(engine().compile_seconds)
    assert all(seconds > 0 for seconds in before.values())
    engine().encode(flat_of("several"))
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
    assert runner.device == "cpu"
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
    """As many neighbors as the network has may be given, not more."""
    k = CONFIG.k_neighbors + 1
    flat = Flat.from_backbones([synthetic_backbone(40)])
    given = flat.with_neighbors(np.tile(np.arange(k), (40, 1)))
    with pytest.raises(InputError, match=rf"brings {k} neighbors .* built for {k - 1}"):
        engine().encode(given)


def test_float64_is_refused() -> None:
    """ONNX Runtime has no Erf in float64, and the engine takes float32 alone."""
    with pytest.raises(InputError, match="float32 weights, not float64"):
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
