"""The staged programs: what compilers are given, and what they compile."""

from __future__ import annotations

import pytest
import torch
from engine_cases import STRUCTURES, flat_of, job_of, traced
from torch._dynamo.utils import counters

from mpnn.config import ModelConfig
from mpnn.errors import InputError
from mpnn.optimizations.compiled import CompiledEngine
from mpnn.optimizations.native import toolchain
from mpnn.optimizations.staged import STAGES, StagedEngine, example
from mpnn.optimizations.torchscript import TorchScriptEngine
from mpnn.weights import formula_weights

CONFIG = ModelConfig(2, 2, 16, 24)
COMPILER = toolchain.runs("g++") or toolchain.runs("clang++")
COMPILED = [traced, pytest.param(CompiledEngine, marks=pytest.mark.slow)]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_the_example_fits_the_program(stage: str, layers: int) -> None:
    """The example inputs for compilers are valid, and no two axes that vary are of one size."""
    config = ModelConfig(1, layers, 8, 4)
    inputs = example(stage, config, torch.float32)
    with torch.inference_mode():
        outputs = StagedEngine(formula_weights(config)).run(stage, *inputs)
    rows = {len(x) for x in (outputs if isinstance(outputs, tuple) else (outputs,))}
    sizes = {len(x) for x in inputs}
    assert rows == ({3} if stage == "step" else {5})
    assert sizes == ({3, 5, 10} if stage == "step" else {5})


def run_all(engine: StagedEngine, structures: str) -> None:
    """Runs all three programs."""
    flat, job = flat_of(structures), job_of(STRUCTURES[structures])
    encoding = engine.encode(flat)
    engine.log_probs(encoding, engine.sample(encoding, job).S, job.rank)


def test_a_trace_serves_all_lengths() -> None:
    """TorchScript compiles each program once, at its first call, whatever lengths come later."""
    engine = TorchScriptEngine(formula_weights(CONFIG))
    assert engine.compile_seconds == {}
    engine.encode(flat_of("several"))
    assert list(engine.compile_seconds) == ["encode"]
    for structures in STRUCTURES:
        run_all(engine, structures)
        assert engine.compile_seconds.keys() == STAGES.keys()
    assert all(seconds > 0 for seconds in engine.compile_seconds.values())


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
@pytest.mark.parametrize("make", COMPILED)
def test_a_compiled_program_serves_all_sizes_but_one(make) -> None:
    """Torch compiles four programs for proteins of all lengths: a step of one row has its own."""
    torch._dynamo.reset()
    counters.clear()
    engine = make(formula_weights(CONFIG))
    for structures in ("one chain", "several", "shorter than K"):
        run_all(engine, structures)
    assert counters["stats"]["unique_graphs"] == len(engine.compile_seconds) == 4
    stages = [name.split()[0] for name in engine.compile_seconds]
    assert sorted(stages) == ["encode", "score", "step", "step"]
    assert sum(name.startswith("step 1×") for name in engine.compile_seconds) == 1
    run_all(make(formula_weights(CONFIG)), "one chain")
    assert counters["stats"]["unique_graphs"] == 4, "weights are no part of a program"


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_more_architectures_than_torch_allows_by_itself() -> None:
    """Programs of nine architectures live side by side, where torch alone would stop at eight."""
    torch._dynamo.reset()
    flat = flat_of("shorter than K")
    for C in range(2, 11):
        traced(formula_weights(ModelConfig(1, 1, C, 4))).encode(flat)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no C++ compiler is found the engine says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"install g\+\+"):
        CompiledEngine(formula_weights(CONFIG))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("stage", "why"), [("encode", "Batch"), ("step", "list cannot be used as a value")]
)
def test_scripting_refuses_what_tracing_takes(stage: str, why: str) -> None:
    """`torch.jit.script` cannot read the network, for the reasons that the engine gives."""
    with pytest.raises((OSError, RuntimeError), match=why):
        torch.jit.script(STAGES[stage](formula_weights(CONFIG)))
