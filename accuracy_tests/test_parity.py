"""The network against arrays of the published implementation, float32, weights by formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engines import EQUAL, cases

from mpnn import graph
from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.decoding import decoding_order, rank_of
from mpnn.model import ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.weights import formula_weights

FOLDER = Path(__file__).parent / "parity"
TOLERANCE = 1e-5
INPUTS = ("made_two_chains", "made_short", "made_short_masked")
CONFIGS = {
    "3x128_k48": ModelConfig(3, 3, 128, 48),
    "2x64_k48": ModelConfig(2, 2, 64, 48),
    "2x64_k16": ModelConfig(2, 2, 64, 16),
    "2x64_k12": ModelConfig(2, 2, 64, 12),
}


class Case:
    """One input with the published outputs of one configuration."""

    def __init__(self, name: str, config: str) -> None:
        self.given = np.load(FOLDER / f"{name}.npz")
        self.expected = np.load(FOLDER / f"{name}__{config}.npz")
        self.model: ProteinMPNN = formula_weights(CONFIGS[config])
        self.mask = self.given["mask"] > 0
        self.designed = self.mask & (self.given["chain_M"] > 0)
        self.order = decoding_order(self.designed, self.given["randn"].astype(float))
        self.S = self.given["S"].astype(np.int64)

    @property
    def batch(self) -> Batch:
        """The input as a batch of one."""
        arrays = {
            field: torch.from_numpy(self.given[name])[None]
            for field, name in {
                "X": "X",
                "mask": "mask",
                "residue_idx": "residue_idx",
                "chain_encoding": "chain_encoding_all",
                "S": "S",
            }.items()
        }
        return Batch(**arrays, valid=torch.ones(1, len(self.S), dtype=torch.bool))

    def worst(self, actual: np.ndarray, name: str, rows: np.ndarray | None = None) -> float:
        """Largest absolute difference to the published array over rows with a mask of 1."""
        rows = self.mask if rows is None else rows
        return float(np.abs(actual[rows] - self.expected[name][rows]).max())


@pytest.fixture(params=[(i, c) for i in INPUTS for c in CONFIGS], ids="-".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@torch.inference_mode()
def test_features_and_neighbors(case: Case) -> None:
    """Neighbors are the published ones up to equal distances, and so are their edge vectors."""
    E, E_idx = case.model.features(case.batch)
    published = torch.from_numpy(case.expected["E_idx"].astype(np.int64))[None]
    ca = case.batch.X[:, :, graph.CA]
    pair = graph.row_adjusted(
        graph.distance(ca[:, :, None], ca[:, None]),
        case.batch.mask[:, :, None] * case.batch.mask[:, None],
    )
    difference = (pair.gather(-1, E_idx) - pair.gather(-1, published)).abs()[0]
    assert difference[case.mask].max() < TOLERANCE
    first4 = published[0, :, :4, None] == E_idx[0, :, None]  # [L, 4, K] the same neighbor
    assert first4.any(-1)[case.mask].all()
    slot = first4.float().argmax(-1)
    same = E[0].gather(1, slot[..., None].expand(-1, -1, E.shape[-1]))
    assert case.worst(same.numpy(), "edge_features") < TOLERANCE


@torch.inference_mode()
def test_encoder(case: Case) -> None:
    """Node and edge vectors of the encoder are the published ones."""
    h_V, h_E, E_idx, _ = case.model.encode(case.batch)
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


def conditional_ranks(case: Case) -> np.ndarray:
    """One order for each designed residue, in which it comes last: [N, L]."""
    normal = case.given["randn"].astype(float)
    last = np.eye(len(case.S), dtype=bool)[case.designed]
    return np.stack([rank_of(decoding_order(row, normal)) for row in last])


@pytest.mark.parametrize("engine", cases(EQUAL))
def test_log_probs(case: Case, engine: str) -> None:
    """Engines that round nothing else give the published teacher-forced, unconditional values."""
    runner = load_engine(engine, case.model)
    rank = np.stack([rank_of(case.order), np.zeros(len(case.S), np.int64)])[None]
    S = np.broadcast_to(case.S, rank.shape)
    actual = runner.log_probs(runner.encode(case.batch), S, rank)[0]
    assert case.worst(actual[0], "log_probs") < TOLERANCE
    assert case.worst(actual[1], "unconditional_log_probs") < TOLERANCE


@torch.inference_mode()
def test_conditional_of_the_model(case: Case) -> None:
    """The reference's conditional values are the published ones, one pass for each residue."""
    encoded, batch = case.model.encode(case.batch), case.batch
    for i, rank in zip(np.flatnonzero(case.designed), conditional_ranks(case), strict=True):
        order = torch.from_numpy(rank)[None]
        row = case.model.decode(encoded, batch.S, order, batch.mask)[0].numpy()
        assert case.worst(row, "conditional_log_probs", np.array([i])) < TOLERANCE


def test_conditional_of_the_exact_engine(case: Case) -> None:
    """The exact engine's conditional values are the published ones, all passes at once."""
    runner = load_engine("exact", case.model)
    rank = conditional_ranks(case)[None]
    S = np.broadcast_to(case.S, rank.shape)
    passes = runner.log_probs(runner.encode(case.batch), S, rank)[0]
    at = np.flatnonzero(case.designed)
    conditional = np.zeros_like(passes[0])
    conditional[at] = passes[np.arange(len(at)), at]
    assert case.worst(conditional, "conditional_log_probs", at) < TOLERANCE
