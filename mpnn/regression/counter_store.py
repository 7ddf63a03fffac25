"""Stored work counters by instruction set and claim, and the verdict on what is counted now.

`baselines/counters.json` holds, for each instruction set, the versions of the libraries, whether
the set was forced on a processor that has a wider one, and the counters of each claim. It is
written by `tox -e counters -- -m "" --record-counters`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression.baselines import retired
from mpnn.regression.counted_engines import Counters

FILE = "counters.json"
RECORD = "if that is intended, record it with `tox -e counters -- -k {} --record-counters`"

PACKAGES = ("torch", "numpy", "mlx", "onnxruntime")
"""Libraries whose versions may change a counter."""

PORTABLE = ("multiply_adds", "matmuls", "steps")
"""Counters that depend on the job and the engine's algorithm, and on no instruction set."""

MARGINS = {"peak_bytes": 0.05, "host_peak_bytes": 0.05, "lines": 0.10}
"""Counters that may differ by a share; all others are exact. Lines move with every edit."""

SLACK = {"host_peak_bytes": 65_536, "lines": 100}
"""Differences that are always allowed. Of host memory, up to 25 KB are the interpreter's own, for
code that it traces for the first time: they depend on which claims were counted before."""

THREADS_MARGIN = 0.10

OF_PYTHON = ("host_peak_bytes", "lines", "modules")
"""Counters that depend on the version of Python."""

PORTABLE_MARGIN = 0.02
"""With other libraries, or stored on another instruction set, a portable counter may be larger by
this: a near-tie that falls the other way gives other sequences. Beyond it is a regression all the
same."""


@dataclass(frozen=True)
class Verdict:
    """What a claim's counters say.

    Attributes:
        failures: why the claim fails; it passes where there are none.
        notes: differences that other versions of the libraries excuse.
        skipped: why nothing but the portable counters could be compared; "" where all were.
    """

    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""


def instruction_set() -> str:
    """The instructions that torch uses here: x86-64-v4, x86-64-v3, or the machine's own name."""
    names = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
    return names.get(torch.backends.cpu.get_cpu_capability(), platform.machine())


def forced() -> bool:
    """Whether the environment narrows the instructions that the libraries use.

    Matmuls in reduced precision ask the processor, not the environment: what is counted of them so
    is not what a machine of the narrower set would do.
    """
    return any(name in os.environ for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"))


def software() -> dict[str, str]:
    """Versions that a counter may depend on; libraries that are not installed are left out."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def stored_counters(root: Path) -> dict[str, Any]:
    """What is stored below a folder of baselines, by instruction set.

    Raises:
        InputError: the file is unreadable or of another form.
    """
    path = root / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for entry in stored.values():
            if [type(entry[key]) for key in ("versions", "forced", "claims")] != [dict, bool, dict]:
                raise TypeError("versions and claims must be objects, and forced true or false")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} does not hold work counters ({error!r}); restore it from version control"
        ) from error
    return dict(stored)


def record(
    root: Path, instructions: str, claims: Mapping[str, Counters], all_ids: set[str]
) -> None:
    """Stores counters of this machine's instruction set; those of other claims stay.

    Args:
        root: folder of baselines.
        instructions: instruction set.
        claims: counters by claim.
        all_ids: of the claims that exist; stored counters of others are dropped.

    Raises:
        InputError: other claims were counted with other versions of the libraries.
    """
    stored, versions = stored_counters(root), software()
    old = stored.get(instructions, {"versions": versions, "claims": {}})
    kept = {i: c for i, c in old["claims"].items() if i in all_ids and i not in claims}
    if kept and old["versions"] != versions:
        raise InputError(
            f"{', '.join(sorted(kept))}: counted with {_listed(old['versions'])}, here are "
            f'{_listed(versions)}; record all claims: tox -e counters -- -m "" --record-counters'
        )
    stored[instructions] = {
        "versions": versions,
        "forced": forced(),
        "claims": {i: dict(c) for i, c in sorted({**kept, **claims}.items())},
    }
    write_whole(root / FILE, json.dumps(stored, indent=1, sort_keys=True) + "\n")


def judge(
    claim: str,
    found: Counters,
    stored: Mapping[str, Any],
    instructions: str,
    versions: Mapping[str, str],
) -> Verdict:
    """Compares a claim's counters with the stored ones.

    Args:
        claim: its id.
        found: its counters here.
        stored: what `stored_counters` returns.
        instructions: instruction set of this machine.
        versions: of its libraries.
    """
    if instructions not in stored:
        return _judge_elsewhere(claim, found, stored, instructions)
    expected = stored[instructions]["claims"].get(claim)
    if expected is None and stored[instructions]["forced"]:
        return _judge_elsewhere(claim, found, stored, instructions)
    if expected is None:
        return Verdict([f"{claim}: no counters are stored for {instructions}; {_way_out(claim)}"])
    failures, notes = [], []
    for name in sorted(expected.keys() | found.keys()):
        if name == "threads" and name not in found:
            continue  # Linux alone counts them
        old, new = expected.get(name, 0), found.get(name, 0)
        others = _other_versions(name, stored[instructions]["versions"], versions)
        if _same(name, old, new):
            continue
        text = f"{claim}: {name} {_shown(new)}, stored {_shown(old)}{_change(old, new)}"
        if others and not (name in PORTABLE and new > old * (1 + PORTABLE_MARGIN)):
            notes.append(f"{text}: counted with {others}")
        else:
            failures.append(f"{text}; {_way_out(claim)}")
    return Verdict(failures, notes)


def without_claim(stored: Mapping[str, Any], ids: Iterable[str], root: Path) -> list[str]:
    """Claims with stored counters that neither exist nor are retired."""
    gone = {row.test.partition("[")[2].rstrip("]") for row in retired(root)}
    there = {claim for entry in stored.values() for claim in entry["claims"]}
    return sorted(there - set(ids) - gone)


def _judge_elsewhere(
    claim: str, found: Counters, stored: Mapping[str, Any], instructions: str
) -> Verdict:
    """Gates the portable counters against those of any instruction set."""
    skipped = f"no counters of {claim} are stored for {instructions}"
    for other, entry in stored.items():
        expected = entry["claims"].get(claim, {})
        failures = [
            f"{claim}: {name} {_shown(found.get(name, 0))}, stored {_shown(expected[name])} for "
            f"{other}{_change(expected[name], found.get(name, 0))}; this counter is the same on "
            f"every instruction set; {_way_out(claim)}"
            for name in PORTABLE
            if name in expected and found.get(name, 0) > expected[name] * (1 + PORTABLE_MARGIN)
        ]
        if expected:
            return Verdict(failures, skipped=skipped)
    return Verdict(skipped=skipped)


def _same(name: str, old: float, new: float) -> bool:
    if name == "threads":
        return new <= old * (1 + THREADS_MARGIN)
    return abs(new - old) <= max(MARGINS.get(name, 0) * old, SLACK.get(name, 0))


def _other_versions(name: str, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The libraries whose versions differ; the version of Python moves its own objects alone."""
    packages = [p for p in sorted(then.keys() | now.keys()) if p != "python" or name in OF_PYTHON]
    return ", ".join(
        f"{package} {then.get(package, 'missing')}, here {now.get(package, 'missing')}"
        for package in packages
        if then.get(package) != now.get(package)
    )


def _way_out(claim: str) -> str:
    return RECORD.format(f"'{claim}'")


def _change(old: float, new: float) -> str:
    return f" ({new / old:.3g}×)" if old else ""


def _shown(value: float) -> str:
    return f"{value:,}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
