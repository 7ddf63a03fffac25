"""Results as files: FASTA, JSON, CSV, and npz of log-probabilities."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mpnn.config import ALPHABET
from mpnn.errors import InputError
from mpnn.results import Design, Designs, Score, Scores, rounded

SUFFIX = {"fasta": ".fa", "json": ".json", "csv": ".csv", "jsonl": ".jsonl"}
"""Formats of one file for each structure, and its ending."""

DESIGN_COLUMNS = (
    "name", "seed", "temperature", "sample", "score", "global_score", "seq_recovery", "sequence",
    "confidence", "residue_scores",
)  # fmt: skip
SCORE_COLUMNS = (
    "name", "record", "seed", "chain", "number", "insertion_code", "letter", "designed", "log_p",
    *(f"p_{letter}" for letter in ALPHABET), "confidence",
)  # fmt: skip


def render_designs(designs: Designs, form: str, model_name: str, version: str) -> str:
    """The designs of one structure as a whole file.

    Args:
        designs: what `Model.design` returned.
        form: a key of `SUFFIX`. JSON lines are of one design each. In CSV, residue_scores are
            −log p separated by spaces, one for each character of the sequence, nan where masked
            and "/" between chains.
        model_name: what the weights are called.
        version: of this program; stands under git_hash in FASTA headers.
    """
    if form == "fasta":
        return design_fasta(designs, model_name, version)
    if form == "json":
        return _json({"model_name": model_name, "version": version, **designs.to_dict()})
    if form == "jsonl":
        about = {"name": designs.backbone.name, "model_name": model_name}
        return "".join(_json(about | row) for row in design_records(designs))
    return _csv(DESIGN_COLUMNS, _design_rows(designs))


def design_records(designs: Designs) -> list[dict[str, Any]]:
    """A record for each design: what it was keyed by, its scores and its sequence."""
    return [
        {
            "seed": design.seed,
            "temperature": design.temperature,
            "sample": design.sample,
            "score": rounded(design.score),
            "global_score": rounded(design.global_score),
            "seq_recovery": rounded(design.recovery),
            "confidence": rounded(design.confidence),
            "sequence": designs.printed(design.sequence),
        }
        for design in designs
    ]


def score_records(scores: Scores, labels: Sequence[str]) -> list[dict[str, Any]]:
    """A record for each score; labels are of the sequences."""
    names = [*labels] * (len(scores.scores) // len(labels))
    return [
        {
            "record": name,
            "seed": score.seed,
            "score": rounded(score.score),
            "global_score": rounded(score.global_score),
            "perplexity": rounded(score.perplexity),
            "sequence": scores.printed(score.sequence),
        }
        for name, score in zip(names, scores.scores, strict=True)
    ]


def _design_rows(designs: Designs) -> Iterator[list[object]]:
    chains = [designs.chain_slices()[name] for name in designs.designed_chains]
    for design in designs:
        scores = [" ".join(f"{x:.4f}" for x in design.residue_scores[part]) for part in chains]
        yield [
            designs.backbone.name,
            design.seed,
            design.temperature,
            design.sample,
            *(rounded(x) for x in (design.score, design.global_score, design.recovery)),
            designs.printed(design.sequence),
            rounded(design.confidence),
            " / ".join(scores),
        ]


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
            f"git_hash={version}, seed={native.seed}, confidence={native.confidence:.4f}",
            designs.printed(native.sequence),
        ]
        for design in designs:
            if design.seed == native.seed:
                lines += [
                    f">T={design.temperature}, sample={design.sample}, {_scores(design)}, "
                    f"seq_recovery={design.recovery:.4f}, confidence={design.confidence:.4f}",
                    designs.printed(design.sequence),
                ]
    return "\n".join(lines) + "\n"


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
        return _json({"model_name": model_name, "version": version, **scores.to_dict(names)})
    return "".join(
        f">{label}, {_scores(score)}, perplexity={score.perplexity:.4f}, mode={scores.mode}, "
        f"model_name={model_name}, git_hash={version}, seed={score.seed}, "
        f"confidence={score.confidence:.4f}\n"
        f"{scores.printed(score.sequence)}\n"
        for label, score in zip(labels, scores.scores, strict=True)
    )


def _residue_rows(scores: Scores, labels: Sequence[str]) -> Iterator[list[object]]:
    backbone = scores.backbone
    for label, score in zip(labels, scores.scores, strict=True):
        for i in np.flatnonzero(scores.computed):
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
                rounded(score.confidence),
            ]


def probabilities(results: Designs | Scores) -> bytes:
    """Log-probabilities of all designs or scores of one structure, as the content of an npz file.

    Keys: `log_probs` float32 [N, L, 21] of every residue type, without temperature and bias: of
    designs when the residue was sampled; `S` int64 [N, L] residue types of the sequences; `mask`
    bool [L], False where log-probabilities mean nothing; `chain`, `residue_number` and
    `insertion_code` [L]; `alphabet`, 21 one-letter codes; `temperature` (NaN for scores) and `seed`
    [N]. Rows are in the order of the other formats.

    Raises:
        InputError: `Model.design` was not to keep log-probabilities.
    """
    if isinstance(results, Designs):
        if results.log_probs is None:
            raise InputError("log-probabilities were not kept; design with keep_log_probs=True")
        records: Sequence[Design | Score] = results.designs
        log_probs, mask = results.log_probs, results.backbone.mask
        temperature = [design.temperature for design in results]
    else:
        records, mask = results.scores, results.computed
        log_probs = np.stack([score.log_probs for score in results.scores])
        temperature = [np.nan] * len(records)
    backbone, content = results.backbone, io.BytesIO()
    np.savez(
        content,
        log_probs=log_probs.astype(np.float32, copy=False),
        S=np.array([[ALPHABET.index(x) for x in record.sequence] for record in records]),
        mask=mask,
        chain=np.array(backbone.chain_ids)[backbone.chain_index],
        residue_number=backbone.numbers,
        insertion_code=backbone.insertion_codes,
        alphabet=np.array(ALPHABET),
        temperature=np.array(temperature),
        seed=np.array([record.seed for record in records]),
    )
    return content.getvalue()


def _scores(record: Score | Design) -> str:
    return f"score={record.score:.4f}, global_score={record.global_score:.4f}"


def _json(record: dict[str, Any]) -> str:
    """One line, so that files can be joined."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
