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
| `peak_bytes`      | most bytes at once: torch tensors, or the buffers of the native engine or |
|                   | of ONNX Runtime                                                            |
| `host_peak_bytes` | most bytes at once of numpy arrays and Python objects (tracemalloc)        |
| `launches`        | of MLX kernels, read from its graphs                                       |
| `nodes`           | of ONNX graphs, as executed                                                |
| `modules`         | imported by a cold process for its job                                     |
| `lines`           | of this package's Python code, as executed                                 |
| `threads`         | CPU time of the process over that of its busiest thread                    |

Whole numbers but `lines` and bytes at once are exact: the same in every process.
"""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from torch.autograd.profiler import profile

from mpnn.regression import jobs
from mpnn.regression.claims import Claim
from mpnn.regression.counted_engines import Counters, counting
from mpnn.regression.workloads import WORKLOADS, backbones, side
from mpnn.variants import find_variant

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

BUSY_SECONDS = 0.05
"""CPU time over which `threads` is measured: short jobs are repeated until they have used it."""

THREADS = Path("/proc/self/task")
"""Where Linux shows the CPU time of every thread."""


PACKAGE = str(Path(__file__).parents[1])

MATMULS = {LINEAR, *FACTORS}


def count(claim: Claim) -> Counters:
    """Counts the work of the subject of a claim.

    Raises:
        FileNotFoundError: the structure is missing.
        InputError: a package or a device is missing, or not used.
    """
    variant, workload = find_variant(claim.subject), WORKLOADS[claim.workload]
    if workload.job in (jobs.COLD, jobs.IMPORT):
        return {"modules": jobs.modules(workload.job, [backbones(workload, 0)])}
    with counting(variant.engine) as work:
        call = side(variant, workload, [backbones(workload, 0)]).call
        found = measure(partial(call, 0), work)
    if variant.engine.startswith("mlx"):  # one thread traces and another computes, by design
        found.pop("threads", None)
    return found


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
            with counted_lines() as lines:
                job()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert profiler.kineto_results is not None
    return {**_of_torch(profiler.kineto_results.events()), "host_peak_bytes": peak, **lines}


@contextmanager
def counted_lines() -> Iterator[Counters]:
    """Counts the lines of this package that this thread executes, so that a slow loop shows."""
    found: Counters = {"lines": 0}
    before = sys.gettrace()

    def each(_: FrameType, event: str, __: object) -> Any:
        found["lines"] += event == "line"
        return each

    def trace(frame: FrameType, _: str, __: object) -> Any:
        path = frame.f_code.co_filename
        return each if path.startswith(PACKAGE) and path != __file__ else None

    sys.settrace(trace)
    try:
        yield found
    finally:
        sys.settrace(before)


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


def threads(job: Job) -> float:
    """CPU time of the process over that of its busiest thread, while a job runs: 1 of one thread.

    CPU time over wall time would say the same on an idle machine. On a busy one it falls to 1 or
    below with two threads as with one; this does not, for what others use is no thread's CPU time.
    Linux alone shows the times of threads.
    """
    before, began = _thread_seconds(), time.process_time()
    while time.process_time() < began + BUSY_SECONDS:
        job()
    seconds = time.process_time() - began
    return seconds / max(now - before.get(thread, 0) for thread, now in _thread_seconds().items())


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
