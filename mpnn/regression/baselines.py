"""Stored runs: plain pytest-benchmark JSON in `baselines/<hardware>/NNNN_<commit>.json`.

A run is written whole or not at all, and only by a recording. It holds every row of its machine:
those that the recording measured and could store, and the others as the run before had them, each
with the commit that it measures. Reading is strict: a run that is skipped silently gates nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression.rows import Row

NUMBERED = re.compile(r"(\d{4})_.+\.json")
RETIRED = "retired.json"


def stored_study(path: Path) -> dict[str, Any]:
    """What a study has stored in a JSON file; empty where the study was never run.

    Raises:
        InputError: the file is not JSON.
    """
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error!r}); restore it from version control"
        ) from error
    return found


@dataclass(frozen=True)
class Retired:
    """A row or study that is no longer measured, with its last figures.

    Attributes:
        test: id of the test that bore it; "" if it was never a row.
        what: one line for people.
        why: why it is gone.
        figures: the last ones, by machine.
    """

    test: str
    what: str
    why: str
    figures: Mapping[str, str]


def retired(root: Path) -> list[Retired]:
    """Rows that a session may lack, and what they read last.

    Raises:
        InputError: the file below `root` is not a list of such records.
    """
    path = root / RETIRED
    try:
        return [Retired(**item) for item in stored_study(path).get("retired", [])]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a list of retired rows ({error!r}); restore it from version control"
        ) from error


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
        InputError: the file is not pytest-benchmark JSON of this suite, or lies in the folder of
            another machine.
    """
    try:
        data = _read(path)
        machine, benchmarks = data["machine_info"], data["benchmarks"]
        rows = {b["fullname"]: Row.read(b["fullname"], b["extra_info"]) for b in benchmarks}
        commit = data["commit_info"]["id"]
        run = Run(path, machine["hardware"], commit, rows, machine["threads"])
    except InputError as error:
        raise InputError(f"{path}: {error}; {_way_out(path)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a run of this suite ({error!r}); {_way_out(path)}"
        ) from error
    if len(rows) != len(benchmarks):
        raise InputError(f"{path} holds a row twice; record anew with `--record`")
    if path.parent.name != run.hardware:
        raise InputError(
            f"{path} was recorded on {run.hardware}, not on {path.parent.name}; ratios hold for "
            f"one class of machines: move it back or record here with `--record`"
        )
    return run


def _way_out(path: Path) -> str:
    """What to do about a file that cannot be read, which a newer version may have written."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    versions = re.findall(r'"mpnn": "([\d.]+)"', text)
    newest = max(versions, key=_numbers, default="0")
    here = next((d.version for d in distributions(name="mpnn")), newest)
    if _numbers(newest) > _numbers(here):
        return f"mpnn {newest} recorded it and this is {here}: install the newer version"
    return "restore it from version control or record anew with `--record`"


def _numbers(release: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", release)]


def _read(path: Path) -> dict[str, Any]:
    """A stored run, with the rows of `exact-…` under the form of the engine that they measured.

    Until the compiled form existed, engine "exact" was the torch form, which has rows of its own.
    """
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for row in data["benchmarks"]:
        about, jobs = row["extra_info"], "exact-"
        claim = about.get("claim", "")
        of_torch = claim.startswith(jobs) and not claim.startswith("exact-torch-")
        if about.get("engine") == "exact" and of_torch:
            about["engine"] = "exact-torch"
            about["claim"] = claim.replace(jobs, "exact-torch-", 1)
            row["fullname"] = row["fullname"].replace(f"[{jobs}", "[exact-torch-", 1)
    return data


def history(folder: Path) -> list[Run]:
    """Every run of one machine, oldest first."""
    return [load(path) for path in run_files(folder)]


def machines(root: Path) -> list[Path]:
    """Folders below `root` that hold at least one run."""
    return sorted(folder for folder in root.glob("*/") if run_files(folder))


def latest_runs(root: Path) -> list[Run]:
    """The newest run of each machine below `root`."""
    return [load(run_files(folder)[-1]) for folder in machines(root)]


def common_rows(runs: Iterable[Run]) -> set[str]:
    """Rows that two of some runs have, or the only one has; empty without runs.

    A machine that has recorded a few claims takes nothing from what the others have in common.
    """
    runs = list(runs)
    times = Counter(name for run in runs for name in run.rows)
    return {name for name, count in times.items() if count >= min(2, len(runs))}


def stated_recoveries(runs: Iterable[Run], hardware: str = "") -> dict[str, float]:
    """Recovery in per cent of each row that states one.

    This machine's row counts first, then that of the machine that recorded it last.
    """
    rows = [(run.hardware == hardware, *item) for run in runs for item in run.rows.items()]
    rows.sort(key=lambda item: (item[0], item[2].recorded))
    figures = {name: row.accuracy.figures for _, name, row in rows}
    return {name: found["recovery"] for name, found in figures.items() if "recovery" in found}


def write(folder: Path, data: Mapping[str, Any], dropped: Iterable[str] = ()) -> Path:
    """Adds a run to a machine's folder, whole or not at all; returns its path.

    Args:
        folder: `baselines/<hardware>`.
        data: pytest-benchmark JSON of the rows that were measured.
        dropped: rows of the run before that are not carried over: their tests no longer exist.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    files = run_files(folder)
    data = _with_earlier_rows(data, files[-1], set(dropped)) if files else _signed(data)
    number = int(files[-1].name[:4]) + 1 if files else 1
    path = folder / f"{number:04}_{data['commit_info']['id'][:8]}.json"
    # A test's parameters may be anything; pytest-benchmark stores them beside its figures.
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False, default=repr) + "\n"
    write_whole(path, text)
    return path


def uncommitted(root: Path) -> list[str]:
    """Paths that git reports as changed or untracked below `root`.

    Raises:
        InputError: `root` is not under version control, so no commit describes it.
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
    """Commit below `root` in pytest-benchmark's form; `unversioned` without version control."""
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
    """`data`, signed, after the rows of an earlier run that it neither renews nor drops."""
    signed = _signed(data)
    left_out = {row["fullname"] for row in data["benchmarks"]} | set(dropped)
    earlier = _read(before)["benchmarks"]
    kept = [row for row in earlier if row["fullname"] not in left_out]
    return {**signed, "benchmarks": kept + signed["benchmarks"]}
