"""The matmuls of a job alone, which bound the exact engine, and where a job's time goes.

Everything else that a job does comes on top of its matmuls, so its fraction of this bound says how
much of its time is arithmetic that no exact engine avoids, and the parts say what the rest is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.graph import ATOM_PAIRS, NUM_RBF
from mpnn.model import FEED_FORWARD
from mpnn.optimizations.exact.blocks import Affine
from mpnn.optimizations.exact.encoder import TILE
from mpnn.optimizations.exact.ragged import tiles
from mpnn.optimizations.exact.workers import Buffers, Workers

T = TypeVar("T")

PARTS = {
    "matmuls": (
        "mkldnn::_linear_pointwise",
        "aten::addmm",
        "aten::addmm_",
        "aten::mm",
        "aten::bmm",
    ),
    "LayerNorm": ("aten::native_layer_norm", "aten::layer_norm"),
    "GELU": ("aten::gelu_", "aten::erf_"),
    "gathers": ("aten::index_select", "aten::index", "aten::_index_put_impl_", "aten::gather"),
    "exp": ("aten::exp_",),
}
"""Operations of the exact engine by kind; matmuls include a GELU that is fused into them."""

OTHER, BETWEEN = "other operations", "between operations"

BEST_OF = 4
"""Runs of which the fastest counts: the first also allocates the buffers."""


@dataclass(frozen=True)
class Matmul:
    """`times` matmuls of [rows, inner] with [inner, columns]."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all of them."""
        return self.rows * self.inner * self.columns * self.times


def exact_matmuls(config: ModelConfig, length: int, samples: int) -> list[Matmul]:
    """The matmuls left after the exact rewrites: one encoding, and `samples` decodings.

    Scoring takes the same matmuls as sampling.
    """
    C, K = config.hidden_dim, min(config.k_neighbors, length)
    edges, decoder = length * K, config.num_decoder_layers
    node = [(C, C), (C, C), (C, C), (C, FEED_FORWARD * C), (FEED_FORWARD * C, C)]  # A, V, W3, …
    return [
        Matmul(edges, len(ATOM_PAIRS) * NUM_RBF, C),
        Matmul(edges, C, C, 1 + 5 * config.num_encoder_layers + decoder),
        *(Matmul(length, i, o, config.num_encoder_layers) for i, o in (*node, (C, C), (C, C))),
        Matmul(samples * edges, C, C, decoder),
        *(Matmul(samples * length, i, o, decoder) for i, o in node),
        Matmul(samples * length, C, NUM_LETTERS),
    ]


def multiply_adds(matmuls: list[Matmul]) -> int:
    """Multiply-adds of all matmuls."""
    return sum(matmul.multiply_adds for matmul in matmuls)


class MatmulsAlone:
    """Runs matmuls as the engine does: by tiles, on its threads, in memory that stays in cache."""

    def __init__(self, matmuls: list[Matmul], k: int, threads: int) -> None:
        self.matmuls, self.rows = matmuls, TILE * k
        self.workers = Workers(torch.device("cpu"), threads)
        self.buffers = Buffers(torch.device("cpu"), torch.float32)

    def seconds(self) -> float:
        """Wall time of all of them, once."""
        start = time.perf_counter()
        self.workers.run(self._all)
        return time.perf_counter() - start

    def _all(self) -> None:
        for matmul in self.matmuls:
            affine = Affine(torch.zeros(matmul.columns, matmul.inner))

            def tile(rows: slice, affine: Affine = affine, inner: int = matmul.inner) -> None:
                affine(self.buffers.get("x", rows.stop - rows.start, inner))

            self.workers.map(tile, tiles(matmul.rows, self.rows) * matmul.times)


def bound(config: ModelConfig, length: int, samples: int, threads: int) -> dict[str, float]:
    """Multiply-adds that a job needs after the exact rewrites, and the seconds of those alone."""
    matmuls = exact_matmuls(config, length, samples)
    alone = MatmulsAlone(matmuls, min(config.k_neighbors, length), threads)
    return {
        "multiply_adds": float(multiply_adds(matmuls)),
        "seconds": min(alone.seconds() for _ in range(BEST_OF)),
    }


def parts(job: Callable[[], object], workers: Workers) -> dict[str, float]:
    """Shares of a job's wall time by kind of operation, each without its fixed cost.

    The fixed cost of an operation is the time of one on a single number. The rest of the wall clock
    is that and the interpreter between operations. {} where several threads share the job: only one
    of them is watched. torch.profiler sees too little of a thread that it did not start on.
    """
    if workers.size > 1 or not workers.tiled:
        return {}
    wall = min(_wall(job) for _ in range(BEST_OF))
    found = min((_timed(job, workers) for _ in range(BEST_OF)), key=lambda f: sum(f.values()))
    between = max(0.0, 1 - sum(found.values()) / wall)
    scale = (1 - between) / sum(found.values())
    return {part: seconds * scale for part, seconds in found.items()} | {BETWEEN: between}


def _wall(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _timed(job: Callable[[], object], workers: Workers) -> dict[str, float]:
    """Seconds in a job's operations by kind, each without its fixed cost."""
    timer = _Timer(_fixed_cost())
    run = workers.run

    def watched(work: Callable[[], T]) -> T:
        def under_the_clock() -> T:
            with timer:
                return work()

        return run(under_the_clock)

    workers.run = watched  # type: ignore[method-assign]
    try:
        job()
    finally:
        workers.run = run  # type: ignore[method-assign]
    return timer.seconds


def _fixed_cost(calls: int = 201) -> float:
    """Seconds that an operation on a single number takes under the timer."""
    one, seconds = torch.ones(1), []
    timer = _Timer()
    with timer, torch.inference_mode():
        for _ in range(calls):
            before = timer.seconds[OTHER]
            one.add_(1)
            seconds.append(timer.seconds[OTHER] - before)
    return median(seconds)


class _Timer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the seconds of every operation by its kind, beyond a fixed cost of each."""

    def __init__(self, fixed_cost: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fixed_cost = fixed_cost
        self.kind = {operation: part for part, names in PARTS.items() for operation in names}
        self.seconds = dict.fromkeys((*PARTS, OTHER), 0.0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        elapsed = time.perf_counter() - start
        self.seconds[self.kind.get(func._schema.name, OTHER)] += max(0.0, elapsed - self.fixed_cost)
        return result
