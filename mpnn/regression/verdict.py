"""The verdict: interval, stored row and accuracy in, one `Verdict` and its words out.

The figure of a claim is the median of d = ln(subject / reference) over run pairs, with the exact
order-statistic bound (the sign test), which needs neither a seed nor normality. `--against` judges
by the same `place`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import cache
from statistics import NormalDist
from typing import Literal

from mpnn.regression.rows import Accuracy, Row
from mpnn.regression.usage import LOADED

RECOVERY_MARGIN = 0.5
"""Points of recovery that a network may lose against the one that was recorded."""

RECORDING = 4
"""A recording takes this many times as many looks, and as much time, to get a row it can store."""

VOID = "void"
"""Verdict of a fresh process whose control was out of its band."""


class Verdict(StrEnum):
    """What a session may say about one claim."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    HOLDS = "holds"
    UNDECIDED = "undecided"
    RECORDED = "recorded"
    NOT_RECORDED = "not recorded"
    FAILED = "failed"  # accuracy: what is wrong has no speed
    NOT_JUDGED = "not judged"  # timed beside other work


CHANGED = (Verdict.REGRESSED, Verdict.IMPROVED)
"""Verdicts that count only once a fresh process agrees."""

WEAKER = {"margin": 1, "alpha_pass": 1, "alpha_fail": -1, "pairs": -1, "looks": -1,
          "budget": -1, "shortest_run": -1}  # fmt: skip
"""Parts of a rule, and which way each makes it demand less."""


@dataclass(frozen=True)
class Rule:
    """How long to measure and when to decide.

    Attributes:
        margin: the ratio may move by this fraction before the claim has changed.
        pairs: run pairs in one look.
        looks: looks before the verdict is *undecided*.
        alpha_fail: chance, per look and side, of a bound beyond a true median: *regressed*.
        alpha_pass: the same for *holds*, tested after every block of two pairs; see `holds`.
        shortest_run: seconds that both timed runs last at least.
        longest_run: seconds beyond which the faster side is no longer repeated to last as long.
        budget: seconds after which no further look begins.
    """

    margin: float = 0.03
    pairs: int = 40
    looks: int = 5
    alpha_fail: float = 0.002
    alpha_pass: float = 0.01
    shortest_run: float = 0.02
    longest_run: float = 0.25
    budget: float = 40.0

    def __post_init__(self) -> None:
        if self.margin <= 0 or self.pairs < 1 or self.looks < 1:
            raise ValueError(f"margin, pairs and looks must be positive: {self}")
        needed = math.ceil(-math.log2(min(self.alpha_fail, self.alpha_pass)))
        if self.pairs < needed:
            raise ValueError(
                f"{self.pairs} pairs have no bound at α = {min(self.alpha_fail, self.alpha_pass)}; "
                f"take {needed} pairs or a larger α"
            )

    def stored(self) -> dict[str, float]:
        """What a later claim with this id must not fall short of, see `laxer`."""
        return {name: value for name, value in asdict(self).items() if name in WEAKER}

    @property
    def limit(self) -> float:
        """The margin on the scale of d."""
        return math.log1p(self.margin)


def quick(rule: Rule) -> Rule:
    """A coarser rule for local work: one short look and a margin of at least 10 %."""
    pairs = min(rule.pairs, 16)
    return replace(rule, pairs=pairs, looks=1, margin=max(rule.margin, 0.10))


def sign_test_bound(x: Sequence[float], alpha: float) -> float:
    """Largest order statistic that lies below the true median with probability 1 − alpha.

    Minus infinity when there are too few values for any bound.
    """
    k = _order_statistic(len(x), alpha)
    return sorted(x)[k - 1] if k else -math.inf


