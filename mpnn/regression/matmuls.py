"""The matmuls of a job alone, which bound the exact engine, and where a job's time goes.

Everything else that a job does comes on top of its matmuls, so its fraction of this bound says how
much of its time is arithmetic that no exact engine avoids, and the parts say what the rest is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from mpnn.config import ATOM_PAIRS, NUM_LETTERS, NUM_RBF, ModelConfig
from mpnn.model import FEED_FORWARD
from mpnn.optimizations.exact.blocks import Affine
from mpnn.optimizations.exact.encoder import TILE
from mpnn.optimizations.exact.graph import tiles
from mpnn.optimizations.exact.workers import Buffers, Workers

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

PLAIN_ROWS = 1536
"""Rows of a tile: 32 residues of 48 edges, 0.8 MB at 128 columns."""

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


class PlainMatmuls:
    """A job's matmuls as torch computes them, which the gate times subjects against.

    Nothing of the engines is used, so no change of theirs moves it; the shapes follow from the
    network and the job alone. Tiles of `PLAIN_ROWS` rows in memory that stays where it is.
    """

    def __init__(self, matmuls: Sequence[Matmul]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.work: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for m in matmuls:
            rows = min(m.rows, PLAIN_ROWS)
            x = torch.randn(rows, m.inner, generator=generator)
            W = torch.randn(m.inner, m.columns, generator=generator)
            out = torch.empty(rows, m.columns)
            whole, rest = divmod(m.rows, rows)
            self.work.append((whole * m.times, x, W, out))
            if rest:
                self.work.append((m.times, x[:rest], W, out[:rest]))

    def __call__(self, _: int = 0) -> None:
        """All of them, once."""
        for times, x, W, out in self.work:
            for _ in range(times):
                torch.mm(x, W, out=out)


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


def parts(job: Callable[[], object]) -> dict[str, float]:
    """Shares of a job's wall time on one thread by kind of operation, as torch's profiler sees it.

    What the operations leave of the wall clock is the interpreter between them.
    """
    wall = min(_seconds(job) for _ in range(BEST_OF))
    found = min((_profiled(job) for _ in range(BEST_OF)), key=lambda f: sum(f.values()))
    whole = max(wall, sum(found.values()))
    shares = {part: seconds / whole for part, seconds in found.items()}
    return shares | {BETWEEN: 1 - sum(shares.values())}


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _profiled(job: Callable[[], object]) -> dict[str, float]:
    """Seconds in a job's operations by kind."""
    every_thread = _ExperimentalConfig(profile_all_threads=True)  # the engine has its own
    with profile(activities=[ProfilerActivity.CPU], experimental_config=every_thread) as profiler:
        job()
    kind = {operation: part for part, names in PARTS.items() for operation in names}
    seconds = dict.fromkeys((*PARTS, OTHER), 0.0)
    for event in profiler.key_averages():
        seconds[kind.get(event.key, OTHER)] += event.self_cpu_time_total / 1e6
    return seconds
