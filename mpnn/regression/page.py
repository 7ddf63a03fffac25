"""The report page: every stored run in one file that loads nothing."""

from __future__ import annotations

import gzip
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.baselines import Run
from mpnn.regression.chart import (
    CONFIG,
    history,
    measured_points,
    published_points,
    published_strip,
    shared_domain,
    speed_against_recovery,
)
from mpnn.regression.report import (
    OLD_PARTS,
    Entry,
    Status,
    bounds_markdown,
    caption,
    entries,
    parts_markdown,
    recovery_how,
    retired_markdown,
)
from mpnn.regression.rows import Row
from mpnn.regression.tables import bracket, seconds, times
from mpnn.studies.tables import (
    distillation_markdown,
    gate_markdown,
    recovery_markdown,
    scaling_markdown,
)

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markdown_it import MarkdownIt
    from markupsafe import Markup
    from vl_convert import javascript_bundle
except ModuleNotFoundError as error:
    raise InputError(f"report: {error}; pip install 'mpnn[bench]'") from error

ASSETS = Path(__file__).with_name("assets")
COUNTERS = "counters.json"
SIGNS = {Status.HOLDS: "✓", Status.MOVED: "↕", Status.FAILS: "✕", Status.NOT_MEASURED: "–"}
RECENT = 8
"""Recordings in the table of a claim's history; its chart has them all."""

DRAWN = ("recording", "recorded", "commit", "times", "low", "high", "speed-up", "verdict")
"""What the chart of a claim's history shows of a recording."""

FULL_BAR = math.log(200)
"""Length of the longest bar beside a speed-up, as the logarithm of its ratio."""

Counts = Mapping[str, Mapping[str, float]]
"""Work counters of one claim: instruction set → counter → value."""


def write_html(root: Path, path: Path) -> None:
    """Writes the self-contained page for all machines below `root`.

    Raises:
        InputError: no run is stored there, or one cannot be read.
    """
    folders = baselines.machines(root)
    if not folders:
        raise InputError(f"{root} holds no stored run; `--record` stores one")
    histories = [baselines.history(folder) for folder in folders]
    baseline = reference_recovery([runs[-1] for runs in histories])
    counted = counters(root)
    machines = [Machine(runs, counted, baseline) for runs in histories]
    machines.sort(key=lambda machine: machine.counts[Status.NOT_MEASURED])
    studies = {
        "Recovery": studied(recovery_markdown, root),
        "Distillation": studied(distillation_markdown, root),
        "The gate's error rates": studied(gate_markdown, root),
        "Retired": retired_markdown(root),
    }
    write_whole(path, _rendered(machines, {t: html(text) for t, text in studies.items() if text}))


def _rendered(machines: Sequence[Machine], studies: Mapping[str, Markup]) -> str:
    """The page as text; whatever comes from a stored run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {key: spec for machine in machines for key, spec in machine.charts.items()}
    return environment.get_template("report.html").render(
        machines=machines,
        studies=studies,
        statuses=SIGNS,
        recent=RECENT,
        charts={"config": CONFIG, "history": history(), **charts},
        library=library(),
        style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        script=Markup((ASSETS / "report.js").read_text(encoding="utf-8")),
    )


@cache
def library() -> str:
    """Vega-Lite and all that it needs as one script, compressed: it would be most of the page."""
    script = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def studied(table: Callable[[Path], str], folder: Path) -> str:
    """The table of a study stored in a folder; '' if it was never run.

    Raises:
        InputError: what is stored is not of this study's form.
    """
    try:
        return table(folder)
    except (KeyError, TypeError, AttributeError) as error:
        what = table.__name__.removesuffix("_markdown")
        raise InputError(
            f"the {what} study in {folder} is not one that this version can read ({error!r}); "
            f"restore it from version control or measure it anew"
        ) from error


def html(text: str) -> Markup:
    """Markdown as HTML; wide tables scroll by themselves and can be focused to do so."""
    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    wide = '<div class="wide" tabindex="0" role="region" aria-label="table"><table>'
    return Markup(rendered.replace("<table>", wide).replace("</table>", "</table></div>"))


def reference_recovery(runs: Sequence[Run]) -> float | None:
    """Recovery in per cent of the published network, as the newest row states it."""
    rows = sorted((row for run in runs for row in run.rows.values()), key=lambda r: r.recorded)
    stated = [r.accuracy.figures["reference_recovery"] for r in rows if _compares_recovery(r)]
    return stated[-1] if stated else None


def _compares_recovery(row: Row) -> bool:
    return "reference_recovery" in row.accuracy.figures


def counters(root: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Work counters by claim and then instruction set; {} where none is stored.

    Raises:
        InputError: the file is not of that form.
    """
    path = root / COUNTERS
    found: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        for instructions, stored in baselines.stored_study(path).items():
            for claim, values in stored["claims"].items():
                found.setdefault(claim, {})[instructions] = dict(values)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} does not hold counters by instruction set and claim ({error!r}); restore it "
            f"from version control"
        ) from error
    return found


