"""The state of a measuring process: what must be pinned, and what must not be there.

Process state moves a ratio as much as noise does: where the heap gives memory back, or a library
turns the flushing of denormal numbers off, the same test reads 10 % apart alone and in the suite.
Memory is pinned here; the tests of claims flush denormals.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpnn.regression.hardware import THREADS

PINNED = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": str(THREADS),
    "VECLIB_MAXIMUM_THREADS": str(THREADS),  # of Accelerate, which multiplies on a Mac
    # All memory from one heap, and none of it given back; glibc's alone, which a Mac has not. A
    # block that glibc maps by itself costs page faults in every call, and how many is a matter of
    # luck: with blocks above 32 MiB mapped, a pair was 2.5 times as fast in one process and 1.7
    # times in another.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",  # else threads have heaps of 64 MiB, and map what is larger
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""Environment that a measuring process starts with."""

RESTARTED = "MPNN_RESTARTED"


def unpinned(environ: Mapping[str, str]) -> list[str]:
    """Names in `PINNED` whose value in `environ` differs."""
    return [name for name, value in PINNED.items() if environ.get(name) != value]


def restart_pinned(config: pytest.Config) -> None:
    """Starts this pytest anew, in the same process id, with `PINNED` in its environment.

    Raises:
        pytest.UsageError: pytest runs inside another program, which must not be started twice.
    """
    names = unpinned(os.environ)
    if not names:
        return
    script = Path(sys.argv[0])
    inside_pytest = "pytest" in script.name or script.parent.name == "pytest"
    if not inside_pytest or os.environ.get(RESTARTED):
        settings = " ".join(f"{name}={PINNED[name]}" for name in names)
        raise pytest.UsageError(f"timing needs a pinned process; start it with {settings}")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    sys.stdout.write(f"\nclaims: starting again with {', '.join(names)} pinned\n")
    sys.stdout.flush()
    environ = {**os.environ, **PINNED, RESTARTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def disturbances(config: pytest.Config) -> list[str]:
    """What in this session would change the times or the verdicts; empty if nothing does."""
    found = []
    if os.environ.get("PYTEST_XDIST_WORKER") or config.getoption("numprocesses", None):
        found.append("xdist runs tests side by side: drop -n")
    if config.getoption("reruns", None):
        found.append("reruns turn a failure into a pass: drop --reruns")
    if _traced():
        found.append("coverage, a debugger or a profiler is tracing: run without it")
    return found


def fresh_verdict(config: pytest.Config, nodeid: str) -> dict[str, Any]:
    """Runs one claim in a new process and returns its row.

    Raises:
        pytest.fail.Exception: that process measured nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *_fresh_arguments(config, nodeid, path)],
            cwd=config.rootpath,
            env={**os.environ, **PINNED},
            capture_output=True,
            text=True,
            check=False,
        )
        if not path.exists():
            pytest.fail(f"a fresh process could not confirm:\n{done.stdout}{done.stderr}", False)
        row: dict[str, Any] = json.loads(path.read_text())
        return row


def _fresh_arguments(config: pytest.Config, nodeid: str, path: Path) -> Sequence[str]:
    arguments = [nodeid, "-q", "-m", "", "--confirm", str(path), f"--rootdir={config.rootpath}"]
    if config.inipath is not None:
        arguments += ["-c", str(config.inipath)]
    if config.getoption("--quick"):
        arguments.append("--quick")
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        arguments += ["-p", "pytest_benchmark.plugin"]
    return arguments


def _traced() -> bool:
    tools = getattr(sys, "monitoring", None)  # Python 3.12 and later
    watching = tools is not None and any(tools.get_tool(i) for i in range(6))
    return sys.gettrace() is not None or sys.getprofile() is not None or watching
