"""Paired timing and its verdict: pure functions around one clock.

Subject and reference are timed leg beside leg, first one and then the other by lot, each side
repeated until both legs last about as long. The figure is the median of d = ln(subject/reference)
with the exact order-statistic bound (the sign test), which needs neither a seed nor normality.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from itertools import islice

Clock = Callable[[], float]

CALIBRATION_CALLS = 2
CALIBRATION_SECONDS = 0.5
INPUTS = 4
"""Different inputs in rotation, so that no side can answer from a cache."""


class Verdict(StrEnum):
    """What a session may say about one claim."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    HOLDS = "holds"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Side:
    """One side of a pair: `call(i)` does the work on input i, synchronized, and returns its output.

    `units` is the number of proteins or sequences that one call finishes; ratios are per unit.
    """

    call: Callable[[int], object]
    units: int = 1


@dataclass(frozen=True)
class Rule:
    """How long to look and when to speak.

    Attributes:
        margin: the ratio may move by this fraction before the claim has changed.
        pairs: pairs in one look.
        looks: looks before the verdict is *undecided*.
        alpha_fail: chance, per look and side, of a bound beyond a true median: *regressed*.
        alpha_pass: the same for *holds*, asked after every block of two pairs; see `holds`.
        shortest_leg: seconds that both legs last at least.
        longest_leg: seconds beyond which the faster side is no longer repeated to keep up.
        budget: seconds after which no further look is begun.
        portable: whether the figures of other machines say what to expect on one without its own.
    """

    margin: float = 0.03
    pairs: int = 40
    looks: int = 5
    alpha_fail: float = 0.002
    alpha_pass: float = 0.01
    shortest_leg: float = 0.015
    longest_leg: float = 0.25
    budget: float = 40.0
    portable: bool = True

    def __post_init__(self) -> None:
        if self.margin <= 0 or self.pairs < 1 or self.looks < 1:
            raise ValueError(f"margin, pairs and looks must be positive: {self}")
        needed = math.ceil(-math.log2(min(self.alpha_fail, self.alpha_pass)))
        if self.pairs < needed:
            raise ValueError(
                f"{self.pairs} pairs have no bound at α = {min(self.alpha_fail, self.alpha_pass)}; "
                f"take {needed} pairs or a larger α"
            )

    @property
    def limit(self) -> float:
        """The margin on the scale of d."""
        return math.log1p(self.margin)


