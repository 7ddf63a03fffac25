"""Loads the native engine's library: the best level that this CPU runs, checked before it runs.

A library runs only if its name says that it was built from the sources beside it and that it still
holds the bytes that were built, so neither a stale nor a corrupt file can crash the process.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mpnn.errors import InputError
from mpnn.optimizations.native import toolchain

ABI_VERSION = 2
"""Version of the C interface that the Python side is written for; see `mpnn_abi_version`."""

SWITCH = "MPNN_NATIVE"
"""Environment variable: 0 switches the native engine off, a level such as v3 picks that level."""

CPUINFO = Path("/proc/cpuinfo")

CPU_FLAGS = {
    "v4": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    "v3": frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
}
"""What the kernel of Linux calls the instructions of a level; v4 has those of v3 too."""


class NativeError(InputError):
    """The native engine cannot run here: the message says why, and what would help."""


@dataclass(frozen=True)
class Library:
    """A loaded library.

    Attributes:
        handle: its functions.
        level: the instruction level it was compiled for: v4, v3 or neon.
        path: its file.
    """

    handle: ctypes.CDLL
    level: str
    path: Path


@cache
def load() -> Library:
    """Loads the library of the best level that this CPU runs; later calls return the same.

    Raises:
        NativeError: it is switched off or was not built, the CPU lacks the instructions, or the
            file is stale, corrupt, foreign or of another version of the C interface.
    """
    level = _level()
    path = _file(level)
    try:
        handle = ctypes.CDLL(str(path))
        version = int(handle.mpnn_abi_version())
    except (OSError, AttributeError) as error:
        raise NativeError(f"{path} cannot be loaded ({error}); {_rebuild()}") from error
    if version != ABI_VERSION:
        raise NativeError(
            f"{path} has version {version} of the C interface, and this package uses "
            f"{ABI_VERSION}; {_rebuild()}"
        )
    return Library(handle, level, path)


def unavailable() -> str | None:
    """Why the native engine cannot run here; None where it can."""
    try:
        load()
    except NativeError as error:
        return str(error)
    return None


def _level() -> str:
    """The level to load: the one that the environment names, or the best of this CPU."""
    levels = toolchain.LEVELS.get(toolchain.target(), {})
    wanted = os.environ.get(SWITCH) or "1"
    if wanted == "0":
        raise NativeError(f"the native engine is switched off by {SWITCH}=0; unset it")
    if not levels:
        raise NativeError(
            f"there is no native engine for {toolchain.target()}, only for "
            f"{', '.join(toolchain.LEVELS)}; take engine exact-torch"
        )
    if wanted != "1" and wanted not in levels:
        raise NativeError(f"{SWITCH}={wanted} is not one of 0, 1, {', '.join(levels)}; change it")
    runs = [level for level in levels if not _missing(level)]
    for level in runs:
        if wanted in ("1", level):
            return level
    least = wanted if wanted in levels else list(levels)[-1]
    raise NativeError(
        f"this CPU lacks {', '.join(sorted(_missing(least)))}, which level {least} of the native "
        "engine needs; take engine exact-torch"
    )


def _missing(level: str) -> frozenset[str]:
    """The instructions of a level that this CPU, or its operating system, lacks."""
    needed = CPU_FLAGS.get(level, frozenset())
    if level == "v4":
        needed |= CPU_FLAGS["v3"]
    return needed - _cpu_flags() if needed else needed


def _cpu_flags() -> frozenset[str]:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _file(level: str) -> Path:
    """The library of a level, built from these sources and unchanged since.

    Raises:
        NativeError: there is none.
    """
    there = toolchain.find(level)
    for path in there:
        if toolchain.intact(path):
            return path
    if there:
        raise NativeError(f"{there[0]} is not the file that was built; {_rebuild()}")
    if any(toolchain.LIBRARIES.glob(f"{toolchain.target()}-{level}-*.so")):
        raise NativeError(f"the native library is older than its sources; {_rebuild()}")
    reason = toolchain.LIBRARIES / toolchain.WHY_NOT
    because = f" because {reason.read_text(encoding='utf-8').strip()}" if reason.is_file() else ""
    raise NativeError(f"no native library was built{because}; {_rebuild()}")


def _rebuild() -> str:
    return f"run `python {Path(toolchain.__file__)}`, or install mpnn again"
