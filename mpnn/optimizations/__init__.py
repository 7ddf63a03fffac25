"""One module, one way to run the network. Read one and you have read them all.

Every engine loads a network, encodes structures once, and then scores and samples from the encoding
as often as wanted. Structures come laid end to end (`mpnn.flat.Flat`) and results go back as host
arrays in the same layout, so returning is synchronizing. Nothing here needs torch.

Shapes: B structures, N samples, R rows (residues laid end to end), L residues of one structure, K
neighbors.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpnn.config import ModelConfig, NetworkConfig, SSMConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import native
from mpnn.optimizations.one_shot import OneShotEngine, UnconditionalEngine
from mpnn.sampling import Job, Samples
from mpnn.schedule import Graph, IntArray
from mpnn.weights import Checkpoint, build_network

if TYPE_CHECKING:
    from mpnn.weights import Network


class Engine(Protocol):
    """What every optimization implements; the encoding is its own business.

    Attributes:
        device: where it runs: "cpu", "mps", "cuda".
        dtype: type of its log-probabilities, such as "float32".
    """

    device: str
    dtype: str

    def encode(self, flat: Flat) -> Any:
        """Computes everything that depends on the structures alone."""

    def log_probs(self, encoding: Any, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [N, R, 21] of S [N, R] under rank [N, R]."""

    def sample(self, encoding: Any, job: Job) -> Samples:
        """Samples the job's N sequences of each structure."""

    def neighbors(self, encoding: Any, b: int) -> Graph:
        """Neighbors E_idx [L, K] of structure b within itself, and where they are real [L, K].

        A neighbor slot that is padding holds any residue of the structure.
        """

    def synchronize(self) -> None:
        """Blocks until the device has finished all work."""


@dataclass(frozen=True)
class EngineSpec:
    """A registered engine.

    Attributes:
        target: `module:class`; the module is imported when the engine is first used.
        close: whether it rounds more than the reference does; otherwise it equals the reference
            but for the rounding of its type.
        extra: extra of this project that installs the packages it imports.
        networks: configuration of the networks that it runs.
        torch: whether it is made from a torch network; otherwise a `Checkpoint` will do.
    """

    target: str
    close: bool = False
    extra: str = ""
    networks: type[NetworkConfig] = ModelConfig
    torch: bool = True


OLDEST_MACOS = 15
"""Matmuls on MPS need it, see `check_device`, and so do Core ML's multifunction packages."""

_HERE = "mpnn.optimizations"

ENGINES: dict[str, EngineSpec] = {
    "reference": EngineSpec(f"{_HERE}.reference:ReferenceEngine"),
    "exact": EngineSpec(f"{_HERE}.exact:ExactEngine"),  # or the next: see `exact_form`
    "exact-native": EngineSpec(f"{_HERE}.native.engine:NativeEngine", torch=False),
    "exact-torch": EngineSpec(f"{_HERE}.exact:ExactEngine"),
    "ball-tree": EngineSpec(f"{_HERE}.knn:BallTreeEngine", extra="knn"),
    "kd-tree": EngineSpec(f"{_HERE}.knn:KDTreeEngine", extra="knn"),
    "half": EngineSpec(f"{_HERE}.precision:HalfEngine", close=True),
    "bfloat16": EngineSpec(f"{_HERE}.precision:BFloat16Engine", close=True),
    "mixed": EngineSpec(f"{_HERE}.precision:MixedEngine", close=True),
    "int8": EngineSpec(f"{_HERE}.precision:Int8Engine", close=True),
    "exact-bfloat16": EngineSpec(f"{_HERE}.exact_bfloat16:ExactBFloat16Engine", close=True),
    "staged": EngineSpec(f"{_HERE}.staged:StagedEngine"),
    "compiled": EngineSpec(f"{_HERE}.compiled:CompiledEngine"),
    "torchscript": EngineSpec(f"{_HERE}.torchscript:TorchScriptEngine"),
    "onnx": EngineSpec(f"{_HERE}.onnx:OnnxEngine", extra="onnx"),
    "mlx": EngineSpec(f"{_HERE}.mlx:MLXEngine", extra="mlx"),
    "mlx-eager": EngineSpec(f"{_HERE}.mlx:EagerMLXEngine", extra="mlx"),
    "mlx-fused": EngineSpec(f"{_HERE}.mlx:FusedMLXEngine", extra="mlx"),
    "coreml": EngineSpec(f"{_HERE}.coreml:CoreMLEngine", close=True, extra="coreml"),
    "ssm": EngineSpec(f"{_HERE}.ssm:SSMEngine", networks=SSMConfig),
}
"""Every engine that has a name."""

