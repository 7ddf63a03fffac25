"""One stored row: everything that was measured of a claim, as a typed record.

A row is the `extra_info` of a pytest-benchmark entry. It is written and read here alone, and
reading is strict: a row that is passed over silently is a claim that nobody gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mpnn.errors import InputError

NUMBERS = frozenset({"log_ratio", "log_ratio_low", "log_ratio_high", "margin", "subject_seconds"})
WORDS = frozenset({"verdict", "commit", "recorded"})
EDITED = 0.10
"""Fraction by which a stored ratio may differ from that of its seconds."""

EDITED_APART = 0.25
"""The same where the seconds of the subject are those beside the gate reference, minutes earlier:
15 % in the worst row so far."""

REQUIRED = NUMBERS | WORDS | {"versions", "accuracy", "reference_seconds"}
OF_A_GATE = frozenset(
    {"gate_log_ratio", "gate_log_ratio_low", "gate_log_ratio_high", "gate_seconds"}
)
"""What a row that has a gate reference must state too."""


@dataclass(frozen=True)
class Accuracy:
    """What the outputs of the timed runs say: whether the claim stands, why, and figures."""

    passed: bool
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One claim as measured.

    Attributes:
        log_ratio: median of ln(subject / reference); `_low` and `_high` bound it.
        margin: fraction by which the ratio may move before the claim has changed.
        subject_seconds: median per protein or sequence.
        verdict: word of `verdict.Verdict`.
        accuracy: what the outputs say.
        reference_seconds: as `subject_seconds`.
        confidence: of the interval.
        pairs: run pairs.
        looks: looks at the data.
        repeats: calls per timed run of subject and reference.
        gate_reference: what the row is gated against where that is not the reference, such as
            "matmuls"; "" where it is.
        gate_log_ratio: median of ln(subject / gate reference); `_low` and `_high` bound it. None
            where the reference itself is the gate's.
        gate_seconds: median of one call of the gate reference.
        rule: of the claim, see `verdict.Rule.stored`.
        others: cores that other processes used meanwhile; None where the machine does not tell.
        expected: log-ratio that the row was judged against; None where no figure was stored.
        first_verdict: verdict before a fresh process measured the claim again; "" if none did.
        second_log_ratio: what that process measured.
        second_verdict: what it said, or "void".
        commit: that was measured; "" until the row is stored, as with the next two.
        recorded: ISO date and time.
        versions: of packages.
        about: whatever else was stored: claim, workload, engine, device, bound, parts, …
    """

    log_ratio: float
    log_ratio_low: float
    log_ratio_high: float
    margin: float
    subject_seconds: float
    verdict: str
    accuracy: Accuracy
    reference_seconds: float | None = None
    confidence: float | None = None
    pairs: int = 0
    looks: int = 0
    repeats: tuple[int, ...] = ()
    gate_reference: str = ""
    gate_log_ratio: float | None = None
    gate_log_ratio_low: float | None = None
    gate_log_ratio_high: float | None = None
    gate_seconds: float | None = None
    rule: Mapping[str, float] = field(default_factory=dict)
    others: float | None = None
    expected: float | None = None
    first_verdict: str = ""
    second_log_ratio: float | None = None
    second_verdict: str = ""
    commit: str = ""
    recorded: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, info: Mapping[str, Any]) -> Row:
        """The row in the `extra_info` of a stored entry.

        Args:
            name: test id, for messages.
            info: the entry's `extra_info`.

        Raises:
            InputError: a field is missing or cannot mean what it should.
            TypeError: a number or the accuracy is of another type.
        """
        required = REQUIRED | (OF_A_GATE if info.get("gate_reference") else frozenset())
        if missing := required - info.keys():
            raise InputError(f"row {name} lacks {', '.join(sorted(missing))}")
        if not all(math.isfinite(info[key]) for key in NUMBERS):
            raise InputError(f"row {name} holds a number that is not finite")
        if not all(isinstance(info[key], str) for key in WORDS):
            raise InputError(f"row {name} needs strings in {', '.join(sorted(WORDS))}")
        if not {"passed", "text"} <= info["accuracy"].keys():
            raise InputError(f"row {name} does not say whether its accuracy passed")
        row = cls.of(info)
        row._check_seconds(name)
        return row

    def _check_seconds(self, name: str) -> None:
        """Refuses a ratio that its own seconds contradict: somebody has edited one of them.

        The median of ratios is near the ratio of medians: of all rows recorded so far the
        furthest, of seven pairs, is 9.7 % off.

        Raises:
            InputError: they differ by more than `EDITED` or `EDITED_APART`.
        """
        gated = self.gate_log_ratio is not None  # then the subject was timed twice
        for log_ratio, seconds, apart in (
            (self.log_ratio, self.reference_seconds, EDITED_APART if gated else EDITED),
            (self.gate_log_ratio, self.gate_seconds, EDITED),
        ):
            if log_ratio is None or seconds is None:
                continue
            if self.subject_seconds <= 0 or seconds <= 0:
                raise InputError(f"row {name} has seconds that are not above 0; restore the file")
            off = abs(log_ratio - math.log(self.subject_seconds / seconds))
            if off > math.log1p(apart):
                raise InputError(
                    f"row {name} says that its subject takes {math.exp(log_ratio):.4g} of the "
                    f"reference's time, and its seconds {self.subject_seconds / seconds:.4g}; one "
                    "of them was edited: restore the file from version control"
                )

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Row:
        """The row in what `extra_info` returned, measured in another process or not yet stored."""
        names = {f.name for f in fields(cls)} - {"about"}
        known = {key: value for key, value in info.items() if key in names}
        known["accuracy"] = Accuracy(**info["accuracy"])
        known["repeats"] = tuple(info.get("repeats", ()))
        about = {k: v for k, v in info.items() if k not in names and k != "speedup"}
        return cls(**known, about=about)

    def extra_info(self) -> dict[str, Any]:
        """What is stored: plain JSON values, without fields that were never set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        about = values.pop("about")
        values = {key: value for key, value in values.items() if value not in (None, "", {}, ())}
        values |= {"speedup": self.speedup, "accuracy": asdict(self.accuracy)}
        return {**about, **values, "repeats": list(self.repeats)}

    @property
    def speedup(self) -> float:
        """How many times faster than the reference the subject is."""
        return math.exp(-self.log_ratio)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the speed-up."""
        return math.exp(-self.log_ratio_high), math.exp(-self.log_ratio_low)

    @property
    def judged(self) -> tuple[float, float, float]:
        """The log-ratio that the gate judges, and its interval."""
        gate = self.gate_log_ratio, self.gate_log_ratio_low, self.gate_log_ratio_high
        if gate[0] is not None and gate[1] is not None and gate[2] is not None:
            return gate[0], gate[1], gate[2]
        return self.log_ratio, self.log_ratio_low, self.log_ratio_high

    @property
    def moved(self) -> tuple[float, float, float]:
        """Change of the time ratio against the expected one, as a fraction, with its interval.

        Only where a figure was expected.
        """
        assert self.expected is not None
        at, low, high = (math.expm1(value - self.expected) for value in self.judged)
        return at, low, high
