"""Work counters: what a claim's job does, counted instead of timed, so that noise cannot hide it.

One call on one input with a fixed seed, on one thread, in a process that has made the call before:
conversions, compilations and buffers that are kept belong to no job.

| counter           | what is counted                                                            |
|-------------------|----------------------------------------------------------------------------|
| `multiply_adds`   | of all matmuls, without padding                                            |
| `matmuls`         | calls of the native engine's matmul                                        |
| `steps`           | wavefront steps                                                            |
| `operations`      | torch operations on the thread of the job, those inside others too         |
| `allocated_bytes` | of torch tensors, in sum                                                   |
| `peak_bytes`      | most bytes at once: torch tensors, or the buffers of the native engine, MLX |
|                   | or ONNX Runtime                                                            |
| `host_peak_bytes` | most bytes at once of numpy arrays and Python objects (tracemalloc)        |
| `launches`        | of MLX kernels, read from its graphs                                       |
| `nodes`           | of ONNX graphs, as executed                                                |
| `threads`         | CPU time of the process over that of its busiest thread                    |

Whole numbers are exact: the same in every process, whatever else the machine does.
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd.profiler import profile

from mpnn.optimizations.exact.decoder import Decoder
from mpnn.optimizations.exact.workers import Workers
from mpnn.optimizations.staged import StagedEngine
from mpnn.regression.claims import Claim
from mpnn.regression.workloads import WORKLOADS, backbones, side
from mpnn.variants import find_variant

Counters = dict[str, int | float]
Job = Callable[[], object]

FACTORS = {
    "aten::mm": (0, 1),
    "aten::_int_mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::baddbmm": (1, 2),
}
"""Operations that multiply [..., n, m] by [..., m, p], and which of their arguments those are."""

LINEAR = "mkldnn::_linear_pointwise"
"""Multiplies its first argument [..., m] by the transpose of a weight [p, m].

The weight is the second of six arguments, or, where a tensor is added too, the third of five.
"""

ONNX_MATMULS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")

BUSY_SECONDS = 0.05
"""CPU time over which `threads` is measured: short jobs are repeated until they have used it."""

THREADS = Path("/proc/self/task")
"""Where Linux shows the CPU time of every thread."""


MATMULS = {LINEAR, *FACTORS}


def count(claim: Claim) -> Counters:
    """Counts the work of the subject of a claim.

    Raises:
        FileNotFoundError: the structure is missing.
        InputError: a package or a device is missing, or not used.
    """
    variant, workload = find_variant(claim.subject), WORKLOADS[claim.workload]
    with counting(variant.engine) as work:
        call = side(variant, workload, [backbones(workload, 0)]).call
        return measure(partial(call, 0), work)


def measure(job: Job, work: Callable[[], Counters] = dict) -> Counters:
    """Counts the work of a job, which is run twice or more.

    Args:
        job: does the same work in every call but the first.
        work: of an engine that counts itself; what it has counted since the last call, as
            `counting` gives it.
    """
    busy = round(threads(job), 2) if THREADS.is_dir() else 0  # the first call, too
    work()
    found: Counters = dict(Counter(in_torch_and_host(job)) + Counter(work()))  # above 0 alone
    return {**found, "threads": busy} if busy else found


def in_torch_and_host(job: Job) -> Counters:
    """What torch dispatches and allocates in one call of a job, and the peak of host memory."""
    gc.collect()
    gc.disable()  # collections come when they come, and move the peak
    try:
        with profile(record_shapes=True, profile_memory=True) as profiler:
            tracemalloc.start()
            job()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert profiler.kineto_results is not None
    return {**_of_torch(profiler.kineto_results.events()), "host_peak_bytes": peak}


def _of_torch(events: Sequence[Any]) -> Counters:
    operations = [event for event in events if event.name() != "[memory]"]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    now = peak = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    return {
        "operations": len(operations),
        "multiply_adds": sum(
            multiply_adds(event.name(), event.shapes())
            for event in operations
            if event.name() in MATMULS
        ),
        "allocated_bytes": sum(change for change in changes if change > 0),
        "peak_bytes": peak,
    }


def multiply_adds(operation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-adds of one torch operation; 0 of one that is no matmul.

    Args:
        operation: as `aten::addmm`.
        shapes: of its arguments.
    """
    if operation == LINEAR:
        return math.prod(shapes[0]) * shapes[1 if len(shapes) == 6 else 2][0]
    if operation not in FACTORS:
        return 0
    a, b = FACTORS[operation]
    return math.prod(shapes[a]) * shapes[b][-1]


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


def _inference(work: Job) -> object:
    with torch.inference_mode():
        return work()


@contextmanager
def _native() -> Iterator[Callable[[], Counters]]:
    from mpnn.optimizations.native.engine import work as totals

    before: Counters = {}

    def work() -> Counters:
        now = totals()
        new = {name: value - before.get(name, 0) for name, value in now.items()}
        before.update(now)
        return {**new, "peak_bytes": now["peak_bytes"]}

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
    import mlx.core as mx

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

    def work() -> Counters:
        peak = mx.get_peak_memory() - mx.get_active_memory()
        mx.reset_peak_memory()
        return {**_taken(found), "peak_bytes": peak}

    with patch.object(MLXEngine, "_made", counted):
        yield work


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


def threads(job: Job) -> float:
    """CPU time of the process over that of its busiest thread, while a job runs: 1 of one thread.

    CPU time over wall time would say the same on an idle machine. On a busy one it falls below 1
    with two threads as with one; this does not, for no thread's CPU time counts what others use. A
    Python thread that starts when another has ended continues it: of an engine that starts one for
    every call, one runs at a time. Linux alone shows the times of threads.
    """
    ended: list[tuple[float, float, float]] = []
    run = threading.Thread.run

    def recorded(self: threading.Thread) -> None:
        start = time.monotonic()
        run(self)
        ended.append((start, time.monotonic(), time.thread_time()))

    before, began = _thread_seconds(), time.process_time()
    with patch.object(threading.Thread, "run", recorded):
        while time.process_time() < began + BUSY_SECONDS:
            job()
    seconds = time.process_time() - began
    alive = [now - before.get(thread, 0) for thread, now in _thread_seconds().items()]
    return seconds / max(alive + _lanes(ended))


def _thread_seconds() -> dict[int, float]:
    """CPU seconds of every thread of this process."""
    found = {}
    for task in THREADS.iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    found[threading.get_native_id()] = time.thread_time()
    return found


def _lanes(ended: list[tuple[float, float, float]]) -> list[float]:
    """CPU seconds of threads (start, end, CPU seconds), those that follow one another in one."""
    lanes: list[list[float]] = []  # end, CPU seconds
    for start, end, seconds in sorted(ended):
        lane = next((lane for lane in lanes if lane[0] <= start), None)
        if lane is None:
            lanes.append([end, seconds])
        else:
            lane[0], lane[1] = end, lane[1] + seconds
    return [seconds for _, seconds in lanes]
