"""Which machine is this: what decides a ratio, and nothing that changes from day to day."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

THREADS = 1
"""Threads that every timing uses. Ratios are those of one core: with two, the barrier after every
operation makes the time a matter of what else runs, and the reference suffers most by it."""


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
            chip or _sysctl("machdep.cpu.brand_string"),
            _sysctl("kern.hv_vmm_present") == "1",
            "macos",
            _sysctl("kern.osproductversion").split(".")[0],  # mac_ver() may say 16 for 26
        )
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return Hardware(
        chip or chip_of(text) or platform.machine(),
        is_virtual(text),
        system.lower(),
        platform.release().split(".")[0],
    )


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


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
