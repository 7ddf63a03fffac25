"""The Metal kernel, as MLX generates it, run on a CPU against float64; and its fallback kernel.

No GPU is needed: the text goes through a C++ shim (`metal_shim`) that also catches what a GPU does
in silence, which mutants of the kernel prove.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

mx = pytest.importorskip("mlx.core")

import metal_shim  # noqa: E402 – imports MLX
from metal_shim import Kernel, MetalError  # noqa: E402

from mpnn.config import ModelConfig  # noqa: E402
from mpnn.flat import Flat  # noqa: E402
from mpnn.model import ProteinMPNN  # noqa: E402
from mpnn.optimizations.mlx import EagerMLXEngine  # noqa: E402
from mpnn.optimizations.mlx.engine import on_metal  # noqa: E402
from mpnn.optimizations.mlx.metal import (  # noqa: E402
    KERNEL,
    LARGEST_TILE,
    Messages,
    launch,
    metal_message_sum,
    plain_message_sum,
    tile_of,
)
from mpnn.optimizations.native import toolchain  # noqa: E402
from mpnn.optimizations.reference import ReferenceEngine  # noqa: E402
from mpnn.sampling import Constraints, Key, make_job  # noqa: E402
from mpnn.synthetic import synthetic_backbone  # noqa: E402
from mpnn.weights import formula_weights  # noqa: E402

R, TABLE = 3, 7  # residues, rows of what neighbors add
SINGLE = 2e-6  # of the largest value
THREADGROUP_BYTES = 32 * 1024

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not toolchain.runs(metal_shim.COMPILER),
    reason=f"needs {metal_shim.COMPILER} on Linux; a Mac has Metal itself",
)


def arguments(C: int, K: int, M: int, product: bool, seed: int = 0) -> dict[str, Any]:
    """Fields of `Messages`: M rows, of whose neighbors some are masked."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    mask = np.ones((M, K), np.float32)
    mask[:, 1::5] = 0
    return {
        "x_i": normal(M, C),
        "x_j": normal(TABLE, C),
        "where": rng.integers(0, TABLE, (M, K)).astype(np.int32),
        "mask": mask,
        "edges": normal(R, K, C),
        "at": rng.integers(0, R, M).astype(np.int32) if M % R else None,
        "W1": normal(C, 3 * C) / C**0.5 if product else None,
        "W2": normal(C, C) / C**0.5,
        "b2": normal(C),
    }


def on_device(given: dict[str, Any]) -> Messages:
    return Messages(**{name: None if x is None else mx.array(x) for name, x in given.items()})


def expected(given: dict[str, Any]) -> np.ndarray:
    """The same in float64, in torch's operations, neighbor by neighbor."""
    t = {k: torch.from_numpy(v) if v is not None else None for k, v in given.items()}
    x_i, x_j, edges, W2, b2 = (t[k].double() for k in ("x_i", "x_j", "edges", "W2", "b2"))
    M, C = x_i.shape
    at = torch.arange(M) % R if t["at"] is None else t["at"].long()
    h_E = edges[at]
    if t["W1"] is not None:
        h_E = h_E @ t["W1"].double()[:, C : 2 * C].T
    x = torch.nn.functional.gelu(x_i[:, None] + h_E + x_j[t["where"].long()])
    m = torch.nn.functional.gelu(x @ W2.T + b2)
    return (m * t["mask"][..., None]).sum(1).numpy()


def off(actual: np.ndarray, given: dict[str, Any]) -> float:
    """Largest difference from float64, in units of the largest value."""
    right = expected(given)
    return float(np.abs(actual - right).max() / np.abs(right).max())


SHAPES = {
    "C=128, K=48": (128, 48, 3),
    "C=64, K=12": (64, 12, 4),
    "C=64, K=30": (64, 30, 4),
    "C=32, K=1": (32, 1, 2),
}
PRODUCT = pytest.mark.parametrize("product", [True, False], ids=["encoder", "decoder"])


@PRODUCT
@pytest.mark.parametrize("shape", SHAPES)
def test_fallback_against_float64(shape: str, product: bool) -> None:
    """The fallback kernel in MLX's own operations is the sum of messages."""
    given = arguments(*SHAPES[shape], product)
    assert off(np.array(plain_message_sum(on_device(given))), given) < SINGLE


@needs_compiler
@PRODUCT
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_against_float64(shape: str, product: bool, tmp_path: Path) -> None:
    """The text that MLX generates for Metal computes the sum of messages, without a race."""
    given = arguments(*SHAPES[shape], product)
    call = launch(on_device(given))
    kernel = Kernel(metal_shim.generated(KERNEL, call), tmp_path)
    assert off(kernel(call), given) < SINGLE


@pytest.mark.macos
@PRODUCT
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_on_metal(shape: str, product: bool) -> None:
    """On a GPU too the kernel computes the sum of messages."""
    if not on_metal():
        pytest.skip("needs Metal")
    given = arguments(*SHAPES[shape], product)
    assert off(np.array(metal_message_sum(on_device(given))), given) < SINGLE


BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"
WRONG = "wrong"
MUTANTS = {
    "no barrier before E": (f"{BARRIER}\n      mpnn_multiply", "mpnn_multiply",
                            "before it is written"),
    "no barrier before W2": (f"{BARRIER}\n    mpnn_multiply", "mpnn_multiply", "race"),
    "no barrier before storing": (f"{BARRIER}  // all", "// all", "race"),
    "no barrier after storing": (f"{BARRIER}  // the", "// the", "race"),
    "a thread that leaves": ("float total = 0;", "float total = 0; if (!c) return;",
                             "barrier that some"),
    "stride of neighbors": ("x_j[uint(where[row * K +", "x_j[uint(where[row * TILE +", WRONG),
    "stride of W1": ("W1 + C, W1_COLUMNS", "W1 + C, C", WRONG),
    "first block of W1": ("W1 + C,", "W1,", WRONG),
    "padding of a tile summed": ("t < count; t++)\n      total", "t < TILE; t++)\n      total",
                                 "out of bounds"),
    "write behind the end": ("out[row * C", "out[(row + 1) * C", "out of bounds"),
    "write before the start": ("out[row * C + c]", "out[int(row * C + c) - 1]", "out of bounds"),
    "read behind the end": ("+ c])", f"+ {TABLE} * C + c])", "out of bounds"),
    "tile too small": ("tile[TILE * C];", "tile[TILE * C - 8];", "out of bounds"),
    "tile too large": ("tile[TILE * C];", "tile[8193];", "32 KiB"),
    "tile not filled": ("tile[t * C + c] = x;", "if (t) tile[t * C + c] = x;",
                        "before it is written"),
    "double": ("float total", "double total", "Metal_has_no_double"),
    "standard library": ("metal::min(", "std::min(", "Metal has no std::min"),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, tmp_path: Path) -> None:
    """A kernel with one mistake in it ends with a sentence, or with another result."""
    right, mistake, caught = MUTANTS[mutant]
    given = arguments(64, 30, 4, product="filled" not in mutant)
    call = launch(on_device(given))
    text = metal_shim.generated(KERNEL, call)
    assert text.count(right) == 1
    try:
        result = Kernel(text.replace(right, mistake), tmp_path)(call)
    except MetalError as error:
        assert re.search(caught, str(error)), error  # noqa: PT017 – some end otherwise
    else:
        assert caught == WRONG
        assert not off(result, given) < 100 * SINGLE


@pytest.mark.parametrize("C", [64, 128])
def test_threadgroup_memory(C: int) -> None:
    """A tile divides K evenly and leaves room for a second threadgroup beside it."""
    for K in range(1, 129):
        tile = tile_of(K)
        assert tile % 8 == 0
        assert 2 * tile * C * 4 <= THREADGROUP_BYTES
        assert -(-K // tile) == -(-K // LARGEST_TILE)


def test_other_backends_refuse_the_kernel() -> None:
    """Where there is no Metal the kernel is an error, not another computation."""
    if mx.metal.is_available():
        pytest.skip("Metal is here")
    with pytest.raises(RuntimeError, match="No Metal"):
        mx.eval(metal_message_sum(on_device(arguments(64, 12, 4, product=True))))


class ShimEngine(EagerMLXEngine):
    """The engine with the kernel's text for messages, run through the shim."""

    def __init__(self, model: ProteinMPNN, folder: Path) -> None:
        self.folder, self.kernels = folder, dict[str, Kernel]()
        self.message_sum = self.through_shim
        super().__init__(model)

    def through_shim(self, messages: Messages) -> Any:
        """A `MessageSum`."""
        call = launch(messages)
        text = metal_shim.generated(KERNEL, call)
        if text not in self.kernels:
            self.kernels[text] = Kernel(text, self.folder / str(len(self.kernels)))
        return mx.array(self.kernels[text](call))


@needs_compiler
def test_whole_network_through_the_kernel(tmp_path: Path) -> None:
    """Sequences and log-probabilities of the whole network, messages by the kernel, are right."""
    model = formula_weights(ModelConfig(1, 2, 32, 12))
    flat = Flat.from_backbones([synthetic_backbone(14), synthetic_backbone(7, seed=1)])
    free = [Constraints.free(np.ones(n, bool)) for n in (14, 7)]
    job = make_job(flat.S, free, [Key(3, 0, 0.3)])
    engines = ReferenceEngine(model), ShimEngine(model, tmp_path)
    right, ours = (engine.sample(engine.encode(flat), job) for engine in engines)
    np.testing.assert_array_equal(ours.S, right.S)
    np.testing.assert_allclose(ours.log_probs, right.log_probs, rtol=0, atol=1e-5)
    assert len(engines[1].kernels) >= 2, "encoder and decoder have one each"
