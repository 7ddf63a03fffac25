"""Pseudo-likelihood beside the other modes of scoring, batch sizes, and kept log-probabilities."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from synthetic_files import made_model, with_gaps

from mpnn import graph
from mpnn.backbone import Backbone
from mpnn.config import ModelConfig
from mpnn.design import Model
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.results import Mode
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights


@pytest.fixture(scope="module")
def model() -> Model:
    return made_model()


@pytest.fixture(scope="module")
def dimer() -> Backbone:
    """Two chains, A and B, of 20 residues each, numbered from 1."""
    return synthetic_backbone(40, chains=2)


@pytest.fixture(scope="module")
def gapped(dimer: Backbone) -> Backbone:
    """The dimer with residues A3, A4 and B2 lacking atoms."""
    return with_gaps(dimer, 2, 3, 21)


def all_others_visible(network: ProteinMPNN, backbone: Backbone) -> np.ndarray:
    """Log-probabilities [L, 21] of one pass in which every residue sees all others but itself."""
    flat = Flat.from_backbones([backbone])
    batch = Batch.from_flat(flat)
    with torch.inference_mode():
        h_V, h_E, E_idx, neighbor_mask = network.encode(batch)
        others = (E_idx != torch.arange(len(backbone))[None, :, None])[..., None]
        s_j = graph.gather_nodes(network.W_s(torch.from_numpy(flat.S)[None]), E_idx) * others
        h_j_encoder = graph.gather_nodes(h_V, E_idx)
        for layer in network.decoder_layers:
            h_j = torch.where(others, graph.gather_nodes(h_V, E_idx), h_j_encoder)
            h_ESV = batch.mask[:, :, None, None] * torch.cat([h_E, s_j, h_j], -1)
            h_V = layer.update_nodes(h_V, h_ESV, batch.mask, neighbor_mask)
        return network.W_out(h_V).log_softmax(-1)[0].numpy()


@pytest.mark.parametrize("engine", ["reference", "exact", "staged"])
@pytest.mark.parametrize("config", [ModelConfig(1, 3, 16, 12), ModelConfig(2, 2, 16, 48)], ids=str)
def test_pseudo_likelihood_lets_all_see_all_others(
    gapped: Backbone, engine: str, config: ModelConfig
) -> None:
    """It equals a pass of the reference network in which only a residue itself is invisible."""
    network = formula_weights(config)
    model = Model(load_engine(network, engine), config, {"name": "made"})
    found = model.score(gapped, mode="pseudo-likelihood")
    expected = all_others_visible(network, gapped)[gapped.mask]
    np.testing.assert_allclose(found.log_probs[gapped.mask], expected, rtol=0, atol=1e-5)
    assert model.score(gapped, seed=5, mode="pseudo-likelihood").score == found.score
    assert math.isfinite(found.global_score)


def test_pseudo_likelihood_of_one_layer_is_exact(model: Model, dimer: Backbone) -> None:
    """With one decoder layer nobody's type comes back through the neighbors' states."""
    assert model.config.num_decoder_layers == 1
    found = model.score(dimer, mode="pseudo-likelihood")
    np.testing.assert_allclose(
        found.log_probs, model.score(dimer, mode="conditional").log_probs, rtol=0, atol=1e-5
    )


def test_pseudo_likelihood_carries_a_residues_own_type(dimer: Backbone) -> None:
    """With two decoder layers a row depends on the residue's own type, unlike the exact mode's."""
    config = ModelConfig(1, 2, 16, 8)
    model = Model(load_engine(formula_weights(config)), config, {"name": "made"})
    changed = "A" * 19 + "W" + "A" * 20
    for mode, depends in (("pseudo-likelihood", True), ("conditional", False)):
        rows = [model.score(dimer, s, mode=mode).log_probs[19] for s in ("A" * 40, changed)]
        assert (rows[0] != rows[1]).any() == depends


def test_modes_are_one_where_no_types_are_seen(dimer: Backbone) -> None:
    """A network that sees no residue types has the same scores in every mode."""
    config = ModelConfig(1, 1, 16, 8, autoregressive=False)
    model = Model(load_engine(formula_weights(config)), config, {"name": "made"})
    scores = {model.score(dimer, mode=mode).score for mode in get_args(Mode)}
    assert len(scores) == 1


@pytest.mark.parametrize(("length", "samples"), [(20, 819), (256, 64), (955, 17), (20_000, 1)])
def test_batch_size_follows_the_length(model: Model, length: int, samples: int) -> None:
    """Without a batch size, samples of one call come to no more than `ROWS_PER_CALL` rows."""
    assert model._samples_per_call(length) == samples


def test_batch_size_of_an_engine_that_encodes_copies(dimer: Backbone) -> None:
    """The reference takes fewer samples at once, and gives the same designs."""
    shares: list[float] = []
    found = made_model("reference").design(dimer, 30, 1.0, progress=shares.append)
    assert shares == pytest.approx([25 / 30, 5 / 30])
    expected = made_model().design(dimer, 30, 1.0)
    assert [d.sequence for d in found] == [d.sequence for d in expected]


def test_kept_log_probs_are_those_of_the_draws(model: Model, gapped: Backbone) -> None:
    """Log-probabilities are kept when asked for, the same for any batch size."""
    assert model.design(gapped, 2).log_probs is None
    kept = [
        model.design(gapped, 5, 1.0, batch_size=size, keep_log_probs=True).log_probs
        for size in (None, 2)
    ]
    assert kept[0].shape == (5, 40, 21)
    np.testing.assert_allclose(kept[0], kept[1], rtol=0, atol=1e-5)


def test_importing_design_does_not_import_engines() -> None:
    """`mpnn.design` imports neither torch nor any engine."""
    code = (
        "import sys, mpnn.design\n"
        "sys.exit(any(m == 'torch' or m.startswith('mpnn.optimizations.') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
