"""The stored study of scaling: nearness to the bound as a table, two figures over the length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mpnn.regression import charts
from mpnn.regression.baselines import stored_study
from mpnn.regression.table import markdown, seconds

STUDY = "scaling.json"
HEADINGS = (
    "residues",
    "sequences",
    "multiply-adds",
    "its products alone",
    "whole job",
    "of the bound",
    "peak memory",
)
GIGA = 1e9

Study = Mapping[str, int | float]


def scaling_markdown(folder: Path) -> str:
    """One row for each length and number of sequences; '' if there is no study."""
    study = stored_study(folder / STUDY)
    if not study:
        return ""
    found = study["points"]
    caption = (
        f"The exact engine, baseline network, made-up backbones, {found[0]['threads']} thread(s); "
        f"torch {study['torch']}, commit {study['commit'][:8]}, {study['date']}. "
        "*Its products alone* are the matrix products that no exact engine avoids, timed between "
        "runs of the job; the rest of the time is GELU, gathers, LayerNorm, radial functions, "
        "and for short chains the interpreter between them."
    )
    return f"{caption}\n\n{markdown(HEADINGS, (_cells(p) for p in found))}"


def _cells(point: Study) -> tuple[str, ...]:
    return (
        str(point["length"]),
        str(point["samples"]),
        f"{point['multiply_adds'] / GIGA:.1f} G",
        seconds(point["products_seconds"]),
        seconds(point["seconds"]),
        f"{point['products_seconds'] / point['seconds']:.0%}",
        f"{point['peak_bytes'] / GIGA:.2f} GB",
    )


def figures(folder: Path) -> str:
    """Time per residue and peak memory over the length, a line for each number of sequences."""
    study = stored_study(folder / STUDY)
    if not study:
        return "<p>Scaling was not studied on this machine: `tox -e scaling` does it.</p>"
    found = study["points"]
    time = [(p, p["seconds"] / (p["length"] * p["samples"]) * 1e6) for p in found]
    memory = [(p, p["peak_bytes"] / GIGA) for p in found]
    return _figure(time, "µs a residue and sequence") + _figure(memory, "peak memory, GB")


def _figure(values: Sequence[tuple[Study, float]], title: str) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for point, value in values:
        name = f"{point['samples']} sequence{'s' if point['samples'] > 1 else ''}"
        lines.setdefault(name, []).append((point["length"], value))
    return charts.svg(charts.series_figure("residues", title, lines), title)
