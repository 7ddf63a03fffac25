"""No compute unit is used before its predictions were held against the reference.

Core ML compiles a package for each unit in its own way, and is known to give wrong numbers, to
crash, or to hang where a unit takes an operation badly. So each is tried in a process of its own.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.optimizations.coreml.package import Weights

BANDS: dict[Weights, float] = {
    "float32": 1e-3,
    "float16": 0.1,
    "int8": 0.5,
    "palette6": 1.0,
    "palette4": 4.0,
}
"""Largest |Δ log p| in nats that a package may be from the reference.

Executed with every result rounded to its stored type, the packages of v_48_020 are off by 1e-4,
0.017, 0.32, 0.69 and 2.8 at most; the native sequence of 5L33 scores 0, 0, 0.0015, 0.0009 and 0.094
nats a residue worse, and another residue type is the likeliest at 0, 0, 1, 6 and 39 % of its
residues.
"""

PATIENCE = 1800.0  # seconds for compiling and running all functions on one unit


def require_parity(package: Path, unit: str, weights: Weights) -> dict[str, float]:
    """Largest |Δ log p| of each bucket on a unit; measured once for each version of macOS.

    Raises:
        InputError: the process failed or took too long, or a bucket is out of its band.
    """
    kept = package.with_name(f"parity.{unit}.macos-{platform.mac_ver()[0]}.json")
    if not kept.is_file():
        write_whole(kept, json.dumps(measured(package, unit)))
    found: dict[str, float] = json.loads(kept.read_text())
    judge(found, unit, weights)
    return found


def measured(package: Path, unit: str) -> dict[str, float]:
    """What `parity` prints in a process of its own.

    Raises:
        InputError: it failed or took too long.
    """
    command = [sys.executable, "-m", "mpnn.optimizations.coreml.parity"]
    command += [str(package), unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"Core ML on {unit}: no answer in {PATIENCE:.0f} s; take another unit"
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"Core ML on {unit}: the trial ended with {done.returncode} ({last}); take another unit"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(found: dict[str, float], unit: str, weights: Weights) -> None:
    """Passes where every bucket is in its band; a NaN is not.

    Raises:
        InputError: a bucket is out of its band.
    """
    for bucket, difference in found.items():
        if not difference <= BANDS[weights]:
            raise InputError(
                f"Core ML on {unit}: log-probabilities in the bucket of {bucket} are "
                f"{difference:.2g} nats from the reference, and {weights} weights may be "
                f"{BANDS[weights]}; take another unit"
            )
