"""What `mpnn design` and `mpnn score` do over many files, from their options to the exit code."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mpnn import __version__, files
from mpnn.atomic import write_whole
from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.options import (
    DONE,
    FAILED,
    INTERRUPTED,
    SOME_FAILED,
    STDOUT,
    DesignOptions,
    RunOptions,
    ScoreOptions,
    Structures,
)
from mpnn.output import SUFFIX, probabilities, render_designs, render_scores
from mpnn.results import Designs, Mode
from mpnn.rulebook import RuleBook
from mpnn.rules import Rules
from mpnn.structure import name_of, read_structure

if TYPE_CHECKING:  # mpnn.design imports torch, which takes a second: only once there is work
    from mpnn.design import Model

VERSION = f"mpnn-{__version__}"

Progress = Callable[[float], None]
"""Called with the share of the work just done; shares add up to 1."""


@dataclass(frozen=True)
class Result:
    """The result of one structure."""

    text: str  # the whole output file
    summary: str  # a few words for the log
    notes: Sequence[str] = ()  # what was done to the structure, a line each
    others: Mapping[str, str | bytes] = field(default_factory=dict)  # more files, by name


Work = Callable[[Path, Progress], Result]
"""Makes the result of one structure."""


class _NoOutputError(InputError):
    """Standard output cannot be written, so the run ends."""


def design(paths: Sequence[str], rules: Mapping[str, Any], options: DesignOptions) -> int:
    """Designs sequences for every structure; returns the exit code.

    Args:
        paths: files and folders.
        rules: values of the command line for the fields of `mpnn.Rules`.
        options: all other options.

    Raises:
        InputError: an option is wrong for all structures: see `files.structure_files`, `RuleBook`
            and `mpnn.load`.
    """
    from mpnn.sampling import check_sampling

    temperatures = files.numbers(options.temperature, float, "--temperature")
    seeds = files.numbers(options.seed, int, "--seed")
    check_sampling(options.num_seqs, temperatures, seeds, options.batch_size)
    _check_has_folder(options.out, {"structures": options.structures, "probs": options.probs})
    structures = files.structure_files(paths, options.out)
    book = _rule_book(structures, rules, options)
    model = _load(options)

    def work(path: Path, advance: Progress) -> Result:
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
        text = render_designs(designs, options.format, model.name, VERSION)
        what = f"{len(designs)} design{'s' * (len(designs) > 1)} by {model.name}"
        others: dict[str, str | bytes] = {}
        if options.probs:
            others[f"{backbone.name}.npz"] = probabilities(designs)
        if options.structures is not None:
            others |= _structures(designs, path, options.structures)
        return Result(text, what, designs.backbone.notes, others)

    return run(structures, work, options.out, SUFFIX[options.format])


def score(paths: Sequence[str], rules: Mapping[str, Any], options: ScoreOptions) -> int:
    """Scores sequences on every structure; returns the exit code.

    Raises:
        InputError: an option is wrong for all structures, as in `design`.
    """
    chosen: list[Mode] = [mode for mode in get_args(Mode) if _is_on(mode, options)]
    if len(chosen) > 1:
        raise InputError(f"--{' and --'.join(chosen)} exclude each other; use one")
    mode: Mode = chosen[0] if chosen else "ordered"
    _check_has_folder(options.out, {"probs": options.probs})
    seeds = files.numbers(options.seed, int, "--seed")
    records = None if options.fasta is None else files.read_fasta(options.fasta)
    sequences = None if records is None else [sequence for _, sequence in records]
    called = [f"record {name!r} of {options.fasta}" for name, _ in records or ()]
    structures = files.structure_files(paths, options.out)
    book = _rule_book(structures, rules, options)
    model = _load(options)

    def work(path: Path, advance: Progress) -> Result:
        backbone, applied = _read(path, book, options)
        scores = model.score_many(backbone, sequences, seeds, mode, advance, called, rules=applied)
        labels = [backbone.name] if records is None else [name for name, _ in records]
        text = render_scores(scores, labels, options.format, model.name, VERSION)
        first = scores.scores[0]
        what = f"score {first.score:.4f}, perplexity {first.perplexity:.2f} by {model.name}"
        if len(scores.scores) > 1:
            what = f"{len(scores.scores)} scores, the first: {what}"
        others = {f"{backbone.name}.npz": probabilities(scores)} if options.probs else {}
        return Result(text, what, scores.backbone.notes, others)

    return run(structures, work, options.out, SUFFIX[options.format])


def run(structures: Sequence[Path], work: Work, out: str, suffix: str) -> int:
    """Does `work` on each structure; reports a failure, and continues with the others.

    Args:
        structures: their files.
        work: an `InputError`, or running out of memory, counts as the failure of its structure.
        out: folder for one file per structure, or "-" for standard output.
        suffix: ending of the results.

    Returns:
        The exit code.

    Raises:
        InputError: the folder or standard output cannot be written.
    """
    _check_writable(out)
    console = files.log_console()
    done = failed = 0
    with files.progress_bar(console) as progress:
        task = progress.add_task("", total=len(structures))
        try:
            for number, file in enumerate(structures, start=1):
                try:
                    result = work(file, lambda share: progress.advance(task, share))
                    for name, content in result.others.items():
                        write_whole(Path(out, name), content)
                    where = _deliver(result.text, out, name_of(file) + suffix, first=done == 0)
                    done += 1
                    console.print(f"{file}: {result.summary}{where}")
                    for note in result.notes:
                        console.print(f"  {note}")
                except _NoOutputError:
                    raise
                except (InputError, MemoryError, RuntimeError) as error:
                    console.print(f"error: {_about(file, _in_words(error))}", style="red")
                    failed += 1
                progress.update(task, completed=number)
        except KeyboardInterrupt:
            console.print(f"interrupted: {done} of {len(structures)} results are complete")
            return INTERRUPTED
    if failed:
        console.print(f"{failed} of {len(structures)} files failed", style="red")
    return (SOME_FAILED if done else FAILED) if failed else DONE


def _is_on(mode: str, options: ScoreOptions) -> bool:
    return bool(getattr(options, mode.replace("-", "_"), False))


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


def _load(options: RunOptions) -> Model:
    from mpnn.design import load

    model = load(options.weights, options.engine, options.device)
    for note in model.notes:
        sys.stderr.write(f"{note}\n")
    return model


def _rule_book(
    structures: Sequence[Path], rules: Mapping[str, Any], options: RunOptions
) -> RuleBook:
    published = options.published_rules or ()
    return RuleBook(structures, rules, published, options.rules, options.fixed_labels)


def _read(path: Path, book: RuleBook, options: RunOptions) -> tuple[Backbone, Rules]:
    """A structure, with notes about its rules, and its rules."""
    model = options.structure_model
    backbone = read_structure(path, model=model, split_breaks=options.split_breaks)
    rules, notes = book.rules(path, backbone)
    return dataclasses.replace(backbone, notes=(*backbone.notes, *notes)), rules


def _about(file: Path, message: str) -> str:
    """The message, with the file's name in front unless it contains it."""
    return message if str(file) in message else f"{file}: {message}"


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


def _deliver(text: str, out: str, name: str, first: bool) -> str:
    """Writes or prints one result; returns the end of its log line."""
    if out != STDOUT:
        path = Path(out, name)
        write_whole(path, text)
        return f" -> {path}"
    is_table = name.endswith(".csv")
    try:
        sys.stdout.write(text if first or not is_table else text.split("\n", 1)[1])  # one heading
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe
        raise
    except UnicodeEncodeError as error:
        raise InputError(f"cannot be printed ({error}); set PYTHONIOENCODING=utf-8") from error
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit fails, too
        raise _NoOutputError(f"standard output cannot be written ({error.strerror})") from error
    return ""
