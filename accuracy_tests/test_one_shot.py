"""Networks that letters never enter: the same from every engine, in one pass, trained as used."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from cli_runs import DIMER, run
from engines import EQUAL, cases
from made_up_files import write_weights
from training_helpers import crops_of, in_double, padded, write_chains

from mpnn import graph
from mpnn.batch import Batch
from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.decoding import Constraints, Key, make_job
from mpnn.design import Model, load
from mpnn.equality import ROUNDING
from mpnn.networks import engine_for
from mpnn.optimizations import load_engine
from mpnn.optimizations.one_shot import OneShotEngine
from mpnn.synthetic import made_up_backbone
from mpnn.training import TrainConfig, forward, train
from mpnn.training.data import RaggedBatch, TrainingChains
from mpnn.weights import formula_weights, load_checkpoint, load_weights, shipped

pytest_plugins = ["cli_fixtures"]

TWIN = ModelConfig(2, 2, 32, 12)
CONFIG = dataclasses.replace(TWIN, autoregressive=False)


def jobs():
    """Two lengths: one structure free, one with fixed, tied, omitted and masked residues."""
    backbones = [made_up_backbone(37), made_up_backbone(26, chains=2, seed=1)]
    backbones[1].mask[7] = False
    backbones[1].coords[7] = 0
    batch = Batch.from_backbones(backbones, dtype=torch.float64)
    free, bound = (Constraints.free(backbone.mask) for backbone in backbones)
    bound.designed[10:14] = False
    bound.tie_group[[20, 25]] = 2
    bound.tie_weight[25] = 0.5
    bound.bias[:, 3] -= 1e8
    return batch, make_job(batch.S.numpy(), [free, bound], [Key(3, n, 0.5) for n in range(3)])


@pytest.fixture(scope="module")
def model():
    return formula_weights(CONFIG).double()


def taken_by(name, model, batch):
    """Network and batch in a type that the engine takes, and how far that rounds."""
    if name != "onnx":
        return model, batch, 0.0
    narrow = dataclasses.replace(batch, X=batch.X.float(), mask=batch.mask.float())
    return copy.deepcopy(model).float(), narrow, 1e-5


@pytest.mark.parametrize("name", cases(EQUAL))
def test_every_engine_draws_what_it_draws_when_nobody_sees_anybody(model, name):
    """One pass and all draws at once give the letters of the engine's own sampler at rank 0."""
    batch, job = jobs()
    model, batch, rounding = taken_by(name, model, batch)
    blind = dataclasses.replace(job, rank=np.zeros_like(job.rank))
    plain, ours = load_engine(name, model), engine_for(model, name)
    expected = plain.sample(plain.encode(batch), blind)
    found = ours.sample(ours.encode(batch), job)
    for b, length in enumerate(batch.lengths.tolist()):
        assert np.array_equal(found.S[b, :, :length], expected.S[b, :, :length])
        difference = found.log_probs[b, :, :length] - expected.log_probs[b, :, :length]
        assert np.abs(difference).max() < max(1e-10, rounding)
    assert np.array_equal(found.S[1, :, 2], found.S[1, :, 25])
    assert np.array_equal(found.S[1, :, 10:14], np.tile(job.S[1, 10:14], (3, 1)))
    assert len({sample.tobytes() for sample in found.S[0]}) == 3


@pytest.mark.parametrize("name", cases(EQUAL))
def test_letters_and_orders_make_no_difference(model, name):
    """Scores are the unconditional ones of the same weights, whatever letters and ranks come."""
    batch, job = jobs()
    model, batch, rounding = taken_by(name, model, batch)
    engine, twin = engine_for(model, name), engine_for(as_twin(model), name)
    encoding, rng = engine.encode(batch), np.random.default_rng(0)
    letters = rng.integers(20, size=job.rank.shape)
    found = engine.log_probs(encoding, letters, job.rank)
    blind = twin.log_probs(twin.encode(batch), letters, np.zeros_like(job.rank))
    seeing = twin.log_probs(twin.encode(batch), letters, job.rank)
    assert found.shape == (*job.rank.shape, 21)
    assert np.abs(found - blind).max() < max(1e-12, rounding)
    assert np.abs(found - seeing).max() > 0.01
    again = engine.log_probs(encoding, (letters + 1) % 20, job.rank[:, ::-1])
    assert np.array_equal(again, found)


