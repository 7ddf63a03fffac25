"""Timing, verdict and session, on synthetic sequences and a simulated clock."""

import math
import random
from dataclasses import replace
from statistics import median

import pytest
from toys import SimulatedClock

from mpnn.regression import timing
from mpnn.regression.rows import Accuracy, Row
from mpnn.regression.session import Session
from mpnn.regression.timing import (
    INPUTS,
    Gate,
    PairedTiming,
    Side,
    balanced_repeats,
    measure,
    subject_first,
)
from mpnn.regression.usage import OtherWork, Usage
from mpnn.regression.verdict import (
    RECORDING,
    Rule,
    Verdict,
    interval,
    judge,
    place,
    quick,
    refusals,
    sign_test_bound,
)


def simulate(seed, ratio=1.0, expected=0.0, rule=None, noise=0.03) -> PairedTiming:
    clock = SimulatedClock(seed, noise)
    sides = clock.side(0.02 * ratio), clock.side(0.02)
    return measure(*sides, rule or Rule(), expected=expected, seed=seed, clock=clock)


def stored(log_ratio):
    """A row of this log-ratio, as a run before stored it."""
    return Row(log_ratio, log_ratio, log_ratio, 0.03, 0.02, "recorded", Accuracy(True, "equal"))


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [(6, 0.5**6, 1), (40, 0.01, 13), (40, 0.002, 11), (200, 0.01, 84), (2000, 0.01, 948)],
)
def test_bound_is_the_tabulated_order_statistic(n, alpha, k):
    """The bound is the order statistic that tables of the sign test give."""
    assert sign_test_bound(range(1, n + 1), alpha) == k


def test_too_few_values_have_no_bound():
    """Six values cannot bound a median at 1 %, and the bound says so."""
    assert sign_test_bound([1.0] * 6, 0.01) == -math.inf
    assert interval([], 0.01) == (-math.inf, math.inf)


def test_bound_covers_the_median_as_often_as_it_promises():
    """Over 2,000 skewed samples the bound exceeds the true median no more often than alpha."""
    generator, alpha, trials = random.Random(0), 0.05, 2000
    true_median = math.log(2)  # of the exponential distribution
    misses = sum(
        sign_test_bound([generator.expovariate(1) for _ in range(40)], alpha) > true_median
        for _ in range(trials)
    )
    exact = sum(math.comb(40, i) for i in range(15)) / 2**40
    assert exact <= alpha
    assert abs(misses / trials - exact) < 4 * math.sqrt(exact / trials)


def test_a_rule_without_a_bound_is_refused():
    """A rule whose pairs cannot reach its confidence is an error that names the way out."""
    with pytest.raises(ValueError, match="take 9 pairs or a larger"):
        Rule(pairs=8)
    assert Rule(pairs=8, alpha_fail=1 / 256, alpha_pass=1 / 256).pairs == 8


@pytest.mark.parametrize(
    ("subject", "reference", "repeats"),
    [
        (0.001, 0.001, (20, 20)),
        (0.001, 0.050, (50, 1)),
        (0.040, 0.020, (1, 2)),
        (0.100, 30.0, (2, 1)),
        (30.0, 30.0, (1, 1)),
    ],
)
def test_timed_runs_are_balanced(subject, reference, repeats):
    """Both timed runs last at least 20 ms and equally long, up to a quarter of a second."""
    assert balanced_repeats(subject, reference, Rule()) == repeats


def test_random_order_is_balanced_and_reproducible():
    """Who goes first is even in each block of two, both ways occur, and the seed decides."""
    order = [first for first, _ in zip(subject_first(3), range(200), strict=False)]
    assert all(a != b for a, b in zip(order[::2], order[1::2], strict=True))
    assert len(set(order[::2])) == 2
    assert order == [first for first, _ in zip(subject_first(3), range(200), strict=False)]
    assert order != [first for first, _ in zip(subject_first(4), range(200), strict=False)]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0, Verdict.HOLDS),
        (0.10, Verdict.REGRESSED),
        (-0.10, Verdict.IMPROVED),
        (0.03, Verdict.UNDECIDED),
    ],
)
def test_verdicts_follow_the_interval(shift, verdict):
    """A narrow interval inside, beyond, before and astride the margin gives the four verdicts."""
    log_ratios = [0.5 + math.log1p(shift) + 0.0005 * (i % 7 - 3) for i in range(40)]
    assert judge(log_ratios, 0.5, Rule()) is verdict


