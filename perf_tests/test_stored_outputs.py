"""Outputs against stored ones: what both sides of a claim would get wrong alike."""

from dataclasses import replace

import numpy as np
import pytest

from mpnn import design, sampling
from mpnn.optimizations.ssm import SSMEngine
from mpnn.regression.stored_outputs import JOBS, differences, outputs, stored_outputs


@pytest.mark.parametrize(
    ("name", "engine"),
    [pytest.param(n, e, id=f"{n}-{e}") for n, job in JOBS.items() for e in job.engines],
)
def test_outputs_are_the_stored_ones(name, engine):
    """A job gives its stored sequences, and their mean −log p within 1e-3 nats."""
    stored = stored_outputs()
    assert name in stored, "run `python -m mpnn.regression.stored_outputs` and commit its file"
    assert differences(outputs(name, engine), stored[name]) == []


def test_nothing_is_stored_without_a_job():
    """Every stored output belongs to a job."""
    assert stored_outputs().keys() == JOBS.keys()


def swapped_order(monkeypatch):
    right = sampling.rank_of

    def wrong(order, tie_group):
        rank = right(order, tie_group)
        rank[[3, 30]] = rank[[30, 3]]
        return rank

    monkeypatch.setattr(sampling, "rank_of", wrong)


def doubled_temperature(monkeypatch):
    right = design.make_job

    def wrong(S, constraints, keys):
        return right(S, constraints, [replace(key, temperature=0.2) for key in keys])

    monkeypatch.setattr(design, "make_job", wrong)


@pytest.mark.parametrize("defect", [swapped_order, doubled_temperature])
def test_defects_of_shared_code_change_stored_sequences(defect, monkeypatch):
    """Engines that share a defect agree with one another, and not with what is stored."""
    defect(monkeypatch)
    stored = stored_outputs()["sample"]
    for engine in JOBS["sample"].engines:
        assert "residues" in differences(outputs("sample", engine), stored)[0]


def test_reversed_outputs_of_the_state_space_network_are_seen(monkeypatch):
    """The state-space engine has no reference: only stored outputs tell its ends apart."""
    right = SSMEngine.unconditional
    monkeypatch.setattr(
        SSMEngine, "unconditional", lambda *args: np.ascontiguousarray(right(*args)[::-1])
    )
    assert differences(outputs("sample-ssm", "ssm"), stored_outputs()["sample-ssm"])
