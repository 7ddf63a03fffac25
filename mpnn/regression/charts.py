"""Inline SVG charts for the report: axes, points with intervals, lines; nothing to load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 16, 48


@dataclass(frozen=True)
class Point:
    """One mark: where, what it is called, its CSS class, and its intervals if it has any."""

    x: float
    y: float
    label: str
    kind: str = "measured"
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """One axis: its title, range, and whether it is logarithmic."""

    title: str
    low: float
    high: float
    log: bool = True

    def at(self, value: float) -> float:
        """Position of a value between 0 and 1; what lies outside is put on the border."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values: 1, 2 and 5 times powers of ten on a logarithmic axis."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        else:
            step = _round_step((self.high - self.low) / 5)
            start = math.ceil(self.low / step)
            every = [step * i for i in range(start, start + 12)]
        return [tick for tick in every if self.low <= tick <= self.high]


def axis(title: str, values: Iterable[float], log: bool = True, room: float = 1.3) -> Axis:
    """An axis with some room around the values."""
    found = list(values) or [1.0]
    if log:
        return Axis(title, min(found) / room, max(found) * room)
    pad = max((max(found) - min(found)) * 0.1, 1.0)
    return Axis(title, max(0.0, min(found) - pad), max(found) + pad, log=False)


def chart(
    x: Axis, y: Axis, points: Sequence[Point], lines: Sequence[Sequence[tuple[float, float]]] = ()
) -> str:
    """One chart as an SVG element."""
    parts = [*_grid(x, y)]
    place = _placer(x, y)
    for line in lines:
        path = " ".join("{:.1f},{:.1f}".format(*place(*at)) for at in line)
        parts.append(f'<polyline class="line" points="{path}"/>')
    taken: list[tuple[float, float]] = []
    for point in points:
        parts += _mark(point, place, taken)
    return _svg(WIDTH, HEIGHT, parts, f"{y.title} against {x.title}")


def sparkline(values: Sequence[tuple[float, float, float]], width: int = 160) -> str:
    """The history of one figure: (low, value, high) per run, oldest first."""
    height = 28
    y = axis("", [v for triple in values for v in triple], room=1.05)
    step = width / max(1, len(values))
    parts, middle = [], []
    for i, (low, value, high) in enumerate(values):
        at = step * (i + 0.5)
        bottom, centre, top = (height * (1 - y.at(v)) for v in (low, value, high))
        parts.append(_line("bar", at, at, bottom, top))
        parts.append(f'<circle class="measured" cx="{at:.1f}" cy="{centre:.1f}" r="2.5"/>')
        middle.append(f"{at:.1f},{centre:.1f}")
    parts.insert(0, f'<polyline class="line" points="{" ".join(middle)}"/>')
    return _svg(width, height, parts, "history")


def pareto(points: Iterable[Point]) -> list[tuple[float, float]]:
    """Points that no other beats in both x and y, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not front or point.y > front[-1][1]:
            front.append((point.x, point.y))
    return front[::-1]


Place = Callable[[float, float], tuple[float, float]]


def _placer(x: Axis, y: Axis) -> Place:
    def place(a: float, b: float) -> tuple[float, float]:
        across = LEFT + x.at(a) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (1 - y.at(b)) * (HEIGHT - TOP - BOTTOM)

    return place


def _grid(x: Axis, y: Axis) -> Iterable[str]:
    place = _placer(x, y)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in x.ticks():
        at = place(tick, y.low)[0]
        yield _line("grid", at, at, TOP, bottom)
        yield _text("tick", at, bottom + 16, f"{tick:g}", "middle")
    for tick in y.ticks():
        at = place(x.low, tick)[1]
        yield _line("grid", LEFT, right, at, at)
        yield _text("tick", LEFT - 6, at + 4, f"{tick:g}", "end")
    yield _text("title", (LEFT + right) / 2, HEIGHT - 10, x.title, "middle")
    upright = f'<g transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)">'
    yield upright + _text("title", 0, 0, y.title, "middle") + "</g>"


def _mark(point: Point, place: Place, taken: list[tuple[float, float]]) -> Iterable[str]:
    at_x, at_y = place(point.x, point.y)
    if point.x_interval:
        (low, _), (high, _) = (place(v, point.y) for v in point.x_interval)
        yield _line("bar", low, high, at_y, at_y)
    if point.y_interval:
        (_, low), (_, high) = (place(point.x, v) for v in point.y_interval)
        yield _line("bar", at_x, at_x, low, high)
    yield (
        f'<circle class="{point.kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="4">'
        f"<title>{escape(point.label)}: {point.x:.3g}, {point.y:.3g}</title></circle>"
    )
    label_y = at_y + 4
    while any(abs(label_y - y) < 11 and abs(at_x - x) < 120 for x, y in taken):
        label_y += 11
    taken.append((at_x, label_y))
    yield _text("label", at_x + 8, label_y, point.label)


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _svg(width: int, height: int, parts: Iterable[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _round_step(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return min((m * size for m in (1, 2, 5, 10)), key=lambda s: abs(s - step))
