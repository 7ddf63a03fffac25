"""From a timing to a verdict: what a session expects of a claim, and what it says in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mpnn.regression.baselines import Row
from mpnn.regression.timing import (
    Clock,
    PairedTiming,
    Rule,
    Side,
    Verdict,
    garbage_collection_off,
    measure,
    median,
    quick,
)

PORTABLE_MARGIN = 1.0
"""How much slower than on the recorded machines a ratio may be on one that has no record: what is
half as fast there may be so by its processor, what is slower has broken."""

RECORDING = 4
"""Times as many looks, and as much time, as a session that judges: until the row can be stored."""

RECOVERY_MARGIN = 0.5
"""Points of recovery that a network may have less than the one that was recorded."""

CONTROL_LOOKS = 2

UNDECIDED_SHARE = 0.2
"""Above this share of undecided claims (and more than one) the machine is too noisy to gate."""

NOT_RECORDED = "not recorded"
RECORDED = "recorded"
CHANGED = (Verdict.REGRESSED, Verdict.IMPROVED)
"""Verdicts that count only once a fresh process has said the same."""


@dataclass(frozen=True)
class Accuracy:
    """What the outputs of the timed legs say: whether the claim stands, why, and figures."""

    passed: bool
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


Check = Callable[[PairedTiming], Accuracy]


@dataclass
class Gate:
    """One session: what is stored, what was measured.

    Attributes:
        stored: rows of this machine's latest run by test id; None on an unknown machine.
        portable: log-ratios from all recorded machines, for rows that this one has not.
        recoveries: recovery in per cent that the row recorded last states, on whatever machine.
        common: rows that every recorded machine has, of which an unknown one must not lack any.
        recording: measure until a row can be stored, then compare it with the run before.
        quick: coarser rule, for local work.
        rows: what this session measured, by test id.
        excused: claims that this machine cannot measure.
        control: the reference against itself.
    """

    stored: Mapping[str, Row] | None
    portable: Mapping[str, float]
    recording: bool = False
    quick: bool = False
    recoveries: Mapping[str, float] = field(default_factory=dict)
    common: Collection[str] = ()
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    control: PairedTiming | None = None

    def expectation(self, name: str, rule: Rule) -> tuple[float | None, Rule]:
        """The log-ratio to hold a claim against, None if there is none, and the rule to use."""
        before = (self.stored or {}).get(name, {}).get("log_ratio")
        if self.recording:  # noise costs time here, not the row
            looks, budget = RECORDING * rule.looks, RECORDING * rule.budget
            return before, replace(rule, looks=looks, budget=budget)
        rule = quick(rule) if self.quick else rule
        if before is not None:
            return before, rule
        if rule.portable and name in self.portable:
            return self.portable[name], replace(rule, margin=max(rule.margin, PORTABLE_MARGIN))
        return None, replace(rule, looks=1)

    def time_control(self, side: Side, seed: int, clock: Clock) -> None:
        """Times a side against itself, once a session, by the strict rule whatever is claimed."""
        if self.control is not None:
            return
        rule = quick(Rule()) if self.quick else Rule(looks=CONTROL_LOOKS)
        if self.recording:
            rule = replace(rule, looks=RECORDING * rule.looks)
        with garbage_collection_off():
            self.control = measure(side, side, rule, expected=0.0, seed=seed, clock=clock)

    def time(
        self, name: str, subject: Side, reference: Side, rule: Rule, seed: int, clock: Clock
    ) -> PairedTiming:
        """Times one claim; when recording until its row can be stored, whatever is expected."""
        expected, rule = self.expectation(name, rule)
        expected = None if self.recording else expected
        with garbage_collection_off():
            return measure(subject, reference, rule, expected=expected, seed=seed, clock=clock)

    @property
    def void(self) -> str:
        """Why nothing in this session counts; '' while the control is in its band.

        A recording demands more: that the control is known to be in its band.
        """
        if self.control is None or self.control.verdict is Verdict.HOLDS:
            return ""
        if self.control.verdict is Verdict.UNDECIDED and not self.recording:
            return ""
        low, high = (math.expm1(d) for d in self.control.interval(Rule().alpha_pass))
        return (
            f"void: in this session the reference differs from itself by "
            f"{math.expm1(self.control.log_ratio):+.1%} [{low:+.1%}, {high:+.1%}]; no verdict "
            f"counts. Close other work, or look for state that one side leaves behind"
        )

    def row(
        self, name: str, timing: PairedTiming, rule: Rule, accuracy: Accuracy
    ) -> dict[str, Any]:
        """The figures of one claim as they are stored in `extra_info`."""
        expected, used = self.expectation(name, rule)
        low, high = timing.interval(used.alpha_pass)
        accuracy = self.held_recovery(name, accuracy)
        return {
            "log_ratio": timing.log_ratio,
            "log_ratio_low": low,
            "log_ratio_high": high,
            "confidence": 1 - 2 * used.alpha_pass,
            "speedup": timing.speedup,
            "subject_seconds": median(timing.subject_seconds),
            "reference_seconds": median(timing.reference_seconds),
            "pairs": len(timing.log_ratios),
            "looks": timing.looks,
            "repeats": list(timing.repeats),
            "margin": used.margin,
            "expected": expected,
            "accuracy": {
                "passed": accuracy.passed,
                "text": accuracy.text,
                "figures": dict(accuracy.figures),
            },
            "verdict": self.verdict(name, timing, expected, used),
        }

    def held_recovery(self, name: str, accuracy: Accuracy) -> Accuracy:
        """Fails a row that recovers less than the row recorded last, unless this is a recording.

        A network that recovers less, or whose recovery is no longer known, is not what was stored.
        """
        before, now = self.recoveries.get(name), accuracy.figures.get("recovery")
        if before is None or self.recording or not accuracy.passed:
            return accuracy
        if now is not None and now >= before - RECOVERY_MARGIN:
            return accuracy
        text = f"{accuracy.text}; recorded with a recovery of {before:.1f} %"
        return replace(accuracy, passed=False, text=text)

    @property
    def expected_rows(self) -> Collection[str]:
        """Stored rows that a session must not lack: of this machine, or of all recorded ones."""
        return self.common if self.stored is None else self.stored

    def verdict(self, name: str, timing: PairedTiming, expected: float | None, rule: Rule) -> str:
        """Verdict on speed; where a row is not recorded it may be faster than on other machines.

        A recording says whether what it would store lies beyond the margin of the run before.
        """
        if self.recording and expected is not None:
            moved = timing.log_ratio - expected
            changed = Verdict.REGRESSED if moved > 0 else Verdict.IMPROVED
            return changed if abs(moved) > rule.limit else RECORDED
        if timing.verdict is None or expected is None:
            return RECORDED if self.recording else NOT_RECORDED
        if name not in (self.stored or {}) and timing.verdict is Verdict.IMPROVED:
            return Verdict.HOLDS
        return timing.verdict

    def problems(self, selected: Iterable[str], vanished: Iterable[str]) -> list[str]:
        """Why the session is red although no claim failed.

        Args:
            selected: claims that this session was to run.
            vanished: stored rows that no test bears any more.
        """
        found = [
            f"{name}: is stored, but no test has this id (renamed or deleted?)" for name in vanished
        ]
        if self.void:
            return [self.void, *found]
        selected = list(selected)
        found += [
            f"{name}: is stored, but was not measured"
            for name in selected
            if name in self.expected_rows
            and name not in self.rows
            and (self.stored is not None or name not in self.excused)
        ]
        if self.recording:  # gates nothing; each row that it refuses is told by itself
            measured = self.rows or not selected
            return found if measured else [*found, "nothing was measured, so nothing is recorded"]
        verdicts = [row["verdict"] for row in self.rows.values()]
        if selected and all(verdict in (NOT_RECORDED, Verdict.UNDECIDED) for verdict in verdicts):
            found.append("nothing was gated: no claim was decided against a stored figure")
        undecided = verdicts.count(Verdict.UNDECIDED)
        if undecided > max(1, UNDECIDED_SHARE * len(verdicts)):
            found.append(
                f"{undecided} of {len(verdicts)} claims are undecided: "
                f"this machine is too noisy to gate on just now"
            )
        return found


def describe(row: Row) -> str:
    """One claim's figures in words, for the message of a verdict."""
    text = f"{row['speedup']:.2f}× the reference"
    if row["expected"] is None:
        return text
    low, high = (row[key] - row["expected"] for key in ("log_ratio_low", "log_ratio_high"))
    return (
        f"{text}, {math.exp(-row['expected']):.2f}× expected; time changed by "
        f"{math.expm1(row['log_ratio'] - row['expected']):+.1%} "
        f"[{math.expm1(low):+.1%}, {math.expm1(high):+.1%}] at a margin of {row['margin']:.0%}, "
        f"{row['pairs']} pairs"
    )
