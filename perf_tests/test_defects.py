"""Planted accuracy defects: the check of the timed outputs must see each one."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from mpnn import model
from mpnn.config import ModelConfig
from mpnn.optimizations import reference
from mpnn.regression import workloads
from mpnn.regression.workloads import Workload, backbones, equality, make_tasks, pairs_of
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
        task.batch.residue_idx[:, 20:] += 1
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


def one_neighbour_less():
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
    one_neighbour_less,
]


def test_the_same_network_passes(right):
    """Without a defect letters and log-probabilities are equal."""
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


def test_letters_and_log_probs_are_checked_apart(right):
    """One wrong letter fails with equal log-probabilities, and the other way round."""
    (samples,) = right
    other = samples.S.copy()
    other[0, 0, 5] = (other[0, 0, 5] + 1) % 20
    wrong = judged([replace(samples, S=other)], right)
    assert not wrong.passed
    assert "residue 5 of sample 0 of made_up" in wrong.text
    shifted = samples.log_probs + np.float32(1e-3)
    assert not judged([replace(samples, log_probs=shifted)], right).passed


def test_a_wrong_letter_at_a_fixed_residue_is_seen():
    """A letter that no draw can have changed fails, whatever the network thought of it."""
    workload = Workload(length=40, samples=1, designed=0.1)
    (task,) = make_tasks(Variant(), workload, 0, backbones(workload, 0))
    right = task.run(reference.ReferenceEngine(formula_weights(SMALL)), sample=True)
    (fixed, *_) = np.flatnonzero(~task.job.designed[0])
    likeliest = right[0].log_probs[0, 0, fixed].argmax()
    S = right[0].S.copy()
    assert S[0, 0, fixed] != likeliest
    S[0, 0, fixed] = likeliest
    assert not equality(pairs_of(workload, 0, right, [replace(right[0], S=S)])).passed


def test_a_flipped_near_tie_is_named_and_stands(right):
    """A letter that rounding can have flipped is named in the text and fails nothing."""
    (pair,) = pairs_of(WORKLOAD, 0, right, right)
    last = int(pair.job.rank[0, 0].argmax())  # no other residue sees it
    letter = pair.reference.S[0, 0, last]
    S, gumbel = pair.subject.S.copy(), pair.job.gumbel.copy()
    S[0, 0, last] = other = (letter + 1) % 20
    log_probs, temperature = pair.reference.log_probs[0, 0, last], pair.job.temperature[0]
    tie = (log_probs[letter] - log_probs[other]) / temperature + gumbel[0, 0, last, letter]
    gumbel[0, 0, last, other] = tie - 1e-5 / temperature
    near = replace(pair, job=replace(pair.job, gumbel=gumbel), subject=replace(pair.subject, S=S))
    accuracy = equality([near])
    assert accuracy.passed
    assert f"residue {last} of sample 0" in accuracy.text
    assert accuracy.figures["near_ties"] == 1


def test_keys_name_the_noise():
    """The job of an input has its number as the seed, so all sides draw the same noise."""
    (task,) = make_tasks(Variant(), WORKLOAD, 3, backbones(WORKLOAD, 3))
    (again,) = make_tasks(Variant(batch=8), WORKLOAD, 3, backbones(WORKLOAD, 3))
    assert np.array_equal(task.job.gumbel, again.job.gumbel)
