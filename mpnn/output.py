"""Results as text: FASTA, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpnn.config import ALPHABET
from mpnn.results import Design, Designs, Score, Scores, Target

SUFFIX = {"fasta": ".fa", "json": ".json", "csv": ".csv"}
"""Formats and the endings of their files."""

DESIGN_COLUMNS = (
    "name", "seed", "temperature", "sample", "score", "global_score", "seq_recovery", "sequence",
)  # fmt: skip
SCORE_COLUMNS = (
    "name", "record", "seed", "chain", "number", "insertion_code", "letter", "designed", "log_p",
    *(f"p_{letter}" for letter in ALPHABET),
)  # fmt: skip


def render_designs(designs: Designs, form: str, model_name: str, version: str) -> str:
    """The designs of one structure as a whole file.

    Args:
        designs: what `Model.design` returned.
        form: a key of `SUFFIX`.
        model_name: what the weights are called.
        version: of this program; stands under git_hash in FASTA headers.
    """
    if form == "fasta":
        return design_fasta(designs, model_name, version)
    if form == "json":
        return _json(design_record(designs, model_name, version))
    name = designs.backbone.name
    rows = [[name, *_fields(design), designs.printed(design.sequence)] for design in designs]
    return _csv(DESIGN_COLUMNS, rows)


def design_fasta(designs: Designs, model_name: str, version: str) -> str:
    """The published form: for each seed the native sequence, then its samples.

    Sequences show the designed chains, joined by "/", with X at gaps.
    """
    lines = []
    for native in designs.native:
        lines += [
            f">{designs.backbone.name}, {_scores(native)}, "
            f"fixed_chains={list(designs.fixed_chains)}, "
            f"designed_chains={list(designs.designed_chains)}, model_name={model_name}, "
            f"git_hash={version}, seed={native.seed}",
            designs.printed(native.sequence),
        ]
        for design in designs:
            if design.seed == native.seed:
                lines += [
                    f">T={design.temperature}, sample={design.sample}, {_scores(design)}, "
                    f"seq_recovery={design.recovery:.4f}",
                    designs.printed(design.sequence),
                ]
    return "\n".join(lines) + "\n"


def design_record(designs: Designs, model_name: str, version: str) -> dict[str, Any]:
    """The designs of one structure as an object of JSON."""
    return {
        **_about(designs, model_name, version),
        "native": [
            {
                "seed": native.seed,
                "score": _number(native.score),
                "global_score": _number(native.global_score),
                "chains": designs.by_chain(native.sequence),
            }
            for native in designs.native
        ],
        "designs": [
            {
                **dict(zip(DESIGN_COLUMNS[1:], _fields(design), strict=False)),
                "chains": designs.by_chain(design.sequence),
            }
            for design in designs
        ],
    }


def render_scores(
    scores: Scores, names: Sequence[str], form: str, model_name: str, version: str
) -> str:
    """The scores of one structure as a whole file.

    Args:
        scores: what `Model.score_many` returned.
        names: one for each sequence.
        form: "csv" has one row for each residue with coordinates, "json" everything, "fasta" the
            sequences with their scores.
        model_name: what the weights are called.
        version: of this program.
    """
    labels = [*names] * (len(scores.scores) // len(names))
    if form == "csv":
        return _csv(SCORE_COLUMNS, _residue_rows(scores, labels))
    if form == "json":
        return _json(_score_record(scores, labels, model_name, version))
    return "".join(
        f">{label}, {_scores(score)}, perplexity={score.perplexity:.4f}, mode={scores.mode}, "
        f"model_name={model_name}, git_hash={version}, seed={score.seed}\n"
        f"{scores.printed(score.sequence)}\n"
        for label, score in zip(labels, scores.scores, strict=True)
    )


def _score_record(
    scores: Scores, labels: Sequence[str], model_name: str, version: str
) -> dict[str, Any]:
    backbone = scores.backbone
    return {
        **_about(scores, model_name, version),
        "mode": scores.mode,
        "alphabet": ALPHABET,
        "residues": [backbone.address(i) for i in range(len(backbone))],
        "scores": [
            {
                "record": label,
                "seed": score.seed,
                "score": _number(score.score),
                "global_score": _number(score.global_score),
                "perplexity": _number(score.perplexity),
                "chains": scores.by_chain(score.sequence),
                "log_probs": [
                    row if known else None
                    for row, known in zip(
                        np.round(score.log_probs.astype(float), 6).tolist(),
                        computed(scores).tolist(),
                        strict=True,
                    )
                ],
            }
            for label, score in zip(labels, scores.scores, strict=True)
        ],
    }


def computed(scores: Scores) -> NDArray[np.bool_]:
    """Residues whose log-probabilities mean something, bool [L]."""
    return scores.designed if scores.mode == "conditional" else scores.backbone.mask


def _residue_rows(scores: Scores, labels: Sequence[str]) -> Iterator[list[object]]:
    backbone = scores.backbone
    for label, score in zip(labels, scores.scores, strict=True):
        for i in np.flatnonzero(computed(scores)):
            letter, log_probs = score.sequence[i], score.log_probs[i].astype(float)
            yield [
                backbone.name,
                label,
                score.seed,
                backbone.chain_ids[backbone.chain_index[i]],
                backbone.numbers[i],
                backbone.insertion_codes[i],
                letter,
                int(scores.designed[i]),
                f"{log_probs[ALPHABET.index(letter)]:.6f}",
                *(f"{p:.6g}" for p in np.exp(log_probs)),
            ]


def _about(target: Target, model_name: str, version: str) -> dict[str, Any]:
    backbone = target.backbone
    return {
        "name": backbone.name,
        "designed_chains": list(target.designed_chains),
        "fixed_chains": list(target.fixed_chains),
        "fixed_residues": [
            backbone.address(int(i))
            for i in np.flatnonzero(backbone.mask & ~target.designed)
            if backbone.chain_ids[backbone.chain_index[i]] in target.designed_chains
        ],
        "notes": list(backbone.notes),
        "model_name": model_name,
        "version": version,
    }


def _scores(record: Score | Design) -> str:
    return f"score={record.score:.4f}, global_score={record.global_score:.4f}"


def _fields(design: Design) -> list[object]:
    return [
        design.seed,
        design.temperature,
        design.sample,
        round(design.score, 6),
        round(design.global_score, 6),
        round(design.recovery, 6),
    ]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, 6)


def _json(record: dict[str, Any]) -> str:
    """One line, so that files can be joined."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
