"""One module, one way to run the network. Read one and you have read them all.

Every engine loads a network, encodes a batch once, and then scores and samples from the
encoding as often as asked. Results come back as host arrays, so returning is synchronizing.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpnn.batch import Batch
from mpnn.decoding import IntArray, Job, Samples
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN


class Engine(Protocol):
    """What every optimization implements; the encoding is its own business."""

    device: torch.device
    dtype: torch.dtype

    def encode(self, batch: Batch) -> Any:
        """Does whatever depends on the structures alone."""

    def log_probs(self, encoding: Any, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [B, N, L, 21] of S [B, N, L] under rank [B, N, L]."""

    def sample(self, encoding: Any, job: Job) -> Samples:
        """Draws the job's N samples of each structure."""

    def neighbors(self, encoding: Any, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b on the host, and False where a slot is padding."""

    def synchronize(self) -> None:
        """Waits until everything asked of the device is done."""


ENGINES: dict[str, str] = {
    "reference": "mpnn.optimizations.reference:ReferenceEngine",
    "exact": "mpnn.optimizations.exact:ExactEngine",
    "jacobi": "mpnn.optimizations.jacobi:JacobiEngine",
    "ball-tree": "mpnn.optimizations.knn:BallTreeEngine",
    "kd-tree": "mpnn.optimizations.knn:KDTreeEngine",
    "half": "mpnn.optimizations.precision:HalfEngine",
    "bfloat16": "mpnn.optimizations.precision:BFloat16Engine",
    "mixed": "mpnn.optimizations.precision:MixedEngine",
    "int8": "mpnn.optimizations.precision:Int8Engine",
    "exact-bfloat16": "mpnn.optimizations.exact_bfloat16:ExactBFloat16Engine",
    "staged": "mpnn.optimizations.staged:StagedEngine",
    "compiled": "mpnn.optimizations.compiled:CompiledEngine",
    "torchscript": "mpnn.optimizations.torchscript:TorchScriptEngine",
    "onnx": "mpnn.optimizations.onnx:OnnxEngine",
    "mlx": "mpnn.optimizations.mlx:MLXEngine",
    "mlx-eager": "mpnn.optimizations.mlx:EagerMLXEngine",
    "mlx-fused": "mpnn.optimizations.mlx:FusedMLXEngine",
    "coreml": "mpnn.optimizations.coreml:CoreMLEngine",
    "coreml-gpu": "mpnn.optimizations.coreml:CoreMLGPUEngine",
    "coreml-cpu": "mpnn.optimizations.coreml:CoreMLCPUEngine",
    "coreml-int8": "mpnn.optimizations.coreml:CoreMLInt8Engine",
    "coreml-palette6": "mpnn.optimizations.coreml:CoreMLPalette6Engine",
    "coreml-palette4": "mpnn.optimizations.coreml:CoreMLPalette4Engine",
}
"""Engine name to `module:class`; modules are imported when asked for."""

ROUNDED = frozenset({"half", "bfloat16", "mixed", "int8", "exact-bfloat16"}) | {
    name for name in ENGINES if name.startswith("coreml")
}
"""Engines that are close to the reference rather than equal to it but for float32's rounding."""

EXTRAS = {
    "mlx": "mlx",
    "coremltools": "coreml",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "sklearn": "knn",
    "scipy": "knn",
}
"""Package that an engine may import to the extra of this project that installs it."""


def load_engine(name: str, model: ProteinMPNN, device: str | torch.device = "cpu") -> Engine:
    """Makes an engine for a model with its weights.

    Args:
        name: in `ENGINES`, or the `module:class` of an engine that is not registered.
        model: the network.
        device: where to run it.

    Raises:
        InputError: there is no such engine, what is named is none, or what it imports is not
            installed.
    """
    module, _, cls = ENGINES.get(name, name).partition(":")
    if not module or not cls or module.startswith("."):
        raise InputError(
            f"no engine {name!r}; there are: {', '.join(ENGINES)}, or module:class of your own"
        )
    try:
        make = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        advice = f"; pip install 'mpnn[{extra}]'" if extra else ""
        raise InputError(f"engine {name}: {error}{advice}") from error
    except AttributeError as error:
        raise InputError(f"engine {name}: {error}") from error
    if not hasattr(make, "log_probs"):
        raise InputError(f"engine {name} is none; write the methods of mpnn.optimizations.Engine")
    engine: Engine = make(model, device)
    return engine


M = TypeVar("M", bound=nn.Module)


def own(model: M, device: str | torch.device) -> M:
    """A copy of a network for an engine to keep, on its device.

    Training the network, or making another engine of it, leaves this one alone.
    """
    return copy.deepcopy(model).to(device).eval()


def check_neighbors(batch: Batch, k: int) -> None:
    """Refuses a batch that brings more neighbors than a compiled network has room for.

    Raises:
        InputError: it does.
    """
    if batch.E_idx is not None and batch.E_idx.shape[-1] > k:
        raise InputError(
            f"the batch brings {batch.E_idx.shape[-1]} neighbors of each residue, and this engine "
            f"is built for {k}, those of the network; bring fewer, or take engine exact"
        )


def check_device(name: str) -> None:
    """Refuses a device that is not there or cannot compute.

    Raises:
        InputError: so it is.
    """
    try:
        found = torch.empty(1, device=name).device.type
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); take cpu") from error
    if found not in ("cpu", "mps", "cuda"):
        raise InputError(f"device {name!r} cannot compute; take cpu, mps or cuda")


def synchronize(device: torch.device) -> None:
    """Waits for the device; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
