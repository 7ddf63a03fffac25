"""Compiles the native library for a test, once for each set of flags and sources.

CXX may name a compiler with flags of its own; test_native_builds.py has the builds of every kind.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from mpnn.errors import InputError
from mpnn.optimizations.native import engine
from mpnn.optimizations.native.library import load

SOURCES = Path(engine.__file__).with_name("src")
FLAGS = (
    *("-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fvisibility=hidden", "-fPIC", "-pthread"),
)
CACHE = Path(tempfile.gettempdir()) / f"mpnn-native-tests-{os.getuid()}"


def level() -> str:
    """The best -march of this machine."""
    if platform.machine() in ("arm64", "aarch64"):
        return "armv8-a"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    return "x86-64-v4" if {"avx512f", "avx512dq"} <= set(flags) else "x86-64-v3"


def compiler() -> list[str]:
    """The command of a C++ compiler; skips the test where there is none."""
    for command in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if command and shutil.which(shlex.split(command)[0]):
            return shlex.split(command)
    pytest.skip("no C++ compiler: set CXX, or install g++ 11 or clang 14")


def build(march: str, *extra: str, command: tuple[str, ...] = ()) -> Path:
    """The library for an instruction level, compiled at most once for these sources and flags."""
    command = command or tuple(compiler())
    sources = sorted(SOURCES.glob("*.cpp"))
    flags = [*FLAGS, f"-march={march}", *extra]
    digest = hashlib.sha256(" ".join([*command, *flags]).encode())
    for path in sorted([*sources, *SOURCES.glob("*.h")]):
        digest.update(path.read_bytes())
    CACHE.mkdir(exist_ok=True, mode=0o700)
    library = CACHE / f"{march}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        objects = [str(Path(folder) / f"{path.stem}.o") for path in sources]
        jobs = [
            subprocess.Popen([*command, *flags, "-c", str(path), "-o", to])
            for path, to in zip(sources, objects, strict=True)
        ]
        assert not sum(job.wait() for job in jobs), "the native sources do not compile"
        whole = Path(folder) / "whole.so"
        subprocess.run([*command, *flags, "-shared", *objects, "-o", whole, "-ldl"], check=True)
        whole.replace(library)
    return library


def library_path() -> Path:
    """The library that tests run: the installed one, or one compiled here (by CXX if set)."""
    if "CXX" not in os.environ:
        try:
            return Path(load().handle._name)
        except InputError:
            pass
    return build(level())


@functools.cache
def native_library() -> ctypes.CDLL:
    """The library for this machine, loaded."""
    return ctypes.CDLL(str(library_path()))
