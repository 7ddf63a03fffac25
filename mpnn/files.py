"""The structures of a run, JSON and FASTA input, and the console."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpnn.errors import InputError
from mpnn.options import STDOUT
from mpnn.structure import name_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")

ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")
"""Endings of the structures that are read from folders, with or without .gz."""


def structure_files(paths: Sequence[str], out: str) -> list[Path]:
    """Lists the named files, and for each folder the structures in it, in alphabetical order.

    A file that does not exist stays in the list; reading it fails later.

    Args:
        paths: files and folders.
        out: folder for the results, or "-" for standard output, where names need not differ.

    Raises:
        InputError: a name is empty, a folder cannot be listed, or two files would give results of
            the same name.
    """
    if not all([*paths, out]):
        raise InputError("a FILE or --out is empty; name a file or a folder (. is the current one)")
    files: list[Path] = []
    for path in map(Path, paths):
        files += _structures_in(path) or [path]
    first: dict[str, Path] = {}
    for file in files if out != STDOUT else ():
        name = name_of(file).casefold()  # some file systems ignore case
        if name in first:
            raise InputError(
                f"{first[name]} and {file} would both write results named {name_of(file)}; rename "
                "one, or use two runs with different --out folders"
            )
        first[name] = file
    return files


def fetch_all(names: Sequence[str]) -> Iterator[Path]:
    """Downloads published weights one after another and shows progress; see `download.fetch`."""
    from mpnn.download import fetch

    with progress_bar(log_console()) as progress:
        for name in names:
            task = progress.add_task(name)

            def show(have: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=have, total=total)

            yield fetch(name, progress=show)


class PlainConsole:
    """Prints lines to standard error; spares pipelines the import of rich."""

    is_terminal = False

    def print(self, text: str, style: str | None = None) -> None:  # noqa: ARG002, as rich's
        """Prints one line."""
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


class NoProgress:
    """Stands for rich's progress bar where no terminal shows it."""

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, *_: Any, **__: Any) -> Any:
        """Does nothing."""

    advance = update = add_task

    def track(self, items: Sequence[T]) -> Sequence[T]:
        """Returns the items to iterate over."""
        return items


def progress_bar(console: Console | PlainConsole) -> Progress | NoProgress:
    """Returns a bar of files done and time left; shown on terminals only."""
    if not console.is_terminal or isinstance(console, PlainConsole):
        return NoProgress()
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )


def log_console() -> Console | PlainConsole:
    """Returns a console on standard error, for everything but results."""
    if sys.stderr is None or not sys.stderr.isatty():
        return PlainConsole()
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def read_json(path: str) -> dict[str, Any]:
    """Reads an object from a JSON file, or one from all lines of a .jsonl file.

    Raises:
        InputError: the file is missing, is not JSON or holds no object, or a key occurs twice.
    """
    text = read_text(path)
    texts = [text]
    if path.lower().endswith(".jsonl"):
        texts = [line for line in text.splitlines() if line.strip()] or texts
    pairs: list[tuple[str, Any]] = []
    try:
        for part in texts:
            content = json.loads(part, object_pairs_hook=_unrepeated)
            if not isinstance(content, dict):
                raise InputError(f'{path}: a JSON object is needed, such as {{"A12": …}}')
            pairs += content.items()
        return _unrepeated(pairs)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON; a key that occurs twice would hide its first value."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return content


def read_fasta(path: str) -> list[tuple[str, str]]:
    """Reads names and sequences of a FASTA file; a name ends before the scores of a header.

    Repeated names are numbered: "T=0.1, sample=1 #2".

    Raises:
        InputError: the file is missing, empty or not FASTA.
    """
    records: list[tuple[str, str]] = []
    times: Counter[str] = Counter()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.strip()
        if text.startswith(">"):
            name = text[1:].split(", score=")[0].strip()
            times[name] += 1
            records.append((name if times[name] == 1 else f"{name} #{times[name]}", ""))
        elif text and not records:
            raise InputError(f"{path}: line {number}: a FASTA file starts with a > header")
        elif text:
            records[-1] = (records[-1][0], records[-1][1] + text)
    empty = next((name for name, sequence in records if not sequence), None)
    if not records or empty is not None:
        what = "holds no sequence" if empty is None else f"record {empty!r} has no sequence"
        raise InputError(f"{path}: {what}; write >name, then its sequence")
    return records


def numbers(text: str, kind: Callable[[str], Any], what: str) -> list[Any]:
    """Parses values separated by commas or spaces.

    Raises:
        InputError: a value is not of the kind, or the text holds no value.
    """
    try:
        values = [kind(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values:
        raise InputError(f"{what} {text!r}: write one or more numbers with commas between them")
    return values


def read_text(path: str) -> str:
    """Reads a text file in UTF-8, without a byte-order mark.

    Raises:
        InputError: the file cannot be read, or is not text.
    """
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
    except OSError:  # the name is too long or access denied: reading it as a file says so
        return []
    try:
        return sorted(path for path in folder.iterdir() if _is_structure(path))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_structure(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    there = path.is_file() or not path.exists()  # a broken link fails when it is read
    return there and name.endswith(ENDINGS) and not name.startswith(".")