@dataclass(frozen=True)
class Line:
    """One claim on one machine, as the page shows it."""

    entry: Entry
    past: Sequence[Row]
    counts: Counts
    key: str

    @property
    def status(self) -> Status:
        """The verdict in one word."""
        return self.entry.status

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return plain(self.entry.verdict())

    @property
    def order(self) -> Mapping[str, float]:
        """Numbers by which columns of figures are sorted; what is missing comes last."""
        row = self.entry.row
        published = self.entry.claim.published
        return {
            "speedup": row.speedup if row else -1.0,
            "seconds": row.subject_seconds if row else math.inf,
            "published": (published and published.speedup) or -1.0,
            "status": list(Status).index(self.status),
        }

    @property
    def bar(self) -> str:
        """Length of the bar beside the speed-up."""
        ratio = self.entry.row.speedup if self.entry.row else 1.0
        return f"{min(1.0, max(0.0, math.log(ratio) / FULL_BAR)):.1%}"

    @property
    def facts(self) -> dict[str, str]:
        """What else the row says, by name."""
        claim, row = self.entry.claim, self.entry.row
        found = {
            "job": claim.workload,
            "subject": claim.subject,
            "reference": claim.reference,
            "timed as": claim.timed_as,
            "published": self.entry.published,
            "target": self.entry.target,
            "device here": self.entry.device,
        }
        if row is not None:
            found |= {
                "accuracy": self.entry.accuracy,
                **{name.replace("_", " "): f"{x:.4g}" for name, x in self.entry.figures.items()},
                "time": self.entry.seconds,
                "time of the reference": _or_dash(row.reference_seconds),
                "against the gate reference": gate(row),
                "margin": f"{row.margin:.0%}, {row.pairs} run pairs",
                "bytes moved": _bytes(row.about.get("work", {}).get("bytes")),
                "versions": ", ".join(f"{k} {v}" for k, v in row.versions.items()),
            }
        return {name: text for name, text in found.items() if text not in ("", "–")}

    @property
    def bound(self) -> dict[str, str]:
        """Nearness to the time of the job's matmuls alone; {} for other rows."""
        row = self.entry.row
        found = row.about.get("bound") if row else None
        if not row or not found:
            return {}
        share = found["seconds"] / row.subject_seconds
        return {
            "multiply-adds": f"{found['multiply_adds'] / 1e9:.1f} G",
            "its matmuls alone": seconds(found["seconds"]),
            "of the bound": f"{share:.0%}",
            "at most": times(row.speedup / share),
        }

    @property
    def parts(self) -> dict[str, float]:
        """Shares of the time, largest first."""
        found = self.entry.row.about.get("parts", {}) if self.entry.row else {}
        shares = {OLD_PARTS.get(name, name): share for name, share in found.items()}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    @property
    def recordings(self) -> list[dict[str, Any]]:
        """The rows of every recording that measured the claim anew, oldest first."""
        return [
            {
                "recording": f"{i}: {row.recorded[5:10]}",
                "recorded": row.recorded[:16],
                "commit": row.commit[:8],
                "times": round(row.speedup, 4),
                "verdict": row.verdict,
                "low": round(row.interval[0], 4),
                "high": round(row.interval[1], 4),
                "gate": gate(row),
                "speed-up": f"{times(row.speedup)} {bracket(*row.interval)}",
                "time": seconds(row.subject_seconds),
            }
            for i, row in enumerate(self.past, 1)
        ]

    @property
    def counter_names(self) -> list[str]:
        """Counters of any instruction set."""
        return list(dict.fromkeys(name for values in self.counts.values() for name in values))


class Machine:
    """One machine: its claims with their past, its charts and its tables."""

    def __init__(self, runs: Sequence[Run], counted: Mapping[str, Counts], baseline: float | None):
        run = runs[-1]
        self.name, self.caption = run.hardware, caption(run)
        self.how = recovery_how(run.rows.values())
        self.recorded = max(row.recorded for row in run.rows.values())[:10]
        found, past = entries(run), past_rows(runs)
        self.lines = [
            Line(e, past[i], counted.get(e.claim.id, {}), f"{self.name}/{e.claim.id}")
            for i, e in enumerate(found)
        ]
        self.counts = Counter(line.status for line in self.lines)
        known = {entry.claim.id for entry in found}
        self.unknown = [n for n, r in run.rows.items() if r.about.get("claim") not in known]
        self.tables = dict(self._tables(run))
        self.charts = dict(self._charts(found, baseline))

    def _tables(self, run: Run) -> Iterator[tuple[str, Markup]]:
        """Tables of this machine alone, those that are not empty."""
        for title, text in (
            ("The exact engine and its bound", bounds_markdown(run)),
            ("Where its time goes", parts_markdown(run)),
            ("Scaling", studied(scaling_markdown, run.path.parent)),
        ):
            if text:
                yield title, html(text)

    def _charts(
        self, found: Sequence[Entry], baseline: float | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Specifications by key."""
        measured, published = measured_points(found, baseline), published_points(found)
        domain = shared_domain(measured, published)
        if measured:
            yield f"{self.name}/measured", speed_against_recovery(measured, domain)
        yield f"{self.name}/published", published_strip(published, domain)
        for line in self.lines:
            if line.past:
                yield line.key, {"history": [{k: r[k] for k in DRAWN} for r in line.recordings]}


def past_rows(runs: Sequence[Run]) -> list[list[Row]]:
    """For each claim its rows over the recordings that measured it anew, oldest first."""
    found: list[list[Row]] = [[] for _ in entries(None)]
    for run in runs:
        for rows, entry in zip(found, entries(run), strict=True):
            carried_over = rows and entry.row and rows[-1].recorded == entry.row.recorded
            if entry.row and not carried_over:
                rows.append(entry.row)
    return found


def gate(row: Row) -> str:
    """Speed-up over the gate reference with its interval; a dash where none was timed."""
    found = row.extra_info()
    if found.get("gate_log_ratio") is None:
        return "–"
    at, high, low = (math.exp(-found[f"gate_log_ratio{end}"]) for end in ("", "_low", "_high"))
    name = f" {found['gate_reference']}" if found.get("gate_reference") else ""
    return f"{times(at)} {bracket(low, high)}{name}"


def plain(text: str) -> str:
    """Markdown's emphasis left out."""
    return text.replace("*", "")


def _or_dash(value: float | None) -> str:
    return "–" if value is None else seconds(value)


def _bytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.1f} MB"
