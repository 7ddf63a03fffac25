"""What the stored runs say of every claim: RESULTS.md, and the ten rows of the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.baselines import Run
from mpnn.regression.claims import (
    BY_ID,
    CLAIMS,
    MPS,
    Claim,
    Compare,
    Published,
    not_measured_on,
)
from mpnn.regression.rows import Row
from mpnn.regression.tables import bracket, markdown, seconds, times
from mpnn.regression.verdict import CHANGED, RECOVERY_MARGIN
from mpnn.regression.workloads import WORKLOADS, device_of
from mpnn.studies.tables import (
    campaign_markdown,
    distillation_markdown,
    gate_markdown,
    recovery_markdown,
    scaling_markdown,
)
from mpnn.variants import find_variant

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
RESULTS = "RESULTS.md"
HOLDS, HOLDS_NOT = "*holds*", "*does not hold*"
HEADINGS = ("claim", "what", "published", "target", "device here", "accuracy", "verdict")

SHOWN = (
    *("exact-1x106", "exact-8x106", "exact-redesign-416", "exact-score-955"),
    *("extreme-v2", "non-autoregressive", "bfloat16", "torch-compile", "pruning"),
)
"""Claims that the README shows; `pruning` is one that does not hold."""

TITLE = "# Results\n\nGenerated from the stored runs by `mpnn report --results`; do not edit."
HOW = (
    "A machine's column is the speed-up over the reference there with its 98 % interval, from run "
    "pairs timed in one process. *Published* is a figure of two documents of 2026-02-04, most of "
    "them measured once, on random weights, on the device named; a ratio on another device neither "
    "confirms nor refutes it. *Target* is what this project set itself for one core of "
    "amd-epyc-26-2-vm-linux6. A speed *holds*, or a "
    "target is reached, where the interval reaches it; a published change of recovery holds where "
    "it is met within half a point. A claim that names the same subject and workload as another is "
    "timed once and shown with that row."
)
BOUND_HEADINGS = (
    *("claim", "multiply-adds", "its matmuls alone", "whole job", "of the bound"),
    *("measured", "at most", "target"),
)
BOUNDS = (
    "The exact engine's jobs and their bound: the matmuls left after the exact rewrites, timed "
    "alone in the same run. *At most* is the speed-up of an engine that did nothing but these "
    "matmuls. The rest is LayerNorm, GELU, gathers, radial functions and, for short chains, the "
    "interpreter between some eighty small operations a step."
)
PARTS = (
    "Where their time goes, in the same run: shares of the wall time. A GELU that the library "
    "fuses into its matmul counts as matmul; *between operations* is the interpreter."
)
OLD_PARTS = {"products": "matmuls"}  # as stored until 2026-11


class Status(StrEnum):
    """What a stored row says of its claim, in one word."""

    HOLDS = "holds"
    MOVED = "moved"  # beyond its margin from the recording before
    FAILS = "fails"  # in accuracy, or a published figure is refuted
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Entry:
    """One claim on one machine, with its row or that of the claim it is timed as."""

    claim: Claim
    row: Row | None
    apple: bool

    @property
    def published(self) -> str:
        """What the source says: speed-up, what was measured, recovery, and the device."""
        published = self.claim.published
        if published is None:
            return "–"
        ratio = "" if published.speedup is None else times(published.speedup)
        speed = f" ({published.speed})" if ratio and published.speed else published.speed
        recovery = published.recovery.replace("not measured", "–")
        if recovery.endswith("%"):
            recovery = f"recovery {recovery}"
        figures = ", ".join(x for x in (f"{ratio}{speed}", recovery) if x not in ("", "–"))
        return f"{figures}; {published.device}"

    @property
    def target(self) -> str:
        """The speed-up that this project aims at."""
        return "–" if self.claim.target is None else times(self.claim.target)

    @property
    def device(self) -> str:
        """What computes the subject on this machine, or would."""
        apple = self.apple or self.claim.platform != "any"
        return device_of(find_variant(self.claim.subject), apple)

    @property
    def measured(self) -> str:
        """Speed-up with its interval."""
        if self.row is None:
            return "–"
        return f"{times(self.row.speedup)} {bracket(*self.row.interval)}"

    @property
    def seconds(self) -> str:
        """Seconds per protein of the subject."""
        return "–" if self.row is None else seconds(self.row.subject_seconds)

    @property
    def accuracy(self) -> str:
        """What the outputs of the timed runs say."""
        return "–" if self.row is None else self.row.accuracy.text

    @property
    def figures(self) -> Mapping[str, float]:
        """Accuracy figures of the row."""
        return {} if self.row is None else self.row.accuracy.figures

    def verdict(self, here: str = "") -> str:
        """Whether published figure and target stand on this machine, in speed and in accuracy.

        Args:
            here: speed-ups to show beside a figure of another device; this row's by default.
        """
        if self.row is None:
            reason = not_measured_on(self.claim, self.apple) or "no stored run has it"
            return f"*not measured here* ({reason})"
        if not self.row.accuracy.passed:
            return "**void**: accuracy failed"
        return "; ".join(text for text, _ in self._judgments(self.row, here) if text) or "measured"

    @property
    def status(self) -> Status:
        """The verdict in one word; a move counts where the claim stands."""
        if self.row is None:
            return Status.NOT_MEASURED
        if not self.row.accuracy.passed:
            return Status.FAILS
        if not all(stands for _, stands in self._judgments(self.row)):
            return Status.FAILS
        return Status.MOVED if self.row.verdict in CHANGED else Status.HOLDS

    def _judgments(self, row: Row, here: str = "") -> list[tuple[str, bool]]:
        """What is said of speed, target and accuracy, each with whether the claim stands.

        A target is of this project and of one machine; to miss it refutes nothing.
        """
        published, target = self.claim.published, self.claim.target
        said = []
        if published is not None and published.speedup is not None:
            said.append(self._speed(row, published, published.speedup, here))
        if target is not None:
            reached = round(row.interval[1], 2) >= target
            said.append((f"target {'*reached*' if reached else '*not reached*'}", True))
        return [*said, self._accuracy(published)]

    def _speed(self, row: Row, published: Published, speedup: float, here: str) -> tuple[str, bool]:
        """Whether the published speed is reached or, where it is a loss, whether it is one here."""
        pace = ""
        if published.pace is not None:
            rate = WORKLOADS[self.claim.workload].length / row.subject_seconds
            pace = f" ({rate:,.0f} residues/s)"
        if published.unit != self.device:
            here = here or f"{times(row.speedup)}{pace}"
            return f"published on {published.unit}, not measured here; here: {here}", True
        low, high = (round(x, 2) for x in row.interval)  # as many digits as were printed
        if speedup < 1:
            lost = low <= speedup
            return f"speed {HOLDS if lost else f'{HOLDS_NOT}: no such loss'}", lost
        met = high >= speedup and (not pace or rate > (published.pace or 0))
        return f"speed {HOLDS if met else HOLDS_NOT}{pace}", met

    def _accuracy(self, published: Published | None) -> tuple[str, bool]:
        """What is left to say of accuracy once it has passed."""
        if self.claim.compare is Compare.EQUAL:
            return "", True
        if self.claim.compare is Compare.CLOSE:
            return "accuracy in its band", True
        if "recovery" not in self.figures:
            return "accuracy open", True
        points = self.figures["recovery"] - self.figures["reference_recovery"]
        recovery, met = f"recovery {points:+.1f} points", True
        if published is not None and published.change is not None:
            met = abs(points - published.change) <= RECOVERY_MARGIN
            recovery += f": “{published.recovery}” {HOLDS if met else HOLDS_NOT}"
        return recovery, met

    def with_accuracy_of(self, other: Entry) -> Entry:
        """The same speed with a later entry's accuracy, if that is of checkpoints, not machines."""
        if self.row is None or other.row is None or self.claim.compare is not Compare.RECOVERY:
            return self
        return replace(self, row=replace(self.row, accuracy=other.row.accuracy))


