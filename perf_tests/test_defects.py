"""Planted accuracy defects: the check of the timed outputs fails each one."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from mpnn import model
from mpnn.config import ModelConfig
from mpnn.optimizations import reference
from mpnn.regression import workloads
from mpnn.regression.claims import BY_ID, Claim
from mpnn.regression.outputs import closeness, equality
from mpnn.regression.workloads import Workload, backbones, make_tasks, pairs_of
from mpnn.sampling import Samples
from mpnn.variants import Variant
from mpnn.weights import formula_weights

SMALL = ModelConfig(num_encoder_layers=2, num_decoder_layers=2, hidden_dim=32, k_neighbors=16)
WORKLOAD = Workload(length=40, samples=2)


def outputs(network=None, change_task=lambda task: task):
    engine = reference.ReferenceEngine(formula_weights(SMALL) if network is None else network)
    tasks = make_tasks(Variant(), WORKLOAD, 0, backbones(WORKLOAD, 0))
    return [change_task(task).run(engine, sample=True)[0] for task in tasks]


def judged(subject, right):
    return equality(pairs_of(WORKLOAD, 0, right, subject))


@pytest.fixture(scope="module")
def right():
    """What the reference makes of the workload."""
    return outputs()


def fp8_weights():
    network = formula_weights(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(torch.float8_e4m3fn).float())
    return outputs(network)


def swapped_order():
    def swap(task):
        task.job.rank[..., [3, 30]] = task.job.rank[..., [30, 3]]
        return task

    return outputs(change_task=swap)


def residue_index_off_by_one():
    def shift(task):
        task.flat.residue_idx[20:] += 1
        return task

    return outputs(change_task=shift)


def dropped_edge(monkeypatch):
    whole = reference.published_encode

    def without_one(network, batch):
        *encoded, neighbor_mask = whole(network, batch)
        neighbor_mask[:, 20, 1] = 0
        return *encoded, neighbor_mask

    monkeypatch.setattr(reference, "published_encode", without_one)
    return outputs()


def tanh_gelu(monkeypatch):
    monkeypatch.setattr(model, "gelu", functools.partial(gelu, approximate="tanh"))
    return outputs()


def one_neighbor_less():
    network = formula_weights(SMALL)
    network.features.k -= 1
    return outputs(network)


def warmer(monkeypatch):
    monkeypatch.setattr(workloads, "TEMPERATURE", 0.2)
    return outputs()


DEFECTS = [
    fp8_weights,
    swapped_order,
    dropped_edge,
    residue_index_off_by_one,
    warmer,
    tanh_gelu,
    one_neighbor_less,
]


def test_the_same_network_passes(right):
    """Without a defect sequences and log-probabilities are equal."""
    accuracy = judged(outputs(), right)
    assert accuracy.passed
    assert accuracy.text == "equal, |Δ|≤0e+00"
    assert set(accuracy.figures.values()) == {0}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_planted_defect_is_seen(defect, right, monkeypatch):
    """Each planted defect fails the check of the outputs."""
    wrong = defect(monkeypatch) if defect.__code__.co_argcount else defect()
    monkeypatch.undo()  # the defect is the subject's alone
    assert not judged(wrong, right).passed


def test_sequences_and_log_probs_are_checked_separately(right):
    """One wrong residue fails with equal log-probabilities, and the other way round."""
    (samples,) = right
    other = samples.S.copy()
    other[0, 5] = (other[0, 5] + 1) % 20
    wrong = judged([replace(samples, S=other)], right)
    assert not wrong.passed
    assert "residue 5 of sample 0 of" in wrong.text
    shifted = samples.log_probs + np.float32(1e-3)
    assert not judged([replace(samples, log_probs=shifted)], right).passed


def test_a_changed_fixed_residue_fails():
    """A residue that is not designed may not change, however likely its new type is."""
    workload = Workload(length=40, samples=1, designed=0.1)
    (task,) = make_tasks(Variant(), workload, 0, backbones(workload, 0))
    right = task.run(reference.ReferenceEngine(formula_weights(SMALL)), sample=True)
    (fixed, *_) = np.flatnonzero(~task.job.designed)
    likeliest = right[0].log_probs[0, fixed].argmax()
    S = right[0].S.copy()
    assert S[0, fixed] != likeliest
    S[0, fixed] = likeliest
    assert not equality(pairs_of(workload, 0, right, [replace(right[0], S=S)])).passed


def test_a_flipped_near_tie_is_named_and_passes(right):
    """A residue that rounding can have flipped is named in the text and passes."""
    (pair,) = pairs_of(WORKLOAD, 0, right, right)
    last = int(pair.job.rank[0].argmax())  # no other residue sees it
    letter = pair.reference.S[0, last]
    S, gumbel = pair.subject.S.copy(), pair.job.gumbel.copy()
    S[0, last] = other = (letter + 1) % 20
    log_probs, temperature = pair.reference.log_probs[0, last], pair.job.temperature[0]
    tie = (log_probs[letter] - log_probs[other]) / temperature + gumbel[0, last, letter]
    gumbel[0, last, other] = tie - 1e-5 / temperature
    near = replace(pair, job=replace(pair.job, gumbel=gumbel), subject=replace(pair.subject, S=S))
    accuracy = equality([near])
    assert accuracy.passed
    assert f"residue {last} of sample 0" in accuracy.text
    assert accuracy.figures["near_ties"] == 1


def test_nan_fails(right):
    """Log-probabilities that are NaN fail, in whichever of several proteins they are."""
    (samples,) = right
    log_probs = samples.log_probs.copy()
    log_probs[0, 5] = np.nan
    (pair,) = pairs_of(WORKLOAD, 0, right, right)
    blank = replace(pair, subject=replace(samples, log_probs=log_probs))
    for pairs in ([blank], [pair, blank, pair]):
        assert not equality(pairs).passed
        assert not closeness(pairs, 1.0).passed
    assert equality([pair, pair]).passed


def confident(pair, share, wrong):
    """A pair whose reference is sure of the native letters, its subject of others at a share."""
    native = np.tile(pair.job.S, (2, 1))
    cut = round(share * native.shape[-1])
    other = native.copy()
    other[..., :cut] = (native[..., :cut] + 1) % 20
    sides = []
    for letters, p in ((native, 0.5), (other, wrong)):
        log_probs = np.full((*letters.shape, 21), np.log((1 - p) / 20), np.float32)
        np.put_along_axis(log_probs, letters[..., None], np.float32(np.log(p)), -1)
        sides.append(Samples(native, log_probs))
    return replace(pair, reference=sides[0], subject=sides[1])


@pytest.mark.parametrize(
    ("share", "sure", "passed"),
    [(0.0, 0.5, True), (0.0, 0.499, True), (0.0, 0.49, False), (0.2, 0.5, False)],
)
def test_reduced_precision_may_cost_neither_flips_nor_recovery(right, share, sure, passed):
    """Inside a wide band, top-1 flips and a loss of expected recovery fail all the same."""
    (pair,) = pairs_of(WORKLOAD, 0, right, right)
    found = closeness([confident(pair, share, sure)], band=9.0)
    assert found.passed is passed
    assert found.figures["letters_flipped"] == pytest.approx(share)


NOT_PUBLISHED_WAY = [
    (BY_ID["pruning+batching"], 0),
    (BY_ID["non-autoregressive+exact"], 0),
    (Claim(id="a", what="", subject="staged", workload="sample-1x106", reference="exact-torch"), 1),
]


@pytest.mark.parametrize(("claim", "side"), NOT_PUBLISHED_WAY, ids=lambda x: getattr(x, "id", x))
def test_a_side_not_run_in_the_published_way_is_compared_with_it(claim, side, monkeypatch):
    """A wrong batch fails a row judged by recovery, a wrong reference one of equality."""
    small = replace(workloads.WORKLOADS[claim.workload], length=24, spread=1)
    monkeypatch.setitem(workloads.WORKLOADS, claim.workload, small)
    outputs = [s.call(0) for s in workloads.sides(claim)]

    def accuracy():
        return workloads.accuracy(claim, SimpleNamespace(outputs=[{0: found} for found in outputs]))

    assert accuracy().passed
    spoilt = outputs[side][-1]
    log_probs = spoilt.log_probs.copy()
    log_probs[..., [3, 4], :] = log_probs[..., [4, 3], :]  # they still sum to one
    for which in (side, 0):
        outputs[which][-1] = replace(spoilt, log_probs=log_probs)
    assert not accuracy().passed
    assert "against its network in the published way" in accuracy().text


def test_keys_name_the_noise():
    """The number of an input is the seed of its job, so all sides use the same noise."""
    (task,) = make_tasks(Variant(), WORKLOAD, 3, backbones(WORKLOAD, 3))
    (again,) = make_tasks(Variant(batch=8), WORKLOAD, 3, backbones(WORKLOAD, 3))
    assert np.array_equal(task.job.gumbel, again.job.gumbel)