DEFAULT_ENGINES: dict[type[NetworkConfig], str] = {ModelConfig: "exact", SSMConfig: "ssm"}
"""The engine that runs a network where none is named, by the network's configuration."""

KINDS: dict[type[NetworkConfig], str] = {
    ModelConfig: "ProteinMPNN networks",
    SSMConfig: "state-space networks",
}


def exact_form(network: Network | Checkpoint, device: str = "cpu") -> tuple[str, str]:
    """The engine that "exact" means for a network on a device, and why it is not the compiled one.

    Returns:
        "exact-native" and "", or "exact-torch" and the reason.
    """
    reason = native.obstacle(network, device)
    return ("exact-torch", reason) if reason else ("exact-native", "")


def load_engine(
    network: Network | Checkpoint, name: str | None = None, device: str = "cpu"
) -> Engine:
    """Makes the engine that runs a network with its weights.

    Args:
        network: the network, or its checkpoint: the compiled engine is then made without torch.
        name: in `ENGINES`, or the `module:class` of an engine of your own; None takes the default
            for the kind of network.
        device: where to run it.

    Raises:
        InputError: no engine has this name, it runs another kind of network, or a package that it
            imports is not installed.
    """
    kind = type(network.config)
    name = name or DEFAULT_ENGINES[kind]
    if name == "exact" and issubclass(kind, ModelConfig):
        name, _ = exact_form(network, device)
    spec = ENGINES.get(name) or EngineSpec(name)
    make = _engine_class(name, spec)
    if not issubclass(kind, spec.networks):
        raise InputError(
            f"engine {name} runs {KINDS[spec.networks]}, and these weights are for "
            f"{KINDS[kind]}; take engine {DEFAULT_ENGINES[kind]}"
        )
    if spec.torch and isinstance(network, Checkpoint):
        network = build_network(network.config, network.arrays)
    engine: Engine = make(network, device)
    if network.config.autoregressive or isinstance(engine, UnconditionalEngine):
        return engine
    return OneShotEngine(engine)


def _engine_class(name: str, spec: EngineSpec) -> Any:
    module, _, cls = spec.target.partition(":")
    if not module or not cls or module.startswith("."):
        raise InputError(
            f"no engine is called {name!r}; take one of {', '.join(ENGINES)}, or module:class of "
            "your own"
        )
    try:
        make = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        install = isinstance(error, ImportError) and spec.extra
        advice = f"; pip install 'mpnn[{spec.extra}]'" if install else ""
        raise InputError(f"engine {name}: {error}{advice}") from error
    if not hasattr(make, "log_probs"):
        raise InputError(
            f"engine {name} is not an engine; write the methods of mpnn.optimizations.Engine"
        )
    return make


def check_neighbors(flat: Flat, k: int) -> None:
    """Refuses given neighbors that a compiled network has no room for.

    Raises:
        InputError: there are more than `k` for each residue.
    """
    if flat.E_idx is not None and flat.E_idx.shape[1] > k:
        raise InputError(
            f"the batch brings {flat.E_idx.shape[1]} neighbors of each residue, and this engine "
            f"is built for {k}, those of the network; bring fewer, or take engine exact"
        )


def check_device(name: str) -> None:
    """Checks that torch can compute on a device; "cpu" is taken without importing torch.

    On macOS 14 a matmul whose `out` is a slice writes nothing on MPS, in torch before 2.14
    (pytorch/pytorch#193385), and the exact engine writes into slices.

    Raises:
        InputError: the device is missing or cannot compute.
    """
    if name == "cpu":
        return
    import torch

    try:
        found = torch.empty(1, device=name).device.type
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); take cpu") from error
    if found not in ("cpu", "mps", "cuda"):
        raise InputError(f"device {name!r} cannot compute; take cpu, mps or cuda")
    version = platform.mac_ver()[0]
    if found == "mps" and int(version.partition(".")[0] or 0) < OLDEST_MACOS:
        raise InputError(
            f"device {name!r} needs macOS {OLDEST_MACOS} or newer, and this is macOS {version}: "
            "matmuls are wrong there; take cpu"
        )