@dataclass(frozen=True)
class Joint:
    """One claim on all machines."""

    entries: tuple[Entry, ...]
    machines: tuple[str, ...]

    @property
    def measured(self) -> dict[str, Entry]:
        """Entries with a row, by machine."""
        pairs = zip(self.machines, self.entries, strict=True)
        return {name: entry for name, entry in pairs if entry.row is not None}

    @property
    def newest(self) -> Entry:
        """The entry recorded last, whose accuracy counts."""
        found = self.measured.values()
        return max(found, key=lambda e: e.row.recorded if e.row else "", default=self.entries[0])

    @property
    def verdict(self) -> str:
        """One verdict, or one for each machine where they differ."""
        newest, measured = self.newest, self.measured
        here = ", ".join(times(e.row.speedup) for e in measured.values() if e.row)
        if newest.claim.published and newest.claim.published.pace:
            here = ""
        said = {n: e.with_accuracy_of(newest).verdict(here) for n, e in measured.items()}
        if len(set(said.values())) > 1:
            return "; ".join(f"{text} on {name}" for name, text in said.items())
        return newest.verdict(here)

    def cells(self) -> tuple[str, ...]:
        """The row of the table of all claims."""
        newest, claim = self.newest, self.newest.claim
        return (
            f"`{claim.id}`",
            claim.what + (f" (timed as `{claim.timed_as}`)" if claim.timed_as else ""),
            newest.published,
            newest.target,
            newest.device,
            *(entry.measured for entry in self.entries),
            newest.accuracy,
            self.verdict,
        )