@dataclass(frozen=True)
class PairedTiming:
    """What `measure` saw: one log-ratio and two durations (seconds per unit) per pair."""

    log_ratios: tuple[float, ...]
    subject_seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...]
    repeats: tuple[int, int]
    looks: int
    verdict: Verdict | None
    outputs: tuple[dict[int, object], dict[int, object]] = field(repr=False, compare=False)

    @property
    def log_ratio(self) -> float:
        """Median of d; below zero the subject is faster."""
        return median(self.log_ratios)

    @property
    def speedup(self) -> float:
        """How many times faster the subject is."""
        return math.exp(-self.log_ratio)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Exact interval of the median of d, `alpha` on each side."""
        return interval(self.log_ratios, alpha)


def median(x: Sequence[float]) -> float:
    """Median; the mean of the middle two when there is an even number."""
    ordered = sorted(x)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def sign_test_bound(x: Sequence[float], alpha: float) -> float:
    """Largest order statistic that lies below the true median with probability 1 − alpha.

    The k-th smallest of n is above the median only if fewer than k of n fair coins say so:
    P(Bin(n, 1/2) < k) ≤ alpha. Minus infinity when n is too small for any bound.
    """
    ordered, n = sorted(x), len(x)
    limit = int(Fraction(alpha) * 2**n)  # in whole numbers: 2^n is beyond floats from n = 1,024
    tail, k = 1, 0
    while k < n and tail <= limit:
        k += 1
        tail += math.comb(n, k)
    return ordered[k - 1] if k else -math.inf


def interval(x: Sequence[float], alpha: float) -> tuple[float, float]:
    """Lower and upper `sign_test_bound` of x, each at `alpha`."""
    return sign_test_bound(x, alpha), -sign_test_bound([-value for value in x], alpha)


def judge(log_ratios: Sequence[float], expected: float, rule: Rule) -> Verdict:
    """Verdict of one look: the measured d against the stored one.

    *Regressed* and *improved* need the bound at `alpha_fail` beyond the margin; see `holds`.
    """
    low, high = interval(log_ratios, rule.alpha_fail)
    if low > expected + rule.limit:
        return Verdict.REGRESSED
    if high < expected - rule.limit:
        return Verdict.IMPROVED
    return Verdict.HOLDS if holds(log_ratios, expected, rule) else Verdict.UNDECIDED


def holds(log_ratios: Sequence[float], expected: float, rule: Rule) -> bool:
    """Whether the whole interval at `alpha_pass` lies inside the margin around the stored d.

    It may be asked after every block of pairs. Of 400 simulated sessions (noise of 3 % with bursts)
    at the very margin 7 % then hold, instead of 3 % where it is asked after looks alone; of those
    1 % beyond it 0.3 %, 2 % beyond none.
    """
    low, high = interval(log_ratios, rule.alpha_pass)
    return expected - rule.limit < low and high < expected + rule.limit


def balanced_repeats(subject: float, reference: float, rule: Rule) -> tuple[int, int]:
    """Calls per leg so that legs of calls of these seconds last about equally long.

    An unbalanced pair is biased on a busy machine: a leg shorter than a time slice escapes being
    interrupted. Beyond `longest_leg` this no longer matters and the faster side is spared.
    """
    length = max(rule.shortest_leg, min(max(subject, reference), rule.longest_leg))
    return max(1, round(length / subject)), max(1, round(length / reference))


def subject_first(seed: int) -> Iterator[bool]:
    """Endless lot of who goes first, in blocks of two, so that neither side is favored."""
    lot = random.Random(seed)
    while True:
        first = lot.random() < 0.5
        yield first
        yield not first


def measure(
    subject: Side,
    reference: Side,
    rule: Rule,
    *,
    expected: float | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> PairedTiming:
    """Time both sides in interleaved pairs until the rule can speak.

    Args:
        subject: the side that the claim is about.
        reference: the side it is compared with.
        rule: pairs, looks and margin.
        expected: the stored d. Without it there is no verdict, and looks are taken until the
            interval is narrower than the margin, which a recording needs.
        seed: of the lot that orders the legs.
        clock: seconds, monotonic.

    Returns:
        The timing, with the outputs of the timed calls by number of the input.
    """
    runners = _Runner(subject, clock), _Runner(reference, clock)
    repeats = balanced_repeats(runners[0].calibrate(), runners[1].calibrate(), rule)
    order = subject_first(seed)
    seconds: tuple[list[float], list[float]] = [], []
    ratios: list[float] = []
    verdict, look, start = None, 0, clock()
    while verdict in (None, Verdict.UNDECIDED):
        if look == rule.looks or (look and clock() - start > rule.budget):
            break
        look += 1
        for first in islice(order, rule.pairs):
            for side in (0, 1) if first else (1, 0):
                seconds[side].append(runners[side].leg(repeats[side]))
            ratios.append(math.log(seconds[0][-1] / seconds[1][-1]))
            block = len(ratios) % 2 == 0
            if block and expected is not None and holds(ratios, expected, rule):
                break
        verdict = None if expected is None else judge(ratios, expected, rule)
        low, high = interval(ratios, rule.alpha_pass)
        if expected is None and high - low < math.log1p(rule.margin):
            break
    return PairedTiming(
        tuple(ratios),
        tuple(seconds[0]),
        tuple(seconds[1]),
        repeats,
        look,
        verdict,
        (runners[0].outputs, runners[1].outputs),
    )


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """No garbage collection inside a leg; one before the first."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def quick(rule: Rule) -> Rule:
    """A coarser rule for local work: one short look and a margin of at least 10 %."""
    pairs = min(rule.pairs, 16)
    return replace(rule, pairs=pairs, looks=1, margin=max(rule.margin, 0.10))


class _Runner:
    """Times one side, input after input, and keeps what its calls returned."""

    def __init__(self, side: Side, clock: Clock) -> None:
        self.side, self.clock = side, clock
        self.calls = 0
        self.outputs: dict[int, object] = {}

    def leg(self, repeats: int) -> float:
        """Seconds per unit over one leg."""
        call, outputs = self.side.call, self.outputs
        numbers = [(self.calls + i) % INPUTS for i in range(repeats)]
        self.calls += repeats
        start = self.clock()
        for number in numbers:
            outputs[number] = call(number)
        return (self.clock() - start) / (repeats * self.side.units)

    def calibrate(self) -> float:
        """Seconds of one call, the least of a few after the first, which may still compile."""
        self.leg(1)
        best, spent, calls = math.inf, 0.0, 0
        while calls < CALIBRATION_CALLS and spent < CALIBRATION_SECONDS:
            seconds = self.leg(1) * self.side.units
            best, spent, calls = min(best, seconds), spent + seconds, calls + 1
        return best
