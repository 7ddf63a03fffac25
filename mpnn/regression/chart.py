"""The charts of the report page as Vega-Lite specifications: data in, plain dictionaries out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mpnn.regression.claims import Compare
from mpnn.regression.report import Entry
from mpnn.regression.tables import bracket, times

Spec = dict[str, Any]

SAME, OTHER, REFERENCE = "same sequences", "another network", "reference"
EVERY = "every job"
LETTER, LINE = 0.028, 0.7
"""Size of a letter of a label, in ln(speed-up) and points of recovery, where the page is wide."""

EXTENT = 45
"""Pixels left of each chart, the same so that charts below each other share their axis."""

STEPS = "neighbors-"
"""Workloads that are a step of the network and so have no recovery."""

COLORS = ("#3b82f6", "#e8750a", "#16a085", "#c0478f", "#8b6fd6", "#a8862a", "#d4504c", "#4f9fb5")
"""Readable on white and on black; the shape of a mark says its kind a second time."""

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "text": {"color": "currentColor"},
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor", "tickColor"), "currentColor"),
        "domainColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "domainOpacity": 0.4,
        "tickOpacity": 0.4,
        "labelLimit": 150,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "symbolSize": 90,
        "symbolOpacity": 1,
        "orient": "bottom",
        "layout": {"bottom": {"direction": "vertical"}},
    },
}
"""Text and lines take the color of the page's text, so that one drawing suits light and dark."""


def measured_points(entries: Sequence[Entry], baseline: float | None) -> list[dict[str, Any]]:
    """Whole jobs with their speed-up and recovery in per cent.

    Args:
        entries: the claims of one machine.
        baseline: recovery of the reference; where known, claims of equal sequences have it too.
    """
    points: list[dict[str, Any]] = []
    for entry in entries:
        row, claim, figures = entry.row, entry.claim, entry.figures
        step = claim.workload.startswith(STEPS)
        if row is None or claim.timed_as or "@" in claim.id or step or not row.accuracy.passed:
            continue
        same = claim.compare is Compare.EQUAL and claim.reference.startswith("baseline")
        recovery = figures.get("recovery", baseline if same else None)
        if recovery is None:
            continue
        points.append({
            **_mark(entry, times(row.speedup), row.speedup),
            "low": row.interval[0], "high": row.interval[1], "recovery": recovery,
            "recovery_low": figures.get("recovery_low", recovery),
            "recovery_high": figures.get("recovery_high", recovery),
            "speed-up": f"{times(row.speedup)} {bracket(*row.interval)}",
            "kind": SAME if same else OTHER,
            "job": claim.workload,
            "label": "" if same else claim.id,
        })  # fmt: skip
    if points and baseline is not None:
        points.append({
            "claim": "baseline", "what": "the published network as published", "times": 1.0,
            "low": 1.0, "high": 1.0, "recovery": baseline, "speed-up": "1×",
            "recovery_low": baseline, "recovery_high": baseline, "accuracy": "–",
            "kind": REFERENCE, "job": EVERY, "label": "baseline", "device": "–",
        })  # fmt: skip
    return _without_overlap(points)


