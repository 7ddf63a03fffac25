"""The engines themselves: encode once, then score and sample from the encoding."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations.mlx import sampler
from mpnn.optimizations.mlx.metal import (
    LARGEST_C,
    SIMDGROUP_COLUMNS,
    MessageSum,
    metal_message_sum,
    plain_message_sum,
)
from mpnn.optimizations.mlx.network import Encoded, MLXProteinMPNN, Structures
from mpnn.optimizations.native import toolchain
from mpnn.sampling import Job, Samples
from mpnn.schedule import Graph, IntArray, steps_of

FLOATS_AT_ONCE = 2**26
"""Size of one [N, R, K, C] in a call, a quarter of a GB; more samples take more calls."""


@dataclass(frozen=True, eq=False)
class MLXEncoding:
    """What the network needs of the structures, and their lengths."""

    arrays: Encoded
    lengths: tuple[int, ...]

    def graph(self, b: int) -> Graph:
        """E_idx [L, K] of structure b within itself, and where its slots are real."""
        start = sum(self.lengths[:b])
        rows = slice(start, start + self.lengths[b])
        E_idx = np.array(self.arrays["E_idx"][rows]).astype(np.int64) - start
        return E_idx, np.array(self.arrays["neighbor_mask"][rows]) > 0


class MLXEngine:
    """The network in MLX under `mx.compile`, on MLX's default device.

    That device is the GPU on Apple Silicon, through Metal, and the CPU elsewhere. Results are
    float32 host arrays. A compiled function is traced anew, in some 10 ms, for every new shape;
    on the CPU its kernels are built by g++ when they first occur, a second each, and kept on disk.
    """

    compiled = True
    kernel = "fallback"
    """What sums messages: "metal", the fused kernel, or "fallback", MLX's own operations."""

    message_sum: MessageSum = staticmethod(plain_message_sum)

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        """Loads the parameters of `model`, in float32.

        Raises:
            InputError: `device` is not the CPU, from which MLX takes structures; or MLX cannot
                compile, or rounds its matmuls.
        """
        self.device, self.dtype = device, "float32"
        if device != "cpu":
            raise InputError(
                f"MLX computes on its own default device, {mx.default_device()}, and takes "
                f"structures from the cpu; leave the device at cpu, not {device}"
            )
        require_float32_matmuls()
        network = MLXProteinMPNN.from_torch(model, self.message_sum)
        self.network, self.k = network, model.config.k_neighbors
        self._encode = self._made(network.encode)
        self._decode = self._made(network.decode)
        self._first_state = self._made(partial(sampler.first_state, network))
        self._steps = {
            tied: self._made(partial(sampler.step, network, tied)) for tied in (False, True)
        }

    def _made(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiled:
            return function
        if mx.default_device() == mx.cpu and not toolchain.runs("g++"):
            raise InputError(
                "on the CPU, mx.compile builds its kernels with g++, which does not run here; "
                "install it, or take the engine mlx-eager"
            )
        made: Callable[..., Any] = mx.compile(function)
        return made

    def synchronize(self) -> None:
        """Blocks until MLX's device has finished all work."""
        mx.synchronize()

    def encode(self, flat: Flat) -> MLXEncoding:
        """Runs the encoder once, and every decoder matmul that depends on no residue type."""
        arrays = self._encode(structures(flat, self.k))
        mx.eval(arrays)
        return MLXEncoding(arrays, flat.lengths)

    def neighbors(self, encoding: MLXEncoding, b: int) -> Graph:
        """E_idx [L, K] of structure b within itself, and False where a slot is padding."""
        return encoding.graph(b)

    def log_probs(self, encoding: MLXEncoding, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [N, R, 21]: all residues at once, layer by layer."""
        logits = []
        for part in self._parts(encoding, len(S)):
            given = sampler.on_device(S[part]), sampler.on_device(rank[part])
            logits.append(self._decode(encoding.arrays, *given)[0])
            mx.eval(logits[-1])
        return np.array(log_softmax(mx.concatenate(logits))).reshape(*S.shape, -1)

    def sample(self, encoding: MLXEncoding, job: Job) -> Samples:
        """Fixed residues in one pass, then wavefronts; the host synchronizes once, at the end."""
        parts = [
            self._sample(encoding, job.part(part)) for part in self._parts(encoding, len(job.rank))
        ]
        S, log_probs = ([getattr(part, name) for part in parts] for name in ("S", "log_probs"))
        return Samples(np.concatenate(S), np.concatenate(log_probs))

    def _sample(self, encoding: MLXEncoding, job: Job) -> Samples:
        arrays, shape = encoding.arrays, job.rank.shape
        step = steps_of(job, [encoding.graph(b) for b in range(len(encoding.lengths))])
        S = sampler.on_device(np.broadcast_to(job.S, shape))
        rank = sampler.on_device(job.rank)
        if (step == 0).any():
            state = self._first_state(arrays, S, rank)
        else:
            state = sampler.empty_state(arrays, S)
        where = self.network.where(arrays, rank)
        for rows in sampler.rows_of(job, step):
            state = self._steps[job.tied](arrays, where, state, rows)
            mx.async_eval(state)
        types = np.array(state["S"][: S.size]).reshape(shape).astype(np.int64)
        log_probs = np.array(log_softmax(state["logits"][: S.size]))
        return Samples(types, log_probs.reshape(*shape, -1))

    def _parts(self, encoding: MLXEncoding, N: int) -> list[slice]:
        R, K, C = encoding.arrays["edges"][0].shape
        size = max(1, FLOATS_AT_ONCE // (R * K * C))
        return [slice(n, min(n + size, N)) for n in range(0, N, size)]


class EagerMLXEngine(MLXEngine):
    """`MLXEngine` without `mx.compile`: one launch for every operation."""

    compiled = False


class FusedMLXEngine(MLXEngine):
    """`MLXEngine` with the Metal kernel for messages, where MLX computes through Metal.

    Elsewhere there is no Metal to launch it: `kernel` says "fallback" and messages are summed in
    MLX's own operations, as `MLXEngine` does.
    """

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        """As `MLXEngine`.

        Raises:
            InputError: also where the kernel is to run and cannot, for this C.
        """
        if on_metal():
            C = model.config.hidden_dim
            if C % SIMDGROUP_COLUMNS or C > LARGEST_C:
                raise InputError(
                    f"the Metal kernel wants a hidden_dim that is a multiple of "
                    f"{SIMDGROUP_COLUMNS} and at most {LARGEST_C}, not {C}; take the engine mlx"
                )
            self.kernel, self.message_sum = "metal", metal_message_sum
        super().__init__(model, device)


def on_metal() -> bool:
    """Whether MLX's default device is a GPU that Metal drives."""
    return bool(mx.metal.is_available() and mx.default_device() == mx.gpu)


def structures(flat: Flat, k: int) -> Structures:
    """Structures as MLX arrays, with as many neighbor slots as the longest has neighbors."""
    K = min(k, max(flat.lengths)) if flat.E_idx is None else flat.E_idx.shape[1]
    real = np.arange(K) < np.repeat(np.array(flat.lengths), flat.lengths)[:, None]
    return {
        "X": [sampler.on_device(flat.X[rows]) for rows in flat.slices],
        "mask": sampler.on_device(flat.mask.astype(np.float32)),
        "residue_idx": sampler.on_device(flat.residue_idx),
        "chain_encoding": sampler.on_device(flat.chain_encoding),
        "neighbor_mask": sampler.on_device(real.astype(np.float32)),
        "E_idx": None if flat.E_idx is None else sampler.on_device(flat.E_idx),
    }


def log_softmax(logits: mx.array) -> mx.array:
    """Over the last axis."""
    return logits - mx.logsumexp(logits, -1, keepdims=True)


def require_float32_matmuls(
    multiply: Callable[[mx.array, mx.array], mx.array] = mx.matmul,
) -> None:
    """Checks that matmuls of float32 arrays are computed in float32.

    MLX rounds their inputs to ten bits by default where the hardware gains from it (M5, CUDA).

    Raises:
        InputError: they are rounded.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"  # read once, at the first matmul of the process
    a = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    off = np.abs(np.array(multiply(mx.array(a), mx.array(a))) - a.astype(np.float64) @ a).max()
    if off > 1e-4:
        raise InputError(
            f"MLX rounds its matmuls ({off:.0e} off); set MLX_ENABLE_TF32=0 before its first use"
        )
