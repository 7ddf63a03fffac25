"""Compiles the native engine: finds a compiler, builds one library per instruction level.

A library is named `<platform>-<level>-<digest of the sources>-<digest of the file>.so`. The names
alone tell whether a library belongs to these sources and is the file that was built, before any of
its code runs. The build hook loads this file by its path, where neither numpy nor torch is
installed, so it imports the standard library only. `python mpnn/optimizations/native/toolchain.py`
brings the libraries of a source tree up to date.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

SOURCES = Path(__file__).with_name("src")
LIBRARIES = Path(__file__).with_name("lib")
"""Where libraries are built, in a source tree as in a wheel; git ignores it."""

LEVELS: dict[str, dict[str, str]] = {
    "linux-x86_64": {"v4": "x86-64-v4", "v3": "x86-64-v3"},
    "linux-aarch64": {"neon": "armv8-a"},
    "darwin-arm64": {"neon": "armv8-a"},
}
"""Platform to its instruction levels, best first, and the `-march` of each."""

FLAGS = (
    "-std=c++20",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
    "-pthread",
)
"""How every level is compiled. Not `-ffast-math`: it would compile the checks for NaN away."""

WARNINGS = ("-Wall", "-Wextra", "-Werror")
"""Added where a library is demanded, not on users' machines: a new compiler has new warnings."""

MACOS = "11.0"
"""Oldest macOS with Apple Silicon."""

WHY_NOT = "missing.txt"
"""File in `LIBRARIES` that holds the reason why the last build made no library."""

PROBE = "#include <bit>\n#include <thread>\nstatic_assert(std::has_single_bit(8u));\n"


class BuildError(RuntimeError):
    """No library can be built; the message says what is missing and how to get it."""


def target() -> str:
    """The platform that libraries are built for, a key of `LEVELS` where there is native code."""
    return f"{platform.system().lower()}-{platform.machine()}"


def digest() -> str:
    """Digest of the sources and flags: libraries of other sources have other names."""
    total = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def digest_of(library: Path) -> str:
    """Digest of a file, as its name has it."""
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def intact(library: Path) -> bool:
    """Whether a library holds the very bytes that were built."""
    return library.stem.rpartition("-")[2] == digest_of(library)


def find(level: str) -> list[Path]:
    """Libraries of this platform and level that were built from these sources."""
    return sorted(LIBRARIES.glob(f"{target()}-{level}-{digest()}-*.so"))


def runs(command: str) -> bool:
    """Whether a compiler tells its version; a Mac without command line tools has a mock `g++`."""
    try:
        _run([command, "--version"], ".")
    except BuildError:
        return False
    return True


def find_compiler(zig: bool = True) -> list[str]:
    """The command of the first C++20 compiler that works.

    Args:
        zig: whether the compiler in the package `ziglang` will do.

    Raises:
        BuildError: no compiler works; the environment's CXX alone counts where it is set.
    """
    if os.environ.get("CXX"):
        candidates = [shlex.split(os.environ["CXX"])]
    else:
        candidates = [["c++"], ["g++"], ["clang++"]]
        if zig and importlib.util.find_spec("ziglang"):
            candidates.append([sys.executable, "-m", "ziglang", "c++"])
    for command in candidates:
        if _compiles(command):
            return command
    tried = ", ".join(shlex.join(command) for command in candidates)
    raise BuildError(
        f"no C++20 compiler works (tried {tried}); install g++ 11, clang 14 or the Xcode command "
        "line tools, `pip install ziglang`, or name a compiler in CXX"
    )


def _compiles(command: list[str]) -> bool:
    """Whether a command compiles C++20 for this machine; a Mac without tools has a mock `g++`."""
    levels = list(LEVELS.get(target(), ()))
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text(PROBE)
        try:
            _run([*command, *flags(command, levels[0] if levels else ""), "-c", str(probe)], folder)
        except BuildError:
            return False
        return True


