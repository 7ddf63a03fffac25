"""The report page: tables, charts and history of the stored runs in one file that loads nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.baselines import Run
from mpnn.regression.report import (
    HEADINGS,
    Entry,
    bounds_markdown,
    caption,
    entries,
    parts_markdown,
    recovery_how,
    retired_markdown,
)
from mpnn.regression.tables import markdown
from mpnn.studies.tables import (
    distillation_markdown,
    gate_markdown,
    recovery_markdown,
    scaling_markdown,
)

try:
    from markdown_it import MarkdownIt
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
except ModuleNotFoundError as error:
    raise InputError(f"report: {error}; pip install 'mpnn[bench]'") from error

WIDTH = 7.5
"""Inches; the page shows 96 pixels to each."""

MARKERS = "os^DvP*"

styled = style.context([
    "default",
    {
        "figure.dpi": 72,
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "lines.linewidth": 1.2,
        "lines.markersize": 5,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "mpnn",
    },
])  # fmt: skip
"""The same look, and the same bytes, whatever the user's own settings of matplotlib are."""


@dataclass(frozen=True)
class Point:
    """One mark: where, its name, and its intervals (low, high) if it has any."""

    x: float
    y: float
    label: str
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def write_html(root: Path, path: Path) -> None:
    """Writes the self-contained page for all machines below `root`.

    Raises:
        InputError: no run is stored there.
    """
    folders = baselines.machines(root)
    if not folders:
        raise InputError(f"{root} holds no stored run; `tox -e record` stores one")
    parts = [_machine_section(folder) for folder in folders]
    for title, text in (
        ("Recovery", recovery_markdown(root)),
        ("Distillation", distillation_markdown(root)),
        ("The gate's error rates", gate_markdown(root)),
        ("Retired", retired_markdown(root)),
    ):
        if text:
            parts.append(f"<h2>{title}</h2>{html(text)}")
    write_whole(path, PAGE.replace("{{body}}", "\n".join(parts)))


def _machine_section(folder: Path) -> str:
    runs = baselines.history(folder)
    latest = runs[-1]
    found = entries(latest)
    synthetic = [entry for entry in found if "@" not in entry.claim.id]
    headings = (*HEADINGS[:5], "measured", "per protein", *HEADINGS[-2:])
    bounds = html(bounds_markdown(latest)) + html(parts_markdown(latest))
    sections = {
        "Speed against recovery": speed_against_recovery(synthetic),
        "Scaling": html(scaling_markdown(folder)),
        "The exact engine and its bound": bounds,
        "History": _history(runs),
    }
    head = f"{escape(caption(latest))} {escape(recovery_how(latest.rows.values()))}"
    table = html(markdown(headings, map(_cells, found)))
    return f"<h2>{escape(latest.hardware)}</h2><p>{head}</p>{table}" + "".join(
        f"<h3>{title}</h3>{text}" for title, text in sections.items() if text
    )


def _cells(entry: Entry) -> tuple[str, ...]:
    claim = entry.claim
    first = (f"`{claim.id}`", claim.what, entry.published, entry.target, entry.device)
    return (*first, entry.measured, entry.seconds, entry.accuracy, entry.verdict())


def html(text: str) -> str:
    """Markdown as HTML; wide tables scroll by themselves."""
    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    rendered = rendered.replace("<table>", "<div class='wide'><table>")
    return rendered.replace("</table>", "</table></div>")


def recovery_points(found: Iterable[Entry]) -> tuple[list[Point], list[Point]]:
    """Speed-ups with recoveries in per cent: the measured ones, and the published ones.

    The reference stands among the measured at 1× with the recovery that the rows are compared with.
    """
    measured, published, references = [], [], []
    for entry in found:
        claim, figures = entry.claim, entry.figures
        recovery = re.match(r"([\d.]+) %", claim.published.recovery) if claim.published else None
        if claim.published and claim.published.speedup and recovery:
            published.append(Point(claim.published.speedup, float(recovery[1]), claim.id))
        if entry.row is not None and "recovery" in figures and not claim.timed_as:
            ours, theirs = _recovery(figures, ""), _recovery(figures, "reference_")
            at = entry.row.speedup, ours[0]
            measured.append(Point(*at, claim.id, entry.row.interval, ours[1:]))
            references.append(Point(1.0, theirs[0], claim.reference, None, theirs[1:]))
    return [*dict.fromkeys(references), *measured], published


def _recovery(figures: Mapping[str, float], prefix: str) -> tuple[float, float, float]:
    """Mean and interval, in per cent."""
    names = ("recovery", "recovery_low", "recovery_high")
    mean, low, high = (figures[f"{prefix}{name}"] for name in names)
    return mean, low, high


def speed_against_recovery(found: Iterable[Entry]) -> str:
    """Measured points with intervals and their Pareto front, published points below them."""
    measured, published = recovery_points(found)
    note = "Published recoveries are of random weights, where chance is 5 %."
    if not measured:
        note += " No measured variant has a trained checkpoint in these runs."
    return f"{svg(recovery_figure(measured, published), 'Recovery over speed-up')}<p>{note}</p>"


@styled
def recovery_figure(measured: Sequence[Point], published: Sequence[Point]) -> Figure:
    """Recovery in per cent over speed-up: the measured points above the published ones.

    Every point has its name in the legend of its panel; a panel without points is left out.

    Raises:
        ValueError: there is no point at all.
    """
    panels = [("measured", measured), ("published", published)]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure((WIDTH, 2.9 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (what, points) in zip(every, panels, strict=True):
        if what == "measured":
            axes.plot(*zip(*pareto(points), strict=True), color="gray", label="Pareto front")
        for i, p in enumerate(points):
            color, marker = f"C{i % 10}", MARKERS[i % len(MARKERS)]
            for x, y in ((p.x_interval, (p.y, p.y)), ((p.x, p.x), p.y_interval)):
                if x and y:
                    axes.plot(x, y, color=color)
            axes.plot(p.x, p.y, f"{color}{marker}", label=p.label, linestyle="")
        axes.set(xscale="log", ylabel=f"{what} recovery, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    every[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    every[-1].xaxis.set_minor_formatter(NullFormatter())
    every[-1].xaxis.set_major_formatter("{x:g}")
    every[-1].set_xlabel("times as fast as the baseline")
    return figure


def pareto(points: Iterable[Point]) -> list[tuple[float, float]]:
    """Points that no other beats in both x and y, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not front or point.y > front[-1][1]:
            front.append((point.x, point.y))
    return front[::-1]


@styled
def svg(figure: Figure, title: str) -> str:
    """A figure as an SVG element; black becomes the color of the page's text.

    Args:
        figure: what to draw.
        title: of the chart, for screen readers.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Title": title, "Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def _history(runs: Sequence[Run]) -> str:
    """Speed-ups of each claim over the runs in which it was measured anew, oldest first."""
    past: dict[str, list[str]] = {}
    for run in runs:
        for entry in entries(run):
            seen = past.setdefault(entry.claim.id, [])
            if entry.row and not entry.claim.timed_as and seen[-1:] != [entry.measured]:
                seen.append(entry.measured)  # a row carried over reads the same
    rows = [(f"`{name}`", " → ".join(seen)) for name, seen in past.items() if seen]
    return html(markdown(("claim", "speed-up, oldest first"), rows))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mpnn: claims, measured</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --ink: #1c2733; --rule: #d8dee4; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --rule: #37424d; --paper: #14191f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; fill: currentColor; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
</style></head><body>
<h1>Claims, measured</h1>
{{body}}
</body></html>
"""
