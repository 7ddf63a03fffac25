"""What is done with one structure of a run: a `Task` in, an `Outcome` out, in any process."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mpnn import __version__, files
from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.options import STDOUT, DesignOptions, RunOptions, ScoreOptions, Structures
from mpnn.output import (
    SUFFIX,
    design_records,
    probabilities,
    render_designs,
    render_scores,
    score_records,
)
from mpnn.results import Designs, Mode
from mpnn.rulebook import RuleBook
from mpnn.rules import Rules
from mpnn.structure import read_structure

if TYPE_CHECKING:  # mpnn.design imports torch, which takes a second: only once there is work
    from mpnn.design import Model

VERSION = f"mpnn-{__version__}"

Options = DesignOptions | ScoreOptions

Progress = Callable[[float], None]
"""Called with the share of the work just done; shares add up to 1."""


@dataclass(frozen=True)
class Result:
    """The result of one structure."""

    files: Mapping[str, str | bytes]  # by path below the output folder; the last is the main one
    summary: str  # a few words for the log
    notes: Sequence[str] = ()  # what was done to the structure, a line each
    rows: Sequence[dict[str, Any]] = ()  # for the manifest, a record for each design or score


@dataclass(frozen=True)
class Job:
    """What is done with every structure of a run, and a digest of all that decides its results."""

    options: Options
    digest: str


@dataclass(frozen=True)
class Task:
    """One structure of a job; travels to other processes."""

    path: Path
    book: RuleBook
    job: Job


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result, or in words why it has none."""

    result: Result | None
    error: str = ""
    seconds: float = 0.0


Work = Callable[[Path, RuleBook, Progress], Result]
"""Makes the result of one structure."""

_READY: list[tuple[Job, Work] | None] = [None]
"""The job that this process is ready for, and its work: weights are loaded once."""

_ONE_AT_A_TIME = threading.Lock()
"""A worker may have several threads, and an engine is not made for them."""


def prepare(job: Job, work: Work) -> None:
    """Makes this process ready for the tasks of a job."""
    _READY[0] = (job, work)


def perform(task: Task, progress: Callable[[Path, float], None] | None = None) -> Outcome:
    """Does the work on one structure, in any process; a user's mistake is an outcome."""
    start = time.perf_counter()
    with _ONE_AT_A_TIME:
        ready = _READY[0]
        if ready is None or ready[0] != task.job:
            ready = _READY[0] = (task.job, work_of(task.job.options)(load_model(task.job.options)))
        work = ready[1]

        def advance(share: float) -> None:
            if progress is not None:
                progress(task.path, share)

        gc.disable()  # a structure is many small objects and no cycles: 1 % of the time
        try:
            result, error = work(task.path, task.book, advance), ""
        except (InputError, MemoryError, RuntimeError) as problem:
            result, error = None, _in_words(problem)
        finally:
            gc.enable()
    return Outcome(result, error, time.perf_counter() - start)


def work_of(options: Options) -> Callable[[Model], Work]:
    """Checks the options of a command; returns what makes its work from a model."""
    return _designing(options) if isinstance(options, DesignOptions) else _scoring(options)


def _designing(options: DesignOptions) -> Callable[[Model], Work]:
    from mpnn.sampling import check_sampling

    temperatures = files.numbers(options.temperature, float, "--temperature")
    seeds = files.numbers(options.seed, int, "--seed")
    check_sampling(options.num_seqs, temperatures, seeds, options.batch_size)
    many_files = {f"format {options.format}": options.format not in SUFFIX}
    _check_has_folder(
        options.out, {"structures": options.structures, "probs": options.probs, **many_files}
    )

    def make(model: Model) -> Work:
        def work(path: Path, book: RuleBook, advance: Progress) -> Result:
            backbone, applied = _read(path, book, options)
            designs = model.design(
                backbone,
                options.num_seqs,
                temperatures,
                seeds,
                options.batch_size,
                advance,
                options.order.value,
                options.probs,
                rules=applied,
            )
            what = f"{len(designs)} design{'s' * (len(designs) > 1)} by {model.name}"
            written: dict[str, str | bytes] = {}
            if options.probs:
                written[f"{backbone.name}.npz"] = probabilities(designs)
            if options.structures is not None:
                written |= _structures(designs, path, options.structures)
            if options.format in SUFFIX:
                text = render_designs(designs, options.format, model.name, VERSION)
                written[backbone.name + SUFFIX[options.format]] = text
            else:
                from mpnn.layouts import LAYOUTS

                written |= LAYOUTS[options.format](designs, path, model.name)
            return Result(written, what, designs.backbone.notes, design_records(designs))

        return work

    return make


