"""Reads the bundle of a Mac, on any machine: tables, and the run for `baselines/`."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.tables import markdown, seconds

LARGEST = 20_000_000
"""Bytes that a file of the bundle may unpack to."""

Results = Mapping[str, Mapping[str, Any]]


def read_bundle(path: Path) -> tuple[Results, str]:
    """Results by stage, and the text of the stored run; "" where there is none.

    Raises:
        InputError: the file is no bundle, or a part of it is damaged.
    """
    results, run = {}, ""
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if info.file_size > LARGEST:
                    raise InputError(f"{path}: {info.filename} has {info.file_size:,} bytes")
                text = file.read(info).decode()
                if info.filename.startswith("run/"):
                    run = text
                elif info.filename.endswith(".json"):
                    result = json.loads(text)
                    results[result["stage"]] = result
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it on a Mac with `tox -e mac`") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is not a bundle of `tox -e mac` ({error}); send it once more"
        ) from error
    if not results:
        raise InputError(f"{path} holds no stage; make it on a Mac with `tox -e mac`")
    return results, run


def store(run: str, root: Path) -> Path | None:
    """Adds the run of a bundle to its machine's folder; None where it is there already.

    Args:
        run: its text.
        root: the folder of all stored runs.

    Raises:
        InputError: the run cannot be read.
    """
    try:
        data = json.loads(run)
        hardware, commit = str(data["machine_info"]["hardware"]), str(data["commit_info"]["id"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, hardware, f"0001_{commit[:8]}.json")
            write_whole(path, run)
            baselines.load(path)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the bundle's run is not one of this suite ({error!r})") from error
    files = baselines.run_files(root / hardware)
    if any(file.read_text(encoding="utf-8") == run for file in files):
        return None
    number = int(files[-1].name[:4]) + 1 if files else 1
    target = root / hardware / f"{number:04}_{commit[:8]}.json"
    write_whole(target, run)
    return target


def lines(results: Results) -> Iterator[str]:
    """The bundle as Markdown: what became of each stage, then a table for each kind."""
    yield markdown(
        ("stage", "outcome", "time"),
        ((name, _outcome(result), seconds(result["seconds"])) for name, result in results.items()),
    )
    found = {name: r["result"] for name, r in results.items() if isinstance(r["result"], dict)}
    tables = (
        (("engine on MPS", "network", "\\|Δ log p\\|", "same residues", "score", "sample"), _mps),
        (("Metal kernel", "error", "time"), _metal),
        (("Core ML", "unit", "on the Neural Engine", "elsewhere", "time"), _functions),
        (("Core ML bucket", "unit", "\\|Δ log p\\|", "host", "device"), _buckets),
    )
    for headings, rows in tables:
        cells = list(rows(found))
        if cells:
            yield ""
            yield markdown(headings, cells).replace("\\\\\\|", "\\|")
    if "machine" in found:
        yield f"\n```json\n{json.dumps(found['machine'], indent=1)}\n```"
    for name, result in results.items():
        if result["outcome"] != "passed":
            yield f"\n{name}: {result['outcome']}\n```text\n{result['log'][-2000:]}\n```"


def _outcome(result: Mapping[str, Any]) -> str:
    missing = isinstance(result["result"], dict) and result["result"].get("not_here")
    return f"not here: {missing}" if missing else str(result["outcome"])


def _mps(found: Results) -> Iterator[tuple[str, ...]]:
    for stage, networks in found.items():
        if stage.startswith("mps-") and "not_here" not in networks:
            for network, row in networks.items():
                figures = f"{row['difference']:.0e}", f"{row['same_residues']:.1%}"
                times = seconds(row["score_seconds"]), seconds(row["sample_seconds"])
                yield stage.removeprefix("mps-"), network, *figures, *times


def _metal(found: Results) -> Iterator[tuple[str, ...]]:
    result = found.get("metal", {})
    where = "" if result.get("metal") else " (fallback, no Metal)"
    for name, row in result.get("variants", {}).items():
        figures = "–", row["error"][:80] if "error" in row else seconds(row["seconds"])
        if "difference" in row:
            figures = f"{row['difference']:.0e}", figures[1]
        yield name + where, *figures


def _functions(found: Results) -> Iterator[tuple[str, ...]]:
    for stage, result in found.items():
        for name, row in result.get("functions", {}).items() if "functions" in result else ():
            elsewhere = ", ".join(f"{n} {op}" for op, n in row["elsewhere"].items()) or "–"
            share = f"{row['shares']['NE']:.0%}"
            yield name, stage.removeprefix("coreml-"), share, elsewhere, seconds(row["seconds"])


def _buckets(found: Results) -> Iterator[tuple[str, ...]]:
    for stage, result in found.items():
        for bucket, row in result.get("buckets", {}).items():
            times = seconds(row["host_seconds"]), seconds(row["seconds"])
            yield bucket, stage.removeprefix("coreml-"), f"{row['difference']:.1e}", *times


def report(path: Path, root: Path) -> Iterator[str]:
    """What `mpnn mac-report` prints; stores the run of the bundle below `root`.

    Raises:
        InputError: the bundle or its run cannot be read, or `root` cannot be written to.
    """
    results, run = read_bundle(path)
    yield from lines(results)
    if not run:
        yield "\nno claims were recorded"
        return
    stored = store(run, root)
    yield f"\nstored as {stored}" if stored else "\nits run is stored already"
