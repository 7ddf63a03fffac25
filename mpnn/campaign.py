"""One run over many structures: in this process, in several, or on a cluster.

Every residue depends on (seed, sample, residue) alone, so how a run is split changes no byte of its
results. `mpnn design` and `mpnn score` call `run`; `design` and `score` are the same for Python.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpnn import executors, files
from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.manifest import Entry, Manifest, Shard, digest, manifests
from mpnn.options import (
    DONE,
    FAILED,
    INTERRUPTED,
    SOME_FAILED,
    STDOUT,
    TERMINATED,
    DesignOptions,
    ScoreOptions,
)
from mpnn.rulebook import RuleBook, file_of
from mpnn.rules import Rules
from mpnn.structure import name_of
from mpnn.tasks import (
    VERSION,
    Job,
    Options,
    Outcome,
    Result,
    Task,
    load_model,
    perform,
    prepare,
    work_of,
)
from mpnn.weights import default_weights, find_weights

NOT_SETTINGS = frozenset(("out", "device", "batch_size", "workers", "shard", "dask"))
"""Options that change how a run is done, and none of its results."""

FEW = 4
"""Structures for each worker below which starting it is not worth while."""


@dataclass
class Summary:
    """What a run did.

    Attributes:
        done: structures with new results.
        skipped: structures whose results were there.
        failed: structures without results, and why.
        exit_code: as the command line ends.
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    exit_code: int = DONE


