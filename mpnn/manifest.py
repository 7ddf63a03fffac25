"""The manifest of a run over many structures: what was done with what settings, a line each.

A line is written after the files that it names, so that a run that is stopped, killed or cut off
from its machine resumes with the structures that have no line. Every shard of a run has a manifest
of its own in the output folder; all of them together are the state of the run.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
        structures: files of the shard.

    Raises:
        InputError: another run works on this shard in this folder, the folder holds results of
            other settings, or a manifest cannot be read or written.
    """

    def __init__(
        self, folder: Path, shard: Shard, settings: Mapping[str, Any], structures: Sequence[Path]
    ) -> None:
        self.folder = folder
        path = folder / shard.manifest
        try:
            self._file = path.open("a+b", buffering=0)  # a line is on the disk, or an error
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            self._lock(path)
            self._done = _done(folder, shard, settings, {name_of(path) for path in structures})
            self._end_torn_line()
            self._append({SETTINGS: settings, "shard": str(shard), "structures": len(structures)})
        except BaseException:
            self._file.close()
            raise

    def is_done(self, path: Path) -> bool:
        """Whether the outputs of a structure's file, as it is now, are there."""
        known, outputs = self._done.get(name_of(path), ("", ()))
        return (
            bool(outputs)
            and known == digest(path)
            and all((self.folder / name).exists() for name in outputs)
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
        except BlockingIOError as error:
            raise InputError(
                f"{path}: another run is at work here; wait for it, give each run a --shard of its "
                "own, or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); choose an --out on a file system "
                "that has locks"
            ) from error

    def _end_torn_line(self) -> None:
        """Cuts a last line off that a killed run has not finished."""
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            while data:
                data = data[self._file.write(data) :]
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
    for _, content in _lines(path):
        if SETTINGS in content:
            header = content
        else:
            entries[content["name"]] = Entry(**content)
    return header, entries


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered lines of a manifest; a last one that was not finished is left out.

    Raises:
        InputError: another line is damaged.
    """
    fields = {f.name for f in dataclasses.fields(Entry)}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
                if SETTINGS not in content and content.keys() != fields:
                    raise ValueError(f"it has {', '.join(content)}")
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}: line {number} is no line of a manifest ({error}); remove the file "
                    "to begin anew"
                ) from error
            yield number, content


def _done(
    folder: Path, shard: Shard, settings: Mapping[str, Any], names: Collection[str]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Input and outputs of those structures of a shard that are done, once all settings agree.

    Other shards of the same split hold none of them, so only their first line is read: a thousand
    shards of a million structures start at once.

    Raises:
        InputError: a manifest is damaged, or of other settings.
    """
    plain = json.loads(json.dumps(settings))
    done: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path in manifests(folder):
        for number, content in _lines(path):
            if SETTINGS in content:
                if content[SETTINGS] != plain:
                    raise InputError(
                        f"{folder} holds results of other settings: "
                        f"{_difference(content[SETTINGS], plain)}; choose another --out, or remove "
                        f"{folder / PATTERN} to begin anew"
                    )
                _, _, count = content["shard"].rpartition("-")
                if number == 1 and path.name != shard.manifest and int(count) == shard.of > 1:
                    break
            elif content["status"] == "done" and content["name"] in names:
                done[content["name"]] = content["input"], tuple(content["outputs"])
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