def flags(command: Sequence[str], level: str) -> list[str]:
    """The flags with which a compiler compiles for a level of this platform; "" is no level."""
    machine = LEVELS.get(target(), {}).get(level)
    out = [*FLAGS]
    zig = {"zig", "ziglang"} & {Path(word).name for word in command}
    if machine and not zig:
        out.append(f"-march={machine}")
    elif machine and machine != "armv8-a":  # zig's default, which it does not know by this name
        out.append(f"-march={machine.replace('-', '_')}")
    return out + _macos_flags()


def _macos_flags() -> list[str]:
    if platform.system() != "Darwin":
        return []
    oldest = os.environ.get("MACOSX_DEPLOYMENT_TARGET", MACOS)
    return ["-arch", platform.machine(), f"-mmacosx-version-min={oldest}"]


def build(extra: Sequence[str] = ()) -> list[Path]:
    """Brings the libraries of this platform up to date, one per level, best first.

    Libraries that are intact and were built from these sources stay; those of other sources go.

    Args:
        extra: more flags, such as `WARNINGS` or those of a sanitizer.

    Raises:
        BuildError: there is no native code for this platform, no compiler works, or the compiler
            fails.
    """
    levels = LEVELS.get(target())
    if levels is None:
        raise BuildError(f"no native code for {target()}; it exists for {', '.join(LEVELS)}")
    there = {level: [path for path in find(level) if intact(path)] for level in levels}
    if not all(there.values()):
        there = {level: [path] for level, path in _compile(list(levels), extra).items()}
    keep = {path for paths in there.values() for path in paths}
    for path in LIBRARIES.glob(f"{target()}-*.so"):
        if path not in keep:
            path.unlink()
    (LIBRARIES / WHY_NOT).unlink(missing_ok=True)
    return [paths[0] for paths in there.values()]


def _compile(levels: list[str], extra: Sequence[str]) -> dict[str, Path]:
    """Compiles every source for every level, as many at once as there are cores, and links."""
    command = find_compiler()
    sources = sorted(SOURCES.glob("*.cpp"))
    LIBRARIES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=LIBRARIES) as folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        objects = {(level, s): f"{level}-{s.stem}.o" for level, s in product(levels, sources)}
        compiles = [
            [*command, *flags(command, level), *extra, "-c", str(source), "-o", name]
            for (level, source), name in objects.items()
        ]
        for _ in pool.map(_run, compiles, [folder] * len(compiles)):
            pass
        for level in levels:  # linked without -march, so that zig compiles its C++ library once
            parts = [objects[level, source] for source in sources]
            _run([*command, *_link_flags(), *extra, *parts, "-o", f"{level}.so"], folder)
        return {level: _place(Path(folder, f"{level}.so"), level) for level in levels}


def _link_flags() -> list[str]:
    if platform.system() == "Darwin":
        return ["-shared", *_macos_flags()]
    return ["-shared", "-pthread", "-s", "-ldl"]  # before glibc 2.34, dlopen is in libdl


def _place(built: Path, level: str) -> Path:
    """Moves a library to its name in one step: other processes see the old one or the new one."""
    return built.replace(LIBRARIES / f"{target()}-{level}-{digest()}-{digest_of(built)}.so")


def _run(command: list[str], folder: str) -> None:
    """Runs a compiler in a folder.

    Raises:
        BuildError: it cannot be run or fails; the message has the first lines of what it said.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={"ZIG_GLOBAL_CACHE_DIR": folder, **os.environ},  # zig compiles its C++ library
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[:20])
        raise BuildError(f"{shlex.join(command)} failed:\n{said}")


def record_failure(reason: str) -> None:
    """Keeps the reason why there is no library, in one line, for the message of a later load."""
    with suppress(OSError):  # a tree that cannot be written: the build says it all the same
        LIBRARIES.mkdir(exist_ok=True)
        (LIBRARIES / WHY_NOT).write_text(" ".join(reason.split())[:1000] + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.stdout.writelines(f"{path}\n" for path in build(WARNINGS))
    except BuildError as error:
        sys.exit(f"error: {error}")
