"""Stored runs: plain pytest-benchmark JSON in `baselines/<hardware>/NNNN_<commit>.json`.

A run is written whole or not at all, and only by a recording. It holds every row of its machine:
those that the recording measured and could store, and the others as the run before had them, each
with the commit that it measures. Reading is strict, because a run that is passed over silently is a
gate that stands open.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression.timing import Verdict, median

Row = Mapping[str, Any]
"""`extra_info` of one stored benchmark: `log_ratio`, its interval, accuracy and what was timed."""

NUMBERED = re.compile(r"(\d{4})_.+\.json")
FIGURES = {"log_ratio", "log_ratio_low", "log_ratio_high", "margin", "speedup", "subject_seconds"}
WORDS = {"commit", "recorded", "verdict"}
REQUIRED = FIGURES | WORDS | {"versions", "accuracy"}


def stored_study(path: Path) -> dict[str, Any]:
    """What a study has stored in a JSON file; empty where it was not made."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Run:
    """One recording: its rows by test id, each with the commit, date and versions it measured."""

    path: Path
    hardware: str
    commit: str
    rows: Mapping[str, Row]
    threads: int


def run_files(folder: Path) -> list[Path]:
    """The numbered runs of one machine, oldest first."""
    return sorted(p for p in folder.glob("*.json") if NUMBERED.fullmatch(p.name))


def load(path: Path) -> Run:
    """Reads one run.

    Raises:
        InputError: the file is no pytest-benchmark JSON of this suite, or lies in the folder of
            another machine.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        machine, benchmarks = data["machine_info"], data["benchmarks"]
        rows = {row["fullname"]: row["extra_info"] for row in benchmarks}
        run = Run(
            path,
            machine["hardware"],
            data["commit_info"]["id"],
            rows,
            machine["threads"],
        )
        broken = next(filter(None, map(_flaw, rows, rows.values())), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a run of this suite ({error!r}); restore it from version control or "
            f"record anew with `tox -e record`"
        ) from error
    if broken is not None:
        raise InputError(f"{path}: {broken}; record anew with `tox -e record`")
    if len(rows) != len(benchmarks):
        raise InputError(f"{path} holds a row twice; record anew with `tox -e record`")
    if path.parent.name != run.hardware:
        raise InputError(
            f"{path} was recorded on {run.hardware}, not on {path.parent.name}; ratios hold for "
            f"one class of machines: move it back or record here with `tox -e record`"
        )
    return run


def history(folder: Path) -> list[Run]:
    """Every run of one machine, oldest first."""
    return [load(path) for path in run_files(folder)]


def machines(root: Path) -> list[Path]:
    """Folders below `root` that hold at least one run."""
    return sorted(folder for folder in root.glob("*/") if run_files(folder))


def latest_runs(root: Path) -> list[Run]:
    """The newest run of each machine below `root`."""
    return [load(run_files(folder)[-1]) for folder in machines(root)]


def portable_rows(runs: Iterable[Run]) -> dict[str, float]:
    """Log-ratio of each row, the median over the latest runs of every machine."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, row in run.rows.items():
            found.setdefault(name, []).append(row["log_ratio"])
    return {name: median(ratios) for name, ratios in found.items()}


def common_rows(runs: Iterable[Run]) -> set[str]:
    """Rows that every one of some runs has; none of no runs."""
    names = [set(run.rows) for run in runs]
    return set.intersection(*names) if names else set()


def stated_recoveries(runs: Iterable[Run]) -> dict[str, float]:
    """Recovery in per cent of each row that states one, on the machine that recorded it last."""
    rows = [item for run in runs for item in run.rows.items()]
    rows.sort(key=lambda item: str(item[1]["recorded"]))
    figures = {name: row.get("accuracy", {}).get("figures", {}) for name, row in rows}
    return {name: found["recovery"] for name, found in figures.items() if "recovery" in found}


