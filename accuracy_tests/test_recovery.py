import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnn import recovery as r
from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.studies import recovery as recovery_study
from mpnn.synthetic import synthetic_backbone
from mpnn.ts50 import ts50
from mpnn.weights import SHIPPED, formula_weights, load_weights, shipped

L, N, V = 40, 3, 21
RNG = np.random.default_rng(0)
NATIVE = RNG.integers(0, 20, L)
COUNTED = RNG.random(L) < 0.8
UNIFORM = np.full((N, L, V), -np.log(V))


def random_log_probs(seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (N, L, V))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def backbones():
    return [synthetic_backbone(length, seed=length) for length in (30, 40, 50)]


@pytest.fixture(scope="module")
def model():
    return formula_weights(ModelConfig(1, 1, 16, 12))


# Measures of one protein


def test_native_sequence_has_recovery_one():
    """The native sequence recovers everything, and a wrong one nothing."""
    S = np.tile(NATIVE, (N, 1))
    assert r.recovery(S, NATIVE, COUNTED) == 1
    assert r.recovery((S + 1) % 20, NATIVE, COUNTED) == 0


def test_uniform_distribution_has_perplexity_21():
    """It costs log 21 nats, and the expected recovery is 1/21."""
    assert r.negative_log_likelihood(UNIFORM, NATIVE, COUNTED) == pytest.approx(np.log(V))
    assert r.expected_recovery(UNIFORM, NATIVE, COUNTED) == pytest.approx(1 / V)


def test_expected_recovery_is_the_mean_recovery_of_samples():
    """Residues sampled from the distributions recover as much, within sampling error."""
    log_probs = random_log_probs(1)
    gumbel = np.random.default_rng(2).gumbel(size=(2000, N, L, V))
    drawn = (log_probs + gumbel).argmax(-1)
    expected = r.expected_recovery(log_probs, NATIVE, COUNTED)
    assert r.recovery(drawn, NATIVE, COUNTED) == pytest.approx(expected, abs=4e-3)


def test_top1_counts_where_the_native_type_is_most_likely():
    """Making the native types of half the residues the most likely gives one half."""
    log_probs = UNIFORM.copy()
    log_probs[..., 20] += 1
    half = np.arange(L) % 2 == 0
    log_probs[:, half, NATIVE[half]] += 2
    assert r.top1(log_probs, NATIVE, np.ones(L, bool)) == 0.5


def test_calibration_error_is_zero_for_residues_sampled_from_the_distributions():
    """The overconfidence of sharpened distributions is their calibration error."""
    rng = np.random.default_rng(3)
    log_probs = np.log(rng.dirichlet(np.full(V, 0.2), size=(1, 20_000)))
    native = (log_probs[0] + rng.gumbel(size=(20_000, V))).argmax(-1)
    counted = np.ones(20_000, bool)
    sharp = 3 * log_probs
    sharp -= np.log(np.exp(sharp).sum(-1, keepdims=True))
    honest, bold = (r.Outcome("made", native, counted, native[None], p) for p in (log_probs, sharp))
    assert honest.forced(r.overconfidence) == pytest.approx(0, abs=0.01)
    assert r.calibration_error([honest]) < 0.015
    assert bold.forced(r.overconfidence) > 0.2
    assert r.calibration_error([bold]) == pytest.approx(bold.forced(r.overconfidence), abs=0.01)


def test_diversity_is_the_share_of_differing_residues():
    """Equal samples have diversity 0, samples that differ at half the residues 0.5."""
    S = np.tile(NATIVE, (3, 1))
    assert r.diversity(S, COUNTED) == 0
    half = np.flatnonzero(COUNTED)[::2]
    other = NATIVE.copy()
    other[half] = (other[half] + 1) % 20
    pair = np.stack([NATIVE, other])
    assert r.diversity(pair, COUNTED) == pytest.approx(len(half) / COUNTED.sum())
    assert np.isnan(r.diversity(NATIVE[None], COUNTED))


@given(seed=st.integers(0, 2**32 - 1))
def test_divergence_is_zero_to_itself_and_positive_otherwise(seed):
    """KL of a distribution from itself is 0; from another it is positive."""
    a, b = random_log_probs(seed), random_log_probs(seed + 1)
    assert r.kl_divergence(a, a, COUNTED) == 0
    assert r.kl_divergence(a, b, COUNTED) > 0


def test_divergence_from_the_uniform_is_the_missing_entropy():
    """KL of the uniform from p is log 21 − H(p): the reference is the one averaged over."""
    p = random_log_probs(3)
    entropy = -(np.exp(p) * p).sum(-1)[:, COUNTED].mean()
    assert r.kl_divergence(UNIFORM, p, COUNTED) == pytest.approx(np.log(V) - entropy)