def entries(run: Run | None) -> list[Entry]:
    """Every claim of the table with its row in a run, if it has one."""
    rows = {row.about.get("claim"): row for row in run.rows.values()} if run else {}
    apple = run is not None and run.hardware.startswith("apple")
    return [Entry(claim, rows.get(claim.timed_as or claim.id), apple) for claim in CLAIMS]


def joint_entries(runs: Sequence[Run]) -> list[Joint]:
    """Every claim on the machines of some runs."""
    machines = tuple(run.hardware for run in runs) or ("measured",)
    found = [entries(run) for run in runs] or [entries(None)]
    return [Joint(tuple(same), machines) for same in zip(*found, strict=True)]


def claims_markdown(root: Path) -> str:
    """Every claim with a column for each machine; without a run, a table of open claims."""
    runs = baselines.latest_runs(root)
    captions = [f"- {caption(run)}" for run in runs] or ["No run is stored yet."]
    joint = joint_entries(runs)
    headings = (*HEADINGS[:5], *joint[0].machines, *HEADINGS[-2:])
    waiting = [c for c in joint if c.newest.claim.platform == MPS and not c.measured]
    table = markdown(headings, (claim.cells() for claim in joint if claim not in waiting))
    how = recovery_how(row for run in runs for row in run.rows.values())
    return "\n\n".join(filter(None, ["\n".join(captions), how, table, _waiting(waiting)]))


def _waiting(claims: Sequence[Joint]) -> str:
    """One line for the claims that no recorded machine could measure; '' without any."""
    if not claims:
        return ""
    names = ", ".join(f"`{claim.newest.claim.id}`" for claim in claims)
    reason = not_measured_on(claims[0].newest.claim, apple=False)
    return f"{len(claims)} more claims are *not measured here* ({reason}): {names}."


def results_markdown(root: Path) -> str:
    """RESULTS.md: every table of the stored runs and studies below `root`."""
    sections = [TITLE, "## Every claim", HOW, claims_markdown(root)]
    for run in baselines.latest_runs(root):
        parts = [bounds_markdown(run), parts_markdown(run), scaling_markdown(run.path.parent)]
        sections += _section(f"The exact engine on {run.hardware}", *parts)
        campaigns = campaign_markdown(run.path.parent)
        sections += _section(f"Many backbones on {run.hardware}", campaigns)
    sections += _section("Recovery", recovery_markdown(root))
    sections += _section("Distillation", distillation_markdown(root))
    sections += _section("The gate's error rates", gate_markdown(root))
    training = root / "retired.md"  # settings of training, written by hand
    by_hand = training.read_text(encoding="utf-8").strip() if training.exists() else ""
    sections += _section("Retired", retired_markdown(root), by_hand)
    return "\n\n".join(filter(None, sections)) + "\n"


def readme_markdown(root: Path) -> str:
    """The ten rows of the README: nine claims, and how many others there are."""
    joint = joint_entries(baselines.latest_runs(root))
    rows = []
    for claim in joint:
        if claim.newest.claim.id in SHOWN:
            newest = claim.newest
            what = f"`{newest.claim.id}`: {newest.claim.what}"
            if newest.claim.target is not None:
                what += f" (target {newest.target})"
            measured = (entry.measured for entry in claim.entries)
            rows.append((what, *measured, newest.accuracy, claim.verdict))
    rows.sort(key=lambda row: SHOWN.index(row[0].split("`")[1]))
    others = [claim for claim in joint if claim.newest.claim.id not in SHOWN]
    measured_too = sum(bool(claim.measured) for claim in others)
    blank = [""] * (len(joint[0].machines) + 1)
    rows.append(
        (f"{len(others)} others", *blank, f"{measured_too} measured; [all](baselines/{RESULTS})")
    )
    return markdown(("claim", *joint[0].machines, "accuracy", "verdict"), rows)


