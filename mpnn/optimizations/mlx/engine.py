"""The engines' face: encode once, then score and sample from the encoding."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from numpy.typing import NDArray

from mpnn.batch import Batch
from mpnn.decoding import IntArray, Job, Samples, wavefront
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN as TorchProteinMPNN
from mpnn.optimizations.mlx import sampler
from mpnn.optimizations.mlx.metal import (
    LARGEST_C,
    SIMDGROUP_COLUMNS,
    MessageSum,
    metal_message_sum,
    plain_message_sum,
)
from mpnn.optimizations.mlx.network import Encoded, ProteinMPNN, Structures

FLOATS_AT_ONCE = 2**26
"""Size of one [N, R, K, C] in a call, a quarter of a GB; more samples take more calls."""


@dataclass(frozen=True, eq=False)
class MLXEncoding:
    """What the network needs of the structures, and where they are among the rows."""

    arrays: Encoded
    lengths: tuple[int, ...]
    size: int  # L, with padding

    def slots(self, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b within itself, and where its slots are real."""
        rows = slice(b * self.size, b * self.size + self.lengths[b])
        E_idx = np.array(self.arrays["E_idx"][rows]).astype(np.int64) - b * self.size
        real = np.array(self.arrays["neighbor_mask"][rows]) > 0
        return np.where(real, E_idx, 0), real