@cache
def _order_statistic(n: int, alpha: float) -> int:
    """Which of n sorted values, counted from 1, is that bound; 0 if none is.

    The k-th smallest is above the median only if fewer than k of n fair coins say so:
    P(Bin(n, 1/2) < k) ≤ alpha. In whole numbers: seven values at α = 1/128 are exactly enough,
    which quantiles in floating point miss.
    """
    limit = int(Fraction(alpha) * 2**n)
    tail, k = 1, 0
    while k < n and tail <= limit:
        k += 1
        tail += math.comb(n, k)
    return k


def interval(x: Sequence[float], alpha: float) -> tuple[float, float]:
    """Lower and upper `sign_test_bound` of x, each at `alpha`."""
    return sign_test_bound(x, alpha), -sign_test_bound([-value for value in x], alpha)


def place(low: float, high: float, limit: float, expected: float = 0.0) -> Verdict:
    """Where an interval of d lies against the expected d and the margin `limit` around it."""
    if low > expected + limit:
        return Verdict.REGRESSED
    if high < expected - limit:
        return Verdict.IMPROVED
    inside = expected - limit < low and high < expected + limit
    return Verdict.HOLDS if inside else Verdict.UNDECIDED


def judge(log_ratios: Sequence[float], expected: float, rule: Rule) -> Verdict:
    """Verdict of one look: the measured d against the expected one.

    *Regressed* and *improved* need the bound at `alpha_fail` beyond the margin; see `holds`.
    """
    verdict = place(*interval(log_ratios, rule.alpha_fail), rule.limit, expected)
    if verdict in CHANGED:
        return verdict
    return Verdict.HOLDS if holds(log_ratios, expected, rule) else Verdict.UNDECIDED


def holds(log_ratios: Sequence[float], expected: float, rule: Rule) -> bool:
    """Whether the whole interval at `alpha_pass` lies inside the margin around the expected d.

    It may be tested after every block of pairs. Of 400 simulated sessions (noise of 3 % with
    bursts) at the very margin 7 % then hold, instead of 3 % where it is tested after looks alone;
    of those 1 % beyond it 0.3 %, 2 % beyond none.
    """
    bounds = interval(log_ratios, rule.alpha_pass)
    return place(*bounds, rule.limit, expected) is Verdict.HOLDS


def pooled(rows: Collection[Row], alpha: float) -> tuple[float, float]:
    """Interval of the shift that rows have in common, each end at `alpha`.

    Their mean, weighted by the inverse square of what the width of each row's interval says its
    standard error is.
    """
    normal = NormalDist()
    weights, shifts = [], []
    for row in rows:
        at, low, high = row.judged
        z = normal.inv_cdf((1 + (row.confidence or 0.98)) / 2)
        weights.append((2 * z / max(high - low, 1e-9)) ** 2)
        shifts.append(at - (row.expected or 0.0))
    mean = sum(w * d for w, d in zip(weights, shifts, strict=True)) / sum(weights)
    reach = normal.inv_cdf(1 - alpha) / math.sqrt(sum(weights))
    return mean - reach, mean + reach


@dataclass(frozen=True)
class Expectation:
    """What a claim is judged against.

    Attributes:
        log_ratio: None if no figure is stored for it on this machine.
        rule: what to measure by.
        recovery: recovery in per cent of the row recorded last, if that states one.
    """

    log_ratio: float | None
    rule: Rule
    recovery: float | None = None


def speed_verdict(
    found: Verdict | None,
    log_ratio: float,
    expected: Expectation,
    recording: bool,
    loaded: bool = False,
) -> Verdict:
    """Verdict on speed.

    A recording says whether what it would store lies beyond the margin of what is stored.

    Args:
        found: verdict of the looks.
        log_ratio: measured d.
        expected: what it is judged against.
        recording: whether this session records.
        loaded: whether other processes used the machine meanwhile.
    """
    if loaded and expected.log_ratio is not None:
        return Verdict.NOT_JUDGED
    if recording:
        if expected.log_ratio is None:
            return Verdict.RECORDED
        moved, limit = log_ratio - expected.log_ratio, expected.rule.limit
        verdict = place(moved, moved, limit)
        return verdict if verdict in CHANGED else Verdict.RECORDED
    return Verdict.NOT_RECORDED if found is None or expected.log_ratio is None else found


