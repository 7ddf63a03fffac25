"""The network against arrays of the published implementation, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published_arrays import CONFIGS, INPUTS, TOLERANCE, Case

from mpnn import graph
from mpnn.model import Batch
from mpnn.optimizations import load_engine
from mpnn.schedule import rank_of


@pytest.fixture(params=[(i, c) for i in INPUTS for c in CONFIGS], ids="-".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.fixture(scope="module")
def batch(case: Case) -> Batch:
    return Batch.from_flat(case.flat)


@torch.inference_mode()
def test_features_and_neighbors(case: Case, batch: Batch) -> None:
    """Neighbors are the published ones up to equal distances, and so are their edge vectors."""
    E, E_idx = case.model.features(batch)
    published = torch.from_numpy(case.expected["E_idx"].astype(np.int64))[None]
    ca = batch.X[:, :, graph.CA]
    pair = graph.row_adjusted(
        graph.distance(ca[:, :, None], ca[:, None]),
        batch.mask[:, :, None] * batch.mask[:, None],
    )
    difference = (pair.gather(-1, E_idx) - pair.gather(-1, published)).abs()[0]
    assert difference[case.mask].max() < TOLERANCE
    first4 = published[0, :, :4, None] == E_idx[0, :, None]  # [L, 4, K] the same neighbor
    assert first4.any(-1)[case.mask].all()
    slot = first4.float().argmax(-1)
    same = E[0].gather(1, slot[..., None].expand(-1, -1, E.shape[-1]))
    assert case.worst(same.numpy(), "edge_features") < TOLERANCE


@torch.inference_mode()
def test_encoder(case: Case, batch: Batch) -> None:
    """Node and edge vectors of the encoder are the published ones."""
    h_V, h_E, E_idx, _ = case.model.encode(batch)
    assert case.worst(h_V[0].numpy(), "h_V_encoder") < TOLERANCE
    published = torch.from_numpy(case.expected["E_idx"].astype(np.int64))[:, :4]
    slot = (published[..., None] == E_idx[0, :, None]).float().argmax(-1)
    same = h_E[0].gather(1, slot[..., None].expand(-1, -1, h_E.shape[-1]))
    assert case.worst(same.numpy(), "h_E_encoder_first4") < TOLERANCE


def test_decoding_order(case: Case) -> None:
    """The order of decoding is the published one for the same random numbers."""
    np.testing.assert_array_equal(case.order, case.expected["decoding_order"])


def test_parameter_count(case: Case) -> None:
    """The number of parameters is the published one."""
    count = sum(p.numel() for p in case.model.parameters())
    assert count == case.expected["param_count"]


@pytest.mark.parametrize("name", ["reference", "exact"])
def test_log_probs(case: Case, name: str) -> None:
    """Teacher-forced and unconditional values are the published ones."""
    engine = load_engine(case.model, name)
    rank = np.stack([rank_of(case.order), np.zeros(len(case.S), np.int64)])
    actual = engine.log_probs(engine.encode(case.flat), np.tile(case.S, (2, 1)), rank)
    assert case.worst(actual[0], "log_probs") < TOLERANCE
    assert case.worst(actual[1], "unconditional_log_probs") < TOLERANCE


@torch.inference_mode()
def test_conditional_of_the_model(case: Case, batch: Batch) -> None:
    """The reference's conditional values are the published ones, one pass for each residue."""
    encoded, S = case.model.encode(batch), torch.from_numpy(case.S)[None]
    for i, rank in zip(np.flatnonzero(case.designed), case.conditional_ranks(), strict=True):
        order = torch.from_numpy(rank)[None]
        row = case.model.decode(encoded, S, order, batch.mask)[0].numpy()
        assert case.worst(row, "conditional_log_probs", np.array([i])) < TOLERANCE


def test_conditional_of_the_exact_engine(case: Case) -> None:
    """The exact engine's conditional values are the published ones, all passes at once."""
    engine, rank = load_engine(case.model, "exact"), case.conditional_ranks()
    S = np.tile(case.S, (len(rank), 1))
    passes = engine.log_probs(engine.encode(case.flat), S, rank)
    at = np.flatnonzero(case.designed)
    conditional = np.zeros_like(passes[0])
    conditional[at] = passes[np.arange(len(at)), at]
    assert case.worst(conditional, "conditional_log_probs", at) < TOLERANCE
