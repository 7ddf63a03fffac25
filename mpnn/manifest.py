"""The manifest of a run over many structures: what was done with what settings, a line each.

A line is written after the files that it names, so that a run that is stopped, killed or cut off
from its machine resumes with the structures that have no line. Every shard of a run has a manifest
of its own in the output folder; all of them together are the state of the run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from mpnn.errors import InputError
from mpnn.structure import name_of

PATTERN = "manifest*.jsonl"
SETTINGS = "settings"
"""Key that tells the first line of a run from those of its structures."""


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, counted from 1: every `of`-th structure."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads "3/400".

        Raises:
            InputError: it is not a number from 1 to the second number.
        """
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise InputError(f"--shard {text!r}: write I/N with I from 1 to N, such as 3/400")

    def pick(self, files: Iterable[Path]) -> list[Path]:
        """The files of this shard, by their names' order: no other option has an influence."""
        return sorted(files, key=name_of)[self.number - 1 :: self.of]

    @property
    def manifest(self) -> str:
        """Name of the manifest's file."""
        return "manifest.jsonl" if self.of == 1 else f"manifest.{self}.jsonl"

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"


@dataclass(frozen=True)
class Entry:
    """What became of one structure.

    Attributes:
        name: of the structure, which its output files bear.
        input: digest of the structure's file; "" where it could not be read.
        status: "done" or "failed".
        seconds: that it took.
        outputs: files in the output folder.
        error: why it failed.
        rows: a record for each design or score, as `collect` puts together.
    """

    name: str
    input: str
    status: str
    seconds: float = 0.0
    outputs: list[str] = field(default_factory=list)
    error: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


def digest(path: Path) -> str:
    """SHA-256 of a file, shortened to 16 hexadecimal digits; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return ""


class Manifest:
    """The manifest of one shard, open and locked for one run; a context manager.

    Args:
        folder: of the outputs; it exists.
        shard: which part this run does.
        settings: by name, whatever changes a result.
        structures: how many structures the shard has.

    Raises:
        InputError: another run works on this shard in this folder, the folder holds results of
            other settings, or a manifest cannot be read or written.
    """

    def __init__(
        self, folder: Path, shard: Shard, settings: Mapping[str, Any], structures: int
    ) -> None:
        self.folder = folder
        path = folder / shard.manifest
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            self._lock(path)
            self._done = _checked(folder, settings)
            self._end_torn_line()
            self._append({SETTINGS: settings, "shard": str(shard), "structures": structures})
        except BaseException:
            self._file.close()
            raise

    def is_done(self, path: Path) -> bool:
        """Whether the outputs of a structure's file, as it is now, are there."""
        entry = self._done.get(name_of(path))
        return (
            entry is not None
            and entry.input == digest(path)
            and all((self.folder / name).exists() for name in entry.outputs)
        )

    def add(self, entry: Entry) -> None:
        """Writes what became of a structure.

        Raises:
            InputError: the file cannot be written.
        """
        self._append(asdict(entry))

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{path}: another run is at work here; wait for it, give each run a --shard of its "
                "own, or choose another --out"
            ) from error

    def _end_torn_line(self) -> None:
        """Cuts a last line off that a killed run has not finished."""
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(
                f"{self.folder}: the manifest cannot be written ({error.strerror}); free some "
                "space and run the command again, which resumes"
            ) from error

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def manifests(folder: Path) -> list[Path]:
    """The manifests of all shards in a folder."""
    return sorted(folder.glob(PATTERN))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The first line of a manifest's last run, {} where there is none, and entries by name.

    A structure that was tried again has its last entry.

    Raises:
        InputError: a line but the last is damaged.
    """
    header: dict[str, Any] = {}
    entries = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # after the last line end is a torn line
        try:
            content = json.loads(line)
            if SETTINGS in content:
                header = content
            else:
                entries[content["name"]] = Entry(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number} is no line of a manifest ({error}); remove the file to "
                "begin anew"
            ) from error
    return header, entries


def _checked(folder: Path, settings: Mapping[str, Any]) -> dict[str, Entry]:
    """Structures done by any shard, once all manifests are known to have these settings."""
    plain = json.loads(json.dumps(settings))
    done: dict[str, Entry] = {}
    for path in manifests(folder):
        header, entries = read(path)
        if header and header[SETTINGS] != plain:
            raise InputError(
                f"{folder} holds results of other settings: {_difference(header[SETTINGS], plain)};"
                f" choose another --out, or remove {folder / PATTERN} to begin anew"
            )
        done |= {name: entry for name, entry in entries.items() if entry.status == "done"}
    return done


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in names[:3])


@dataclass(frozen=True)
class Collected:
    """The shards of a folder put together.

    Attributes:
        rows: of all designs or scores, best score first.
        failed: entries of structures that failed.
        missing: what is not there yet, in words, a line for each shard.
        structures: how many are done.
    """

    rows: list[dict[str, Any]]
    failed: list[Entry]
    missing: list[str]
    structures: int

    def report(self) -> Iterator[str]:
        """What was put together, and what is missing, for people."""
        yield f"{self.structures} structures, {len(self.rows)} rows"
        for entry in self.failed:
            yield f"failed: {entry.error}"
        for line in self.missing:
            yield f"missing: {line}"


def collect(folder: Path) -> Collected:
    """Puts the manifests of a folder together.

    Raises:
        InputError: there is none, or one is damaged.
    """
    paths = manifests(folder)
    if not paths:
        raise InputError(
            f"{folder}: holds no {PATTERN}; name the --out folder of a run over many structures"
        )
    entries: dict[str, Entry] = {}
    headers = []
    for path in paths:
        header, found = read(path)
        headers.append((path, header, len(found)))
        entries |= {n: e for n, e in found.items() if n not in entries or e.status == "done"}
    done = [entry for entry in entries.values() if entry.status == "done"]
    rows = [{"name": entry.name, **row} for entry in done for row in entry.rows]
    rows.sort(key=lambda row: (_nan_last(row["score"]), row["name"]))
    failed = sorted((e for e in entries.values() if e.status == "failed"), key=lambda e: e.name)
    return Collected(rows, failed, list(_missing(headers)), len(done))


def _nan_last(score: float | None) -> float:
    return float("inf") if score is None else score


def _missing(headers: list[tuple[Path, dict[str, Any], int]]) -> Iterator[str]:
    """Shards that were not started, and those whose structures are not all there."""
    there = {header["shard"] for _, header, _ in headers if header}
    counts = {int(shard.rpartition("-")[2]) for shard in there}
    for count in sorted(counts - {1}):
        absent = [n for n in range(1, count + 1) if f"{n}-of-{count}" not in there]
        if absent:
            shown = ", ".join(map(str, absent[:10])) + (" …" if len(absent) > 10 else "")
            yield f"shards {shown} of {count} have not begun"
    for path, header, found in headers:
        if header and found < header["structures"]:
            yield f"{path.name}: {found} of {header['structures']} structures"