def _scoring(options: ScoreOptions) -> Callable[[Model], Work]:
    chosen: list[Mode] = [
        mode for mode in get_args(Mode) if getattr(options, mode.replace("-", "_"), False)
    ]
    if len(chosen) > 1:
        raise InputError(f"--{' and --'.join(chosen)} exclude each other; use one")
    mode: Mode = chosen[0] if chosen else "ordered"
    _check_has_folder(options.out, {"probs": options.probs})
    seeds = files.numbers(options.seed, int, "--seed")
    records = None if options.fasta is None else files.read_fasta(options.fasta)
    sequences = None if records is None else [sequence for _, sequence in records]
    called = [f"record {name!r} of {options.fasta}" for name, _ in records or ()]

    def make(model: Model) -> Work:
        def work(path: Path, book: RuleBook, advance: Progress) -> Result:
            backbone, applied = _read(path, book, options)
            scores = model.score_many(
                backbone, sequences, seeds, mode, advance, called, rules=applied
            )
            labels = [backbone.name] if records is None else [name for name, _ in records]
            text = render_scores(scores, labels, options.format, model.name, VERSION)
            first = scores.scores[0]
            what = f"score {first.score:.4f}, perplexity {first.perplexity:.2f} by {model.name}"
            if len(scores.scores) > 1:
                what = f"{len(scores.scores)} scores, the first: {what}"
            written: dict[str, str | bytes] = {}
            if options.probs:
                written[f"{backbone.name}.npz"] = probabilities(scores)
            written[backbone.name + SUFFIX[options.format]] = text
            return Result(written, what, scores.backbone.notes, score_records(scores, labels))

        return work

    return make


def _check_has_folder(out: str, asked: Mapping[str, object]) -> None:
    """Refuses options that write files where results are printed."""
    wanted = [f"--{name}" for name, value in asked.items() if value]
    if out == STDOUT and wanted:
        raise InputError(
            f"{' and '.join(wanted)} cannot be printed to standard output; name a folder with --out"
        )


def _structures(designs: Designs, path: Path, form: Structures) -> dict[str, str]:
    """One structure per design by the name of its file, which says what the design was keyed by."""
    from mpnn.design_structure import Template, form_of, read_source, structure_text

    source = read_source(path)
    written = form_of(source) if form is Structures.input else form.value
    template = Template(designs, source)
    return {
        f"structures/{designs.backbone.name}_T{design.temperature}_seed{design.seed}_"
        f"sample{design.sample}.{written}": structure_text(template.with_design(design), written)
        for design in designs
    }


def load_model(options: RunOptions) -> Model:
    """The model that the options name."""
    from mpnn.design import load

    return load(options.weights, options.engine, options.device)


def _read(path: Path, book: RuleBook, options: RunOptions) -> tuple[Backbone, Rules]:
    """A structure, with notes about its rules, and its rules."""
    model = options.structure_model
    backbone = read_structure(path, model=model, split_breaks=options.split_breaks)
    rules, notes = book.rules(path, backbone)
    return dataclasses.replace(backbone, notes=(*backbone.notes, *notes)), rules


def _in_words(error: Exception) -> str:
    """What stopped the work on a structure.

    Raises:
        Exception: the error itself, where it is a defect of the program.
    """
    if isinstance(error, InputError):
        return str(error)
    of_torch = type(error).__name__ == "OutOfMemoryError" or "t allocate memory" in str(error)
    if isinstance(error, MemoryError) or of_torch:
        return "out of memory; a smaller --batch-size or --num-seqs needs less"
    raise error