def _without_overlap(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out labels that would cover a mark or another label."""
    placed = [(math.log(p["times"]), p["recovery"], math.log(p["times"])) for p in points]
    for point in sorted(points, key=lambda p: len(p["label"])):
        x, y = math.log(point["times"]), point["recovery"]
        end = x + LETTER * (len(point["label"]) + 3)
        if any(abs(y - b) < LINE and x < other_end and a < end for a, b, other_end in placed):
            point["label"] = ""
        elif point["label"]:
            placed.append((x, y, end))
    return points


def published_points(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every published ratio with the unit that it was measured on, measured here or not."""
    points = []
    for entry in entries:
        published = entry.claim.published
        if published is None or published.speedup is None or "@" in entry.claim.id:
            continue
        points.append({
            **_mark(entry, times(published.speedup), published.speedup),
            "unit": published.unit, "device": published.device, "speed": published.speed,
            "recovery": re.sub("^[–-]$", "not measured", published.recovery),
            "here": entry.measured,
        })  # fmt: skip
    return points


def _mark(entry: Entry, ratio: str, speedup: float) -> dict[str, Any]:
    """What every mark says of its claim."""
    return {
        "claim": entry.claim.id,
        "what": entry.claim.what,
        "times": speedup,
        "speed-up": ratio,
        "accuracy": entry.accuracy,
        "device": entry.device,
        "verdict": entry.verdict().replace("*", ""),
    }


def speed_against_recovery(points: Sequence[Mapping[str, Any]], domain: list[float]) -> Spec:
    """Recovery over speed-up, a mark for each claim; a job of the legend can be singled out."""
    lows, highs = ([p[k] for p in points] for k in ("recovery_low", "recovery_high"))
    y_scale = {"domain": [min(lows) - 0.5, max(highs) + 0.5], "nice": False}
    y = {"field": "recovery", "type": "quantitative", "scale": y_scale}
    across = {"x": _speed("low", domain), "x2": {"field": "high"}}
    upright = {"y": {**y, "field": "recovery_low"}, "y2": {"field": "recovery_high"}}
    jobs = list(dict.fromkeys(p["job"] for p in points))
    colors = ["gray" if job == EVERY else COLORS[i % len(COLORS)] for i, job in enumerate(jobs)]
    title = {"title": "recovery on TS50, %", "axis": {"minExtent": EXTENT, "maxExtent": EXTENT}}
    return {
        "width": "container",
        "height": 340,
        "data": {"values": list(points)},
        "encoding": {
            "x": _speed("times", domain, title="speed-up over the reference (log)"),
            "y": {**y, **title},
            "color": {
                "field": "job",
                "scale": {"domain": jobs, "range": colors},
                "legend": {"title": "job (click to single out)"},
            },
        },
        "layer": [_interval(across), _interval(upright), _marks(), _labels()],
    }


def _interval(ends: Spec) -> Spec:
    """A line from end to end."""
    mark = {"type": "rule", "strokeWidth": 1.5}
    return {"mark": mark, "encoding": {**ends, "opacity": _singled_out(0.45)}}


def _marks() -> Spec:
    """A mark for each claim, its shape by what stands for its accuracy."""
    kinds = {"domain": [SAME, OTHER, REFERENCE], "range": ["circle", "square", "cross"]}
    legend = {"title": "accuracy", "symbolFillColor": "currentColor"}
    shown = ("claim", "what", "job", "speed-up", "accuracy", "device", "verdict")
    job = {"name": "job", "select": {"type": "point", "fields": ["job"]}, "bind": "legend"}
    return {
        "params": [job],
        "mark": {"type": "point", "filled": True, "size": 95, "strokeWidth": 1},
        "encoding": {
            "shape": {"field": "kind", "scale": kinds, "legend": legend},
            "opacity": _singled_out(0.9),
            "tooltip": _tooltip(*shown),
        },
    }


def _labels() -> Spec:
    """Names beside the marks, where the page is wide enough."""
    mark = {"type": "text", "align": "left", "dx": 9, "dy": 1, "fontSize": 12}
    text = {"condition": {"test": "width > 600", "field": "label"}, "value": ""}
    return {"mark": mark, "encoding": {"text": text, "color": None, "opacity": _singled_out(0.9)}}


def _singled_out(opacity: float) -> Spec:
    """Marks of other jobs fade once a job of the legend was chosen."""
    return {"condition": {"param": "job", "value": opacity}, "value": opacity / 8}


def published_strip(points: Sequence[Mapping[str, Any]], domain: list[float]) -> Spec:
    """Published speed-ups on the same axis, a line for each unit that they were measured on."""
    fields = ("claim", "what", "speed-up", "speed", "recovery", "device", "here")
    axis: Spec = {
        "minExtent": EXTENT,
        "maxExtent": EXTENT,
        "grid": True,
        "ticks": False,
        "domain": False,
    }
    inside: Spec = {
        "labelAlign": "left",
        "labelPadding": -4,
        "labelBaseline": "bottom",
        "labelOffset": -3,
    }
    return {
        "width": "container",
        "height": 34 * len({p["unit"] for p in points}),
        "data": {"values": list(points)},
        "mark": {"type": "point", "shape": "diamond", "size": 95, "strokeWidth": 1.8, "opacity": 1},
        "encoding": {
            "x": _speed("times", domain, title="published speed-up (log)"),
            "y": {"field": "unit", "title": " ", "axis": axis | inside},
            "color": {"value": COLORS[3]},
            "tooltip": _tooltip(*fields),
        },
    }


def history() -> Spec:
    """Speed-up of one claim over its recordings with intervals; the page adds the data."""
    x = {
        "field": "recording",
        "sort": None,
        "title": None,
        "axis": {"labelAngle": 0, "labelOverlap": True},
    }
    y = {"type": "quantitative", "scale": {"type": "log", "nice": False, "padding": 12}}
    title = {"title": "speed-up (log)", "axis": {"format": "~g", "tickCount": 5}}
    interval = {"y": {**y, **title, "field": "low"}, "y2": {"field": "high"}}
    shown = {"y": {**y, **title, "field": "times"}}
    tooltip = {"tooltip": _tooltip("recorded", "commit", "speed-up", "verdict")}
    return {
        "width": "container",
        "height": 150,
        "data": {"values": []},
        "encoding": {"x": x, "color": {"value": COLORS[0]}},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5}, "encoding": interval},
            {"mark": {"type": "line", "opacity": 0.6}, "encoding": shown},
            {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": shown | tooltip},
        ],
    }


def shared_domain(*groups: Sequence[Mapping[str, Any]]) -> list[float]:
    """One axis of speed-ups for several charts, with room on both sides."""
    values = [
        p[key] for group in groups for p in group for key in ("times", "low", "high") if key in p
    ]
    return [min([0.8, *values]) / 1.1, max([2.0, *values]) * 1.25]


def _speed(field: str, domain: list[float], **more: Any) -> Spec:
    """A logarithmic axis of ratios."""
    scale = {"type": "log", "domain": domain, "nice": False}
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    axis = {"values": ticks, "labelExpr": "datum.value + '×'", "labelOverlap": True}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis, **more}


def _tooltip(*fields: str) -> list[Spec]:
    return [{"field": name, "type": "nominal"} for name in fields]
