"""Which engines can run on this machine, and why the others cannot; imports no engine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from mpnn.optimizations import ENGINES, KINDS, OLDEST_MACOS
from mpnn.optimizations.native import library, toolchain

PACKAGES = {
    "": ("torch",),
    "coreml": ("coremltools",),
    "knn": ("scipy", "sklearn"),
    "mlx": ("mlx",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
"""Extra of this project to the packages that its engines import."""

COMPILED_BY_CXX = ("compiled", "mlx", "mlx-fused")
"""Engines that compile C++ when they are first used; those of MLX only where there is no Metal."""


def obstacle(name: str) -> str | None:
    """Why an engine of `ENGINES` cannot run on this machine, and the way out; None where it can."""
    spec = ENGINES[name]
    missing = [package for package in PACKAGES[spec.extra] if find_spec(package) is None]
    native = spec.target.startswith("mpnn.optimizations.native.")
    if missing and not native:
        wanted = f"mpnn[{spec.extra}]" if spec.extra else "mpnn"
        return f"{' and '.join(missing)} not installed; pip install '{wanted}'"
    if native:
        return library.unavailable()
    if spec.extra == "coreml":
        return _core_ml()
    on_metal = spec.extra == "mlx" and sys.platform == "darwin"
    return _no_compiler() if name in COMPILED_BY_CXX and not on_metal else None


def _core_ml() -> str | None:
    version = platform.mac_ver()[0]
    if not version:
        return f"Core ML predicts on macOS only, and this is {platform.system()}"
    if int(version.partition(".")[0]) < OLDEST_MACOS:
        return f"needs macOS {OLDEST_MACOS} or newer, and this is macOS {version}"
    return None


@cache
def _no_compiler() -> str | None:
    try:
        toolchain.find_compiler(zig=False)
    except toolchain.BuildError as error:
        return str(error)
    return None


def lines() -> Iterator[str]:
    """One line for each engine, and one for the native library of the exact engine."""
    for name, spec in ENGINES.items():
        reason = obstacle(name)
        yield f"{name:16}{KINDS[spec.networks]:26}{'no: ' + reason if reason else 'yes'}"
    reason = library.unavailable()
    state = f"no: {reason}" if reason else f"yes, level {library.load().level}"
    yield f"{'native library':16}{'of engine exact, CPU':26}{state}"