def held_recovery(accuracy: Accuracy, recorded: float | None) -> Accuracy:
    """Fails a row that recovers less than the row recorded last, or no longer states it."""
    now = accuracy.figures.get("recovery")
    if recorded is None or not accuracy.passed:
        return accuracy
    if now is not None and now >= recorded - RECOVERY_MARGIN:
        return accuracy
    text = f"{accuracy.text}; recorded with a recovery of {recorded:.1f} %"
    return replace(accuracy, passed=False, text=text)


def confirmed(row: Row, again: Row, void: bool, recording: bool) -> Row:
    """A changed row after a fresh process has measured the claim again.

    A change counts only if that process sees it too: a gate needs the same verdict, a recording the
    same figure within the margin. A void process, whose control is out of its band, settles
    nothing.
    """
    if recording:
        same = abs(again.judged[0] - row.judged[0]) <= math.log1p(row.margin)
    else:
        same = again.verdict == row.verdict
    verdict: str = Verdict.UNDECIDED if void or not same else row.verdict
    return replace(
        row,
        first_verdict=row.verdict,
        second_log_ratio=again.judged[0],
        second_verdict=VOID if void else again.verdict,
        verdict=verdict if again.accuracy.passed else Verdict.FAILED,
        accuracy=row.accuracy if again.accuracy.passed else again.accuracy,
    )


@dataclass(frozen=True)
class Outcome:
    """A verdict as the outcome of a test."""

    status: Literal["passed", "failed", "skipped"] = "passed"
    message: str = ""


def outcome(
    row: Row, void: str, recording: bool, stored: Row | None, known: bool, accepted: bool = False
) -> Outcome:
    """Turns a row into the outcome of its test.

    Args:
        row: of the claim.
        void: why nothing in this session counts; "" if everything does.
        recording: whether this session records.
        stored: the row of this machine's latest run; None without one.
        known: whether this machine has a stored run.
        accepted: whether a recording may store the row although it is slower.
    """
    if void:
        return Outcome("failed", void)
    if not row.accuracy.passed:  # what is wrong has no speed
        return Outcome("failed", f"accuracy failed: {row.accuracy.text}; its speed is not judged")
    if recording:
        reasons = refusals({"": row}, {""} if accepted else ())
        return Outcome("failed", reasons[0].removeprefix(": ")) if reasons else Outcome()
    figures = describe(row)
    if row.verdict == Verdict.NOT_JUDGED:
        return Outcome("skipped", f"not judged: {beside(row)}; {figures}")
    if row.verdict == Verdict.NOT_RECORDED:
        text = f"no stored figure to gate its speed against ({figures}): `--record` stores it"
        return Outcome("failed" if known and stored is None else "skipped", text)
    again = (
        f"a fresh process said {math.expm1((row.second_log_ratio or 0) - (row.expected or 0)):+.1%}"
    )
    if row.verdict == Verdict.REGRESSED:
        return Outcome("failed", f"regressed: {figures}; {again}; {who_moved(row, stored)}")
    if row.verdict == Verdict.IMPROVED:
        return Outcome(
            "failed",
            f"improved: {figures}; {again}; {who_moved(row, stored)}; if the subject did, "
            "`--record` keeps the gain",
        )
    if row.second_verdict == VOID:
        return Outcome(
            "failed",
            f"{row.first_verdict}, but no fresh process could confirm or refute it: in each the "
            f"reference differed from itself; {figures}",
        )
    if row.verdict == Verdict.UNDECIDED:
        return Outcome("skipped", f"undecided: {figures}")
    return Outcome()


def beside(row: Row) -> str:
    """What ran beside a row's timing, in words."""
    return f"other processes used {row.others or 0.0:.2f} cores"


