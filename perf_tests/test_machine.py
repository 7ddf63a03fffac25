"""The machine by name, and what a measuring process starts with."""

import os
import platform
import subprocess
import sys
from argparse import Namespace

import pytest

from mpnn.regression import machine
from mpnn.regression.machine import (
    PINNED,
    Hardware,
    chip_of,
    disturbances,
    is_virtual,
    said,
    this_machine,
    unpinned,
)

CPUINFO = "model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz\nflags\t\t: fpu hypervisor lahf_lm\n"

FAULTS = """
import resource
from concurrent.futures import ThreadPoolExecutor

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (100 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as thread:
    faults(), thread.submit(faults).result()
    print(faults(), thread.submit(faults).result())
"""
"""Prints the page faults of filling 100 MiB for the second time, here and in another thread."""


def test_hardware_id_names_chip_virtual_and_system():
    """The id says chip, virtual or not, and major version, in letters a folder can have."""
    assert Hardware("Apple M3 Pro", False, "macos", "15").id == "apple-m3-pro-macos15"
    assert Hardware("Apple M1", True, "macos", "15").id == "apple-m1-vm-macos15"


def test_cpuinfo_is_read():
    """Chip and hypervisor come from /proc/cpuinfo, trademark signs left out."""
    assert chip_of(CPUINFO) == "Intel Xeon Processor @ 2.50GHz"
    assert is_virtual(CPUINFO)
    assert not is_virtual("flags\t\t: fpu lahf_lm\nbugs : hypervisor\n")


def test_machine_info_is_stable():
    """Two calls describe the machine in the same words, without host name or clock rate."""
    info = this_machine().machine_info()
    assert info == this_machine().machine_info()
    assert {"node", "release", "hz_actual"}.isdisjoint(info)


def test_a_hidden_chip_can_be_named(monkeypatch):
    """A chip that hides its name takes the one it is given."""
    monkeypatch.setenv("MPNN_HARDWARE_CHIP", "Runner 7")
    assert this_machine().id.startswith("runner-7-")


def test_unpinned_names_what_differs():
    """Only variables with another value, or none, are named."""
    assert unpinned(PINNED) == []
    assert unpinned({**PINNED, "PYTHONHASHSEED": "random"}) == ["PYTHONHASHSEED"]
    assert unpinned({}) == list(PINNED)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc reads what is pinned")
def test_large_blocks_are_not_mapped_anew():
    """Memory that was used before costs no page faults when it is used again, in any thread.

    Without the pins there are 25,600, or with huge pages 50.
    """

    def faults(environ):
        command = [sys.executable, "-c", FAULTS]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    bare = {name: value for name, value in os.environ.items() if name not in PINNED}
    assert max(faults({**bare, **PINNED})) < 20
    mapped = {**bare, "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}
    assert min(faults(mapped)) > 20


MAC = {
    ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M3 Pro",
    ("sysctl", "-n", "hw.perflevel0.physicalcpu"): "6",
    ("sysctl", "-n", "kern.osproductversion"): "15.5",
    ("ioreg", "-rc", "AGXAccelerator", "-d1"): '    "gpu-core-count" = 18',
    ("pmset", "-g", "batt"): "Now drawing from 'AC Power'",
}


@pytest.fixture
def mac(monkeypatch):
    """Answers of a Mac's system tools, which a test may change."""
    answers = dict(MAC)
    monkeypatch.setattr(machine, "said", lambda *command: answers.get(command, ""))
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    return answers


def test_a_mac_is_named_by_its_cores_too(mac):
    """One name of chip is sold with several numbers of cores, whose ratios differ."""
    assert this_machine().id == "apple-m3-pro-6p-18g-macos15"
    mac["ioreg", "-rc", "AGXAccelerator", "-d1"] = '    "gpu-core-count" = 14'
    assert this_machine().id == "apple-m3-pro-6p-14g-macos15"


def test_a_virtual_mac_may_hide_its_cores(mac):
    """Without counts the chip's name stands alone."""
    del mac["ioreg", "-rc", "AGXAccelerator", "-d1"]
    del mac["sysctl", "-n", "hw.perflevel0.physicalcpu"]
    mac["sysctl", "-n", "kern.hv_vmm_present"] = "1"
    assert this_machine().id == "apple-m3-pro-vm-macos15"


@pytest.mark.parametrize(
    ("batt", "settings", "problem"),
    [
        ("Now drawing from 'AC Power'", " lowpowermode         0", ""),
        ("Now drawing from 'AC Power'", " lowpowermode         1", "low-power mode"),
        ("Now drawing from 'Battery Power'", " lowpowermode         0", "battery"),
        ("", "", ""),
    ],
)
def test_a_recording_is_refused_on_battery(mac, batt, settings, problem):
    """On battery or in low-power mode nothing is recorded; a gate goes on: its control tells."""
    mac["pmset", "-g", "batt"], mac["pmset", "-g"] = batt, settings
    for record in (True, False):
        config = Namespace(getoption=lambda name, _, record=record: name == "record" and record)
        found = [reason for reason in disturbances(config) if "tracing" not in reason]
        assert len(found) == bool(problem and record)
        assert not found or problem in found[0]


def test_a_missing_tool_says_nothing():
    """A system without Apple's tools has no power state, and so no reason to refuse."""
    assert said("no-such-tool-of-any-system") == ""
    assert said("false") == ""
