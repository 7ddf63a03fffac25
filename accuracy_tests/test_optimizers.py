"""Muon for the matrices of layers, AdamW for all other weights."""

import pytest
import torch
from training_helpers import run

from mpnn.training.optimizers import Muon, orthogonalized

pytest_plugins = ["training_fixtures"]


@pytest.mark.parametrize("shape", [(3, 5), (16, 16), (64, 16)])
def test_updates_are_orthogonalized(shape):
    """Singular vectors stay, singular values come near 1, and batched matrices do not mix."""
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    U, _, V = torch.linalg.svd(noise, full_matrices=False)
    G = U * torch.linspace(1, 5, min(shape)) @ V
    found = orthogonalized(G)
    values = U.mT @ found @ V.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert torch.allclose(values, torch.diag_embed(diagonal), atol=1e-4)
    assert 0.6 < float(diagonal.min()) < float(diagonal.max()) < 1.3
    assert torch.allclose(orthogonalized(G[1:2])[0], found[1], atol=1e-5)


def test_muon_equals_torch_muon_within_bfloat16():
    """Three steps on matrices of two shapes differ by the rounding of torch's bfloat16 matmuls."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(16, 16), (16, 64), (16, 16)]
    ours, theirs = ([torch.zeros(shape).requires_grad_() for shape in shapes] for _ in range(2))
    optimizers = (
        Muon(ours, weight_decay=0.1),
        torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-2
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert float(((a - b).norm() / b.norm()).detach()) < 0.03


def test_muon_steps_follow_the_learning_rate(config):
    """Matrices of layers move in proportion to the learning rate, as far as under AdamW."""
    once = {"steps": 1, "decay_steps": 0, "warmup_steps": 0, "optimizer": "muon"}
    still, near, far = (
        run(config, **once, learning_rate=rate, name=str(rate))[0]["encoder_layers.0.W2.weight"]
        for rate in (0.0, 1e-3, 2e-3)
    )
    assert torch.allclose(far - still, 2 * (near - still), atol=1e-6)
    # 0.2 · lr for each number is what the scaling by matrix size is defined to give.
    assert float((near - still).square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.2)


def test_muon_and_adamw_differ_in_the_matrices_of_layers_alone(config):
    """At the first step all other weights are updated identically."""
    once = {"steps": 1, "decay_steps": 0}
    ours, theirs = (run(config, **once, optimizer=o, name=o)[0] for o in ("adamw", "muon"))
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differ == {name for name in ours if "layers" in name and ours[name].dim() == 2}
