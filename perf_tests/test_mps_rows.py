"""Rows of MPS, shown without one: the CPU stands in for the device."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from stored_runs import row
from toys import SimulatedClock

from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.regression import report, timing, workloads
from mpnn.regression.claims import BY_ID, CLAIMS, MPS, not_measured_on
from mpnn.regression.rows import Row
from mpnn.regression.timing import IDLE_RUN, Side, measure
from mpnn.regression.verdict import Rule
from mpnn.regression.workloads import WORKLOADS, backbones, exact_details, make_tasks, side
from mpnn.variants import Variant, find_variant
from mpnn.weights import load_arrays

ON_MPS = [claim for claim in CLAIMS if claim.platform == MPS]
SHORT = replace(WORKLOADS["score-1x64"], length=30)
needs_no_mps = pytest.mark.skipif(torch.backends.mps.is_available(), reason="has MPS")


class StandIn:
    """An engine on the CPU under the name of MPS; notes when it computes and synchronizes."""

    device = "mps"

    def __init__(self, engine, events):
        self.engine, self.events = engine, events

    def encode(self, flat):
        """As the other engine."""
        return self.engine.encode(flat)

    def log_probs(self, *given):
        """As the other engine."""
        self.events.append("compute")
        return self.engine.log_probs(*given)

    def synchronize(self):
        """Notes the call: the CPU has nothing to wait for."""
        self.events.append("synchronize")


def test_every_figure_published_on_mps_has_a_row_there():
    """Both sides run on MPS; int8 alone has no such row, for it refuses the device."""
    published = {c.id for c in CLAIMS if c.published and c.published.unit == MPS}
    without = {id_ for id_ in published if "@" not in id_} - {
        claim.id.removesuffix("@mps") for claim in ON_MPS
    }
    assert without == {"int8"}
    with pytest.raises(InputError, match="not on mps"):
        load_engine(load_arrays("minimal-fast"), "int8", "mps")
    for name in ("exact-torch-1x106@mps", "staged@mps", "torch-compile@mps"):
        assert BY_ID[name] in ON_MPS
    for claim in ON_MPS:
        assert {find_variant(s).device for s in (claim.subject, claim.reference)} == {"mps"}


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("fast", "published on MPS, not measured here; here: 3.00×"),
        ("fast@mps", "speed *holds*"),
    ],
)
def test_a_published_speed_is_judged_on_its_own_device(name, verdict):
    """On one and the same Mac the CPU's row neither confirms nor refutes a figure of MPS."""
    claim = BY_ID[name]
    entry = report.Entry(claim, Row.of(row(claim, 3.0)), apple=True)
    assert entry.verdict().startswith(verdict)


def test_rows_wait_for_mps_in_one_line(tmp_path):
    """Rows that no machine could measure are named below the table, with what they need."""
    text = report.claims_markdown(tmp_path)
    assert not any(f"| `{claim.id}` |" in text for claim in ON_MPS)
    (line,) = (line for line in text.splitlines() if "(needs MPS)" in line)
    assert line.startswith(f"{len(ON_MPS)} more claims are *not measured here*")
    assert all(f"`{claim.id}`" in line for claim in ON_MPS)
    assert {not_measured_on(claim, apple=False) for claim in ON_MPS} == {"needs MPS"}


@needs_no_mps
def test_a_variant_on_mps_is_refused_without_one():
    """Loading says that the device is missing, as an error that excuses the row."""
    with pytest.raises(InputError, match="device 'mps' cannot be used"):
        find_variant("minimal-fast@mps").load()


def test_the_device_is_synchronized_before_the_clock_stops(monkeypatch):
    """Each call synchronizes and has its outputs on the host; only then is the clock read."""
    events = []
    engine = load_engine(load_arrays("minimal-fast"), "staged")
    monkeypatch.setattr(Variant, "load", lambda _: StandIn(engine, events))
    inputs = [backbones(SHORT, seed) for seed in range(timing.INPUTS + timing.UNSEEN)]
    made = side(find_variant("minimal-fast@mps"), SHORT, inputs)
    assert made.idles

    now = iter(range(10**6))

    def clock():
        events.append("clock")
        return 0.1 * next(now)

    outputs = measure(made, made, Rule(pairs=9, looks=1), clock=clock).outputs[0]
    computed = [i for i, event in enumerate(events) if event == "compute"]
    assert all(events[i + 1] == "synchronize" for i in computed)
    assert "clock" in {events[i + 2] for i in computed if i + 2 < len(events)}
    assert isinstance(outputs[0][0].log_probs, np.ndarray)


def test_an_idle_device_is_warm_when_the_clock_starts():
    """A call on another input, not timed, precedes each timed run, and the run is long enough."""
    clock = SimulatedClock(0, 0.0)
    busy = clock.side(0.02)
    log, numbers = [], []

    def call(number):
        log.append("call")
        numbers.append(number)
        return busy.call(number)

    def read():
        log.append("clock")
        return clock()

    found = measure(Side(call, idles=True), busy, Rule(), clock=read)
    assert found.repeats == (round(IDLE_RUN / 0.02),) * 2
    run = ["call", "clock", *["call"] * found.repeats[0], "clock"]
    text, wanted = " ".join(log), " ".join(run)
    assert text.count(wanted) >= len(found.log_ratios)
    timed = numbers[: -2 * timing.UNSEEN]  # the last calls look for a cache
    assert all(a != b for a, b in pairwise(timed))


def test_calibration_lasts_until_the_device_is_warm():
    """Calls get quicker while the clock rises; the repeats are those of a warm device."""
    clock = SimulatedClock(0, 0.0)
    seconds = iter([0.4 / 1.2**n for n in range(30)])

    def call(number):
        clock.now += next(seconds, 0.4 / 1.2**30)
        return number

    warm = measure(Side(call, idles=True), clock.side(0.02), Rule(), clock=clock)
    assert warm.repeats[0] > 0.15 / 0.02


def test_wrong_outputs_of_a_reference_on_mps_are_found():
    """A reference on MPS is compared with its network on the CPU, not taken for right."""
    variant = find_variant("minimal-fast@mps")
    engine = replace(variant, device="cpu").load()
    (task,) = make_tasks(variant, SHORT, 0, backbones(SHORT, 0))
    right = task.run(engine, sample=False)
    wrong = [replace(output, log_probs=output.log_probs + 0.01) for output in right]
    assert workloads.published_way("minimal-fast@mps", SHORT, 0, right).passed
    assert not workloads.published_way("minimal-fast@mps", SHORT, 0, wrong).passed


def test_the_bound_of_the_cpu_is_not_stored_with_a_row_of_mps():
    """The matmuls alone are timed on the CPU, which says nothing about another device."""
    assert exact_details(BY_ID["exact-torch-1x106@mps"]) == {}