class _NoOutputError(InputError):
    """Standard output cannot be written, so the run ends."""


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM has come."""


def design(
    structures: Iterable[str | Path],
    out: str | Path = "seqs",
    *,
    executor: Executor | None = None,
    in_flight: int = 2 * executors.IN_FLIGHT,
    **settings: Any,
) -> Summary:
    """Designs sequences for many structures; one file each in `out`, and a manifest.

    A second call with the same arguments resumes: it does what is missing.

    Args:
        structures: files, and folders of them. Workers read them by these paths.
        out: folder of the results; the calling process writes them.
        executor: of any kind with the interface of `concurrent.futures`, such as Dask's
            `Client.get_executor(pure=False)`, loky's or MPI's. Weights load once in each of its
            processes. None starts `workers` processes here.
        in_flight: tasks that an executor has at a time, about three for each of its workers.
        settings: options of `mpnn design` and fields of `mpnn.Rules`, by name.

    Raises:
        InputError: a setting is wrong for all structures, `out` holds results of other settings or
            cannot be written, or the executor is gone.
        KeyboardInterrupt: after the results that were there have been written.
    """
    return _run_here(DesignOptions, structures, out, executor, in_flight, settings)


def score(
    structures: Iterable[str | Path],
    out: str | Path = "scores",
    *,
    executor: Executor | None = None,
    in_flight: int = 2 * executors.IN_FLIGHT,
    **settings: Any,
) -> Summary:
    """Scores sequences on many structures; as `design`, with the options of `mpnn score`."""
    return _run_here(ScoreOptions, structures, out, executor, in_flight, settings)


def _run_here(
    kind: type[DesignOptions] | type[ScoreOptions],
    structures: Iterable[str | Path],
    out: str | Path,
    executor: Executor | None,
    in_flight: int,
    settings: Mapping[str, Any],
) -> Summary:
    names = {f.name for f in dataclasses.fields(kind)}
    rules = {name: value for name, value in settings.items() if name not in names}
    if unknown := rules.keys() - {f.name for f in dataclasses.fields(Rules)}:
        raise InputError(
            f"no option or rule is called {', '.join(sorted(unknown))}; the options are "
            f"{', '.join(sorted(names))}"
        )
    options = kind(out=str(out), **{n: v for n, v in settings.items() if n in names})
    summary = run([*map(str, structures)], rules, options, executor, in_flight)
    if summary.exit_code in (INTERRUPTED, TERMINATED):
        raise KeyboardInterrupt
    return summary


def run(
    paths: Sequence[str],
    rules: Mapping[str, Any],
    options: Options,
    executor: Executor | None = None,
    in_flight: int = 1,
) -> Summary:
    """Designs or scores, as the options say, and reports each structure as it is done.

    Args:
        paths: files and folders.
        rules: values for the fields of `mpnn.Rules`.
        options: all other options.
        executor: as in `design`.
        in_flight: as in `design`.

    Raises:
        InputError: as `design`.
    """
    shard = Shard() if options.shard is None else Shard.parse(options.shard)
    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers {options.workers}: take 1 or more")
    make = work_of(options)
    listed = files.structure_files(paths, options.out)
    published = options.published_rules or ()
    book = RuleBook(listed, rules, published, options.rules, options.fixed_labels)
    model = load_model(options)
    for note in model.notes:
        sys.stderr.write(f"{note}\n")
    settings = _settings(options, rules)
    job = Job(options, str(settings))
    prepare(job, make(model))
    structures = listed if options.shard is None else shard.pick(listed)
    _check_writable(options.out)
    with _manifest(options, shard, settings, structures) as manifest, _terminable():
        todo = [path for path in structures if manifest is None or not manifest.is_done(path)]
        sizes = {path: _size(path) for path in todo}
        tasks = (Task(path, book.only(path), job) for path in todo)
        with files.progress_bar(console := files.log_console()) as bar:
            row = bar.add_task("", total=sum(sizes.values()))
            report = _Report(options, manifest, console, len(structures) - len(todo))

            def advance(path: Path, share: float) -> None:
                bar.advance(row, share * sizes[path])

            outcomes = _outcomes(tasks, options, len(todo), executor, in_flight, advance)
            return report.all(outcomes, len(structures), sizes, bar, row)


def _lost(_: Task) -> Outcome:
    return Outcome(
        None, "its worker process was killed, perhaps for memory; try it alone, with --workers 1"
    )


def _outcomes(
    tasks: Iterator[Task],
    options: Options,
    count: int,
    executor: Executor | None,
    in_flight: int,
    progress: Callable[[Path, float], None],
) -> Iterator[tuple[Task, Outcome]]:
    """Tasks with their outcomes, by what the options or the caller name."""
    work = executors.Work(perform, _lost, in_order=options.out == STDOUT)
    usual = min(executors.cores(), count // FEW) if options.device == "cpu" else 1
    workers = usual if options.workers is None else min(options.workers, count)
    try:
        if executor is not None:
            yield from work.on(executor, tasks, in_flight)
        elif options.dask is not None:
            with executors.dask(options.dask) as (cluster, room):
                yield from work.on(cluster, tasks, room)
        elif workers > 1:
            yield from work.side_by_side(tasks, workers)
        else:
            for task in tasks:
                yield task, perform(task, progress)
    except executors.WorkersLostError as error:
        raise InputError(
            "the executor's processes died; make a new one and run again, which resumes"
        ) from error


class _Report:
    """Writes and reports outcomes as they come, and counts them."""

    def __init__(
        self, options: Options, manifest: Manifest | None, console: Any, skipped: int
    ) -> None:
        self.options, self.manifest, self.console = options, manifest, console
        self.summary = Summary(skipped=skipped)
        if skipped:
            console.print(f"{skipped} structures are done already, with these settings")

    def all(
        self,
        outcomes: Iterator[tuple[Task, Outcome]],
        total: int,
        sizes: Mapping[Path, int],
        bar: Any,
        row: Any,
    ) -> Summary:
        """Everything to the end, or to Ctrl-C or SIGTERM."""
        summary, completed = self.summary, 0
        try:
            for task, outcome in outcomes:
                self._one(task.path, outcome)
                completed += sizes[task.path]
                bar.update(row, completed=completed)
        except KeyboardInterrupt as error:
            outcomes.close()  # type: ignore[attr-defined]
            there = summary.done + summary.skipped
            self.console.print(f"interrupted: {there} of {total} results are complete")
            is_term = isinstance(error, _TerminatedError)
            summary.exit_code = TERMINATED if is_term else INTERRUPTED
            return summary
        if summary.failed:
            self.console.print(f"{len(summary.failed)} of {total} files failed", style="red")
            some = summary.done or summary.skipped
            summary.exit_code = SOME_FAILED if some else FAILED
        return summary

    def _one(self, path: Path, outcome: Outcome) -> None:
        """Delivers one outcome; what cannot be written is a failure of its structure."""
        outputs: list[str] = []
        error = outcome.error
        if result := outcome.result:
            try:
                outputs, error = self._written(result), ""
            except _NoOutputError:
                raise
            except InputError as problem:
                result, error = None, str(problem)
        if result is None:
            error = error if str(path) in error else f"{path}: {error}"
            self.console.print(f"error: {error}", style="red")
            self.summary.failed[name_of(path)] = error
        else:
            self.summary.done += 1
            where = f" -> {Path(self.options.out, outputs[-1])}" if outputs else ""
            self.console.print(f"{path}: {result.summary}{where}")
            for note in result.notes:
                self.console.print(f"  {note}")
        if self.manifest is not None:
            status = "failed" if result is None else "done"
            seconds, rows = round(outcome.seconds, 4), [*result.rows] if result else []
            self.manifest.add(
                Entry(name_of(path), digest(path), status, seconds, outputs, error, rows)
            )

    def _written(self, result: Result) -> list[str]:
        """Writes or prints the files of one result; returns the names of those written."""
        if self.options.out == STDOUT:
            (text,) = result.files.values()
            is_table = self.options.format == "csv"
            _print(str(text), heading=self.summary.done == 0 or not is_table)
            return []
        for name, content in result.files.items():
            write_whole(Path(self.options.out, name), content)
        return [*result.files]


def _manifest(
    options: Options,
    shard: Shard,
    settings: Mapping[str, Any],
    structures: Sequence[Path],
) -> Manifest | nullcontext[None]:
    """The manifest of a run over many structures, of a shard, or of a folder that has one.

    One structure alone keeps none: whoever tries it with other options wants new results.
    """
    folder = Path(options.out)
    many = len(structures) > 1 or options.shard is not None
    if options.out == STDOUT or not (many or manifests(folder)):
        return nullcontext()
    return Manifest(folder, shard, settings, structures)


def _settings(
    options: Options, rules: Mapping[str, Any]
) -> dict[str, str | bool | int | float | list[str]]:
    """Whatever changes results, by name: options that were set, and digests of files they name."""
    weights = find_weights(options.weights or default_weights())
    found: dict[str, Any] = {
        "command": "design" if isinstance(options, DesignOptions) else "score",
        "version": VERSION,
        "weights": f"{weights.stem} {digest(weights)}",
    }
    named = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    for name, value in {**named, **rules}.items():
        if name in found or name in NOT_SETTINGS or value in (None, False, "", [], 0.0):
            continue
        paths = value if name == "published_rules" else [file_of(name, value)]
        content = [f"{path} {digest(Path(path))}" for path in paths if path]
        found[name] = content or (str(value) if isinstance(value, str) else value)
    return found


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, for as long as the context lasts."""

    def terminate(*_: object) -> None:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _size(path: Path) -> int:
    """Bytes of a file, which tell how long a structure takes; 1 where it does not exist."""
    try:
        return max(1, path.stat().st_size)
    except OSError:
        return 1


def _check_writable(out: str) -> None:
    """Creates the output folder first, so that a long run cannot fail at its end."""
    if out == STDOUT:
        if sys.stdout is None:
            raise InputError("standard output is closed; name a folder with --out")
        return
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot create this folder ({error.strerror})") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: you may not write to this folder; choose another")


def _print(text: str, heading: bool) -> None:
    """Prints a result, without its first line if that is a table's heading printed before."""
    try:
        sys.stdout.write(text if heading else text.split("\n", 1)[1])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe
        raise
    except UnicodeEncodeError as error:
        raise InputError(f"cannot be printed ({error}); set PYTHONIOENCODING=utf-8") from error
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit fails, too
        raise _NoOutputError(f"standard output cannot be written ({error.strerror})") from error
