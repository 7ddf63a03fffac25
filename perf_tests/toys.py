"""Synthetic claims on a simulated clock, with defects planted through environment variables.

Those that end in {} are JSON objects: a value for each claim by name.

- `TOY_CLAIMS`: names, separated by commas.
- `TOY_SLOW` {}: factor on the time of the subject.
- `TOY_SLOW_ONCE` {}: the same, but not in the fresh process that confirms.
- `TOY_NOISE`: noise of every timed run, standard deviation of its logarithm.
- `TOY_NOISE_OF` {}: the same for one claim.
- `TOY_GATE` {}: true where a claim is gated beside something short, its reference being long.
- `TOY_WRONG` {}: true when the outputs of the subject are to be wrong.
- `TOY_LOAD`: cores that other processes use, until a claim has waited `TOY_WAITS` times for it.
- `TOY_DRIFT`: factor by which the control's first side is slower: a reference unlike itself.
"""

import json
import math
import os
import random

from mpnn.regression import session
from mpnn.regression.rows import Accuracy
from mpnn.regression.timing import Gate, Side, measure
from mpnn.regression.usage import OtherWork
from mpnn.regression.verdict import Rule


class SimulatedClock:
    """A clock that only work moves: each call takes its seconds times heavy-tailed noise."""

    def __init__(self, seed, noise=None):
        self.now, self.random = 0.0, random.Random(seed)
        self.noise = float(os.environ.get("TOY_NOISE", "0.02")) if noise is None else noise

    def __call__(self):
        """Seconds so far."""
        return self.now

    def side(self, seconds, units=1, noise=None):
        """A side whose calls take about these seconds and return the input's number."""
        noise = self.noise if noise is None else noise

        def work(number):
            interrupted = 5.0 if self.random.random() < 0.02 else 1.0
            self.now += seconds * interrupted * math.exp(self.random.gauss(0, noise))
            return number

        return Side(work, units)


def names():
    """Names of the synthetic claims."""
    return [name for name in os.environ.get("TOY_CLAIMS", "a,b,c").split(",") if name]


def planted(what, name):
    """What the environment plants in a claim: a value, or nothing."""
    return json.loads(os.environ.get(f"TOY_{what}", "{}")).get(name)


def subject_and_reference(clock, name, confirming):
    """Two sides, the subject twice as fast unless something is planted."""
    slow = planted("SLOW", name) or 1.0
    if not confirming:
        slow *= planted("SLOW_ONCE", name) or 1.0
    noise = planted("NOISE_OF", name)
    long = 2.0 if planted("GATE", name) else 0.04
    return clock.side(0.02 * slow, noise=noise), clock.side(long, noise=noise)


def gate_of(clock, name):
    """What a claim is gated beside; None for its reference."""
    return Gate("short", clock.side(0.02), Rule(), floor=0.2) if planted("GATE", name) else None


def other_work(clock):
    """Other processes that use as many cores as is planted, until somebody has waited so often."""
    load, ends = float(os.environ.get("TOY_LOAD", "0")), int(os.environ.get("TOY_WAITS", "99"))
    waits = []

    def wait(seconds):
        clock.now += seconds
        waits.append(seconds)

    return OtherWork(lambda: load * clock.now * (len(waits) < ends), wait)


def plant_drift(clock):
    """Makes the reference differ from itself in the control, if that is planted."""
    if "TOY_DRIFT" not in os.environ:
        return
    slower = clock.side(0.04 * float(os.environ["TOY_DRIFT"]))

    def drifting(subject, reference, rule, **options):
        return measure(slower if subject is reference else subject, reference, rule, **options)

    session.measure = drifting


def same_outputs(name):
    """A check that both sides returned the same, unless wrong outputs are planted."""

    def check(timing):
        subject, reference = timing.outputs
        same = all(subject[number] == output for number, output in reference.items())
        passed = same and not planted("WRONG", name)
        return Accuracy(passed, "outputs equal" if passed else "outputs differ")

    return check