def test_inputs_rotate_and_outputs_are_those_of_timed_calls():
    """Each side sees the same inputs in rotation, and what its calls returned is kept."""
    clock = SimulatedClock(0, 0.03)
    timing = measure(clock.side(0.004), clock.side(0.02), Rule(), clock=clock)
    assert timing.outputs == ({i: i for i in range(INPUTS)},) * 2
    assert timing.repeats == (5, 1)


def test_ratio_is_per_unit():
    """A side that finishes eight proteins a call in twice the time is four times as fast."""
    clock = SimulatedClock(1, 0.03)
    timing = measure(clock.side(0.04, units=8), clock.side(0.02), Rule(), clock=clock)
    assert timing.speedup == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(("noise", "looks"), [(0.03, 3), (0.5, 5)])
def test_without_expectation_looks_end_at_a_narrow_interval(noise, looks):
    """A recording has no verdict; it ends when its interval fits the margin, or its looks do."""
    clock = SimulatedClock(0, noise)
    timing = measure(clock.side(0.02), clock.side(0.02), Rule(), clock=clock)
    assert timing.verdict is None
    assert (timing.looks, len(timing.log_ratios)) == (looks, 40 * looks)
    low, high = timing.interval(Rule().alpha_pass)
    assert (math.expm1(high - low) < Rule().margin) == (looks < 5)


def test_same_code_is_never_called_changed():
    """In 200 simulated sessions of the same code none regresses, improves or stays undecided."""
    verdicts = [simulate(seed).verdict for seed in range(200)]
    assert set(verdicts) == {Verdict.HOLDS}


@pytest.mark.parametrize("percent", [5, 10])
def test_planted_slow_downs_are_caught(percent):
    """Of 100 simulated slow-downs of 5 or 10 % at least 95 are caught and none holds."""
    verdicts = [simulate(seed, 1 + percent / 100).verdict for seed in range(100)]
    assert verdicts.count(Verdict.REGRESSED) >= 95
    assert Verdict.HOLDS not in verdicts


def test_at_the_margin_few_fail():
    """Of 200 simulated slow-downs of exactly the margin about 1 % fail over all looks, few hold."""
    verdicts = [simulate(seed, 1.03).verdict for seed in range(200)]
    assert verdicts.count(Verdict.REGRESSED) <= 6
    assert verdicts.count(Verdict.IMPROVED) == 0
    assert verdicts.count(Verdict.HOLDS) <= 20


def test_a_speed_up_is_not_passed_over():
    """A subject that became 10 % faster is called improved, so that it gets recorded."""
    assert {simulate(seed, 0.9).verdict for seed in range(50)} == {Verdict.IMPROVED}


def test_what_clearly_holds_is_said_early():
    """A few blocks of pairs end a claim that holds; one that moved is looked at in full."""
    quiet = [simulate(seed, noise=0.01) for seed in range(20)]
    assert {timing.verdict for timing in quiet} == {Verdict.HOLDS}
    pairs = [len(timing.log_ratios) for timing in quiet]
    assert min(pairs) >= 8  # whole blocks; seven pairs are the least that have a bound
    assert median(pairs) < 20
    assert all(n % 2 == 0 for n in pairs)
    moved = simulate(0, 1.1, noise=0.01)
    assert (moved.verdict, len(moved.log_ratios)) == (Verdict.REGRESSED, Rule().pairs)


def test_a_noisy_machine_stays_undecided():
    """With 60 % noise a session says undecided rather than holds."""
    assert simulate(0, noise=0.6).verdict is Verdict.UNDECIDED


def test_no_look_begins_beyond_the_budget():
    """When a look has used up the seconds of its claim there is no further one."""
    timing = simulate(0, 1.03, rule=Rule(budget=1.0))
    assert (timing.looks, timing.verdict) == (1, Verdict.UNDECIDED)


