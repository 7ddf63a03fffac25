"""Engines that count their own work, each in its own way: see `counters`."""

from __future__ import annotations

import ctypes
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mpnn.optimizations.exact.decoder import Decoder
from mpnn.optimizations.exact.workers import Workers
from mpnn.optimizations.staged import StagedEngine

Counters = dict[str, int | float]

ONNX_MATMULS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


@contextmanager
def counting(engine: str) -> Iterator[Callable[[], Counters]]:
    """Has an engine that is loaded inside count its work; what it has counted since the last call.

    Args:
        engine: its name.
    """
    with ExitStack() as stack:
        # torch's profiler sees the memory of the thread that it runs in, so work is done in it.
        stack.enter_context(patch.object(Workers, "run", lambda _, work: _inference(work)))
        if engine == "exact-native":
            yield stack.enter_context(_native())
        elif engine.startswith("mlx"):
            yield stack.enter_context(_mlx())
        elif engine == "onnx":
            yield stack.enter_context(_onnx())
        else:
            yield stack.enter_context(_steps())


def _inference(work: Callable[[], object]) -> object:
    with torch.inference_mode():
        return work()


@contextmanager
def _native() -> Iterator[Callable[[], Counters]]:
    from mpnn.optimizations.native import engine

    before: Counters = {}

    def work() -> Counters:
        now = engine.work()
        new = {name: value - before.get(name, 0) for name, value in now.items()}
        before.update(now)
        return {**new, "peak_bytes": now["peak_bytes"]}

    def run(_: object, call: Callable[[Any, Any], int]) -> None:
        message = ctypes.create_string_buffer(engine.MESSAGE_BYTES)
        engine._check_status(call(ctypes.byref(ctypes.c_int32(0)), message), message)

    with patch.object(
        engine.NativeEngine, "_run", run
    ):  # in this thread, for `threads` and `lines`
        yield work


@contextmanager
def _steps() -> Iterator[Callable[[], Counters]]:
    """Counts the wavefront steps of the exact engine in torch and of the staged ones."""
    found: Counter[str] = Counter()
    decode, run = Decoder.decode, StagedEngine.run

    def counted_decode(self: Decoder, *args: Any) -> Any:
        found["steps"] += 1
        return decode(self, *args)

    def counted_run(self: StagedEngine, stage: str, *inputs: Any) -> Any:
        found["steps"] += stage == "step"
        return run(self, stage, *inputs)

    with (
        patch.object(Decoder, "decode", counted_decode),
        patch.object(StagedEngine, "run", counted_run),
    ):
        yield partial(_taken, found)


def _taken(found: Counter[str]) -> Counters:
    counters: Counters = dict(found)
    found.clear()
    return counters


@contextmanager
def _mlx() -> Iterator[Callable[[], Counters]]:
    """Counts launches. MLX's peak of memory moves by 5 %: its own thread frees when it can."""
    from mpnn.optimizations.mlx.engine import MLXEngine
    from mpnn.optimizations.mlx.launches import launches

    found: Counter[str] = Counter()
    made = MLXEngine._made

    def counted(self: MLXEngine, function: Callable[..., Any]) -> Callable[..., Any]:
        function = made(self, function)

        def call(*args: Any) -> Any:
            found["launches"] += launches(function, *args).total()
            return function(*args)

        return call

    with patch.object(MLXEngine, "_made", counted):
        yield partial(_taken, found)


@contextmanager
def _onnx() -> Iterator[Callable[[], Counters]]:
    import onnxruntime

    made: list[Any] = []

    class Profiled(onnxruntime.InferenceSession):  # type: ignore[misc]  # it has no types
        """Writes every node that it executes to a file, which ends when it is read."""

        runs = before = 0

        def __init__(self, graph: bytes, options: Any, **how: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, f"session{len(made)}"))
            super().__init__(graph, options, **how)
            made.append(self)

        def run(self, *args: Any) -> Any:
            self.runs += 1
            return super().run(*args)

    def work() -> Counters:
        if made and not made[0].before:
            for session in made:
                session.before = session.runs
            return {}
        return _of_onnx([node for session in made for node in _nodes(session)])

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(onnxruntime, "InferenceSession", Profiled),
    ):
        yield work


def _nodes(session: Any) -> list[Any]:
    """What a profiled session has executed since its `before` runs."""
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    start = runs[session.before]
    return [event for event in events if event["cat"] == "Node" and event["ts"] >= start]


def _of_onnx(nodes: Sequence[Any]) -> Counters:
    matmuls = [node["args"] for node in nodes if node["args"]["op_name"] in ONNX_MATMULS]

    def sizes(shapes: Sequence[Any]) -> list[int]:
        """The shape of the first of some arguments, each as {type: shape}."""
        (found,) = shapes[0].values()
        return list(found)

    return {
        "nodes": len(nodes),
        "multiply_adds": sum(
            math.prod(sizes(m["output_type_shape"])) * sizes(m["input_type_shape"])[-1]
            for m in matmuls
        ),
        "peak_bytes": max(int(node["args"]["mem_in_use_peak"]) for node in nodes),
    }