def who_moved(row: Row, stored: Row | None) -> str:
    """Both sides against their stored seconds, and which of them changed more."""
    if stored is None or not stored.subject_seconds:
        return "no stored seconds"
    gated = row.gate_log_ratio is not None
    before = stored.gate_seconds if gated else stored.reference_seconds
    now = row.gate_seconds if gated else row.reference_seconds
    if not before or not now:
        return "no stored seconds"
    subject = math.log(row.subject_seconds / stored.subject_seconds)
    reference = math.log(now / before)
    mover = "subject" if abs(subject) >= abs(reference) else "reference"
    return (
        f"subject {1e3 * stored.subject_seconds:.3g} → {1e3 * row.subject_seconds:.3g} ms, "
        f"{row.gate_reference or 'reference'} {1e3 * before:.3g} → {1e3 * now:.3g} ms: the {mover} "
        "moved more"
    )


def laxer(row: Row, stored: Row) -> str:
    """How the rules of a row demand less than those of the stored one; "" if they do not.

    The rules of a claim are part of what was recorded, so that a margin cannot grow in silence.
    """
    found = []
    if stored.gate_reference == row.gate_reference:
        before_now = {"margin": (stored.margin, row.margin)}  # all that older rows state
        before_now |= {name: (stored.rule[name], row.rule.get(name, 0.0)) for name in stored.rule}
        found = [
            f"{name} {before:g} → {now:g}"
            for name, (before, now) in before_now.items()
            if (now - before) * WEAKER.get(name, 0) > 1e-9
        ]
    for name in ("reference", "workload", "temperature", "gate_reference"):
        before = getattr(stored, name, None) or stored.about.get(name)
        now = getattr(row, name, None) or row.about.get(name)
        if before is not None and now != before:
            found.append(f"{name} {before} → {now}")
    return ", ".join(found)


def describe(row: Row) -> str:
    """One claim's figures in words, for the message of a verdict."""
    text = f"{row.speedup:.2f}× the reference"
    if row.expected is None:
        return text
    at, low, high = row.moved
    beside = f", beside its {row.gate_reference}" if row.gate_reference else ""
    return (
        f"{text}; time changed by {at:+.1%} [{low:+.1%}, {high:+.1%}]{beside} at a margin of "
        f"{row.margin:.0%}, {row.pairs} pairs"
    )


def refusals(rows: Mapping[str, Row], accepted: Collection[str] = ()) -> list[str]:
    """Why some of these rows must not become a baseline; empty if all may.

    Args:
        rows: by test id.
        accepted: test ids of those that are meant to be slower.
    """
    reasons = []
    for name, row in rows.items():
        _, low, high = row.judged
        width = math.expm1(high - low)
        if width > row.margin:
            reasons.append(
                f"{name}: interval of {width:.1%} is wider than the margin of {row.margin:.0%}: "
                f"this machine is too noisy now"
            )
        if (row.others or 0.0) > LOADED:
            reasons.append(
                f"{name}: {beside(row)} while it was timed, and {LOADED} are allowed: close them "
                "and record it again"
            )
        if not row.accuracy.passed:
            reasons.append(f"{name}: accuracy failed, {row.accuracy.text}")
        if row.verdict == Verdict.UNDECIDED and row.second_log_ratio is not None:
            again = math.expm1(row.second_log_ratio - (row.expected or 0.0))
            reasons.append(
                f"{name}: time changed by {row.moved[0]:+.1%} against the run before, but a fresh "
                f"process measured {again:+.1%} ({row.second_verdict}): the old row stays"
            )
        if row.verdict == Verdict.REGRESSED and name not in accepted:
            reasons.append(
                f"{name}: regressed by {row.moved[0]:+.1%} against a stored row, at a margin of "
                f"{row.margin:.0%}: the old row stays; `--record --accept ID` stores what is meant"
            )
    return reasons
