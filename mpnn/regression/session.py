"""One pytest session: what is stored, what was measured, and why it must fail although no test did.

Every way of passing without having gated anything is a problem that is named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.machine import versions
from mpnn.regression.rows import Accuracy, Row
from mpnn.regression.timing import (
    Clock,
    Gate,
    PairedTiming,
    Side,
    garbage_collection_off,
    measure,
)
from mpnn.regression.usage import LOADED, OtherWork, cores_used
from mpnn.regression.verdict import (
    CHANGED,
    RECORDING,
    Expectation,
    Rule,
    Verdict,
    held_recovery,
    laxer,
    place,
    pooled,
    quick,
    speed_verdict,
)

CONTROL_LOOKS = 2
PATIENCE = 3.0
"""Seconds before a claim that was timed beside other work is timed once more."""

PERFORMANCE_CORES = 0.95
"""Share of the CPU time that must be of performance cores, where there are two kinds."""

LEANING = 2
"""Undecided claims of one engine that are judged together."""

UNDECIDED_SHARE = 0.2
"""Above this share of undecided claims (and more than one) the machine is too noisy to gate."""

Check = Callable[[PairedTiming], Accuracy]


class Timings(NamedTuple):
    """Two timings of a subject, the same where the reference is the gate's too.

    Attributes:
        judged: beside the gate reference.
        shown: beside the reference.
    """

    judged: PairedTiming
    shown: PairedTiming


def one_pair(judged: PairedTiming, reference: Side, clock: Clock) -> PairedTiming:
    """A timing beside a reference that is called once: for its outputs, and a rough ratio."""
    start = clock()
    output = reference.call(0)
    seconds = max((clock() - start) / reference.units, 1e-9)
    subject = median(judged.subject_seconds)
    return replace(
        judged,
        log_ratios=(math.log(subject / seconds),),
        subject_seconds=(subject,),
        reference_seconds=(seconds,),
        outputs=(judged.outputs[0], {0: output}),
    )


def answered_anew(accuracy: Accuracy, timing: PairedTiming) -> Accuracy:
    """Fails a subject that answers from a cache: it takes longer for what it has never seen."""
    if not timing.cached or not accuracy.passed:
        return accuracy
    return replace(
        accuracy,
        passed=False,
        text=f"an input never given before takes {timing.unseen:.1f} times as long as the others: "
        "its outputs are cached",
    )


def did_the_work(accuracy: Accuracy, timing: PairedTiming, gate: Gate | None) -> Accuracy:
    """Fails a subject that is done sooner than any processor could be."""
    if gate is None or math.exp(timing.log_ratio) >= gate.floor or not accuracy.passed:
        return accuracy
    return replace(
        accuracy,
        passed=False,
        text=f"takes {math.exp(timing.log_ratio):.3f} of the time of its {gate.name}, and below "
        f"{gate.floor:g} no processor can have done the work",
    )


def _short(name: str) -> str:
    return name.rpartition("[")[2].rstrip("]") or name


@dataclass
class Session:
    """What one session expects, measures and misses.

    Attributes:
        history: rows of this machine's runs by test id, oldest run first; empty on an unknown one.
        recording: measure until a row can be stored, then compare it with those stored.
        quick: coarser rule, for local work.
        recoveries: recovery in per cent that the row recorded last states; this machine's first.
        common: rows that every recorded machine has, of which an unknown one must not lack any.
        retired: rows that may be missing.
        accepted: ids, separated by commas, that a recording may store although they are slower.
        rows: what this session measured, by test id.
        excused: claims that this machine cannot measure.
        control: the reference against itself.
        others: processes beside this one; None where nobody watches them.
    """

    history: Sequence[Mapping[str, Row]] = ()
    recording: bool = False
    quick: bool = False
    recoveries: Mapping[str, float] = field(default_factory=dict)
    common: Collection[str] = ()
    retired: Collection[str] = ()
    accepted: str = ""
    rows: dict[str, Row] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    control: PairedTiming | None = None
    others: OtherWork | None = None

    @classmethod
    def of(
        cls, root: Path, hardware: str, recording: bool, quick: bool, accepted: str = ""
    ) -> Session:
        """A session of one machine against the runs below `root`.

        Raises:
            InputError: a stored run cannot be read.
        """
        history, latest = baselines.history(root / hardware), baselines.latest_runs(root)
        return cls(
            history=[run.rows for run in history],
            recording=recording,
            quick=quick,
            recoveries=baselines.stated_recoveries(latest, hardware),
            common=baselines.common_rows(latest),
            retired={row.test for row in baselines.retired(root)},
            accepted=accepted,
        )

    @property
    def stored(self) -> Mapping[str, Row] | None:
        """Rows of this machine's latest run; None on an unknown machine."""
        return self.history[-1] if self.history else None

    def expectation(self, name: str, rule: Rule, gate: Gate | None = None) -> Expectation:
        """What a claim is judged against in this session, and by which rule.

        Args:
            name: test id.
            rule: of the claim.
            gate: its gate reference; None where the reference itself is one. A row that was stored
                without one has no figure to be gated against.
        """
        own = (self.stored or {}).get(name)
        used = gate.rule if gate else rule
        expected = None
        if own is not None and own.gate_reference == (gate.name if gate else ""):
            expected = own.judged[0]
        if self.recording:  # noise costs time here, not the row
            longer = replace(used, looks=RECORDING * used.looks, budget=RECORDING * used.budget)
            return Expectation(expected, longer)
        used = quick(used) if self.quick else used
        if expected is None:
            used = replace(used, looks=1)
        return Expectation(expected, used, self.recoveries.get(name))

    def time_control(self, side: Side, seed: int, clock: Clock) -> None:
        """Times a side against itself by the standard rule, once a session without other work."""
        if self.control is not None and not self.control.loaded:
            return
        rule = quick(Rule()) if self.quick else Rule(looks=CONTROL_LOOKS)
        if self.recording:
            rule = replace(rule, looks=RECORDING * rule.looks)
        with garbage_collection_off():
            self.control = self._watched(
                lambda: measure(side, side, rule, expected=0.0, seed=seed, clock=clock), clock
            )

    def time(
        self,
        name: str,
        subject: Side,
        reference: Side,
        rule: Rule,
        seed: int,
        clock: Clock,
        gate: Gate | None = None,
    ) -> Timings:
        """Times one claim; in a recording until its row can be stored, whatever is expected.

        Where there is a gate reference, the reference is timed against it in recordings alone.
        Otherwise it is called once, so that there are outputs to compare with.
        """
        expected = self.expectation(name, rule, gate)
        against = None if self.recording else expected.log_ratio

        def judge() -> PairedTiming:
            beside = gate.side if gate else reference
            return measure(
                subject,
                beside,
                expected.rule,
                expected=against,
                seed=seed,
                clock=clock,
                hopeless=self._load_since(clock),
            )

        with garbage_collection_off():
            judged = self._watched(judge, clock)
            if judged.loaded and self._ended(clock):
                judged = self._watched(judge, clock)
            if gate is None:
                return Timings(judged, judged)
            if not self.recording:
                return Timings(judged, one_pair(judged, reference, clock))
            shown = self._watched(
                lambda: measure(subject, reference, rule, seed=seed, clock=clock), clock
            )
            return Timings(judged, shown)

    def _watched(self, timed: Callable[[], PairedTiming], clock: Clock) -> PairedTiming:
        """A timing, and the cores that other processes used meanwhile."""
        if self.others is None:
            return timed()
        cores = self._cores_since(clock)
        timing = timed()
        return replace(timing, others=cores())

    def _cores_since(self, clock: Clock) -> Callable[[], float]:
        """What returns the cores that other processes have used since this call."""
        if self.others is None:
            return lambda: 0.0
        others, before, start = self.others, self.others.seconds(), clock()
        return lambda: cores_used(others.seconds() - before, clock() - start)

    def _load_since(self, clock: Clock) -> Callable[[], bool]:
        """What returns whether a timing since this call is void."""
        cores = self._cores_since(clock)
        return lambda: cores() > LOADED

    def _ended(self, clock: Clock) -> bool:
        """Waits a little; whether other work has ended, so that timing once more is worth it."""
        assert self.others is not None
        loaded = self._load_since(clock)
        self.others.wait(PATIENCE)
        return not loaded()

    def row(
        self,
        name: str,
        timings: Timings,
        rule: Rule,
        accuracy: Accuracy,
        gate: Gate | None = None,
    ) -> Row:
        """The judged row of one claim."""
        expected = self.expectation(name, rule, gate)
        used, judged, shown = expected.rule, timings.judged, timings.shown
        low, high = judged.interval(used.alpha_pass)
        ends = (
            shown.interval(rule.alpha_pass) if len(shown.log_ratios) > 1 else (shown.log_ratio,) * 2
        )
        checked = did_the_work(answered_anew(accuracy, judged), judged, gate)
        row = Row(
            log_ratio=shown.log_ratio,
            log_ratio_low=low if gate is None else ends[0],
            log_ratio_high=high if gate is None else ends[1],
            margin=used.margin,
            subject_seconds=median(judged.subject_seconds),
            verdict=speed_verdict(
                judged.verdict, judged.log_ratio, expected, self.recording, judged.loaded
            ),
            accuracy=held_recovery(checked, expected.recovery),
            reference_seconds=median(shown.reference_seconds),
            confidence=1 - 2 * used.alpha_pass,
            pairs=len(judged.log_ratios),
            looks=judged.looks,
            repeats=judged.repeats,
            rule=(gate.rule if gate else rule).stored(),
            expected=expected.log_ratio,
            others=max(judged.others, shown.others or 0.0) if judged.others is not None else None,
        )
        if gate is None:
            return self._settled(name, row)
        gated = replace(
            row,
            gate_reference=gate.name,
            gate_log_ratio=judged.log_ratio,
            gate_log_ratio_low=low,
            gate_log_ratio_high=high,
            gate_seconds=median(judged.reference_seconds),
        )
        own = (self.stored or {}).get(name)
        if not self.recording and own is not None:  # one call has no interval; a recording had one
            gated = replace(
                gated,
                log_ratio=own.log_ratio,
                log_ratio_low=own.log_ratio_low,
                log_ratio_high=own.log_ratio_high,
            )
        return self._settled(name, gated)

    def accepts(self, name: str) -> bool:
        """Whether a recording may store this row although it is slower: its very id was named."""
        return _short(name) in self.accepted.split(",")

    def _settled(self, name: str, row: Row) -> Row:
        """A row whose verdict takes account of its accuracy and of earlier rows."""
        if not row.accuracy.passed:
            return replace(row, verdict=Verdict.FAILED)
        return row if row.verdict == Verdict.NOT_JUDGED else self._crept(name, row)

    def _crept(self, name: str, row: Row) -> Row:
        """A recorded row that is slower than the best or the first stored one is a regression.

        Rows that each lie within the margin of the one before may drift as far as they like.
        """
        earlier = [
            rows[name].judged[0]
            for rows in self.history
            if name in rows and rows[name].gate_reference == row.gate_reference
        ]
        if not self.recording or not earlier or self.accepts(name):
            return row
        for before in (min(earlier), earlier[0]):
            if row.judged[0] > before + math.log1p(row.margin):
                return replace(row, verdict=Verdict.REGRESSED, expected=before)
        return row

    @property
    def void(self) -> str:
        """Why nothing in this session counts; '' while the control is in its band.

        A recording demands more: that the control is known to be in its band.
        """
        costs = [row.about.get("cost", {}) for row in self.rows.values()]
        share = min((cost.get("performance_share", 1.0) for cost in costs), default=1.0)
        if share < PERFORMANCE_CORES:
            return (
                f"void: performance cores had {share:.0%} of a claim's CPU time, and "
                f"{PERFORMANCE_CORES:.0%} are needed; no verdict counts. Close other work, plug "
                "the machine in, and leave low-power mode"
            )
        if self.control is None or self.control.verdict is Verdict.HOLDS:
            return ""
        if self.control.loaded and not self.recording:  # each claim says whether it was, too
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
        """Stored rows that a session must not lack: of any run of this machine, or of all others.

        A row that was cut out of the newest run is still one that this machine had.
        """
        rows = dict.fromkeys(name for rows in self.history for name in rows) or self.common
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
        """Why the session gated too little, or what its claims say together; empty if it is well.

        On a machine without a stored run, counters and accuracy are what gates.
        """
        verdicts = [row.verdict for row in self.rows.values() if row.verdict != Verdict.FAILED]
        found = []
        idle = {Verdict.UNDECIDED, Verdict.NOT_JUDGED}
        if self.stored is not None:
            idle.add(Verdict.NOT_RECORDED)
        if selected and (not verdicts or idle >= set(verdicts)):
            found.append("nothing was gated: no claim was decided against a stored figure")
        for verdict, why in (
            (Verdict.UNDECIDED, "this machine is too noisy to gate on now"),
            (Verdict.NOT_JUDGED, "other processes use this machine: close them and run again"),
        ):
            count = verdicts.count(verdict)
            if count > max(1, UNDECIDED_SHARE * len(verdicts)):
                found.append(f"{count} of {len(verdicts)} claims are {verdict}: {why}")
        return found + self._leaning() + self._laxer()

    def _leaning(self) -> list[str]:
        """Engines whose claims moved together by more than half their margin.

        Asked where two of them are undecided, of all that have a figure: the undecided alone are
        those that happen to lie far out. Of 4,000 simulated sessions of five claims with
        independent standard errors of 1 % none is red without a change, 63 % with +3 % in each,
        97 % with +4 %. A shift that a process gives to all its rows is taken for a change: with a
        standard deviation of 1 % in rows of 0.5 %, 4 % of sessions are red.
        """
        groups: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            if row.expected is not None and row.verdict in (Verdict.UNDECIDED, Verdict.HOLDS):
                groups.setdefault(str(row.about.get("engine", "")), []).append(name)
        found = []
        for engine, names in groups.items():
            rows = [self.rows[name] for name in names]
            if sum(row.verdict == Verdict.UNDECIDED for row in rows) < LEANING:
                continue
            low, high = pooled(rows, Rule().alpha_fail)
            moved = place(low, high, math.log1p(min(row.margin for row in rows)) / 2)
            if moved in CHANGED:
                found.append(
                    f"{', '.join(map(_short, names))}: undecided one by one, and together engine "
                    f"{engine or 'unknown'} has {moved}: time changed by {math.expm1(low):+.1%} to "
                    f"{math.expm1(high):+.1%}"
                )
        return found

    def other_versions(self) -> str:
        """Packages that the stored rows were measured with in other versions; "" without any."""
        names = self.rows.keys() & (self.stored or {}).keys()
        stored = [(self.stored or {})[name].versions for name in names]
        now = versions()
        return ", ".join(
            f"{package} {'/'.join(sorted(then))}, here {now[package]}"
            for package in now
            if (then := {v[package] for v in stored if package in v} - {now[package]})
        )

    def _laxer(self) -> list[str]:
        """Rows whose rules demand less than when they were stored."""
        if self.quick or self.stored is None:
            return []
        pairs = ((name, row, self.stored.get(name)) for name, row in self.rows.items())
        found = ((name, laxer(row, own)) for name, row, own in pairs if own is not None)
        return [
            f"{_short(name)}: its rules are laxer than those of the stored row ({what}): undo "
            "that, or record it with `--record`"
            for name, what in found
            if what
        ]

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
