"""The network rewritten for training: equal to the reference, in results and gradients."""

import dataclasses

import pytest
import torch
from training_helpers import TINY, crops_of, log_probs, native_of, padded

from mpnn import graph
from mpnn.config import ModelConfig
from mpnn.training import forward
from mpnn.training.data import RaggedBatch
from mpnn.weights import formula_weights

pytest_plugins = ["training_fixtures"]


@pytest.mark.parametrize("k", [12, 48], ids=["all-have-k", "crops-shorter-than-k"])
def test_training_network_equals_reference(chains, k):
    """Log-probabilities and every gradient equal the reference network's in float64."""
    model = formula_weights(ModelConfig(2, 2, 32, k)).double()
    crops = crops_of(chains, noise=0.1, max_length=30)
    batch, letters, rank = padded(crops)
    found, _ = graph.neighbors(batch.X[:, :, 1].float(), batch.mask.float(), batch.valid, k)
    batch = dataclasses.replace(batch, E_idx=found)  # found in float32, as in training
    gradients = []
    for outcome in (model(batch, letters, rank)[batch.valid], log_probs(model, crops, double=True)):
        model.zero_grad()
        outcome.gather(1, native_of(crops)[:, None]).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        gradients[-1]["log_probs"] = outcome.detach()
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=1e-9, atol=1e-9), name


def test_crops_in_a_batch_are_independent(chains):
    """A crop's log-probabilities are the same alone and between others."""
    model = formula_weights(TINY)
    crops = crops_of(chains, max_length=40)
    alone = [log_probs(model, [c]) for c in crops]
    assert torch.allclose(log_probs(model, crops), torch.cat(alone), atol=1e-5)


def test_no_residue_type_reaches_an_earlier_residue(chains):
    """Changing the residue decoded last changes no log-probability."""
    model = formula_weights(TINY)
    batch = RaggedBatch.from_crops(crops_of(chains, 1), 12)
    S = batch.S.clone()
    S[batch.rank.argmax()] = (S[batch.rank.argmax()] + 1) % 20
    before = forward.log_probs(model, batch, [len(S)])
    after = forward.log_probs(model, dataclasses.replace(batch, S=S), [len(S)])
    assert torch.equal(before, after)
