"""The exact engine compiled: the same five methods, without torch.

Weights are folded here once, in float64; jobs run in the library's own threads. Whatever crosses
the C interface is checked on this side first, so that the library can trust it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpnn.config import (
    ATOM_PAIRS,
    ATOMS,
    NUM_LETTERS,
    NUM_POSITIONAL,
    NUM_RBF,
    RBF_MAX,
    RBF_MIN,
    ModelConfig,
)
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations.native import unsupported
from mpnn.optimizations.native.checks import (
    check_array,
    check_flat,
    check_job,
    check_rows,
)
from mpnn.optimizations.native.library import load
from mpnn.sampling import Job, Samples

FEATURES = "features."
DONE, FAILED, CANCELED, OUT_OF_MEMORY = range(4)
MESSAGE_BYTES = 256

Array = NDArray[Any]


class _Structures(ctypes.Structure):
    """`Structures` of encoding.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("R", "B", "K")),
        *(
            (name, ctypes.c_void_p)
            for name in ("X", "mask", "residue_idx", "chain_encoding", "starts", "given")
        ),
    ]


class _Job(ctypes.Structure):
    """`SamplingJob` of schedule.h."""

    _fields_ = [
        ("N", ctypes.c_int),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("S", "designed", "rank", "gumbel"),
                *("temperature", "bias", "tie_group", "tie_weight"),
            )
        ),
    ]


class NativeEncoding:
    """What the library made of structures; freed when nobody holds it."""

    def __init__(self, engine: NativeEngine, handle: ctypes.c_void_p, flat: Flat, k: int) -> None:
        self.engine, self.handle = engine, handle  # the encoding reads the engine's weights
        self.lengths, self.offsets, self.size = flat.lengths, flat.offsets, flat.size
        self.k = k
        weakref.finalize(self, engine.library.mpnn_encoding_free, handle)