def refusals(rows: Mapping[str, Row]) -> list[str]:
    """Why some of these rows must not become a baseline; empty if all may."""
    reasons = []
    for name, row in rows.items():
        width = math.expm1(row["log_ratio_high"] - row["log_ratio_low"])
        if width > row["margin"]:
            reasons.append(
                f"{name}: interval of {width:.1%} is wider than the margin of "
                f"{row['margin']:.0%}: this machine is too noisy just now"
            )
        if not row["accuracy"]["passed"]:
            reasons.append(f"{name}: accuracy failed, {row['accuracy']['text']}")
        if row["verdict"] == Verdict.UNDECIDED:  # a change that a fresh process saw otherwise
            first, second = (
                math.expm1(row[key] - row["expected"]) for key in ("log_ratio", "second_log_ratio")
            )
            reasons.append(
                f"{name}: time changed by {first:+.1%} against the run before, but a fresh process "
                f"says {second:+.1%} ({row['second_verdict']}): the old row stays"
            )
    return reasons


def write(folder: Path, data: Mapping[str, Any], dropped: Iterable[str] = ()) -> Path:
    """Adds a run to a machine's folder, whole or not at all; returns its path.

    Args:
        folder: `baselines/<hardware>`.
        data: pytest-benchmark JSON of the rows that were measured.
        dropped: rows of the run before that end with it: no test bears their id any more.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    files = run_files(folder)
    data = _with_earlier_rows(data, files[-1], set(dropped)) if files else _signed(data)
    number = int(files[-1].name[:4]) + 1 if files else 1
    path = folder / f"{number:04}_{data['commit_info']['id'][:8]}.json"
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(path, text)
    return path


def uncommitted(root: Path) -> list[str]:
    """Paths that git reports as changed or untracked below `root`.

    Raises:
        InputError: `root` is under no version control, so no commit describes it.
    """
    command = ["git", "-C", str(root), "status", "--porcelain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{root} is not a git working tree ({done.stderr.strip()}); a baseline must name the "
            f"commit that it measures: record from a clone"
        )
    return [line[3:] for line in done.stdout.splitlines()]


def commit_info(root: Path) -> dict[str, object]:
    """Commit below `root` in pytest-benchmark's words; `unversioned` where there is none."""
    command = ["git", "-C", str(root), "log", "-1", "--format=%H %cI"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"id": "unversioned", "time": None, "dirty": True}
    commit, when = done.stdout.split()
    return {"id": commit, "time": when, "dirty": bool(uncommitted(root))}


def _signed(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with commit, date and versions beside each row's figures."""
    measured = {
        "commit": data["commit_info"]["id"],
        "recorded": data["datetime"],
        "versions": data["versions"],
    }
    rows = [row | {"extra_info": row["extra_info"] | measured} for row in data["benchmarks"]]
    return {**data, "benchmarks": rows}


def _with_earlier_rows(
    data: Mapping[str, Any], before: Path, dropped: Collection[str]
) -> dict[str, Any]:
    """`data`, signed, behind the rows of an earlier run that it neither renews nor drops."""
    signed = _signed(data)
    left_out = {row["fullname"] for row in data["benchmarks"]} | set(dropped)
    earlier = json.loads(before.read_text(encoding="utf-8"))["benchmarks"]
    kept = [row for row in earlier if row["fullname"] not in left_out]
    return {**signed, "benchmarks": kept + signed["benchmarks"]}


def _flaw(name: str, row: Row) -> str | None:
    """What a stored row lacks or cannot mean; None where nothing is wrong."""
    if missing := REQUIRED - row.keys():
        return f"row {name} lacks {', '.join(sorted(missing))}"
    if not all(math.isfinite(row[key]) for key in FIGURES):
        return f"row {name} holds a number that is not finite"
    if not all(isinstance(row[key], str) for key in WORDS):
        return f"row {name} holds something else than words in {', '.join(sorted(WORDS))}"
    if not {"passed", "text"} <= row["accuracy"].keys():
        return f"row {name} does not say whether its accuracy passed"
    return None
