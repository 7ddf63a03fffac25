"""Charts of the report, drawn by matplotlib and put into the page as SVG: nothing to load."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mpnn.errors import InputError

try:
    from matplotlib import style
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.ticker import LogLocator, NullFormatter
    from matplotlib.transforms import Bbox
except ModuleNotFoundError as error:
    raise InputError(f"charts: {error}; pip install 'mpnn[bench]'") from error

WIDTH = 7.5
"""Inches; the page shows 96 pixels to each."""

Array = NDArray[np.float64]

MARKERS = "os^DvP*"
MARK = 8.0
"""Room for a mark, in points (72 an inch)."""

NEAR = 12.0
"""Distance in points within which marks of one network share their label."""

CLEAR = 4.0
"""What is left free around a label, in points."""

GAPS = (2.0, 10.0, 22.0, 38.0, 58.0, 88.0)
"""Distances of a label from its mark in points, tried in this order; all but the first need a line
that leads from one to the other."""

UNREADABLE = 100
"""How much worse than a line or a mark under a label is another label, or a corner of it
outside the panel."""

LEADER = {"arrowstyle": "-", "color": "gray", "shrinkA": 0, "shrinkB": MARK / 2}
SIDES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
"""Where a label may stand, x and y upwards: right, left, above, below, and in the corners."""

styled = style.context([
    "default",
    {
        "figure.dpi": 72,  # as SVG has it: text is as large when it is placed as when it is drawn
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
    """One mark: where, what it is called, and its intervals (low, high) if it has any."""

    x: float
    y: float
    label: str
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@styled
def svg(figure: Figure, title: str) -> str:
    """A figure as an SVG element; black becomes the color of the page's text.

    Args:
        figure: what to draw.
        title: what the chart is called where it is not seen.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Title": title, "Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


@styled
def recovery_figure(measured: Sequence[Point], published: Sequence[Point]) -> Figure:
    """Recovery in per cent over speed-up: the measured points above the published ones.

    The measured ones have their Pareto front; the published ones are hollow. Every point has its
    label; a panel without points is left out.

    Raises:
        ValueError: there is no point at all.
    """
    panels = [("measured", measured, "C0", "C0"), ("published", published, "C1", "none")]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure((WIDTH, 2.7 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (what, points, color, fill) in zip(every, panels, strict=True):
        xs, ys = [p.x for p in points], [p.y for p in points]
        if what == "measured":
            axes.plot(*zip(*pareto(points), strict=True), color="gray", label="Pareto front")
        for p in points:
            if p.x_interval:
                axes.plot(p.x_interval, (p.y, p.y), color=color)
            if p.y_interval:
                axes.plot((p.x, p.x), p.y_interval, color=color)
        axes.scatter(xs, ys, 25, facecolors=fill, edgecolors=color, label=what, zorder=3)
        axes.set(xscale="log", ylabel=f"{what} recovery, %")
        axes.margins(0.1, 0.2)
    _plain_ticks(every[-1].xaxis)
    every[-1].set_xlabel("times as fast as the baseline")
    figure.legend(loc="outside upper left", ncols=3)
    figure.draw_without_rendering()  # the panels have their places from here on
    figure.set_layout_engine("none")
    for axes, (_, points, _, _) in zip(every, panels, strict=True):
        _label(axes, points)
    return figure


@styled
def series_figure(
    x: str,
    y: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    roof: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Named series of points (x, y) on logarithmic axes, with a legend on the right.

    Args:
        x: title of the axis.
        y: title of the axis.
        series: each with its own color and marker.
        roof: corners of a line above the points; without one, each series is joined by a line.
    """
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for i, (name, points) in enumerate(series.items()):
        marker, line = MARKERS[i % len(MARKERS)], "" if roof else "-"
        axes.plot(*zip(*points, strict=True), f"C{i}{marker}{line}", mfc="none", label=name)
    if roof:
        axes.plot(*zip(*roof, strict=True), color="black", label="roof")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    figure.legend(loc="outside right upper")
    return figure


@styled
def sparkline(values: Sequence[tuple[float, float, float]]) -> Figure:
    """The history of one figure: (low, value, high) of each run, oldest first."""
    lows, middles, highs = zip(*values, strict=True)
    figure = Figure((1.7, 0.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.plot(middles, "o-", color="C0", markersize=4)
    axes.vlines(range(len(values)), lows, highs, color="C0")
    axes.margins(0.1, 0.1)
    return figure


def pareto(points: Iterable[Point]) -> list[tuple[float, float]]:
    """Points that no other beats in both x and y, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not front or point.y > front[-1][1]:
            front.append((point.x, point.y))
    return front[::-1]


def _plain_ticks(axis: Axis) -> None:
    """Figures at 1, 2 and 5 times powers of ten, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter("{x:g}")


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Puts names beside their marks, where they cover no mark, line or other name."""
    spots = axes.transData.transform([(p.x, p.y) for p in points])
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    marks = [_box(spot, MARK) for spot in spots]
    names: list[Bbox] = []

    def crowding(mark: Array, place: Array, size: Array) -> int:
        box, leader = _box(place, size), Path([mark, place])
        outside = UNREADABLE * (4 - axes.bbox.count_contains(box.corners()))
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        cut = sum(leader.intersects_bbox(name, filled=False) for name in names)
        hidden = UNREADABLE * box.count_overlaps(names)
        return outside + hidden + crossed + cut + box.count_overlaps(marks)

    for group in _together(points, spots):
        low, high = spots[group].min(0), spots[group].max(0)
        center = (low + high) / 2
        text = ", ".join(points[i].label for i in sorted(group))
        probe = axes.text(0, 0, text)
        extent = probe.get_window_extent()
        probe.remove()
        size = np.array([extent.width, extent.height]) + CLEAR
        reach = (high - low + MARK + size) / 2
        places = [(gap, center + side * (reach + gap)) for gap, side in product(GAPS, SIDES)]
        gap, place = min(places, key=lambda at: crowding(center, at[1], size))
        names.append(_box(place, size))
        lines.append(Path([center, place]))
        axes.annotate(
            text,
            xy=tuple(center),
            xytext=tuple(place),
            xycoords="figure pixels",
            textcoords="figure pixels",
            ha="center",
            va="center",
            arrowprops=None if gap == GAPS[0] else LEADER,
        )


def _box(center: Array, size: Array | float) -> Bbox:
    return Bbox([center - size / 2, center + size / 2])


def _together(points: Sequence[Point], spots: Array) -> list[list[int]]:
    """Indices of the points, in one list where their recovery is one and their marks are near."""
    groups: list[list[int]] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i].y, points[i].x)):
        last = groups[-1][-1] if groups else i
        near = points[i].y == points[last].y and spots[i, 0] - spots[last, 0] < NEAR
        if groups and near:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