def test_quick_is_coarser_and_still_exact():
    """The quick rule is one look of 16 pairs with a margin of 10 %, and its bound exists."""
    rule = quick(Rule())
    assert (rule.pairs, rule.looks, rule.margin) == (16, 1, 0.10)
    assert simulate(0, 1.25, rule=rule).verdict is Verdict.REGRESSED


def test_a_compiling_first_call_is_not_calibrated_by():
    """Timed runs are balanced by what a call takes once the first has compiled or converted."""
    clock = SimulatedClock(0, noise=0)
    side, calls = clock.side(0.02), []

    def compiling(number):
        clock.now += 0 if calls else 30.0
        calls.append(number)
        return side.call(number)

    timing = measure(Side(compiling), clock.side(0.02), Rule(), expected=0.0, clock=clock)
    assert timing.repeats == (1, 1)


def test_only_figures_of_this_machine_are_expected():
    """A machine without a stored run expects nothing, and looks once."""
    expected = Session().expectation("a", Rule())
    assert (expected.log_ratio, expected.rule.looks) == (None, 1)
    assert Session([{"a": stored(-0.4)}]).expectation("a", Rule()).log_ratio == -0.4


def gated(log_ratio, gate=0.0):
    """A row that was gated beside something short."""
    return replace(
        stored(log_ratio),
        gate_reference="short",
        gate_log_ratio=gate,
        gate_log_ratio_low=gate,
        gate_log_ratio_high=gate,
    )


def test_a_row_stored_without_a_gate_reference_expects_nothing():
    """A figure beside one reference says nothing beside another."""
    short = Gate("short", SimulatedClock(0).side(0.02), Rule())
    for row, expected in ((stored(-4.0), None), (gated(-4.0, -0.1), -0.1)):
        assert Session([{"a": row}]).expectation("a", Rule(), short).log_ratio == expected
    assert Session([{"a": gated(-4.0)}]).expectation("a", Rule()).log_ratio is None


@pytest.mark.parametrize(("slow", "verdict"), [(1.0, "holds"), (1.05, "regressed")])
def test_a_long_reference_is_called_once(slow, verdict):
    """A session judges beside the gate reference; the stored speed-up stays in its row."""
    clock = SimulatedClock(0)
    calls = []
    long = clock.side(2.0)
    reference = Side(lambda number: calls.append(number) or long.call(number))
    gate = Gate("short", clock.side(0.02), Rule())
    session = Session([{"a": gated(-4.6)}])
    timings = session.time("a", clock.side(0.02 * slow), reference, Rule(), 0, clock, gate)
    assert calls == [0]
    assert timings.shown.outputs[1] == {0: 0}
    row = session.row("a", timings, Rule(), Accuracy(True, "equal"), gate)
    assert (row.verdict, row.log_ratio) == (verdict, -4.6)
    assert row.gate_log_ratio == pytest.approx(math.log(slow), abs=0.03)


def test_a_slow_drift_is_a_regression():
    """Rows that each lie within the margin of the one before may not drift from the best."""
    clock = SimulatedClock(0, 0.005)
    runs = [{"a": stored(math.log(x))} for x in (1.0, 1.02, 1.04)]
    for accepted, verdict in (("", "regressed"), ("a", "recorded")):
        session = Session(runs, recording=True, accepted=accepted)
        sides = clock.side(0.02 * 1.06), clock.side(0.02)
        timings = session.time("a", *sides, Rule(), 0, clock)
        row = session.row("a", timings, Rule(), Accuracy(True, "equal"))
        assert row.verdict == verdict


def test_cached_outputs_are_seen():
    """A subject that answers from a cache is slower for what it was never given."""
    clock, known = SimulatedClock(0, 0.0), {}

    def answer(number):
        if number not in known:
            known[number] = clock.side(0.02).call(number)
        clock.now += 0.001
        return known[number]

    session = Session([{"a": stored(0.0)}])
    timings = session.time("a", Side(answer), clock.side(0.02), Rule(), 0, clock)
    row = session.row("a", timings, Rule(), Accuracy(True, "equal"))
    assert not row.accuracy.passed
    assert "its outputs are cached" in row.accuracy.text


