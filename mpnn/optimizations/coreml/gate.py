"""No compute unit is used before its predictions were held against the reference.

Core ML compiles a package for each unit in its own way, and is known to give wrong numbers, to
crash, or to hang where a unit takes an operation badly. So each is compiled, planned and tried in a
process of its own, and nothing of Core ML's compiler runs here before that trial has passed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.optimizations.coreml.package import Package, Weights

if TYPE_CHECKING:  # the program imports the engine, which imports this
    from mpnn.optimizations.coreml.trial import Figures

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


NEEDED_SHARE, RESIDENCY = 0.5, 0.8
"""A figure of the Neural Engine needs more than this share of the planned work on it, and less than
this part of the CPU's time, since a plan is no proof of where the work is done."""


def require_parity(package: Path, unit: str, weights: Weights) -> dict[str, Figures]:
    """Figures of each bucket on a unit; measured once for each version of macOS, as is a failure.

    Raises:
        InputError: the process failed or took too long, or a bucket is out of its band.
    """
    kept = package.with_name(f"trial.{unit}.macos-{platform.mac_ver()[0]}.json")
    if not kept.is_file():
        try:
            outcome: dict[str, Any] = {"figures": measured(package, unit)}
        except InputError as error:
            outcome = {"failed": f"{error} (delete {kept} to try again)"}
        write_whole(kept, json.dumps(outcome))
    outcome = json.loads(kept.read_text())
    if "failed" in outcome:
        raise InputError(outcome["failed"])
    found: dict[str, Figures] = outcome["figures"]
    judge(found, unit, weights)
    return found


def fastest(packages: Iterable[Package], unit: str, weights: Weights) -> Package:
    """The package that passes its trial on a unit and takes least time for all its buckets.

    Raises:
        InputError: none passes.
    """
    passed, failed = [], []
    for package in packages:
        try:
            found = require_parity(package.path, unit, weights)
            passed.append((sum(figures["seconds"] for figures in found.values()), package))
        except InputError as error:
            failed.append(f"{package.layout.name} layout: {error}")
    if not passed:
        raise InputError("; ".join(failed))
    return min(passed, key=lambda pair: pair[0])[1]


def measured(package: Path, unit: str) -> dict[str, Figures]:
    """What `trial` prints in a process of its own.

    Raises:
        InputError: it failed or took too long.
    """
    command = [sys.executable, "-m", "mpnn.optimizations.coreml.trial"]
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
    found: dict[str, Figures] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(found: Mapping[str, Figures], unit: str, weights: Weights) -> None:
    """Passes where every bucket is in its band; a NaN is not.

    Raises:
        InputError: a bucket is out of its band.
    """
    for bucket, figures in found.items():
        if not figures["difference"] <= BANDS[weights]:
            raise InputError(
                f"Core ML on {unit}: log-probabilities in the bucket of {bucket} are "
                f"{figures['difference']:.2g} nats from the reference, and {weights} weights may "
                f"be {BANDS[weights]}; take another unit"
            )


def judge_residency(bucket: int, figures: Figures, cpu: Figures) -> None:
    """Passes where a bucket's score runs on the Neural Engine.

    Args:
        bucket: its length.
        figures: with the Neural Engine allowed.
        cpu: on the CPU alone.

    Raises:
        InputError: the plan puts half of it elsewhere, or it takes nearly as long as the CPU.
    """
    if not figures["share"] > NEEDED_SHARE:
        raise InputError(
            f"Core ML plans to run {figures['share']:.0%} of score_{bucket} on the Neural Engine, "
            f"and more than {NEEDED_SHARE:.0%} is needed; its time would be that of something else"
        )
    if not figures["seconds"] < RESIDENCY * cpu["seconds"]:
        raise InputError(
            f"score_{bucket} takes {figures['seconds']:.2g} s with the Neural Engine and "
            f"{cpu['seconds']:.2g} s on the CPU alone; less than {RESIDENCY} of it is needed to "
            "tell that the Neural Engine is used, whatever Core ML plans"
        )