class NativeEngine:
    """Runs a ProteinMPNN network on the CPU in float32, at the speed of its matmuls."""

    device, dtype = "cpu", "float32"

    def __init__(
        self,
        network: Any,
        device: str = "cpu",
        threads: int | None = None,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Folds and packs the weights.

        Args:
            network: a `Checkpoint`, or a torch network, whose weights are rounded to float32.
            device: "cpu".
            threads: of a job; None takes OMP_NUM_THREADS, or as many as this process may use.
            library: loaded already; None takes the one that belongs to this package and CPU.

        Raises:
            InputError: the network or device is not one that the library runs, threads < 1, or the
                library cannot be loaded or has another version; the message says why.
        """
        if device != "cpu":
            raise InputError(f"engine exact-native runs on the CPU, not on {device}; take cpu")
        if reason := unsupported(network.config):
            raise InputError(f"engine exact-native: {reason}; take exact-torch")
        self.config: ModelConfig = network.config
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise InputError(f"{self.threads} threads: a job needs at least one")
        self.library = _declared(load().handle if library is None else library)
        self.network = self._network(list(folded(_parameters(network), self.config)))
        weakref.finalize(self, self.library.mpnn_network_free, self.network)

    def _network(self, tensors: list[Array]) -> ctypes.c_void_p:
        config = self.config
        sizes = (config.hidden_dim, config.num_encoder_layers, config.num_decoder_layers)
        pointers = (ctypes.c_void_p * len(tensors))(*(x.ctypes.data for x in tensors))
        elements = (ctypes.c_int64 * len(tensors))(*(x.size for x in tensors))
        handle, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE_BYTES)
        status = self.library.mpnn_network_new(
            (ctypes.c_int32 * 3)(*sizes), len(tensors), pointers, elements,
            ctypes.byref(handle), message,
        )  # fmt: skip
        if status == FAILED:
            raise InputError(f"the weights do not fit the network: {_text(message)}")
        _check_status(status, message)
        return handle

    def encode(self, flat: Flat) -> NativeEncoding:
        """Finds neighbors and runs the encoder.

        Raises:
            InputError: an array has another shape, type or range than `Flat` says.
        """
        K = min(self.config.k_neighbors, max(flat.lengths, default=0))
        if flat.E_idx is not None:
            K = flat.E_idx.shape[-1]
        check_flat(flat, K)
        starts = np.array([*flat.offsets, flat.size], np.int64)
        arrays = [flat.X, flat.mask, flat.residue_idx, flat.chain_encoding, starts]
        kept = [np.ascontiguousarray(x) for x in arrays]
        given = None if flat.E_idx is None else np.ascontiguousarray(flat.E_idx)
        pointers = [x.ctypes.data for x in kept] + [None if given is None else given.ctypes.data]
        structures = _Structures(flat.size, len(flat.lengths), K, *pointers)
        handle = ctypes.c_void_p()
        self._run(
            lambda cancel, message: self.library.mpnn_encode(
                self.network, ctypes.byref(structures), self.threads, cancel,
                ctypes.byref(handle), message,
            )
        )  # fmt: skip
        return NativeEncoding(self, handle, flat, K)

    def log_probs(
        self, encoding: NativeEncoding, S: NDArray[np.int64], rank: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Teacher-forced log-probabilities [N, R, 21] of S [N, R] under rank [N, R]."""
        N, R = rank.shape[0], encoding.size
        check_array("S", S, np.int64, (N, R), 0, NUM_LETTERS - 1)
        check_array("rank", rank, np.int64, (N, R))
        check_rows(N, R)
        S, rank = np.ascontiguousarray(S), np.ascontiguousarray(rank)
        log_probs = np.empty((N, R, NUM_LETTERS), np.float32)
        types = S.copy()
        self._run(
            lambda cancel, message: self.library.mpnn_score(
                encoding.handle, N, rank.ctypes.data, types.ctypes.data, log_probs.ctypes.data,
                self.threads, cancel, message,
            )
        )  # fmt: skip
        return log_probs

    def sample(self, encoding: NativeEncoding, job: Job) -> Samples:
        """Samples the job's N sequences of each structure.

        Raises:
            InputError: an array has another shape, type or range than `Job` says.
        """
        N, R = len(job.rank), encoding.size
        check_job(job, encoding.lengths)
        arrays = (
            *(job.S, job.designed, job.rank, job.gumbel),
            *(job.temperature, job.bias, job.tie_group, job.tie_weight),
        )
        kept = [np.ascontiguousarray(x) for x in arrays]
        wanted = _Job(N, *(x.ctypes.data for x in kept))
        S, log_probs = np.empty((N, R), np.int64), np.empty((N, R, NUM_LETTERS), np.float32)
        self._run(
            lambda cancel, message: self.library.mpnn_sample(
                encoding.handle, ctypes.byref(wanted), S.ctypes.data, log_probs.ctypes.data,
                self.threads, cancel, message,
            )
        )  # fmt: skip
        return Samples(S, log_probs)

    def neighbors(
        self, encoding: NativeEncoding, b: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """E_idx [L, K] within structure b, and False where a slot is beyond its length."""
        E_idx = np.empty((encoding.size, encoding.k), np.int64)
        self.library.mpnn_neighbors(encoding.handle, E_idx.ctypes.data)
        start, length = encoding.offsets[b], encoding.lengths[b]
        real = np.broadcast_to(np.arange(encoding.k) < length, (length, encoding.k))
        return E_idx[start : start + length] - start, real

    def synchronize(self) -> None:
        """Does nothing: every method returns when its job is done."""

    def _run(self, call: Callable[[Any, Any], int]) -> None:
        """Calls the library in a thread, so that Ctrl-C reaches this one and ends the job."""
        cancel, message = ctypes.c_int32(0), ctypes.create_string_buffer(MESSAGE_BYTES)
        status: list[int] = []
        thread = threading.Thread(
            target=lambda: status.append(call(ctypes.byref(cancel), message)), name="mpnn"
        )
        thread.start()
        try:
            thread.join()
        finally:
            cancel.value = 1  # without effect where the job is done
            thread.join()
        _check_status(status[0], message)


def work() -> dict[str, int]:
    """The work of all jobs of this process so far; call it between jobs.

    Returns:
        `multiply_adds`, `matmuls` and wavefront `steps` since the process began, and `peak_bytes`:
        the most that the library's buffers held at once since the last call, above what they held
        then.

    Raises:
        InputError: the library cannot be loaded; the message says why.
    """
    out = (ctypes.c_int64 * 4)()
    _declared(load().handle).mpnn_work(out)
    return dict(zip(("multiply_adds", "matmuls", "steps", "peak_bytes"), out, strict=True))


def default_threads() -> int:
    """OMP_NUM_THREADS, or the number of processors that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parameters(network: Any) -> Mapping[str, NDArray[np.float32]]:
    if hasattr(network, "arrays"):
        arrays: Mapping[str, NDArray[np.float32]] = network.arrays
        return arrays
    state = network.state_dict().items()
    return {name: x.detach().cpu().float().numpy() for name, x in state}


def folded(
    parameters: Mapping[str, NDArray[np.float32]], config: ModelConfig
) -> Iterator[NDArray[np.float32]]:
    """The tensors that `Network` of network.cpp reads, in its order, float32 and contiguous.

    Products of weights are made in float64 and rounded once.
    """
    get = _Getter(parameters)
    yield from map(_float32, _edge_embedding(get))
    for n in range(config.num_encoder_layers):
        at = f"encoder_layers.{n}."
        yield from map(get, _message(at, "W1", "W2") + _update(at) + _message(at, "W11", "W12"))
        yield from map(get, _both(at, "W13", "norm3"))
    for n in range(config.num_decoder_layers):
        at = f"decoder_layers.{n}."
        yield from map(get, _message(at, "W1", "W2") + _update(at))
        S = np.split(get(f"{at}W1.weight").astype(np.float64), 4, axis=1)[2]
        residues = get("W_s.weight").astype(np.float64) @ S.T  # S·s of the 21 residue types
        yield _float32(np.concatenate([residues, np.zeros_like(residues[:1])]))
    yield from map(get, _both("", "W_out"))


def _edge_embedding(get: _Getter) -> Iterator[Array]:
    """Offsets [66, C], radial weights, W_e [C, C] and its bias, and the RBF centers.

    The radial weights, [C, 240] and [C, 160], are those of sums and of differences over the two
    orders of a pair of atoms. Centered by P and rotated by Qᵀ, where (W_e·diag(gain)·P)ᵀ = Q·R: see
    features.cpp.
    """
    weight = get(f"{FEATURES}edge_embedding.weight").astype(np.float64)
    C = len(weight)
    P = np.eye(C) - 1 / C
    gain, bias = (get(f"{FEATURES}norm_edges.{kind}").astype(np.float64) for kind in _KINDS)
    W_e, b_e = (get(f"W_e.{kind}").astype(np.float64) for kind in _KINDS)
    Q, R = np.linalg.qr((W_e * gain @ P).T)
    linear, linear_bias = (get(f"{FEATURES}embeddings.linear.{kind}") for kind in _KINDS)
    offsets = (linear.T.astype(np.float64) + linear_bias) @ weight[:, :NUM_POSITIONAL].T
    radial = np.split(Q.T @ P @ weight[:, NUM_POSITIONAL:], len(ATOM_PAIRS), axis=1)
    of_pair = dict(zip(ATOM_PAIRS, radial, strict=True))
    mixed = [(of_pair[a, b], of_pair[b, a]) for a, b in combinations(ATOMS, 2)]
    yield offsets @ P.T @ Q
    yield np.hstack([*((w + back) / 2 for w, back in mixed), *(of_pair[a, a] for a in ATOMS)])
    yield np.hstack([(w - back) / 2 for w, back in mixed])
    yield R.T
    yield W_e @ bias + b_e
    yield np.linspace(RBF_MIN, RBF_MAX, NUM_RBF)


_KINDS = ("weight", "bias")


def _both(at: str, *layers: str) -> list[str]:
    return [f"{at}{layer}.{kind}" for layer in layers for kind in _KINDS]


def _message(at: str, W1: str, W2: str) -> list[str]:
    return _both(at, W1, W2)


def _update(at: str) -> list[str]:
    return _both(at, "W3", "norm1", "norm2", "dense.W_in", "dense.W_out")


class _Getter:
    """Looks up parameters by name, and refuses those that are missing or not numbers."""

    def __init__(self, parameters: Mapping[str, NDArray[np.float32]]) -> None:
        self.parameters = parameters

    def __call__(self, name: str) -> NDArray[np.float32]:
        if name not in self.parameters:
            raise InputError(f"the weights lack {name}")
        array = _float32(self.parameters[name])
        if not np.isfinite(array).all():
            raise InputError(f"{name} has numbers that are not finite")
        return array


def _float32(array: Array) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)


def _check_status(status: int, message: Any) -> None:
    if status == OUT_OF_MEMORY:
        raise MemoryError("out of memory in the compiled engine")
    if status == FAILED:
        raise RuntimeError(f"the compiled engine failed: {_text(message)}")
    if status == CANCELED:
        raise KeyboardInterrupt


def _text(message: Any) -> str:
    text: str = message.value.decode(errors="replace")
    return text


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    signatures: dict[str, list[Any]] = {
        "mpnn_network_new": [pointer, i32, pointer, pointer, pointer, pointer],
        "mpnn_encode": [pointer, pointer, i32, pointer, pointer, pointer],
        "mpnn_score": [pointer, i32, pointer, pointer, pointer, i32, pointer, pointer],
        "mpnn_sample": [pointer, pointer, pointer, pointer, i32, pointer, pointer],
    }
    for name, types in signatures.items():
        getattr(library, name).argtypes, getattr(library, name).restype = types, i32
    for name in ("mpnn_network_free", "mpnn_encoding_free"):
        getattr(library, name).argtypes, getattr(library, name).restype = [pointer], None
    library.mpnn_work.argtypes, library.mpnn_work.restype = [pointer], None
    library.mpnn_neighbors.argtypes, library.mpnn_neighbors.restype = [pointer, pointer], None
    return library
