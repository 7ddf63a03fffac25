"""Counters of the machine: macOS by a stand-in for its C library, Linux by files."""

import ctypes
import os
from pathlib import Path

import pytest

from mpnn.regression import usage
from mpnn.regression.usage import (
    Energy,
    Usage,
    cores_used,
    linux_busy,
    macos_busy,
    macos_usage,
    meter,
    other_work,
)

OFFSETS = {"user_time": 16, "system_time": 24, "instructions": 248, "cycles": 256,
           "user_ptime": 304, "system_ptime": 312, "energy_nj": 336}  # fmt: skip
"""Bytes in the kernel's `struct rusage_info_v6`, as its header lays it out."""


class FakeLibc:
    """`proc_pid_rusage` and `mach_timebase_info`, with a clock of 24 MHz as on an M3."""

    def __init__(self, refused: bool = False, **values: int) -> None:
        self.refused, self.values = refused, values

    def proc_pid_rusage(self, pid: int, flavor: int, buffer: object) -> int:
        """Fills the buffer."""
        assert pid > 0
        assert flavor == 6
        for name, value in self.values.items():
            target = ctypes.cast(buffer, ctypes.c_void_p).value + OFFSETS[name]
            ctypes.c_uint64.from_address(target).value = value
        return -1 if self.refused else 0

    def mach_timebase_info(self, buffer: object) -> int:
        """125/3 nanoseconds a tick."""
        where = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint32))
        where[0], where[1] = 125, 3
        return 0


def test_macos_reads_the_kernels_structure() -> None:
    """Times in ticks become seconds, nanojoules joules, and the share is of performance cores."""
    libc = FakeLibc(user_time=24_000_000, system_time=24_000_000, user_ptime=36_000_000,
                    system_ptime=0, instructions=7, cycles=5, energy_nj=3_000_000_000)  # fmt: skip
    found = macos_usage(libc)
    assert (found.instructions, found.cycles, found.joules) == (7, 5, 3)
    assert found.seconds == pytest.approx(2)
    assert found.performance_share == pytest.approx(0.75)


def test_the_structure_is_as_long_as_the_kernels() -> None:
    """The kernel writes 464 bytes for version 6; a shorter buffer would be overrun."""
    assert ctypes.sizeof(usage._RusageInfo) == 464


def test_a_refusal_gives_no_figures() -> None:
    """A system call that fails leaves every figure unknown."""
    assert macos_usage(FakeLibc(refused=True)) == Usage()
    assert Usage().performance_share is None


def test_the_cost_of_a_run_is_a_difference() -> None:
    """Unknown figures stay unknown."""
    cost = Usage(10, 8, None, 2.0, 1.0) - Usage(4, 1, 3.0, 1.0, 0.5)
    assert cost == Usage(6, 7, None, 1.0, 0.5)
    assert cost + cost == Usage(12, 14, None, 2.0, 1.0)


def test_the_cost_of_one_of_some() -> None:
    """Counters are shared by what was finished; the share of performance cores is not."""
    cost = Usage(10, 8, None, 2.0, 1.5).per(4)
    assert cost == {"instructions": 2.5, "cycles": 2, "performance_share": 0.75}
    assert Usage().per(1) == {}


def rapl(root: Path, domain: str, microjoules: int) -> None:
    folder = root / domain
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_energy_is_the_sum_of_the_packages(tmp_path: Path) -> None:
    """Parts of a package (`intel-rapl:0:0`) count once, and a counter that starts again goes on."""
    for domain in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        rapl(tmp_path, domain, 9_000_000)
    energy = Energy(tmp_path)
    before = energy.joules()
    rapl(tmp_path, "intel-rapl:0", 500_000)
    rapl(tmp_path, "intel-rapl:1", 9_250_000)
    assert energy.joules() - before == pytest.approx(1.5 + 0.25)


def test_without_rapl_energy_is_unknown(tmp_path: Path) -> None:
    """A machine that hides its energy gives None, not zero."""
    assert Energy(tmp_path).joules() is None


def test_this_machine_is_read_without_error() -> None:
    """Whatever this machine gives only grows."""
    read = meter()
    before = read()
    sum(range(100_000))
    for value in vars(read() - before).values():
        assert value is None or value >= 0


def test_linux_counts_what_the_machine_has_used() -> None:
    """User, nice, system and interrupts; neither idle time nor what other machines were given."""
    tick = os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {3 * tick} {tick} {2 * tick} 999 999 {tick} {tick} 999 999 999\ncpu0 1 1\n"
    assert linux_busy(stat) == 8


class FakeHost:
    """`host_statistics` of a Mac."""

    def host_statistics(self, host: int, flavor: int, ticks: object, _: object) -> int:
        """User, system, idle and nice ticks."""
        assert (host, flavor) == (7, 3)
        where = ctypes.cast(ticks, ctypes.POINTER(ctypes.c_uint32))
        where[0], where[1], where[2], where[3] = 500, 200, 9999, 100
        return 0


def test_macos_counts_what_the_machine_has_used() -> None:
    """User, system and nice ticks of all cores become seconds."""
    assert macos_busy(FakeHost(), 7) == 800 / os.sysconf("SC_CLK_TCK")


def test_ticks_are_no_load() -> None:
    """A tick or two of a short timing is no busy core; a busy core is one."""
    assert cores_used(0.04, 0.1) == 0
    assert cores_used(-0.01, 1.0) == 0
    assert cores_used(10.0, 10.0) == 1


def test_other_work_is_the_machines_less_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process and its children used is no other work; without /proc nobody tells."""
    monkeypatch.setattr(usage.sys, "platform", "linux")
    monkeypatch.setattr(usage, "STAT", tmp_path / "stat")
    assert other_work() is None
    (tmp_path / "stat").write_text(f"cpu  {9 * os.sysconf('SC_CLK_TCK')} 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(usage, "own_seconds", lambda: 2.5)
    assert other_work().seconds() == 6.5