def as_twin(model):
    """The same weights in a network that sees letters."""
    twin = formula_weights(TWIN).to(model.W_e.weight.dtype)
    twin.load_state_dict(model.state_dict())
    return twin


def test_all_samples_come_from_one_pass(model, monkeypatch):
    """Eight samples ask the engine for one set of distributions."""
    engine = engine_for(model)
    asked = []
    plain = engine.engine.log_probs
    monkeypatch.setattr(
        engine.engine, "log_probs", lambda e, S, rank: asked.append(rank) or plain(e, S, rank)
    )
    batch = Batch.from_backbones([made_up_backbone(20)], dtype=torch.float64)
    keys = [Key(0, n, 1.0) for n in range(8)]
    job = make_job(batch.S.numpy(), [Constraints.free(np.ones(20, bool))], keys)
    samples = engine.sample(engine.encode(batch), job)
    assert samples.S.shape == (1, 8, 20)
    assert [rank.tolist() for rank in asked] == [[[[0] * 20]]]


def test_wrapped_where_letters_never_enter_and_only_there(model):
    """The configuration decides; published networks run as they are."""
    assert isinstance(engine_for(model), OneShotEngine)
    assert not isinstance(engine_for(as_twin(model)), OneShotEngine)


def test_samples_follow_the_distribution(model):
    """At T = 1 the letters of many samples come up as often as their probabilities say."""
    engine = engine_for(model)
    batch = Batch.from_backbones([made_up_backbone(15)], dtype=torch.float64)
    keys = [Key(1, n, 1.0) for n in range(4000)]
    constraints = Constraints.free(np.ones(15, bool))
    constraints.bias[:] = 0
    samples = engine.sample(engine.encode(batch), make_job(batch.S.numpy(), [constraints], keys))
    share = (samples.S[0, :, :, None] == np.arange(21)).mean(0)
    p = np.exp(samples.log_probs[0, 0])
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(keys)) + 1e-9).all()


# Checkpoints


def test_checkpoint_says_that_letters_never_enter(tmp_path):
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
    batch, rank = padded(crops)
    found, _ = graph.neighbors(batch.X[:, :, 1].float(), batch.mask.float(), batch.valid, 12)
    batch = dataclasses.replace(batch, E_idx=found)
    ragged = in_double(RaggedBatch.from_crops(crops, CONFIG.k_neighbors))
    lengths = [len(crop) for crop in crops]
    ours = forward.log_probs(model, ragged, lengths)
    expected = model(batch, batch.S, torch.zeros_like(rank))[batch.valid]
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
    assert len(model.design(made_up_backbone(30), num_seqs=2).designs) == 2


# Library and command line


def test_scores_of_all_modes_are_one(model):
    """Ordered, conditional and unconditional scores are the same where no letters are seen."""
    made = Model(engine_for(model), CONFIG, {"name": "made"})
    backbone = made_up_backbone(24)
    scores = [made.score(backbone, mode=m) for m in ("ordered", "conditional", "unconditional")]
    assert np.array_equal(scores[0].log_probs, scores[1].log_probs)
    assert np.array_equal(scores[0].log_probs, scores[2].log_probs)


def test_designs_are_the_same_by_every_engine(model):
    """The library's designs do not depend on the engine, nor on the order asked for."""
    made = [
        Model(engine_for(model, name), CONFIG, {"name": "made"})
        for name in ("exact", "reference", "jacobi")
    ]
    backbone = made_up_backbone(30, chains=2)
    results = [m.design(backbone, 3, fixed="A3-5").designs for m in made]
    results.append(made[0].design(backbone, 3, fixed="A3-5", order="coloured").designs)
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
