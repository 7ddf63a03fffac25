"""Figures in words, and rows as tables: a terminal of 100 columns, and Markdown."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpnn.regression.rows import Row

WIDTH = 100
HEADINGS = ("claim", "target", "measured", "change of time, %", "accuracy", "verdict")
TIERS = ("counters", "accuracy", "speed")
COLORS = {"holds": "green", "recorded": "cyan", "regressed": "red", "improved": "magenta"}


def session_table(rows: Mapping[str, Row], color: bool = False) -> str:
    """What one session measured, by test id, in at most 100 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    claim, *middle, accuracy, verdict = HEADINGS
    table.add_column(claim, no_wrap=True)
    for heading in middle:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(accuracy, overflow="fold")
    table.add_column(verdict, no_wrap=True)
    for name, row in rows.items():
        *cells, verdict = _cells(name, row)
        verdict = f"[{COLORS.get(verdict, 'yellow')}]{verdict}[/]"
        table.add_row(*(escape(cell) for cell in cells), verdict)
    return _printed(table, color)


def plain(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of words and then figures, in at most 100 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return _printed(table)


def _printed(table: Table, color: bool = False) -> str:
    """A table as lines of at most 100 columns."""
    text = io.StringIO()
    Console(file=text, width=WIDTH, force_terminal=color, no_color=not color).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


class Change(NamedTuple):
    """A claim that is no longer as stored.

    Attributes:
        claim: its id.
        tier: which measurement saw it, one of `TIERS`.
        what: from what, to what.
        verdict: in one word.
    """

    claim: str
    tier: str
    what: str
    verdict: str


def session_markdown(rows: Mapping[str, Row], counted: Iterable[Change] = ()) -> str:
    """What changed in one session, as Markdown for a pull request.

    Args:
        rows: what was measured, by test id.
        counted: changes that the work counters saw.
    """
    changes = [_change(name, row) for name, row in rows.items()]
    unknown = sum(row.verdict == "not recorded" for row in rows.values())
    note = f"; {unknown} without a stored figure" if unknown else ""
    if said := not_judged(rows):
        note += f"; {said}"
    measured = f"{len(rows)} claims{note}" if rows else "the claims whose work was counted"
    return changes_markdown([*counted, *filter(None, changes)], measured)


def not_judged(rows: Mapping[str, Row]) -> str:
    """How many claims were timed beside other work, so that no verdict counts; "" if none."""
    found = [row.others or 0.0 for row in rows.values() if row.verdict == "not judged"]
    if not found:
        return ""
    return (
        f"{len(found)} of {len(rows)} claims not judged: other processes used up to "
        f"{max(found):.2f} cores; close them and run again"
    )


def changes_markdown(changes: Iterable[Change], measured: str) -> str:
    """A table of changes, cheapest tier first; one line without any.

    Args:
        changes: what is to be shown.
        measured: how many claims were judged, in words.
    """
    cells = sorted(changes, key=lambda change: TIERS.index(change.tier))
    if not cells:
        return f"Nothing changed: {measured}."
    rows = [(f"`{claim}`", *rest) for claim, *rest in cells]
    table = markdown(("claim", "seen by", "change", "verdict"), rows)
    return f"Changed, {len(cells)} of {measured}:\n\n{table}"


def only_changed(table: str) -> str:
    """A table of `--against` without the claims that hold and whose outputs are the same."""
    lines = table.splitlines()
    kept = [line for line in lines if not line.endswith("| holds | the same |")]
    if len(kept) == len(lines) or any(line.startswith("| `") for line in kept):
        return "\n".join(kept)
    return f"Nothing changed: {len(lines) - len(kept)} claims compared."


def _change(name: str, row: Row) -> Change | None:
    """How a row differs from what is stored; None if it does not."""
    if not row.accuracy.passed:
        return Change(_claim(name, row), "accuracy", row.accuracy.text, "FAILED")
    if row.verdict not in ("regressed", "improved", "undecided"):
        return None
    claim, _, what = moved(name, row).partition(": ")
    return Change(claim, "speed", what, str(row.verdict))


def _cells(name: str, row: Row) -> tuple[str, ...]:
    accuracy = row.accuracy.text if row.accuracy.passed else "FAILED"
    return _claim(name, row), target(row), speedup(row), change(row), accuracy, str(row.verdict)


def _claim(name: str, row: Row) -> str:
    return str(row.about.get("claim", name.split("::")[-1]))


def moved(name: str, row: Row) -> str:
    """A row that changed against the stored one: from what, to what."""
    if row.gate_reference:
        return f"{_claim(name, row)}: time {change(row)} % beside its {row.gate_reference}"
    before = times(math.exp(-row.expected)) if row.expected is not None else "–"
    return f"{_claim(name, row)}: {before} → {times(row.speedup)}, time {change(row)} %"


def speedup(row: Row) -> str:
    """Measured speed-up with its interval."""
    return f"{times(row.speedup)} {bracket(*row.interval)}"


def change(row: Row) -> str:
    """Change of the time ratio against the stored one in per cent, with its interval."""
    if row.expected is None:
        return "–"
    at, low, high = (100 * x for x in row.moved)
    return f"{at:+.1f} [{low:+.1f}, {high:+.1f}]"


def target(row: Row) -> str:
    """The speed-up that this project aims at, a dash where it set none."""
    ratio = row.about.get("target")
    return "–" if ratio is None else times(ratio)


def times(ratio: float) -> str:
    """A ratio with three significant digits."""
    return f"{ratio:.{digits(ratio)}f}×"


def bracket(low: float, high: float) -> str:
    """An interval of ratios."""
    return f"[{low:.{digits(low)}f}, {high:.{digits(low)}f}]"


def digits(ratio: float) -> int:
    """Decimals that leave three significant digits between 0.1 and 1,000."""
    return 2 if ratio < 10 else 1 if ratio < 100 else 0


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in lines
    )