@pytest.mark.parametrize(
    ("leaning", "word"), [(0.026, "regressed"), (-0.026, "improved"), (0.004, "")]
)
def test_undecided_claims_of_one_engine_that_moved_alike_are_one_verdict(leaning, word):
    """Two undecided rows of one engine, both slower or both faster by a lot, are no noise."""
    row = replace(stored(leaning), verdict=Verdict.UNDECIDED, expected=0.0)
    row = replace(row, log_ratio_low=leaning - 0.01, log_ratio_high=leaning + 0.01)
    about = [{"engine": "exact"}, {"engine": "exact"}, {"engine": "other"}]
    session = Session([dict.fromkeys("abcdefgh", stored(0.0))])
    held = replace(stored(0.0), verdict=Verdict.HOLDS, expected=0.0)
    session.rows = dict.fromkeys("defgh", held)
    session.rows |= {n: replace(row, about=x) for n, x in zip("abc", about, strict=True)}
    found = session.problems("abcdefgh", "abcdefgh", ())[1:]  # the first: too many are undecided
    assert len(found) == bool(word)
    for text in found:
        assert text.startswith("a, b: undecided one by one, and together engine exact has " + word)


def test_error_rates_of_claims_judged_together():
    """Of sessions of five noisy claims none is red without a change, most are with +4 % in each."""
    rng = random.Random(0)

    def red(shift, error=0.01):
        rows = {}
        for name in "abcde":
            at = rng.gauss(shift, error)
            low, high = at - 2.33 * error, at + 2.33 * error
            verdict = place(low, high, math.log1p(0.03))
            row = replace(stored(at), log_ratio_low=low, log_ratio_high=high, confidence=0.98)
            rows[name] = replace(row, verdict=verdict, expected=0.0)
        return bool(Session([dict.fromkeys("abcde", stored(0.0))], rows=rows)._leaning())

    assert sum(red(0.0) for _ in range(300)) == 0
    assert sum(red(0.04) for _ in range(300)) > 240


def test_laxer_rules_than_stored_are_red():
    """A margin that grew, or another reference, workload or temperature, is named."""
    own = replace(stored(0.0), about={"reference": "baseline", "temperature": 0.1})
    own = replace(own, rule=Rule().stored())
    session = Session([{"a": own}])
    for change, what in (
        ({"rule": Rule(margin=0.5).stored()}, "margin 0.03 → 0.5"),
        ({"rule": Rule(pairs=20).stored()}, "pairs 40 → 20"),
        ({"rule": Rule(alpha_pass=0.05).stored()}, "alpha_pass 0.01 → 0.05"),
        ({"rule": Rule(alpha_fail=0.001).stored()}, "alpha_fail 0.002 → 0.001"),
        ({"rule": {}}, "looks 5 → 0"),
        ({"about": {**own.about, "reference": "fast"}}, "reference baseline → fast"),
        ({"about": {**own.about, "temperature": 0.2}}, "temperature 0.1 → 0.2"),
    ):
        session.rows = {"a": replace(own, verdict=Verdict.HOLDS, **change)}
        assert what in session.problems("a", "a", ())[0]
    session.rows = {"a": replace(own, verdict=Verdict.HOLDS, margin=0.02)}
    assert session.problems("a", "a", ()) == []


def test_a_session_on_efficiency_cores_is_void(monkeypatch):
    """On a Mac that ran a claim on other than performance cores no verdict counts."""
    spent = iter(range(10_000))

    def read():
        at = float(next(spent))
        return Usage(1e9 * at, 1e9 * at, 2 * at, at, 0.9 * at)

    monkeypatch.setattr(timing, "meter", lambda: read)
    found = simulate(0)
    assert found.cost["performance_share"] == pytest.approx(0.9)
    assert found.cost["joules"] > 0
    session = Session([{"a": stored(0.0)}])
    session.rows = {"a": replace(stored(0.0), verdict=Verdict.HOLDS, about={"cost": found.cost})}
    assert "performance cores had 90% of a claim's CPU time" in session.void


