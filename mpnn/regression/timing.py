"""Paired timing: a few functions around one clock.

Subject and reference are timed in interleaved pairs, in random order within each, each side
repeated until both timed runs last about equally long. `mpnn.regression.verdict` judges the ratios.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median

from mpnn.regression.usage import LOADED, Usage, meter
from mpnn.regression.verdict import Rule, Verdict, holds, interval, judge

Clock = Callable[[], float]

CALIBRATION_CALLS = 2
CALIBRATION_SECONDS = 0.5
WARM_UP_SECONDS = 5.0
STEADY = 0.03
"""A device is warm once its calls get quicker by less than this fraction."""

IDLE_RUN = 0.2
"""Seconds that a timed run lasts at least where a side's device lowers its clock when idle."""

INPUTS = 4
"""Different inputs in rotation."""

UNSEEN = 4
"""Further inputs that each subject is given once, at the end: one that answers from a cache keyed
by what it was given takes longer for them."""

CACHED = 1.3
"""How many times as long as the slowest call on known inputs the quickest of these may take."""


@dataclass(frozen=True)
class Side:
    """One side of a pair: `call(i)` does the work on input i, synchronized, and returns its output.

    Attributes:
        call: the work.
        units: proteins or sequences that one call finishes; ratios are per unit.
        idles: whether it runs on a device that lowers its clock when it has nothing to do: one call
            that is not timed then precedes each timed run, and calibration lasts until calls do
            not get quicker.
    """

    call: Callable[[int], object]
    units: int = 1
    idles: bool = False


@dataclass(frozen=True)
class Gate:
    """What a claim is gated against where its reference takes long: something short and frozen.

    Attributes:
        name: of the gate reference, for people and stored rows.
        side: it; its outputs are not looked at.
        rule: to judge by.
        floor: part of its time below which no subject can have done the work.
    """

    name: str
    side: Side
    rule: Rule
    floor: float = 0.0


@dataclass(frozen=True)
class PairedTiming:
    """What `measure` saw: one log-ratio and two durations (seconds per unit) for each run pair.

    `repeats` are calls per timed run; `outputs` those of both sides by number of the input.
    """

    log_ratios: tuple[float, ...]
    subject_seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...]
    repeats: tuple[int, int]
    looks: int
    verdict: Verdict | None
    cost: dict[str, float]  # of the subject per unit, see `usage`; of what this machine counts
    unseen: float  # quickest call on an input never given before / slowest on a known one
    outputs: tuple[dict[int, object], dict[int, object]] = field(repr=False, compare=False)
    others: float | None = None  # cores that other processes used meanwhile, if that is known

    @property
    def log_ratio(self) -> float:
        """Median of d; below zero the subject is faster."""
        return median(self.log_ratios)

    @property
    def cached(self) -> bool:
        """Whether the subject takes longer for inputs that it has never seen."""
        return self.unseen > CACHED

    @property
    def loaded(self) -> bool:
        """Whether other processes used so much of the machine that the ratio says nothing."""
        return (self.others or 0.0) > LOADED

    @property
    def speedup(self) -> float:
        """How many times faster the subject is."""
        return math.exp(-self.log_ratio)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Exact interval of the median of d, `alpha` on each side."""
        return interval(self.log_ratios, alpha)


def balanced_repeats(subject: float, reference: float, rule: Rule) -> tuple[int, int]:
    """Calls per timed run so that runs of calls of these seconds last about equally long.

    An unbalanced pair is biased on a busy machine: a run shorter than a time slice escapes being
    interrupted. Beyond `longest_run` this no longer matters, and the faster side is not repeated.
    """
    length = max(rule.shortest_run, min(max(subject, reference), rule.longest_run))
    return max(1, round(length / subject)), max(1, round(length / reference))


def subject_first(seed: int) -> Iterator[bool]:
    """Endless random order of who goes first, in blocks of two, so that neither side is favored."""
    generator = random.Random(seed)
    while True:
        first = generator.random() < 0.5
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
    hopeless: Callable[[], bool] = lambda: False,
) -> PairedTiming:
    """Times both sides in interleaved pairs until the rule can decide.

    Args:
        subject: the side that the claim is about.
        reference: the side it is compared with.
        rule: pairs, looks and margin.
        expected: the stored d. Without it there is no verdict, and looks are taken until the
            interval is narrower than the margin, which a recording needs.
        seed: of the order of the timed runs.
        clock: seconds, monotonic.
        hopeless: whether no further look is worth its time, for other work makes it void.

    Returns:
        The timing, with the outputs of the timed calls.
    """
    pairs = _Pairs(subject, reference, rule, seed, clock)
    verdict, look, start = None, 0, clock()
    while verdict in (None, Verdict.UNDECIDED):
        if look == rule.looks or (look and (clock() - start > rule.budget or hopeless())):
            break
        look += 1
        for _ in pairs.look():
            block = len(pairs.ratios) % 2 == 0
            if block and expected is not None and holds(pairs.ratios, expected, rule):
                break
        verdict = None if expected is None else judge(pairs.ratios, expected, rule)
        low, high = interval(pairs.ratios, rule.alpha_pass)
        if expected is None and high - low < rule.limit:
            break
    return pairs.timing(look, verdict)


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """No garbage collection inside a timed run; one before the first."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Pairs:
    """Times run pairs, and keeps their ratios and seconds."""

    def __init__(self, subject: Side, reference: Side, rule: Rule, seed: int, clock: Clock) -> None:
        if subject.idles or reference.idles:
            rule = replace(rule, shortest_run=max(rule.shortest_run, IDLE_RUN))
        self.rule, self.order = rule, subject_first(seed)
        self.runners = _Runner(subject, clock), _Runner(reference, clock)
        calls = [runner.calibrate() for runner in self.runners]
        self.repeats = balanced_repeats(calls[0], calls[1], rule)
        self.seconds: tuple[list[float], list[float]] = [], []
        self.ratios: list[float] = []

    def look(self) -> Iterator[float]:
        """Times the pairs of one look; yields the log-ratio of each."""
        for first in islice(self.order, self.rule.pairs):
            for side in (0, 1) if first else (1, 0):
                self.seconds[side].append(self.runners[side].run(self.repeats[side]))
            self.ratios.append(math.log(self.seconds[0][-1] / self.seconds[1][-1]))
            yield self.ratios[-1]

    def timing(self, looks: int, verdict: Verdict | None) -> PairedTiming:
        """What was measured so far."""
        return PairedTiming(
            tuple(self.ratios),
            tuple(self.seconds[0]),
            tuple(self.seconds[1]),
            self.repeats,
            looks,
            verdict,
            self.runners[0].used.per(self.runners[0].finished),
            self.runners[0].unseen(),
            (self.runners[0].outputs, self.runners[1].outputs),
        )


