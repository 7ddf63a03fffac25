"""What `mpnn design` and `mpnn score` do, from their options to the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpnn import __version__, files
from mpnn.backbone import Backbone
from mpnn.design import Model, Progress, load
from mpnn.errors import InputError
from mpnn.options import DesignOptions, RunOptions, ScoreOptions
from mpnn.output import SUFFIX, render_designs, render_scores
from mpnn.results import Mode
from mpnn.sampling import check_sampling
from mpnn.structure import read_structure

VERSION = f"mpnn-{__version__}"


def design(paths: Sequence[str], options: DesignOptions) -> int:
    """Designs sequences for every structure; returns the exit code.

    Raises:
        InputError: nothing can be done at all: see `files.structure_files`, `mpnn.load`, `Rules`.
    """
    temperatures = files.numbers(options.temperature, float, "--temperature")
    seeds = files.numbers(options.seed, int, "--seed")
    # Refused once, not for every file.
    check_sampling(options.num_seqs, temperatures, seeds, options.batch_size)
    rules = {
        "chains": options.chains,
        "fixed": options.fixed,
        "tied": options.tied,
        "homo_oligomer": options.homo_oligomer,
        "omit": options.omit,
        "bias": options.bias,
        "omit_per_residue": files.read_json(options.omit_per_residue),
        "bias_per_residue": files.read_json(options.bias_per_residue),
    }
    structures = files.structure_files(paths, options.out)
    model = _load(options)

    def work(path: Path, advance: Progress) -> files.Result:
        backbone = read_structure(path, model=options.structure_model)
        designs = model.design(
            backbone,
            options.num_seqs,
            temperatures,
            seeds,
            options.batch_size,
            advance,
            options.order.value,
            **rules,
        )
        text = render_designs(designs, options.format, model.name, VERSION)
        return files.Result(text, _summary(f"{len(designs)} designs by {model.name}", backbone))

    return files.run(structures, work, options.out, SUFFIX[options.format])


def score(paths: Sequence[str], options: ScoreOptions) -> int:
    """Scores sequences on every structure; returns the exit code.

    Raises:
        InputError: nothing can be done at all, as in `design`.
    """
    if options.conditional and options.unconditional:
        raise InputError("--conditional and --unconditional exclude each other; give one")
    mode: Mode = "ordered"
    if options.conditional or options.unconditional:
        mode = "conditional" if options.conditional else "unconditional"
    seeds = files.numbers(options.seed, int, "--seed")
    records = None if options.fasta is None else files.read_fasta(options.fasta)
    sequences = None if records is None else [sequence for _, sequence in records]
    called = [f"record {name!r} of {options.fasta}" for name, _ in records or ()]
    rules = {"chains": options.chains, "fixed": options.fixed}
    structures = files.structure_files(paths, options.out)
    model = _load(options)

    def work(path: Path, advance: Progress) -> files.Result:
        backbone = read_structure(path, model=options.structure_model)
        scores = model.score_many(backbone, sequences, seeds, mode, advance, called, **rules)
        labels = [backbone.name] if records is None else [name for name, _ in records]
        text = render_scores(scores, labels, options.format, model.name, VERSION)
        first = scores.scores[0]
        what = f"score {first.score:.4f}, perplexity {first.perplexity:.2f} by {model.name}"
        if len(scores.scores) > 1:
            what = f"{len(scores.scores)} scores, the first: {what}"
        return files.Result(text, _summary(what, backbone))

    return files.run(structures, work, options.out, SUFFIX[options.format])


def _load(options: RunOptions) -> Model:
    return load(options.weights, options.engine, options.device)


def _summary(what: str, backbone: Backbone) -> str:
    """One line: what was done, and what reading the file did to its residues, in short."""
    return "; ".join([what, *(note.split(": ")[0] for note in backbone.notes)])
