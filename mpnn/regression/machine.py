"""The machine and the process that measure: what decides a ratio, and what must be pinned.

The state of a process moves a ratio as much as noise does: depending on where the heap returns
memory, or whether a library switches off the flushing of denormal numbers, the same test reads 10 %
apart alone and in the suite. Memory is pinned here; the tests of claims flush denormals.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpnn.errors import InputError

if TYPE_CHECKING:
    import pytest

THREADS = 1
"""Threads of every timing. Ratios are those of one core: with two, the barrier after each operation
makes the time depend on what else runs, and the reference suffers most."""

PINNED = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": str(THREADS),
    "VECLIB_MAXIMUM_THREADS": str(THREADS),  # Accelerate, the BLAS of macOS
    # glibc only: all memory from one heap, and none of it returned. A block that glibc maps by
    # itself costs page faults in every call, and how many depends on the process: with blocks above
    # 32 MiB mapped, one run pair was 2.5 times as fast in one process and 1.7 times in another.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",  # otherwise each thread has heaps of 64 MiB and maps larger blocks
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""Environment that a measuring process starts with."""

RESTARTED = "MPNN_RESTARTED"

REPORTED_VERSIONS = (
    *("mpnn", "numpy", "torch", "mlx", "onnxruntime", "scikit-learn", "scipy"),
    "pytest-benchmark",
)


def versions() -> dict[str, str]:
    """Python and the packages that measure, or are measured, with the versions in use."""
    found = {"python": platform.python_version()}
    if sys.platform == "darwin":
        found["macOS"] = f"{macos_version()} {said('sysctl', '-n', 'kern.osversion')}"
    return found | {name: version_of(name) for name in REPORTED_VERSIONS}


def version_of(package: str) -> str:
    """A package's version, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Hardware:
    """Ratios hold for one class of machines: chip, real or virtual, and major OS version."""

    chip: str
    virtual: bool
    system: str
    os_major: str

    @property
    def id(self) -> str:
        """Name of the folder of this machine's baselines."""
        words = [self.chip, "vm" if self.virtual else "", f"{self.system}{self.os_major}"]
        return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")

    def machine_info(self) -> dict[str, object]:
        """What is stored as pytest-benchmark's `machine_info`: equal on equal machines."""
        return {"hardware": self.id, **asdict(self), "threads": THREADS, "cpu": {}}


def this_machine() -> Hardware:
    """The machine that runs this; `MPNN_HARDWARE_CHIP` renames a chip that hides its name."""
    system = platform.system()
    chip = os.environ.get("MPNN_HARDWARE_CHIP")
    if system == "Darwin":
        return Hardware(
            chip or apple_chip(),
            said("sysctl", "-n", "kern.hv_vmm_present") == "1",
            "macos",
            macos_version().split(".")[0],
        )
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return Hardware(
        chip or chip_of(text) or platform.machine(),
        is_virtual(text),
        system.lower(),
        platform.release().split(".")[0],
    )


def apple_chip() -> str:
    """An Apple chip with its numbers of performance and GPU cores: "Apple M3 Pro 6P 18G".

    Chips of one name are sold with several numbers of either; a virtual Mac may tell neither.
    """
    cores = (said("sysctl", "-n", "hw.perflevel0.physicalcpu"), "P"), (gpu_cores(), "G")
    counts = [f"{count}{kind}" for count, kind in cores if count]
    return " ".join([said("sysctl", "-n", "machdep.cpu.brand_string"), *counts])


def gpu_cores() -> int | None:
    """Cores of the GPU of an Apple chip; None elsewhere."""
    found = re.search(r'"gpu-core-count" = (\d+)', said("ioreg", "-rc", "AGXAccelerator", "-d1"))
    return int(found[1]) if found else None


def macos_version() -> str:
    """The product version; `platform.mac_ver` may say 16 for 26."""
    return said("sysctl", "-n", "kern.osproductversion")


@dataclass(frozen=True)
class Power:
    """What a Mac runs on; on another system, source "unknown".

    Attributes:
        source: "mains", "battery" or "unknown".
        low: whether low-power mode is on.
    """

    source: str
    low: bool

    @classmethod
    def now(cls) -> Power:
        """The present state, as `pmset` tells it."""
        text = said("pmset", "-g", "batt")
        source = "mains" if "AC Power" in text else "battery" if "Battery" in text else "unknown"
        return cls(source, bool(re.search(r"lowpowermode\s+1", said("pmset", "-g"))))

    @property
    def problem(self) -> str:
        """Why speeds measured now are not those of the machine; '' if they are."""
        if self.source == "battery":
            return "the Mac runs on its battery, which lowers its clock: plug it in"
        return "low-power mode lowers the clock: switch it off" if self.low else ""


def chip_of(cpuinfo: str) -> str:
    """Model name in the text of /proc/cpuinfo, without trademark signs; '' if there is none.

    Virtual machines cut the name down to the maker's; family and model tell generations apart.
    """
    found = dict(
        re.findall(r"^(model name|cpu family|model)\s*:\s*(.*?)\s*$", cpuinfo, re.MULTILINE)
    )
    name, family, model = (found.get(key, "") for key in ("model name", "cpu family", "model"))
    name = re.sub(r"\((R|TM)\)", "", name, flags=re.IGNORECASE)
    return f"{name} {family}.{model}" if family and model else name


def is_virtual(cpuinfo: str) -> bool:
    """Whether the processor says that it runs under a hypervisor."""
    return re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None


def unpinned(environ: Mapping[str, str]) -> list[str]:
    """Names in `PINNED` whose value in `environ` differs."""
    return [name for name, value in PINNED.items() if environ.get(name) != value]


def restart_pinned(config: pytest.Config) -> None:
    """Replaces this pytest process by one with `PINNED` in its environment.

    Raises:
        InputError: pytest runs inside another program, which must not be started twice.
    """
    names = unpinned(os.environ)
    if not names:
        return
    script = Path(sys.argv[0])
    inside_pytest = "pytest" in script.name or script.parent.name == "pytest"
    if not inside_pytest or os.environ.get(RESTARTED):
        settings = " ".join(f"{name}={PINNED[name]}" for name in names)
        raise InputError(f"timing needs a pinned process; start it with {settings}")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    sys.stdout.write(f"\nclaims: restarting with {', '.join(names)} pinned\n")
    sys.stdout.flush()
    environ = {**os.environ, **PINNED, RESTARTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def disturbances(config: pytest.Config) -> list[str]:
    """Reasons why times or verdicts of this session would be wrong; empty if there are none."""
    found = []
    if os.environ.get("PYTEST_XDIST_WORKER") or config.getoption("numprocesses", None):
        found.append("xdist runs tests in parallel: drop -n")
    if config.getoption("reruns", None):
        found.append("reruns turn a failure into a pass: drop --reruns")
    if _traced():
        found.append("coverage, a debugger or a profiler is tracing: run without it")
    if config.getoption("record", None) and (problem := Power.now().problem):
        found.append(problem)
    return found


def fresh_row(config: pytest.Config, nodeid: str) -> dict[str, Any]:
    """Measures one claim in a new process and returns the `extra_info` of its row.

    Raises:
        InputError: that process measured nothing.
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
            raise InputError(f"a fresh process could not confirm:\n{done.stdout}{done.stderr}")
        row: dict[str, Any] = json.loads(path.read_text())
        return row


def _fresh_arguments(config: pytest.Config, nodeid: str, path: Path) -> list[str]:
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


def said(*command: str) -> str:
    """Output of a system tool; '' where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