class _Runner:
    """Times one side, input after input, and keeps what its calls returned."""

    def __init__(self, side: Side, clock: Clock) -> None:
        self.side, self.clock = side, clock
        self.calls = 0
        self.finished = 1  # units, of which `used` is the cost
        self.used = Usage()
        self.outputs: dict[int, object] = {}

    def run(self, repeats: int) -> float:
        """Seconds per unit over one timed run."""
        call, outputs = self.side.call, self.outputs
        numbers = [(self.calls + i) % INPUTS for i in range(repeats)]
        first, self.calls = self.calls == 0, self.calls + repeats
        if self.side.idles:
            call((numbers[0] + 1) % INPUTS)  # not that which is timed next: it might be kept
        before, start = meter()(), self.clock()
        for number in numbers:
            outputs[number] = call(number)
        seconds = self.clock() - start
        spent = meter()() - before
        units = repeats * self.side.units
        if first:  # which may still compile
            self.finished, self.used = 0, spent - spent
        else:
            self.finished, self.used = self.finished + units, self.used + spent
        return seconds / units

    def unseen(self) -> float:
        """Time of the quickest call on new inputs over the slowest on known ones, called in turn.

        Noise would have to fall on all of one kind and none of the other.
        """
        new: list[float] = []
        known: list[float] = []
        for number in range(UNSEEN):
            for times, given in ((new, INPUTS + number), (known, number)):
                start = self.clock()
                self.side.call(given)
                times.append(self.clock() - start)
        return min(new) / max(*known, 1e-9)

    def _warm_up(self) -> None:
        """Calls a side until its calls do not get quicker, or for `WARM_UP_SECONDS`.

        The noise of a device that has not settled by then shows in the interval.
        """
        start, before = self.clock(), math.inf
        while self.clock() - start < WARM_UP_SECONDS:
            now = min(self.run(1) for _ in range(CALIBRATION_CALLS))
            if now > (1 - STEADY) * before:
                return
            before = now

    def calibrate(self) -> float:
        """Seconds of one call, the least of a few after the first, which may still compile."""
        self.run(1)
        if self.side.idles:
            self._warm_up()
        best, spent, calls = math.inf, 0.0, 0
        while calls < CALIBRATION_CALLS and spent < CALIBRATION_SECONDS:
            seconds = self.run(1) * self.side.units
            best, spent, calls = min(best, seconds), spent + seconds, calls + 1
        return best
