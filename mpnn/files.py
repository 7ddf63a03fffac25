"""Work over many files: inputs, progress, failures, and results that are written as they come."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mpnn.atomic import write_whole
from mpnn.download import fetch
from mpnn.errors import InputError
from mpnn.options import DONE, FAILED, INTERRUPTED, SOME_FAILED, STDOUT
from mpnn.structure import name_of

ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")
"""Endings of the structures looked for in folders, with or without .gz."""


@dataclass(frozen=True)
class Result:
    """What one file gave."""

    text: str  # the whole output file
    summary: str  # a few words for the log


class _NoOutputError(InputError):
    """Nothing more can be printed, so no other file need be tried."""


Work = Callable[[Path, Callable[[float], None]], Result]
"""Takes a file and a function to call with the share of its work just done."""


def structure_files(paths: Sequence[str], out: str) -> list[Path]:
    """The files named, and in place of each folder the structures in it, in alphabetical order.

    What is not there stays in the list, and fails by itself when it is read.

    Args:
        paths: files and folders.
        out: folder for the results, or "-" for standard output, where names need not differ.

    Raises:
        InputError: a name is empty, a folder cannot be listed, or two files would give results of
            the same name.
    """
    if not all([*paths, out]):
        raise InputError("a FILE or --out is empty; name a file or a folder (. is this one)")
    files: list[Path] = []
    for path in map(Path, paths):
        files += _structures_in(path) or [path]
    first: dict[str, Path] = {}
    for file in files if out != STDOUT else ():
        name = name_of(file).casefold()  # file systems need not tell cases apart
        if name in first:
            raise InputError(
                f"{first[name]} and {file} would both write results named {name_of(file)}; rename "
                "one, or give them to two runs with another --out each"
            )
        first[name] = file
    return files


def run(files: Sequence[Path], work: Work, out: str, suffix: str) -> int:
    """Does `work` on each file; a file that fails is reported, and the rest go on.

    Args:
        files: the structures.
        work: makes the result of one file; its `InputError`, or that there is not memory enough
            for it, is that file's failure.
        out: folder for one file per structure, or "-" for standard output.
        suffix: ending of the results.

    Returns:
        The exit code.

    Raises:
        InputError: the folder, or standard output, cannot be written to.
    """
    _check_writable(out)
    console = log_console()
    done = failed = 0
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(files))
        try:
            for number, file in enumerate(files, start=1):
                try:
                    result = work(file, lambda share: progress.advance(task, share))
                    where = _deliver(result.text, out, name_of(file) + suffix, first=done == 0)
                    done += 1
                    console.print(f"{file}: {result.summary}{where}")
                except _NoOutputError:
                    raise
                except (InputError, MemoryError, RuntimeError) as error:
                    console.print(f"error: {_about(file, _in_words(error))}", style="red")
                    failed += 1
                progress.update(task, completed=number)
        except KeyboardInterrupt:
            console.print(f"interrupted: {done} of {len(files)} files were finished, and stay")
            return INTERRUPTED
    if failed:
        console.print(f"{failed} of {len(files)} files failed", style="red")
    return (SOME_FAILED if done else FAILED) if failed else DONE


def fetch_all(names: Sequence[str]) -> Iterator[Path]:
    """Downloads published weights one after another, with progress; see `download.fetch`."""
    with progress_bar(log_console()) as progress:
        for name in names:
            task = progress.add_task(name)

            def show(have: int, total: int, task: TaskID = task) -> None:
                progress.update(task, completed=have, total=total)

            yield fetch(name, progress=show)


def progress_bar(console: Console) -> Progress:
    """Files done and time left, where a terminal shows them."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def log_console() -> Console:
    """Standard error, for what is said besides results."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def read_json(path: str | None) -> dict[str, Any]:
    """An object of a JSON file; an empty one where no file is named.

    Raises:
        InputError: the file is missing, is not JSON or holds no object.
    """
    if path is None:
        return {}
    text = _read(path)
    try:
        content = json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: an object by residue is needed, such as {{"A12": …}}')
    return content


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which a key that comes twice would hide its first value."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice!r} comes twice")
    return content


def read_fasta(path: str) -> list[tuple[str, str]]:
    """Names and sequences of a FASTA file; a name ends before the scores of a published header.

    Names that come again are numbered: "T=0.1, sample=1 #2".

    Raises:
        InputError: the file is missing, empty or not FASTA.
    """
    records: list[tuple[str, str]] = []
    times: Counter[str] = Counter()
    for number, line in enumerate(_read(path).splitlines(), start=1):
        text = line.strip()
        if text.startswith(">"):
            name = text[1:].split(", score=")[0].strip()
            times[name] += 1
            records.append((name if times[name] == 1 else f"{name} #{times[name]}", ""))
        elif text and not records:
            raise InputError(f"{path}: line {number}: a FASTA file begins with a > header")
        elif text:
            records[-1] = (records[-1][0], records[-1][1] + text)
    empty = next((name for name, sequence in records if not sequence), None)
    if not records or empty is not None:
        what = "no sequence inside" if empty is None else f"record {empty!r} has no sequence"
        raise InputError(f"{path}: {what}; write >name, then its letters")
    return records


def numbers(text: str, kind: Callable[[str], Any], what: str) -> list[Any]:
    """Values parted by commas or spaces.

    Raises:
        InputError: one is not of the kind, or there is none.
    """
    try:
        values = [kind(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values:
        raise InputError(f"{what} {text!r}: give one or more numbers with commas between them")
    return values


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text ({error.reason})") from error


def _structures_in(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            return []
    except OSError:  # too long a name, or a place that is closed: fails by itself, as a file
        return []
    try:
        return sorted(path for path in folder.iterdir() if _is_structure(path))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_structure(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    there = path.is_file() or not path.exists()  # a broken link is to fail when it is read
    return there and name.endswith(ENDINGS) and not name.startswith(".")


def _about(file: Path, message: str) -> str:
    """The message with the file's name in front, where it does not stand there already."""
    return message if str(file) in message else f"{file}: {message}"


def _in_words(error: Exception) -> str:
    """What stopped a file's work.

    Raises:
        Exception: the error itself, where it is a defect of the program.
    """
    if isinstance(error, InputError):
        return str(error)
    of_torch = type(error).__name__ == "OutOfMemoryError" or "t allocate memory" in str(error)
    if isinstance(error, MemoryError) or of_torch:
        return "there is not memory enough; a smaller --batch-size, or --num-seqs, needs less"
    raise error


def _check_writable(out: str) -> None:
    """Makes the folder, before any work is done in vain."""
    if out == STDOUT:
        if sys.stdout is None:
            raise InputError("standard output is closed; name a folder with --out")
        return
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: you may not write to this folder; choose another")


def _deliver(text: str, out: str, name: str, first: bool) -> str:
    """Writes or prints one result; returns how the log line ends."""
    if out != STDOUT:
        path = Path(out, name)
        write_whole(path, text)
        return f" -> {path}"
    is_table = name.endswith(".csv")
    try:
        sys.stdout.write(text if first or not is_table else text.split("\n", 1)[1])  # one heading
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough
        raise
    except UnicodeEncodeError as error:
        raise InputError(f"cannot be printed ({error}); set PYTHONIOENCODING=utf-8") from error
    except OSError as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the exit fails on it too
        raise _NoOutputError(f"standard output cannot be written ({error.strerror})") from error
    return ""