def _section(title: str, *parts: str) -> list[str]:
    """Parts under a title; [] if all are empty."""
    found = [part for part in parts if part]
    return [f"## {title}", *found] if found else []


def bounds_markdown(run: Run) -> str:
    """Jobs of the exact engine beside the time of their matmuls; '' without any."""
    cells = []
    for name, row in _rows_with(run, "bound"):
        bound, whole = row.about["bound"], row.subject_seconds
        target = BY_ID[name].target
        cells.append(
            (
                f"`{name}`",
                f"{bound['multiply_adds'] / 1e9:.1f} G",
                seconds(bound["seconds"]),
                seconds(whole),
                f"{bound['seconds'] / whole:.0%}",
                times(row.speedup),
                times(row.speedup * whole / bound["seconds"]),
                "–" if target is None else times(target),
            )
        )
    return f"{BOUNDS}\n\n{markdown(BOUND_HEADINGS, cells)}" if cells else ""


def parts_markdown(run: Run) -> str:
    """Where the time of the exact engine's jobs goes; '' where no row has it."""
    rows = [(name, row.about["parts"]) for name, row in _rows_with(run, "parts")]
    if not rows:
        return ""
    cells = [(f"`{name}`", *(f"{share:.0%}" for share in parts.values())) for name, parts in rows]
    headings = ("claim", *(OLD_PARTS.get(part, part) for part in rows[0][1]))
    return f"{PARTS}\n\n{markdown(headings, cells)}"


def _rows_with(run: Run, what: str) -> list[tuple[str, Row]]:
    """Claims with their rows in which something was stored."""
    found = [(e.claim, e.row) for e in entries(run) if not e.claim.timed_as]
    return [(claim.id, row) for claim, row in found if row and row.about.get(what)]


def retired_markdown(root: Path) -> str:
    """What is no longer measured, why, and its last figures; '' if nothing is retired."""
    rows = [
        (item.what, item.why, "; ".join(f"{text} on {m}" for m, text in item.figures.items()))
        for item in baselines.retired(root)
    ]
    return markdown(("what", "why it is gone", "last figures"), rows) if rows else ""


def caption(run: Run) -> str:
    """Machine, versions, commits and date of a run."""
    rows = list(run.rows.values())
    versions = ", ".join(dict.fromkeys(f"{k} {v}" for row in rows for k, v in row.versions.items()))
    commits = ", ".join(dict.fromkeys(row.commit[:8] for row in rows))
    latest = max(row.recorded for row in rows)
    return f"{run.hardware}, {run.threads} thread(s), {versions}; commit {commits}; {latest[:10]}."


def recovery_how(rows: Iterable[Row]) -> str:
    """How the recoveries of some rows were measured."""
    hows = sorted({row.about.get("recovery_how", "") for row in rows} - {""})
    return " ".join(f"Recovery, stored with each checkpoint: {how}." for how in hows)


def into_readme(text: str, table: str) -> str:
    """`text` with what stands between the markers replaced by `table`.

    Raises:
        InputError: the markers are missing or in the wrong order.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise InputError(f"the README needs the lines {BEGIN} and {END} around its table of claims")
    return f"{text[: begin + len(BEGIN)]}\n{table}\n{text[end:]}"


def renew_readme(root: Path, readme: Path) -> bool:
    """Puts the ten rows of the runs below `root` into a README; returns whether it changed.

    Raises:
        InputError: the markers are missing.
    """
    text = readme.read_text(encoding="utf-8")
    return _renew(readme, into_readme(text, readme_markdown(root)))


def renew_results(root: Path, path: Path) -> bool:
    """Writes RESULTS.md of the runs below `root`; returns whether it changed."""
    return _renew(path, results_markdown(root))


def _renew(path: Path, text: str) -> bool:
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if text != before:
        write_whole(path, text)
    return text != before
