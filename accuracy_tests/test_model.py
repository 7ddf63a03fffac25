"""Properties of the reference network that no stored array is needed for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from mpnn.backbone import Backbone
from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

CONFIG = ModelConfig(2, 2, 64, 16)


@pytest.fixture(scope="module")
def model() -> ProteinMPNN:
    return formula_weights(CONFIG).double()


def batch_of(*backbones: Backbone, dtype: torch.dtype = torch.float64) -> Batch:
    return Batch.from_flat(Flat.from_backbones(backbones), dtype=dtype)


def native(*backbones: Backbone) -> Tensor:
    """Residue types, padded: [B, L]."""
    flat = Flat.from_backbones(backbones)
    return torch.from_numpy(flat.padded(flat.S))


def random_ranks(batch: Batch, seed: int = 0) -> Tensor:
    """One random order for each structure, padding last: [B, L]."""
    r = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed))
    return (r + ~batch.valid).argsort(-1).argsort(-1)


@torch.inference_mode()
def test_batch_equals_one_by_one(model: ProteinMPNN) -> None:
    """Structures of different lengths, one shorter than K, get the same values alone and padded."""
    backbones = [synthetic_backbone(n, seed=n) for n in (40, 9, 23)]
    batch = batch_of(*backbones)
    rank = random_ranks(batch)
    together = model(batch, native(*backbones), rank)
    for b, backbone in enumerate(backbones):
        alone = batch_of(backbone)
        length = len(backbone)
        log_probs = model(alone, native(backbone), rank[b : b + 1, :length])
        torch.testing.assert_close(together[b, :length], log_probs[0], rtol=0, atol=1e-12)


@torch.inference_mode()
def test_rotation_and_translation_change_nothing(model: ProteinMPNN) -> None:
    """Log-probabilities do not depend on where the structure stands in space."""
    batch, S = batch_of(synthetic_backbone(50)), native(synthetic_backbone(50))
    Q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())
    Q = Q * torch.linalg.det(Q)  # a rotation, not a reflection
    shift = torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)
    moved = dataclasses.replace(batch, X=batch.X @ Q.T + shift)
    rank = random_ranks(batch)
    difference = model(batch, S, rank) - model(moved, S, rank)
    assert difference.abs().max() < 1e-9


@torch.inference_mode()
def test_mirror_image_changes_the_result(model: ProteinMPNN) -> None:
    """The virtual Cβ gives the network handedness: a reflection is another structure."""
    batch, S = batch_of(synthetic_backbone(50)), native(synthetic_backbone(50))
    mirrored = dataclasses.replace(batch, X=batch.X * torch.tensor([-1.0, 1, 1]).double())
    rank = random_ranks(batch)
    difference = model(batch, S, rank) - model(mirrored, S, rank)
    assert difference.abs().max() > 1e-3


@torch.inference_mode()
def test_order_of_chains_changes_nothing(model: ProteinMPNN) -> None:
    """Chains in another order give the same values at the same residues."""
    backbone = synthetic_backbone(60, chains=3)
    swapped = backbone.select_chains([backbone.chain_ids[c] for c in (2, 0, 1)])
    moved = np.concatenate([np.flatnonzero(backbone.chain_index == c) for c in (2, 0, 1)])
    here, there = batch_of(backbone), batch_of(swapped)
    rank = random_ranks(here)
    expected = model(here, native(backbone), rank)[:, moved]
    actual = model(there, native(swapped), rank[:, moved])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_a_residue_sees_earlier_residues_only(model: ProteinMPNN) -> None:
    """Changing one residue type changes later residues, neither the residue nor earlier ones."""
    batch, S = batch_of(synthetic_backbone(40)), native(synthetic_backbone(40))
    rank = random_ranks(batch)
    changed = S.clone()
    i = int((rank[0] == 10).nonzero())
    changed[0, i] = (changed[0, i] + 1) % 20
    difference = (model(batch, S, rank) - model(batch, changed, rank)).abs().amax(-1)[0]
    assert (difference[rank[0] <= 10] == 0).all()
    assert (difference[rank[0] > 10] > 0).any()


@torch.inference_mode()
def test_neighbors_found_elsewhere_give_the_same(model: ProteinMPNN) -> None:
    """A batch that brings its E_idx, in any order of slots, gives the same values."""
    batch, S = batch_of(synthetic_backbone(45)), native(synthetic_backbone(45))
    E_idx = model.features(batch)[1].flip(-1)
    rank = random_ranks(batch)
    brought = dataclasses.replace(batch, E_idx=E_idx)
    actual, expected = model(brought, S, rank), model(batch, S, rank)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_float32_is_close_to_float64() -> None:
    """Rounding in float32 moves log-probabilities by less than 1e-5."""
    single, double = formula_weights(ModelConfig()), formula_weights(ModelConfig()).double()
    backbone = synthetic_backbone(60)
    batch32, batch64 = batch_of(backbone, dtype=torch.float32), batch_of(backbone)
    rank, S = random_ranks(batch64), native(backbone)
    difference = single(batch32, S, rank) - double(batch64, S, rank)
    assert difference.abs().max() < 1e-5