@pytest.mark.parametrize(
    ("cores", "waits", "verdict"),
    [(0.0, 0, "regressed"), (0.1, 0, "regressed"), (0.9, 1, "regressed"), (0.9, 9, "not judged")],
)
@pytest.mark.parametrize("recording", [False, True])
def test_a_claim_beside_other_work_is_not_judged(cores, waits, verdict, recording):
    """It is timed again once a busy process has ended; else neither red nor green nor recorded."""
    clock, waited = SimulatedClock(0), []

    def wait(seconds):
        clock.now += seconds
        waited.append(seconds)

    work = OtherWork(lambda: cores * clock.now * (len(waited) < waits or cores < 0.9), wait)
    session = Session([{"a": stored(0.0)}], recording=recording, others=work)
    row = judged(session, Accuracy(True, "equal"), 1.1, clock=clock)
    assert row.verdict == verdict
    assert len(waited) == min(waits, 1)
    refused = any("other processes used 0.9" in reason for reason in refusals({"a": row}))
    assert refused is (verdict == "not judged")


def test_a_control_beside_other_work_voids_nothing():
    """It is timed again before the next claim; a recording needs one without other work."""
    clock, cores = SimulatedClock(0), [0.9]
    work = OtherWork(lambda: cores[0] * clock.now, lambda _: None)
    for recording in (False, True):
        session = Session(recording=recording, others=work)
        cores[0] = 0.9
        session.time_control(clock.side(0.02), 0, clock)
        session.control = replace(session.control, verdict=Verdict.REGRESSED)
        assert bool(session.void) is recording
        cores[0] = 0.0
        session.time_control(clock.side(0.02), 0, clock)
        assert session.void == ""


def test_a_row_cut_out_of_the_newest_run_is_missed():
    """Every row of any earlier run of this machine is expected."""
    session = Session([{"a": stored(0.0), "b": stored(0.0)}, {"a": stored(0.0)}], retired={"c"})
    assert set(session.expected_rows) == {"a", "b"}


def judged(session, accuracy, ratio=1.0, noise=0.02, clock=None):
    """The row of claim `a`, whose subject takes `ratio` times as long as its reference."""
    clock = clock or SimulatedClock(0, noise)
    timings = session.time("a", clock.side(0.02 * ratio), clock.side(0.02), Rule(), 0, clock)
    return session.row("a", timings, Rule(), accuracy)


@pytest.mark.parametrize(
    ("recovery", "passed"), [(44.0, True), (43.6, True), (50.0, True), (43.4, False), (None, False)]
)
def test_a_network_that_recovers_less_than_was_recorded_fails(recovery, passed):
    """Half a point is the margin; a recovery that is gone fails too, and a recording takes both."""
    figures = {} if recovery is None else {"recovery": recovery}
    found = Accuracy(True, "as measured", figures)
    held = judged(Session(recoveries={"a": 44.0}), found).accuracy
    assert held.passed is passed
    assert held.text.endswith("measured" if passed else "recorded with a recovery of 44.0 %")
    assert judged(Session(recoveries={"b": 44.0}), found).accuracy == found
    recording = Session(recording=True, recoveries={"a": 44.0})
    assert judged(recording, found).accuracy == found


def test_a_recording_looks_longer():
    """Noise costs a recording time before it costs a row; a judging session keeps to its rule."""
    rule, rows = Rule(), {"a": stored(-0.5)}
    judging = Session([rows]).expectation("a", rule)
    assert (judging.log_ratio, judging.rule) == (-0.5, rule)
    recorded = Session([rows], recording=True).expectation("a", rule)
    assert recorded.log_ratio == -0.5
    used = recorded.rule
    assert (used.looks, used.budget) == (RECORDING * rule.looks, RECORDING * rule.budget)
    assert (used.pairs, used.margin) == (rule.pairs, rule.margin)


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.1, "regressed"), (0.9, "improved"), (1.01, "recorded")]
)
def test_a_recording_compares_once_the_row_can_be_stored(ratio, verdict):
    """A change ends no look before the interval is narrow enough to tell it from none."""
    session = Session([{"a": stored(0.0)}], recording=True)
    row = judged(session, Accuracy(True, "equal"), ratio, noise=0.05)
    assert row.looks > 1
    assert math.expm1(row.log_ratio_high - row.log_ratio_low) < Rule().margin
    assert (row.expected, row.verdict) == (0.0, verdict)
