"""The staged network, plain and compiled by torch, against the reference."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch
from test_exact import BACKBONES, assert_same, job_of, on_valid
from test_parity import CONFIGS, INPUTS, Case
from torch._dynamo.utils import counters

from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.decoding import Samples, rank_of
from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.optimizations.compiled import CompiledEngine
from mpnn.optimizations.staged import STAGES, StagedEncoding, StagedEngine, example
from mpnn.optimizations.torchscript import TorchScriptEngine
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights

CONFIG = ModelConfig(2, 2, 16, 24)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
COMPILER = shutil.which("g++") or shutil.which("clang++")


class TracedOnly(CompiledEngine):
    """torch.compile with what it traced run by torch itself: same programs, built in no time."""

    def __init__(self, model: torch.nn.Module, device: str = "cpu") -> None:
        super().__init__(model, device)
        self.compiled = {
            name: torch.compile(stage, fullgraph=True, backend="eager")
            for name, stage in self.stages.items()
        }


ENGINES = [
    StagedEngine,
    TorchScriptEngine,
    pytest.param(TracedOnly, marks=pytest.mark.skipif(not COMPILER, reason="no C++ compiler")),
    pytest.param(
        CompiledEngine,
        marks=[pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="no C++ compiler")],
    ),
]


@functools.cache
def engine_of(kind: type[StagedEngine], dtype: torch.dtype = torch.float32) -> StagedEngine:
    """One engine for all tests, so that each program is compiled once."""
    return kind(formula_weights(CONFIG).to(dtype))


@functools.cache
def reference_samples(name: str, kind: str, dtype: torch.dtype) -> Samples:
    """What the reference draws for `job_of`."""
    batch = batch_of(name, dtype)
    reference = load_engine("reference", formula_weights(CONFIG).to(dtype))
    return on_valid(batch, reference.sample(reference.encode(batch), job_of(batch, kind)))


def batch_of(name: str, dtype: torch.dtype = torch.float32) -> Batch:
    return Batch.from_backbones(BACKBONES[name], dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float32) for kind in ("free", "fixed", "tied", "biased")]
    + [("free", torch.float64)],
)
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("engine", ENGINES)
def test_same_sequences_and_scores_as_the_reference(
    engine: type[StagedEngine], name: str, kind: str, dtype: torch.dtype
) -> None:
    """Same seed, same sequences; scores of drawing and of a score pass are the reference's."""
    runner, batch = engine_of(engine, dtype), batch_of(name, dtype)
    encoding, job = runner.encode(batch), job_of(batch, kind)
    expected = reference_samples(name, kind, dtype)
    assert_same(job, expected, on_valid(batch, runner.sample(encoding, job)), TOLERANCE[dtype])
    scored = Samples(expected.S, runner.log_probs(encoding, expected.S, job.rank))
    assert_same(job, expected, on_valid(batch, scored), TOLERANCE[dtype])


