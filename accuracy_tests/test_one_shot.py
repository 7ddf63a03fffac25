"""One-shot networks, in which no residue sees another: one pass, trained as used."""

import dataclasses

import numpy as np
import pytest
import torch
from cli_runs import DIMER, run
from synthetic_files import write_weights
from training_helpers import crops_of, in_double, padded, write_chains

from mpnn import graph
from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.design import Model, load
from mpnn.equality import ROUNDING
from mpnn.flat import Flat
from mpnn.optimizations import load_engine
from mpnn.optimizations.one_shot import OneShotEngine
from mpnn.sampling import Constraints, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.training import TrainConfig, forward, train
from mpnn.training.data import RaggedBatch, TrainingChains
from mpnn.weights import formula_weights, load_checkpoint, load_weights, shipped

pytest_plugins = ["cli_fixtures"]

SEEING = ModelConfig(2, 2, 32, 12)
CONFIG = dataclasses.replace(SEEING, autoregressive=False)


@pytest.fixture(scope="module")
def model():
    return formula_weights(CONFIG).double()


def seeing(model):
    """The same weights in a network that sees residue types."""
    other = formula_weights(SEEING).to(model.W_e.weight.dtype)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("name", ["reference", "exact"])
def test_residue_types_and_orders_make_no_difference(model, name):
    """Scores are the unconditional ones of the same weights, whatever types and ranks come."""
    flat = Flat.from_backbones([synthetic_backbone(37), synthetic_backbone(26, chains=2, seed=1)])
    engine, other = load_engine(model, name), load_engine(seeing(model), name)
    encoding, rng = engine.encode(flat), np.random.default_rng(0)
    S, rank = rng.integers(20, size=(3, 63)), rng.permuted(np.tile(np.arange(63), (3, 1)), axis=1)
    found = engine.log_probs(encoding, S, rank)
    blind = other.log_probs(other.encode(flat), S, np.zeros_like(rank))
    assert found.shape == (3, 63, 21)
    assert np.abs(found - blind).max() < 1e-12
    assert np.abs(found - other.log_probs(other.encode(flat), S, rank)).max() > 0.01
    assert np.array_equal(engine.log_probs(encoding, (S + 1) % 20, rank[:, ::-1]), found)


def test_all_samples_come_from_one_pass(model, monkeypatch):
    """Eight samples take one set of distributions from the engine."""
    engine = load_engine(model)
    calls = []
    plain = engine.engine.log_probs
    monkeypatch.setattr(
        engine.engine, "log_probs", lambda e, S, rank: calls.append(rank) or plain(e, S, rank)
    )
    flat = Flat.from_backbones([synthetic_backbone(20)])
    job = make_job(flat.S, [Constraints.free(flat.mask)], [Key(0, n, 1.0) for n in range(8)])
    samples = engine.sample(engine.encode(flat), job)
    assert samples.S.shape == (8, 20)
    assert [rank.tolist() for rank in calls] == [[[0] * 20]]


def test_wrapped_where_no_residue_is_seen_and_only_there(model):
    """The configuration decides; published networks run as they are."""
    assert isinstance(load_engine(model), OneShotEngine)
    assert not isinstance(load_engine(seeing(model)), OneShotEngine)


def test_samples_follow_the_distribution(model):
    """At T = 1 residue types of many samples come up as often as their probabilities say."""
    engine = load_engine(model)
    flat = Flat.from_backbones([synthetic_backbone(15)])
    keys = [Key(1, n, 1.0) for n in range(4000)]
    constraints = Constraints.free(flat.mask)
    constraints.bias[:] = 0
    samples = engine.sample(engine.encode(flat), make_job(flat.S, [constraints], keys))
    share = (samples.S[:, :, None] == np.arange(21)).mean(0)
    p = np.exp(samples.log_probs[0])
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(keys)) + 1e-9).all()


# Checkpoints


def test_checkpoint_says_that_no_residue_is_seen(tmp_path):
    """The configuration comes back; a file of before the setting holds a network that sees them."""
    path = write_weights(tmp_path, CONFIG)
    assert load_checkpoint(path)[0].config == CONFIG
    for name in shipped():
        architecture = ARCHITECTURES[name]
        assert load_weights(name)[0].config.autoregressive == architecture.autoregressive


