"""The stored studies as tables: recovery, distillation, scaling, the gate's error rates."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpnn.download import PUBLISHED
from mpnn.regression.baselines import stored_study
from mpnn.regression.tables import WIDTH, markdown, plain, seconds

RECOVERY = "recovery.json"
HEADINGS = (
    "weights",
    "run with",
    "recovery, %",
    "against, points",
    "perplexity",
    "top-1, %",
    "overconfidence, points",
    "calibration error, points",
    "diversity, %",
)
PLAIN_HEADINGS = ("weights", "run with", "recovery, %", "perplexity", "top-1, %")
ORDERS = {"coloured": "graph-coloring"}
BESIDE = ("network", "recovery on TS50, %", "conditions", "source")

OTHERS = (
    ("KW-Design", "60+", "a protein language model refines; as published", "arXiv:2305.15151"),
    ("PiFold", "58.72", "one pass, trained on CATH 4.2; as published", "arXiv:2209.12643"),
)
"""Recovery on TS50 as the abstracts of others state it, highest first, and its conditions."""

OURS = "trained here on 3,056 clusters that share none with TS50, distilled from `v_48_002`"
SEEN = "trained on the PDB of 2021, which holds similar proteins"

DISTILLATION = "distillation.json"
ARMS = {
    "plain": "native sequences alone",
    "kept": "cached teacher outputs too",
    "asked": "outputs of an online teacher",
    "hidden": "outputs and hidden states of an online teacher",
}
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
ARM_HEADINGS = (
    *("trained on", "CPU seconds", "for the teacher", "steps", "million residues"),
    "residues per second of training",
    *("recovery, %", "against plain, points", "perplexity", "top-1, %"),
)


def recovery_markdown(root: Path) -> str:
    """One row for each network and way of running it; '' if nothing was measured."""
    study = stored_study(root / RECOVERY)
    if not study:
        return ""
    rows = study["rows"].values()
    samples = ", ".join(sorted({str(row["samples"]) for row in rows}))
    caption = (
        f"Recovery on {study['set']}: {samples} samples of each, mean over proteins with its 95 % "
        "bootstrap interval over proteins; differences are paired, on the same noise and, but "
        "for the row that names another, in the same orders. "
        "Perplexity, top-1 and calibration are teacher-forced in the same orders: overconfidence "
        "is the mean top-1 probability minus top-1 accuracy, the calibration error the expected "
        "one over ten bins of that probability. The published weights have seen similar proteins "
        "in training."
    )
    beside = (
        "The same networks beside what the abstracts of others state, which may be a median, "
        "or of top-1 residues instead of sampled ones:"
    )
    tables = markdown(HEADINGS, _cells(rows)), beside, markdown(BESIDE, _beside(rows))
    return f"{caption}\n\n" + "\n\n".join(tables)


def stored_recovery(root: Path) -> str:
    """The main columns for a terminal, marked as stored; '' if nothing was measured."""
    study = stored_study(root / RECOVERY)
    if not study:
        return ""
    rows = study["rows"].values()
    caption = (
        f"Stored in {root.name}/{RECOVERY}, not measured here: recovery on {study['set']}, mean "
        "over proteins with its 95 % bootstrap interval over proteins."
    )
    columns = [HEADINGS.index(heading) for heading in PLAIN_HEADINGS]
    cells = ([cell[i].strip("`") for i in columns] for cell in _cells(rows))
    return f"{textwrap.fill(caption, WIDTH)}\n{plain(PLAIN_HEADINGS, cells)}"


def distillation_markdown(root: Path) -> str:
    """A student with a teacher beside the same student without one; '' without a study."""
    study = stored_study(root / DISTILLATION)
    if not study:
        return ""
    mutations = max(row["mutations"] for row in study["arms"].values())
    caption = (
        f"Distillation at equal compute: `{study['architecture']}` from the same random weights, "
        f"{study['seconds']:,.0f} CPU seconds of one core for each arm, which include the work of "
        f"the teacher `{study['teacher']}`; one run of each, matmuls in {study['precision']}, "
        f"weight matrices trained by {OPTIMIZERS[study['optimizer']]}. Cached teacher outputs are "
        f"of one chain of a cluster in {study['orders']} orders; the other arms use new orders at "
        f"each step, and an online teacher replaces {mutations:.0%} of the residues of each crop "
        f"by its own. Measured on {study['set']}, as above; the interval is over proteins, not "
        f"over runs. {study['hardware']}, {study['date']}."
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
            f"{ORDERS.get(row['order'], row['order'])} order" if row["order"] != "random" else "",
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


SCALING = "scaling.json"
SCALING_HEADINGS = (
    *("residues", "sequences", "multiply-adds", "its matmuls alone", "whole job", "of the bound"),
    "peak memory",
)
GIGA = 1e9


def scaling_markdown(folder: Path) -> str:
    """The exact engine for each length and number of sequences; '' without a study.

    Args:
        folder: of one machine.
    """
    study = stored_study(folder / SCALING)
    if not study:
        return ""
    points = study["points"]
    caption = (
        f"The exact engine, baseline network, synthetic backbones, {points[0]['threads']} "
        f"thread(s); torch {study['torch']}, commit {study['commit'][:8]}, {study['date']}. "
        "*Its matmuls alone* are those that no exact engine avoids, timed between runs of the job; "
        "the rest of the time is GELU, gathers, LayerNorm, radial functions and, for short chains, "
        "the interpreter between them."
    )
    return f"{caption}\n\n{markdown(SCALING_HEADINGS, map(_scaling_cells, points))}"


def _scaling_cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(point["length"]),
        str(point["samples"]),
        f"{point['multiply_adds'] / GIGA:.1f} G",
        seconds(point["products_seconds"]),
        seconds(point["seconds"]),
        f"{point['products_seconds'] / point['seconds']:.0%}",
        f"{point['peak_bytes'] / GIGA:.2f} GB",
    )


CAMPAIGN = "campaign.json"
BACKBONES, CORES = 10**6, 1000


def campaign_markdown(folder: Path) -> str:
    """What a million backbones on a thousand cores would take; '' without a study.

    Args:
        folder: of one machine.
    """
    study = stored_study(folder / CAMPAIGN)
    if not study:
        return ""
    work = BACKBONES * study["worker_seconds"] / CORES
    one, many = (BACKBONES * study[f"{name}_seconds"] for name in ("coordinator", "dask"))
    cores = study["worker_seconds"] / study["coordinator_seconds"]
    caption = (
        f"A run of {BACKBONES:,} backbones of {study['length']} residues, {study['samples']} "
        f"sequences each, on {CORES:,} cores, computed from what one structure costs "
        f"(commit {study['commit'][:8]})."
    )
    rows = [
        ("the work, shared by all cores", seconds(study["worker_seconds"]), _duration(work)),
        ("one coordinator (`executor=`): list, send, receive, write",
         seconds(study["coordinator_seconds"]), _duration(one)),
        ("the same with Dask's scheduler in its process",
         seconds(study["dask_seconds"]), _duration(many)),
        (f"each of {CORES:,} shards as its own coordinator",
         seconds(study["coordinator_seconds"]), _duration(one / CORES)),
    ]  # fmt: skip
    breaks = (
        f"What breaks first is a single coordinator: it keeps about {cores:.0f} cores busy; beyond "
        f"that take shards. Then the folder: {BACKBONES:,} files and manifests of "
        f"{BACKBONES * study['manifest_bytes'] / GIGA:.1f} GB in all."
    )
    table = markdown(("part", "per structure", "in all"), rows)
    return f"{caption}\n\n{table}\n\n{breaks}"


def _duration(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


GATE = "gate-study.json"


def gate_markdown(root: Path) -> str:
    """The gate's own error rates; '' without a study."""
    study = stored_study(root / GATE)
    if not study:
        return ""
    rows = [
        (case["what"], str(case["sessions"]), case["found"], case["demand"])
        for case in study["cases"].values()
    ]
    table = markdown(("what was planted", "sessions", "found", "required"), rows)
    latest = max(case["date"] for case in study["cases"].values())
    return f"{table}\n\nMeasured on {study['hardware']}, {latest}."
