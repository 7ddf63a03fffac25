"""What a timed run costs the machine: instructions, cycles, energy, and which cores ran it.

Seconds depend on what else the machine does; instructions do not, and energy is what a laptop's
owner pays. macOS gives all of it for the own process without privileges (`proc_pid_rusage`). Linux
gives instructions and cycles where `perf_event_open` is allowed, and the energy of the whole
processor where RAPL is readable; virtual machines mostly hide both. A figure that the machine does
not give is None.

Other processes are seen too: what they leave of caches and memory bandwidth slows engines and gate
references unequally, so that no ratio measured beside them is judged.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

RAPL = Path("/sys/class/powercap")

LOADED = 0.15
"""Cores that other processes may use beside a timing."""

TICKS = 0.05
"""Seconds that are no load: kernels count a machine's time in ticks of 10 ms on each core."""


@dataclass(frozen=True)
class Usage:
    """Counters since the process began, or their difference over a timed run.

    Attributes:
        instructions: retired, in user space and kernel on macOS, in user space on Linux.
        cycles: of the cores that ran the process.
        joules: of the process on macOS, of the whole processor on Linux.
        seconds: CPU time.
        performance_seconds: the part of it on performance cores; None where all cores are alike.
    """

    instructions: float | None = None
    cycles: float | None = None
    joules: float | None = None
    seconds: float | None = None
    performance_seconds: float | None = None

    def __sub__(self, before: Usage) -> Usage:
        return self._with(before, -1)

    def __add__(self, other: Usage) -> Usage:
        return self._with(other, 1)

    def _with(self, other: Usage, sign: int) -> Usage:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Usage(*(None if a is None or b is None else a + sign * b for a, b in pairs))

    def per(self, units: int) -> dict[str, float]:
        """What one of `units` costs, of the counters that the machine gives, and the share below.

        Args:
            units: proteins or sequences that were finished meanwhile.
        """
        named = (("instructions", self.instructions), ("cycles", self.cycles),
                 ("joules", self.joules))  # fmt: skip
        found = {name: value / units for name, value in named if value is not None}
        share = self.performance_share
        return found if share is None else {**found, "performance_share": share}

    @property
    def performance_share(self) -> float | None:
        """Share of the CPU time that performance cores took, 0 to 1."""
        if self.performance_seconds is None or not self.seconds:
            return None
        return self.performance_seconds / self.seconds


@cache
def meter() -> Callable[[], Usage]:
    """Returns the function that reads this process's counters, of those that this machine gives."""
    if sys.platform == "darwin":
        libc = ctypes.CDLL(None)
        return lambda: macos_usage(libc)
    perf, rapl = LinuxCounters(), Energy(RAPL)
    return lambda: Usage(perf.instructions(), perf.cycles(), rapl.joules())


@dataclass(frozen=True)
class OtherWork:
    """What other processes do beside this one.

    Attributes:
        seconds: CPU seconds that they have used since some moment in the past.
        wait: lets some seconds pass, in the hope that they end.
    """

    seconds: Callable[[], float]
    wait: Callable[[float], None] = time.sleep


def other_work() -> OtherWork | None:
    """Other processes of this machine, or container; None where the machine does not tell.

    What this process and its finished children used is taken off what the machine has used.
    """
    if sys.platform == "darwin":
        libc = ctypes.CDLL(None)
        host = libc.mach_host_self()
        return OtherWork(lambda: macos_busy(libc, host) - own_seconds())
    if STAT.is_file():
        return OtherWork(lambda: linux_busy(STAT.read_text()) - own_seconds())
    return None


def cores_used(seconds: float, wall: float) -> float:
    """Cores that were busy for these CPU seconds of a wall time; 0 within `TICKS`."""
    return seconds / wall if seconds > TICKS else 0.0


def own_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


# --- macOS ----------------------------------------------------------------------------------

RUSAGE_INFO_V6 = 6  # sys/resource.h of macOS 13 and later
_COUNTERS = {  # place among the structure's 64-bit counters
    "user_time": 0,
    "system_time": 1,
    "instructions": 29,
    "cycles": 30,
    "user_ptime": 36,
    "system_ptime": 37,
    "energy_nj": 40,
}


HOST_CPU_LOAD_INFO = 3  # mach/host_info.h: ticks of all cores, user, system, idle, nice
HOST_CPU_LOAD_INFO_COUNT = 4


class _RusageInfo(ctypes.Structure):
    """`struct rusage_info_v6`: a UUID and 56 counters, of which the last are reserved."""

    _fields_ = (("uuid", ctypes.c_uint8 * 16), ("counters", ctypes.c_uint64 * 56))