# Training


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory):
    return write_chains(tmp_path_factory.mktemp("chains") / "train.npz")


def test_trained_without_letters(chain_file):
    """Training computes the reference at rank 0: letters and orders change nothing, nor learn."""
    model = formula_weights(CONFIG).double()
    chains = TrainingChains(chain_file)
    crops = crops_of(chains, noise=0.1, max_length=40)
    batch, S, rank = padded(crops)
    found, _ = graph.neighbors(batch.X[:, :, 1].float(), batch.mask.float(), batch.valid, 12)
    batch = dataclasses.replace(batch, E_idx=found)
    ragged = in_double(RaggedBatch.from_crops(crops, CONFIG.k_neighbors))
    lengths = [len(crop) for crop in crops]
    ours = forward.log_probs(model, ragged, lengths)
    expected = model(batch, S, torch.zeros_like(rank))[batch.valid]
    assert (ours - expected).abs().max() < 1e-8
    other = dataclasses.replace(ragged, S=(ragged.S + 7) % 20, rank=-ragged.rank)
    assert torch.equal(ours, forward.log_probs(model, other, lengths))
    ours.gather(1, ragged.S[:, None]).sum().backward()
    assert model.W_s.weight.grad.abs().max() == 0
    assert model.W_out.weight.grad.abs().max() > 0


def test_a_one_shot_network_learns(tmp_path, monkeypatch):
    """It learns a chain by heart, and its checkpoint designs without letters too."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", dataclasses.replace(CONFIG, hidden_dim=16))
    chain, seen = write_chains(tmp_path / "one.npz", (40,), (1,)), []
    train(
        TrainConfig(
            data=str(chain), weights=str(tmp_path / "tiny.safetensors"),
            state=str(tmp_path / "state.pt"), architecture="tiny", steps=60, decay_steps=20,
            warmup_steps=2, tokens=120, micro_tokens=120, max_length=50, learning_rate=2e-2,
            report_every=10,
        ),
        seen.append,
    )  # fmt: skip
    assert seen[-1].loss < 0.5 * seen[0].loss
    model = load(tmp_path / "tiny.safetensors")
    assert isinstance(model.engine, OneShotEngine)
    assert len(model.design(synthetic_backbone(30), num_seqs=2).designs) == 2


# Library and command line


def test_scores_of_all_modes_are_one(model):
    """Ordered, conditional and unconditional scores are the same where no letters are seen."""
    made = Model(load_engine(model), CONFIG, {"name": "made"})
    backbone = synthetic_backbone(24)
    scores = [made.score(backbone, mode=m) for m in ("ordered", "conditional", "unconditional")]
    assert np.array_equal(scores[0].log_probs, scores[1].log_probs)
    assert np.array_equal(scores[0].log_probs, scores[2].log_probs)


def test_designs_are_the_same_by_every_engine(model):
    """The library's designs do not depend on the engine, nor on the order asked for."""
    made = [
        Model(load_engine(model, name), CONFIG, {"name": "made"})
        for name in ("exact", "reference", "staged")
    ]
    backbone = synthetic_backbone(30, chains=2)
    results = [m.design(backbone, 3, fixed="A3-5").designs for m in made]
    results.append(made[0].design(backbone, 3, fixed="A3-5", order="graph-coloring").designs)
    sequences = [[design.sequence for design in designs] for designs in results]
    assert all(other == sequences[0] for other in sequences)
    scores = [[design.score for design in designs] for designs in results]
    assert np.ptp(scores, axis=0).max() < ROUNDING


def test_command_line_designs_and_scores(here):
    """`mpnn design` and `mpnn score` take such a checkpoint as any other."""
    path = str(write_weights(here, CONFIG))
    result = run("design", "dimer.pdb", "--weights", path, "--out", "-")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.split(">")[1:]) == 2
    result = run("score", "dimer.pdb", "--weights", path, "--out", "-")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) > len(DIMER)