@pytest.mark.parametrize("engine", ENGINES)
def test_one_residue(engine: type[StagedEngine]) -> None:
    """A protein of one residue, its own only neighbor, is designed and scored as any other."""
    batch = Batch.from_backbones([made_up_backbone(1)])
    job = job_of(batch, samples=2)
    reference, runner = load_engine("reference", formula_weights(CONFIG)), engine_of(engine)
    expected = reference.sample(reference.encode(batch), job)
    encoding = runner.encode(batch)
    assert_same(job, expected, runner.sample(encoding, job), TOLERANCE[torch.float32])
    scored = runner.log_probs(encoding, expected.S, job.rank)
    np.testing.assert_allclose(scored, expected.log_probs, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_published_values(engine: type[StagedEngine], given: str) -> None:
    """Teacher-forced and unconditional values are those of the published implementation."""
    case = Case(given, "2x64_k12")
    runner = published_engine(engine)
    rank = np.stack([rank_of(case.order), np.zeros(len(case.S), np.int64)])[None]
    S = np.broadcast_to(case.S, rank.shape)
    actual = runner.log_probs(runner.encode(case.batch), S, rank)[0]
    assert case.worst(actual[0], "log_probs") < TOLERANCE[torch.float32]
    assert case.worst(actual[1], "unconditional_log_probs") < TOLERANCE[torch.float32]


@functools.cache
def published_engine(kind: type[StagedEngine]) -> StagedEngine:
    return kind(formula_weights(CONFIGS["2x64_k12"]))


@pytest.mark.parametrize("name", BACKBONES)
def test_neighbors(name: str) -> None:
    """Each structure's real neighbors are the reference's, numbered within the structure."""
    batch = batch_of(name)
    found: list[list[list[int]]] = []
    for runner in (load_engine("reference", formula_weights(CONFIG)), engine_of(StagedEngine)):
        encoding = runner.encode(batch)
        graphs = [runner.neighbors(encoding, b) for b in range(len(batch.mask))]
        found.append(
            [row[r].tolist() for E, real in graphs for row, r in zip(E, real, strict=True)]
        )
    assert found[0] == found[1]


def test_neighbors_found_elsewhere() -> None:
    """A batch that brings its neighbors, here 8 of 24, is scored with these alone."""
    batch = batch_of("one chain")
    E_idx = formula_weights(CONFIG).features.neighbors(batch)[0][..., :8]
    batch = dataclasses.replace(batch, E_idx=E_idx)
    job = job_of(batch)
    S = np.repeat(job.S[:, None], 3, 1)
    scores = [
        runner.log_probs(runner.encode(batch), S, job.rank)
        for runner in (load_engine("reference", formula_weights(CONFIG)), engine_of(StagedEngine))
    ]
    np.testing.assert_allclose(*scores, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_the_example_fits_the_program(stage: str, layers: int) -> None:
    """The inputs made up for compilers are taken, and no two axes that vary are of one size."""
    config = ModelConfig(1, layers, 8, 4)
    inputs = example(stage, config, torch.float32)
    with torch.inference_mode():
        outputs = StagedEngine(formula_weights(config)).run(stage, *inputs)
    rows = {len(x) for x in (outputs if isinstance(outputs, tuple) else (outputs,))}
    sizes = {len(x) for x in inputs}
    assert rows == ({3} if stage == "step" else {5})
    assert sizes == ({3, 5, 10} if stage == "step" else {5})


def encoded_and_scored(runner: StagedEngine, name: str) -> StagedEncoding:
    """Runs all three programs."""
    batch = batch_of(name)
    encoding, job = runner.encode(batch), job_of(batch)
    runner.log_probs(encoding, runner.sample(encoding, job).S, job.rank)
    return encoding


def test_a_trace_serves_all_lengths() -> None:
    """TorchScript compiles each program once, at its first call, whatever lengths come later."""
    runner = TorchScriptEngine(formula_weights(CONFIG))
    assert runner.compile_seconds == {}
    runner.encode(batch_of("three chains"))
    assert list(runner.compile_seconds) == ["encode"]
    for name in BACKBONES:
        encoded_and_scored(runner, name)
        assert runner.compile_seconds.keys() == STAGES.keys()
    assert all(seconds > 0 for seconds in runner.compile_seconds.values())


@pytest.mark.parametrize("engine", ENGINES[2:])
def test_a_compiled_program_serves_all_sizes_but_one(engine: type[CompiledEngine]) -> None:
    """Torch compiles four programs for proteins of all lengths: a step of one row has its own."""
    torch._dynamo.reset()
    counters.clear()
    runner = engine(formula_weights(CONFIG))
    for name in BACKBONES:
        encoded_and_scored(runner, name)
    assert counters["stats"]["unique_graphs"] == len(runner.compile_seconds) == 4
    stages = [name.split()[0] for name in runner.compile_seconds]
    assert sorted(stages) == ["encode", "score", "step", "step"]
    assert sum(name.startswith("step 1×") for name in runner.compile_seconds) == 1
    other = engine(formula_weights(CONFIG))
    encoded_and_scored(other, "one chain")
    assert counters["stats"]["unique_graphs"] == 4, "weights are no part of a program"


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_more_architectures_than_torch_allows_by_itself() -> None:
    """Programs of ten architectures live side by side, where torch alone would stop at eight."""
    torch._dynamo.reset()
    batch = batch_of("one chain")
    for C in range(2, 12):
        TracedOnly(formula_weights(ModelConfig(1, 1, C, 4))).encode(batch)


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