class _Timebase(ctypes.Structure):
    """`struct mach_timebase_info`: nanoseconds per tick of the clock that times are counted in."""

    _fields_ = (("numer", ctypes.c_uint32), ("denom", ctypes.c_uint32))


def macos_usage(libc: ctypes.CDLL) -> Usage:
    """The counters of this process from `proc_pid_rusage`; empty where it refuses.

    Args:
        libc: a library with `proc_pid_rusage` and `mach_timebase_info`.
    """
    info, base = _RusageInfo(), _Timebase()
    if libc.proc_pid_rusage(os.getpid(), RUSAGE_INFO_V6, ctypes.byref(info)):
        return Usage()
    libc.mach_timebase_info(ctypes.byref(base))
    tick = base.numer / base.denom / 1e9
    found = {name: float(info.counters[place]) for name, place in _COUNTERS.items()}
    return Usage(
        instructions=found["instructions"],
        cycles=found["cycles"],
        joules=found["energy_nj"] / 1e9,
        seconds=(found["user_time"] + found["system_time"]) * tick,
        performance_seconds=(found["user_ptime"] + found["system_ptime"]) * tick,
    )


def macos_busy(libc: ctypes.CDLL, host: int) -> float:
    """CPU seconds that the whole machine has used, from `host_statistics`.

    Args:
        libc: a library with `host_statistics`.
        host: port of the machine.
    """
    ticks = (ctypes.c_uint32 * HOST_CPU_LOAD_INFO_COUNT)()
    count = ctypes.c_uint32(HOST_CPU_LOAD_INFO_COUNT)
    libc.host_statistics(host, HOST_CPU_LOAD_INFO, ctypes.byref(ticks), ctypes.byref(count))
    user, system, _, nice = ticks
    return (user + system + nice) / os.sysconf("SC_CLK_TCK")


# --- Linux ----------------------------------------------------------------------------------

STAT = Path("/proc/stat")

PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_CYCLES, _INSTRUCTIONS = 0, 1  # PERF_COUNT_HW_*
_INHERIT, _NO_KERNEL, _NO_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6


def linux_busy(stat: str) -> float:
    """CPU seconds that the whole machine has used, from the text of /proc/stat.

    What a hypervisor gives to other machines (steal) is no work of this one.
    """
    user, nice, system, _, _, irq, softirq = map(int, stat.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class LinuxCounters:
    """Hardware counters of this process and of the threads that it starts later."""

    def __init__(self) -> None:
        self._files = {config: self._opened(config) for config in (_INSTRUCTIONS, _CYCLES)}

    def instructions(self) -> float | None:
        """Instructions retired in user space; None where the kernel gives no counter."""
        return self._read(_INSTRUCTIONS)

    def cycles(self) -> float | None:
        """Cycles in user space; None where the kernel gives no counter."""
        return self._read(_CYCLES)

    @staticmethod
    def _opened(config: int) -> int:
        """A file to read the counter from; negative where it does not exist or is not allowed."""
        call = PERF_EVENT_OPEN.get(platform.machine())
        if call is None or sys.platform != "linux":
            return -1
        size = 128  # of `struct perf_event_attr`: type, size, config, …, flags at 40
        flags = _INHERIT | _NO_KERNEL | _NO_HYPERVISOR
        attributes = struct.pack("<IIQ24xQ80x", 0, size, config, flags)
        return int(ctypes.CDLL(None).syscall(call, attributes, 0, -1, -1, 0))

    def _read(self, config: int) -> float | None:
        file = self._files[config]
        return None if file < 0 else float(struct.unpack("<Q", os.read(file, 8))[0])


class Energy:
    """Energy of the whole processor, from RAPL's package domains.

    Args:
        root: `/sys/class/powercap`. Domains that cannot be read are left out.
    """

    def __init__(self, root: Path) -> None:
        self._domains = [d for d in sorted(root.glob("*-rapl:[0-9]")) if _number(d / "energy_uj")]
        self._range = [_number(d / "max_energy_range_uj") or 0 for d in self._domains]
        self._last = self._readings()
        self._wrapped = 0

    def joules(self) -> float | None:
        """Joules since some moment in the past; None where no domain can be read."""
        if not self._domains:
            return None
        now = self._readings()
        for size, before, after in zip(self._range, self._last, now, strict=True):
            self._wrapped += size if after < before else 0  # the counter began again
        self._last = now
        return (self._wrapped + sum(now)) / 1e6

    def _readings(self) -> list[int]:
        return [_number(domain / "energy_uj") or 0 for domain in self._domains]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
