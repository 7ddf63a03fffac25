"""The stored measurements of recovery, and of what a teacher is worth, as tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpnn.download import PUBLISHED
from mpnn.regression.baselines import stored_study
from mpnn.regression.table import WIDTH, markdown, plain

STUDY = "recovery.json"
HEADINGS = (
    "weights",
    "run with",
    "recovery, %",
    "against, points",
    "perplexity",
    "top-1, %",
    "overconfident by, points",
    "calibration error, points",
    "samples differ, %",
)
PLAIN_HEADINGS = ("weights", "run with", "recovery, %", "perplexity", "top-1, %")
BESIDE = ("network", "recovery on TS50, %", "conditions", "source")

OTHERS = (
    ("KW-Design", "60+", "a protein language model refines; as published", "arXiv:2305.15151"),
    ("PiFold", "58.72", "one pass, trained on CATH 4.2; as published", "arXiv:2209.12643"),
)
"""Recovery on TS50 in the words of others' abstracts, highest first, and its conditions."""

OURS = "trained here on 3,056 clusters that share none with TS50, taught by `v_48_002`"
SEEN = "trained on the PDB of 2021, which holds proteins like these"

DISTILLATION = "distillation.json"
ARMS = {
    "plain": "the native letters alone",
    "kept": "the teacher's kept distributions too",
    "asked": "its distributions, asked for every crop",
    "hidden": "its hidden vectors too, asked for every crop",
}
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
ARM_HEADINGS = (
    *("learns", "CPU seconds", "for answers", "steps", "million residues", "a second of training"),
    *("recovery, %", "against plain, points", "perplexity", "top-1, %"),
)


def recovery_markdown(root: Path) -> str:
    """One row for each network and way of running it; '' if nothing was measured."""
    study = stored_study(root / STUDY)
    if not study:
        return ""
    rows = study["rows"].values()
    samples = ", ".join(sorted({str(row["samples"]) for row in rows}))
    caption = (
        f"Recovery on {study['set']}: {samples} samples of each, mean over proteins with its 95 % "
        "bootstrap interval over proteins; differences are paired, on the same noise and, but "
        "for the row that names another, in the same orders. "
        "Perplexity, top-1 and calibration are teacher-forced under the same orders: overconfident "
        "is the mean probability of the likeliest letter above top-1, the calibration error the "
        "expected one over ten bins of it. The published weights have seen proteins like these in "
        "training."
    )
    beside = (
        "The same networks beside what the abstracts of others state, whose mean or median, and "
        "letters drawn or likeliest, may be others than here:"
    )
    tables = markdown(HEADINGS, _cells(rows)), beside, markdown(BESIDE, _beside(rows))
    return f"{caption}\n\n" + "\n\n".join(tables)


def stored_recovery(root: Path) -> str:
    """The main columns for a terminal, said to be stored; '' if nothing was measured."""
    study = stored_study(root / STUDY)
    if not study:
        return ""
    rows = study["rows"].values()
    caption = (
        f"Stored in {root.name}/{STUDY}, not measured here: recovery on {study['set']}, mean over "
        "proteins with its 95 % bootstrap interval over proteins."
    )
    columns = [HEADINGS.index(heading) for heading in PLAIN_HEADINGS]
    cells = ([cell[i].strip("`") for i in columns] for cell in _cells(rows))
    return f"{textwrap.fill(caption, WIDTH)}\n{plain(PLAIN_HEADINGS, cells)}"


def distillation_markdown(root: Path) -> str:
    """A student with a teacher beside the same student without one; '' if it was not studied."""
    study = stored_study(root / DISTILLATION)
    if not study:
        return ""
    mutations = max(row["mutations"] for row in study["arms"].values())
    caption = (
        f"What a teacher is worth at equal cost: `{study['architecture']}` from the same random "
        f"weights, {study['seconds']:,.0f} CPU seconds of one core for each arm, in which the work "
        f"of the teacher `{study['teacher']}` is paid for; one run of each, products in "
        f"{study['precision']}, matrices of layers trained by {OPTIMIZERS[study['optimizer']]}. "
        f"Kept answers are of one chain of a cluster in {study['orders']} orders; the others draw "
        "new ones each time, and a teacher that is asked about every crop replaces "
        f"{mutations:.0%} of its letters by its own. Measured on {study['set']}, as above; the "
        f"interval is over proteins, not over runs. {study['hardware']}, {study['date']}."
    )
    return f"{caption}\n\n{markdown(ARM_HEADINGS, _arm_cells(study['arms']))}"


def _arm_cells(arms: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, row in arms.items():
        answers, total = row["answers_seconds"], row["answers_seconds"] + row["training_seconds"]
        yield (
            ARMS[name],
            f"{total:,.0f}",
            "within training" if row["mutations"] else f"{answers / total:.0%}",
            f"{row['steps']:,}",
            f"{row['residues'] / 1e6:.2f}",
            f"{row['residues'] / row['training_seconds']:,.0f}",
            _percent(row["recovery"]),
            _percent(row["difference"]["recovery"], "+") if "difference" in row else "–",
            f"{row['perplexity']:.2f}",
            f"{100 * row['top1']['mean']:.1f}",
        )


def _cells(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for row in rows:
        ways = [
            f"k={row['k']}" if row["k"] else "",
            f"{row['order']} order" if row["order"] != "random" else "",
            f"T={row['temperature']}",
        ]
        difference = row.get("difference")
        yield (
            f"`{row['weights']}`",
            ", ".join(filter(None, ways)),
            _percent(row["recovery"]),
            "–" if difference is None else _difference(difference, row["against"]),
            f"{row['perplexity']:.2f}",
            f"{100 * row['top1']['mean']:.1f}",
            _percent(row["overconfidence"], "+") if "overconfidence" in row else "–",
            f"{100 * row['calibration_error']:.1f}" if "calibration_error" in row else "–",
            f"{100 * row['diversity']:.1f}",
        )


def _beside(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    """What others published, and every network as it is, highest recovery first."""
    yield from OTHERS
    plain = [r for r in rows if not r["k"] and (r["order"], r["temperature"]) == ("random", 0.1)]
    for row in sorted(plain, key=lambda row: -row["recovery"]["mean"]):
        theirs = row["weights"] in PUBLISHED
        conditions = f"{row['samples']} samples at T=0.1; {SEEN if theirs else OURS}"
        yield f"`{row['weights']}`", _percent(row["recovery"]), conditions, "measured here"


def _difference(difference: Mapping[str, Any], against: str) -> str:
    return f"{_percent(difference['recovery'], '+')} `{against.split()[0]}`"


def _percent(interval: Mapping[str, float], sign: str = "") -> str:
    mean, low, high = (f"{100 * interval[key]:{sign}.1f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
