"""One pytest session: what is stored, what was measured, and why it must fail although no test did.

Every way of passing without having gated anything is a problem that is named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.rows import Accuracy, Row
from mpnn.regression.timing import Clock, PairedTiming, Side, garbage_collection_off, measure
from mpnn.regression.verdict import (
    PORTABLE_MARGIN,
    RECORDING,
    Expectation,
    Rule,
    Verdict,
    held_recovery,
    quick,
    speed_verdict,
)

CONTROL_LOOKS = 2
UNDECIDED_SHARE = 0.2
"""Above this share of undecided claims (and more than one) the machine is too noisy to gate."""

Check = Callable[[PairedTiming], Accuracy]


@dataclass
class Session:
    """What one session expects, measures and misses.

    Attributes:
        stored: rows of this machine's latest run by test id; None on an unknown machine.
        portable: log-ratios of all recorded machines, for rows that this one has not.
        recording: measure until a row can be stored, then compare it with the run before.
        quick: coarser rule, for local work.
        recoveries: recovery in per cent that the row recorded last states, on whatever machine.
        common: rows that every recorded machine has, of which an unknown one must not lack any.
        retired: rows that may be missing.
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
    retired: Collection[str] = ()
    rows: dict[str, Row] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    control: PairedTiming | None = None

    @classmethod
    def of(cls, root: Path, hardware: str, recording: bool, quick: bool) -> Session:
        """A session of one machine against the runs below `root`.

        Raises:
            InputError: a stored run cannot be read.
        """
        history, latest = baselines.history(root / hardware), baselines.latest_runs(root)
        return cls(
            stored=history[-1].rows if history else None,
            portable=baselines.portable_rows(latest),
            recording=recording,
            quick=quick,
            recoveries=baselines.stated_recoveries(latest),
            common=baselines.common_rows(latest),
            retired={row.test for row in baselines.retired(root)},
        )

    def expectation(self, name: str, rule: Rule) -> Expectation:
        """What a claim is judged against in this session, and by which rule."""
        own = (self.stored or {}).get(name)
        if self.recording:  # noise costs time here, not the row
            longer = replace(rule, looks=RECORDING * rule.looks, budget=RECORDING * rule.budget)
            return Expectation(own.log_ratio if own else None, longer, own is not None)
        rule, recovery = quick(rule) if self.quick else rule, self.recoveries.get(name)
        if own is not None:
            return Expectation(own.log_ratio, rule, True, recovery)
        if rule.portable and name in self.portable:
            wide = replace(rule, margin=max(rule.margin, PORTABLE_MARGIN))
            return Expectation(self.portable[name], wide, False, recovery)
        return Expectation(None, replace(rule, looks=1), False, recovery)

    def time_control(self, side: Side, seed: int, clock: Clock) -> None:
        """Times a side against itself, once a session, by the standard rule."""
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
        """Times one claim; in a recording until its row can be stored, whatever is expected."""
        expected = self.expectation(name, rule)
        against = None if self.recording else expected.log_ratio
        with garbage_collection_off():
            return measure(
                subject, reference, expected.rule, expected=against, seed=seed, clock=clock
            )

    def row(self, name: str, timing: PairedTiming, rule: Rule, accuracy: Accuracy) -> Row:
        """The judged row of one claim."""
        expected = self.expectation(name, rule)
        used = expected.rule
        low, high = timing.interval(used.alpha_pass)
        return Row(
            log_ratio=timing.log_ratio,
            log_ratio_low=low,
            log_ratio_high=high,
            margin=used.margin,
            subject_seconds=median(timing.subject_seconds),
            verdict=speed_verdict(timing.verdict, timing.log_ratio, expected, self.recording),
            accuracy=held_recovery(accuracy, expected.recovery),
            reference_seconds=median(timing.reference_seconds),
            confidence=1 - 2 * used.alpha_pass,
            pairs=len(timing.log_ratios),
            looks=timing.looks,
            repeats=timing.repeats,
            expected=expected.log_ratio,
        )

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

    @property
    def expected_rows(self) -> list[str]:
        """Stored rows that a session must not lack: of this machine, or of all recorded ones."""
        rows = self.common if self.stored is None else self.stored
        return [name for name in rows if name not in self.retired]

    def problems(
        self, collected: Collection[str], selected: Collection[str], vanished: Collection[str]
    ) -> list[str]:
        """Why the session fails although no claim did.

        Args:
            collected: claims that exist.
            selected: those that this session was to run.
            vanished: stored rows without a test.
        """
        found = [f"{name}: is stored, but no test has this id (renamed?)" for name in vanished]
        found += [
            f"{name}: is in {baselines.RETIRED}, but a test has this id"
            for name in collected
            if name in self.retired
        ]
        if self.void:
            return [self.void, *found]
        found += [
            f"{name}: is stored, but was not measured"
            for name in selected
            if name in self.expected_rows
            and name not in self.rows
            and (self.stored is not None or name not in self.excused)
        ]
        if self.recording:  # gates nothing; each row that it refuses has a message of its own
            measured = self.rows or not selected
            return found if measured else [*found, "nothing was measured, so nothing is recorded"]
        return found + self._idle(selected)

    def _idle(self, selected: Collection[str]) -> list[str]:
        """Why the session gated too little; empty if it gated enough."""
        verdicts = [row.verdict for row in self.rows.values()]
        found = []
        if selected and all(v in (Verdict.NOT_RECORDED, Verdict.UNDECIDED) for v in verdicts):
            found.append("nothing was gated: no claim was decided against a stored figure")
        undecided = verdicts.count(Verdict.UNDECIDED)
        if undecided > max(1, UNDECIDED_SHARE * len(verdicts)):
            found.append(
                f"{undecided} of {len(verdicts)} claims are undecided: "
                f"this machine is too noisy to gate on now"
            )
        return found

    def control_info(self) -> dict[str, Any]:
        """The control as it is stored with a run; {} before it was timed."""
        if self.control is None:
            return {}
        low, high = self.control.interval(Rule().alpha_pass)
        return {
            "log_ratio": self.control.log_ratio,
            "log_ratio_low": low,
            "log_ratio_high": high,
        }


def require_committed(root: Path) -> str:
    """The commit below `root`, once nothing but baselines differs from it.

    Raises:
        InputError: the working tree holds what no commit describes.
    """
    changed = [
        path
        for path in baselines.uncommitted(root)
        if Path(path).parts[0] != "baselines"  # what other recordings wrote
    ]
    if changed:
        raise InputError(
            f"a baseline must name the commit that it measures, and these are not committed: "
            f"{', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}"
        )
    return str(baselines.commit_info(root)["id"])