def test_agreement_is_symmetric_and_full_with_itself():
    """Agreement counts equal most likely types, whichever network is the reference."""
    a, b = random_log_probs(4), random_log_probs(5)
    assert r.agreement(a, a, COUNTED) == 1
    assert 0 < r.agreement(a, b, COUNTED) == r.agreement(b, a, COUNTED) < 1


@pytest.mark.parametrize("measured", [r.negative_log_likelihood, r.top1, r.expected_recovery])
def test_residues_that_do_not_count_change_nothing(measured):
    """Masked and unknown residues enter no measure."""
    log_probs = random_log_probs(6)
    changed = log_probs.copy()
    changed[:, ~COUNTED] = random_log_probs(7)[:, ~COUNTED]
    assert measured(log_probs, NATIVE, COUNTED) == measured(changed, NATIVE, COUNTED)
    assert measured(log_probs, NATIVE, ~COUNTED) != measured(changed, NATIVE, ~COUNTED)


# Intervals


def test_interval_has_the_width_of_normal_theory():
    """For many normal values the interval is the mean ± 1.96 σ/√P within 5 %."""
    values = np.random.default_rng(8).normal(5, 2, 400)
    interval = r.bootstrap_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    width = 2 * 1.96 * values.std() / np.sqrt(400)
    assert interval.high - interval.low == pytest.approx(width, rel=0.05)


def test_interval_covers_the_truth_as_often_as_stated():
    """Of 200 intervals from 50 values each, about 95 % contain the true mean."""
    draws = np.random.default_rng(9).normal(0, 1, (200, 50))
    intervals = [r.bootstrap_interval(x, seed) for seed, x in enumerate(draws)]
    assert 0.90 < np.mean([i.low <= 0 <= i.high for i in intervals]) < 0.98


def test_same_seed_same_interval():
    """An interval is a pure function of values and seed."""
    values = np.random.default_rng(10).normal(size=30)
    assert r.bootstrap_interval(values, 1) == r.bootstrap_interval(values, 1)
    assert r.bootstrap_interval(values, 1) != r.bootstrap_interval(values, 2)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_no_interval_from_too_few_or_invalid_values(values):
    """Fewer than two proteins, NaN, or a table of values raise an error."""
    with pytest.raises(ValueError, match="at least two finite values"):
        r.bootstrap_interval(values)


# Sets of proteins


def test_measuring_twice_gives_the_same_outcome(model, backbones):
    """Samples and log-probabilities depend on the seed alone; another seed gives other samples."""
    engine = load_engine(model, "exact")
    first, again = (r.measure(engine, backbones, 2, seed=1) for _ in range(2))
    other = r.measure(engine, backbones, 2, seed=2)
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.S, b.S)
        assert np.array_equal(a.log_probs, b.log_probs)
        assert not np.array_equal(a.S, c.S)


def test_order_changes_the_scores_and_not_the_proteins(model, backbones):
    """The graph-coloring order measures the same proteins with other log-probabilities."""
    engine = load_engine(model, "exact")
    random, coloring = (
        r.measure(engine, backbones, 2, order=o) for o in ("random", "graph-coloring")
    )
    assert [o.name for o in random] == [o.name for o in coloring]
    assert any((a.log_probs != b.log_probs).any() for a, b in zip(random, coloring, strict=True))


def test_engines_are_measured_under_common_noise(model, backbones):
    """The exact engine gives the reference's samples, so every difference is zero but rounding."""
    subject = r.measure(load_engine(model, "exact"), backbones, 2)
    reference = r.measure(load_engine(model, "reference"), backbones, 2)
    compared = r.compare(subject, reference)
    assert compared.recovery == r.Interval(0, 0, 0)
    assert compared.agreement == r.Interval(1, 1, 1)
    assert abs(compared.nll.mean) < 1e-5
    assert abs(compared.kl.mean) < 1e-5


def test_pairing_narrows_the_interval(model, backbones):
    """The paired interval of two nearly equal networks is far narrower than either's own."""
    outcomes = r.measure(load_engine(model, "exact"), backbones, 2)
    other = [dataclasses.replace(o, log_probs=o.log_probs - 1e-3) for o in outcomes]
    paired = r.compare(other, outcomes).nll
    alone = r.summarize(outcomes).nll
    assert paired.mean == pytest.approx(1e-3, rel=1e-2)
    assert paired.high - paired.low < 1e-2 * (alone.high - alone.low)


def test_summary_is_the_mean_of_the_measures(model, backbones):
    """Means are over proteins; the perplexity is over all residues."""
    outcomes = r.measure(load_engine(model, "exact"), backbones, 2)
    summary = r.summarize(outcomes)
    assert summary.proteins == 3
    assert summary.recovery.mean == pytest.approx(np.mean([o.recovery for o in outcomes]))
    pooled = [r._at_native(o.log_probs, o.native).ravel() for o in outcomes]
    assert summary.perplexity == pytest.approx(np.exp(-np.concatenate(pooled).mean()), rel=1e-5)