class MLXEngine:
    """The network in MLX under `mx.compile`, on MLX's default device.

    That device is the GPU on Apple Silicon, through Metal, and the CPU elsewhere. Results are
    float32 host arrays. A compiled function is traced anew, in some 10 ms, for every new shape;
    on the CPU its kernels are built by g++ when they first occur, a second each, and kept on disk.
    """

    compiled = True
    kernel = "twin"
    """What sums messages: "metal", the fused kernel, or "twin", MLX's own operations."""

    message_sum: MessageSum = staticmethod(plain_message_sum)

    def __init__(self, model: TorchProteinMPNN, device: str | torch.device = "cpu") -> None:
        """Loads the parameters of `model`, in float32.

        Raises:
            InputError: `device` is not the CPU, where batches wait for MLX; or MLX cannot
                compile, or rounds its products.
        """
        self.device, self.dtype = torch.device(device), torch.float32
        if self.device.type != "cpu":
            raise InputError(
                f"MLX computes on its own default device, {mx.default_device()}, and takes "
                f"batches from the cpu; leave the device at cpu, not {self.device}"
            )
        require_whole_products()
        network = ProteinMPNN.from_torch(model, self.message_sum)
        self.network = network
        self._encode = self._made(network.encode)
        self._decode = self._made(network.decode)
        self._first_state = self._made(partial(sampler.first_state, network))
        self._steps = {
            tied: self._made(partial(sampler.step, network, tied)) for tied in (False, True)
        }

    def _made(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiled:
            return function
        if mx.default_device() == mx.cpu and shutil.which("g++") is None:
            raise InputError(
                "on the CPU, mx.compile builds its kernels with g++, which is not on the path; "
                "install it, or take the engine mlx-eager"
            )
        made: Callable[..., Any] = mx.compile(function)
        return made

    def synchronize(self) -> None:
        """Waits for MLX's device."""
        mx.synchronize()

    def encode(self, batch: Batch) -> MLXEncoding:
        """Runs the encoder once, and every decoder product that no letter enters."""
        arrays = self._encode(structures(batch))
        mx.eval(arrays)
        return MLXEncoding(arrays, tuple(batch.lengths.tolist()), batch.mask.shape[1])

    def neighbors(self, encoding: MLXEncoding, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b within itself, and where its slots are real."""
        return encoding.slots(b)

    def log_probs(self, encoding: MLXEncoding, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [B, N, L, 21]: all residues at once, layer by layer."""
        logits = []
        for samples in self._parts(encoding, S.shape[1]):
            part = rows_of_samples(S[:, samples]), rows_of_samples(rank[:, samples])
            logits.append(self._decode(encoding.arrays, *part)[0])
            mx.eval(logits[-1])
        return unflatten(log_softmax(mx.concatenate(logits)), S.shape)

    def sample(self, encoding: MLXEncoding, job: Job) -> Samples:
        """Fixed residues in one pass, then wavefronts; the host waits once, at the end."""
        parts = [
            self._sample(encoding, samples_of(job, part))
            for part in self._parts(encoding, job.rank.shape[1])
        ]
        return Samples(
            np.concatenate([part.S for part in parts], 1),
            np.concatenate([part.log_probs for part in parts], 1),
        )

    def _sample(self, encoding: MLXEncoding, job: Job) -> Samples:
        arrays, shape = encoding.arrays, job.rank.shape
        step_of = steps_of(encoding, job)
        S = rows_of_samples(np.broadcast_to(job.S[:, None], shape))
        rank = rows_of_samples(job.rank)
        if (step_of == 0).any():
            state = self._first_state(arrays, S, rank)
        else:
            state = sampler.empty_state(arrays, S)
        where = self.network.where(arrays, rank)
        for rows in sampler.rows_of(job, step_of):
            state = self._steps[job.tied](arrays, where, state, rows)
            mx.async_eval(state)
        letters = unflatten(state["S"][: S.size], shape).astype(np.int64)
        return Samples(letters, unflatten(log_softmax(state["logits"][: S.size]), shape))

    def _parts(self, encoding: MLXEncoding, N: int) -> list[slice]:
        R, K, C = encoding.arrays["edges"][0].shape
        size = max(1, FLOATS_AT_ONCE // (R * K * C))
        return [slice(n, min(n + size, N)) for n in range(0, N, size)]


class EagerMLXEngine(MLXEngine):
    """`MLXEngine` without `mx.compile`: one launch for every operation."""

    compiled = False


class FusedMLXEngine(MLXEngine):
    """`MLXEngine` with the Metal kernel for messages, where MLX computes through Metal.

    Elsewhere there is no Metal to launch it: `kernel` says "twin" and messages are summed in
    MLX's own operations, as `MLXEngine` does.
    """

    def __init__(self, model: TorchProteinMPNN, device: str | torch.device = "cpu") -> None:
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


def structures(batch: Batch) -> Structures:
    """A batch as MLX arrays."""
    return {
        "X": sampler.on_device(batch.X.cpu().numpy()),
        "mask": sampler.on_device(batch.mask.cpu().numpy()),
        "residue_idx": sampler.on_device(batch.residue_idx.cpu().numpy()),
        "chain_encoding": sampler.on_device(batch.chain_encoding.cpu().numpy()),
        "valid": sampler.on_device(batch.valid.cpu().numpy()),
        "E_idx": None if batch.E_idx is None else sampler.on_device(batch.E_idx.cpu().numpy()),
    }


def steps_of(encoding: MLXEncoding, job: Job) -> IntArray:
    """Wavefront step of every row, [N, R]; −1 at the padding."""
    step = np.full(job.rank.shape, -1)
    for b, length in enumerate(encoding.lengths):
        E_idx, real = encoding.slots(b)
        designed, ties = job.designed[b, :length], job.tie_group[b, :length]
        step[b, :, :length] = wavefront(job.rank[b, :, :length], designed, E_idx, real, ties)
    return flat(step)


def samples_of(job: Job, part: slice) -> Job:
    """Some of a job's samples."""
    return replace(
        job,
        rank=job.rank[:, part],
        gumbel=job.gumbel[:, part],
        temperature=job.temperature[part],
    )


def flat(x: IntArray) -> IntArray:
    """Host array [B, N, L] -> [N, R]."""
    return np.swapaxes(x, 0, 1).reshape(x.shape[1], -1)


def rows_of_samples(x: IntArray) -> mx.array:
    """Host array [B, N, L] -> [N, R] on MLX's device."""
    return sampler.on_device(flat(x))


def unflatten(x: mx.array, shape: tuple[int, ...]) -> NDArray[Any]:
    """[N·R, ...] -> host array [B, N, L, ...]."""
    host = np.array(x)
    B, N, L = shape
    return np.swapaxes(host.reshape(N, B, L, *host.shape[1:]), 0, 1)


def log_softmax(logits: mx.array) -> mx.array:
    """Over the last axis."""
    return logits - mx.logsumexp(logits, -1, keepdims=True)


def require_whole_products(multiply: Callable[[mx.array, mx.array], mx.array] = mx.matmul) -> None:
    """Sees to it that products of float32 are float32.

    MLX rounds their inputs to ten bits by default where the hardware gains from it (M5, CUDA).

    Raises:
        InputError: it does so already.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"  # read once, at the first product of the process
    a = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    off = np.abs(np.array(multiply(mx.array(a), mx.array(a))) - a.astype(np.float64) @ a).max()
    if off > 1e-4:
        raise InputError(
            f"MLX rounds its products ({off:.0e} off); set MLX_ENABLE_TF32=0 before its first use"
        )