def test_different_proteins_are_not_compared(model, backbones):
    """Outcomes of other proteins, or in another order, are refused."""
    outcomes = r.measure(load_engine(model, "exact"), backbones, 1)
    with pytest.raises(ValueError, match="same proteins"):
        r.compare(outcomes, outcomes[::-1])


def test_backbone_without_known_residue_is_refused(model, backbones):
    """A protein with nothing to recover is named."""
    empty = dataclasses.replace(backbones[0], sequence="X" * len(backbones[0]))
    with pytest.raises(InputError, match=f"{empty.name}: no residue has all four atoms"):
        r.measure(load_engine(model, "exact"), [empty], 1)


# Published figures


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(
    not (os.environ.get("MPNN_DATA") and os.environ.get("MPNN_WEIGHTS")),
    reason="needs MPNN_DATA with ts50.npz and MPNN_WEIGHTS with v_48_020.pt",
)
def test_ts50_row_of_the_published_weights_is_reproduced():
    """v_48_020 recovers 44.3 % of TS50 at T = 0.1, at perplexity 5.13 and top-1 49.1 %."""
    model, _ = load_weights("v_48_020")
    outcomes = r.measure(load_engine(model, "exact"), ts50())
    summary = r.summarize(outcomes)
    assert summary.recovery.mean == pytest.approx(0.443, abs=0.005)
    assert summary.recovery.low == pytest.approx(0.427, abs=0.005)
    assert summary.recovery.high == pytest.approx(0.459, abs=0.005)
    assert summary.perplexity == pytest.approx(5.13, abs=0.05)
    assert summary.top1.mean == pytest.approx(0.491, abs=0.008)


# Shipped checkpoints


@pytest.mark.parametrize("name", shipped())
def test_card_names_origin_and_figures(name):
    """A shipped checkpoint's card names data, teacher, license, residues seen and figures."""
    model, card = load_weights(name)
    assert card["training"]["architecture"] == name
    assert model.config == ARCHITECTURES[name]
    assert card["residues_seen"] > 0
    assert {"license", "data", "teacher", "status"} <= set(card)
    for figures in card["measured"]["sets"].values():
        mean, low, high = figures["recovery"]
        assert 0 < low < mean < high < 100


@pytest.mark.parametrize("name", shipped())
def test_readme_of_checkpoints_shows_the_figures_of_the_cards(name):
    """Each shipped checkpoint has a row with recovery, perplexity and top-1 of its card."""
    sets = load_weights(name)[1]["measured"]["sets"]
    ts50_, validation = sets["ts50"], sets["validation"]["recovery"][0]
    mean, low, high = ts50_["recovery"]
    row = f"| `{name}` | {mean:.1f} [{low:.1f}, {high:.1f}] | {ts50_['perplexity']:.2f} | "
    row += f"{ts50_['top1'][0]:.1f} | {validation:.1f} |"
    assert row in (SHIPPED / "README.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", shipped())
def test_stored_recovery_is_that_of_the_shipped_weights(name):
    """The rows of `tox -e recovery` were measured with the weights that are shipped."""
    rows = json.loads(recovery_study.TARGET.read_text())["rows"]
    stated = load_weights(name)[1]["measured"]["sets"]["ts50"]["recovery"][0]
    row = rows[recovery_study.Row(name).id]
    assert 100 * row["recovery"]["mean"] == pytest.approx(stated, abs=0.05)


def test_a_row_is_measured_with_its_reference():
    """Rows are measured with their reference, and a reference with the rows compared with it."""
    rows = [recovery_study.Row(name) for name in ("base", "other")]
    rows += [recovery_study.Row(name, against=rows[0].id) for name in ("small", "third")]
    for only, names in (("small", "base small"), ("base", "base small third"), ("other", "other")):
        found = recovery_study.rows_to_measure(rows, only).values()
        assert [row.weights for row in found] == names.split()


def test_every_counterpart_is_an_architecture():
    """Networks and their k=48 counterparts are architectures, and none is its own counterpart."""
    counterparts = recovery_study.COUNTERPARTS
    assert set(counterparts) | set(counterparts.values()) <= set(ARCHITECTURES)
    for row in recovery_study.shipped_rows():
        assert row.against != row.id
        assert (row.against is None) == (row.weights == "baseline")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MPNN_DATA"), reason="needs MPNN_DATA with ts50.npz")
@pytest.mark.parametrize("name", shipped())
def test_figures_of_a_card_are_reproduced(name):
    """TS50 recovery and perplexity of a shipped checkpoint equal those of its card."""
    model, card = load_weights(name)
    summary = r.summarize(r.measure(load_engine(model), ts50()))
    stated = card["measured"]["sets"]["ts50"]
    assert 100 * summary.recovery.mean == pytest.approx(stated["recovery"][0], abs=0.2)
    assert summary.perplexity == pytest.approx(stated["perplexity"], rel=2e-3)
