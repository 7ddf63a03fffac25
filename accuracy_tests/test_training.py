"""Training runs: losses, resuming bit for bit, validation, and where a run begins and ends."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import (
    TINY,
    StopRun,
    assert_same,
    crops_of,
    interrupt,
    log_probs,
    native_of,
    padded,
    run,
    with_unknown_residues,
    write_chains,
)

from mpnn.config import ARCHITECTURES, UNKNOWN, ModelConfig
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.training import train
from mpnn.training.data import whole_chain
from mpnn.training.run import _perplexity
from mpnn.weights import formula_weights, load_checkpoint

pytest_plugins = ["training_fixtures"]
SHORT = {"steps": 4, "decay_steps": 0}
STILL = {"warmup_steps": 10**9}  # steps too small to be seen


# Losses


def test_loss_is_the_mean_negative_log_likelihood(config, chains):
    """Without a teacher the first loss is that of the untrained network on the first crops."""
    _, reports = run(config, tokens=120)
    assert [p.perplexity for p in reports] == pytest.approx([np.exp(p.loss) for p in reports])
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = ProteinMPNN(TINY)
    crops = crops_of(chains, 3, max_length=50)
    crops = [c for n, c in enumerate(crops) if sum(map(len, crops[: n + 1])) <= 120]
    nll = -log_probs(model, crops).detach().gather(1, native_of(crops)[:, None])
    assert reports[0].loss == pytest.approx(float(nll.mean()), rel=1e-5)


def test_loss_goes_down_on_one_chain(tmp_path, config):
    """A network overfits one chain: its accuracy rises above one half."""
    one = write_chains(tmp_path / "one.npz", (30,), (1,))
    change = {"steps": 50, "decay_steps": 20, "learning_rate": 2e-2, "report_every": 10}
    _, reports = run(config, data=str(one), tokens=60, **change)
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert reports[-1].accuracy > 0.5 > reports[0].accuracy


def test_bfloat16_matmuls_change_little(config):
    """With matmuls in bfloat16 the weights stay float32, and the loss is nearly that of float32."""
    (_, single), (weights, half) = (
        run(config, precision=name, name=name) for name in ("float32", "bfloat16")
    )
    ratios = np.array([b.loss / a.loss for a, b in zip(single, half, strict=True)])
    assert 0 < np.abs(ratios - 1).max() < 0.01
    assert {w.dtype for w in weights.values()} == {torch.float32}


# Reproducible and resumable


def test_same_seed_same_run(config):
    """Two runs of one configuration end bit-equal; another seed ends elsewhere."""
    first, _ = run(config, name="first")
    assert_same(first, run(config, name="again")[0])
    seeded, _ = run(config, name="seeded", seed=1)
    assert not torch.equal(first["W_out.bias"], seeded["W_out.bias"])


@pytest.mark.parametrize(
    "taught",
    [
        {},
        {"targets": "targets"},
        {"targets": "targets", "mutations": 0.3, "teacher_sees": "native"},
        {"mutations": 0.3},
        {"hidden_weight": 0.5, "optimizer": "muon"},
    ],
    ids=["plain", "cached", "cached-mutated", "online", "hidden"],
)
def test_resumed_run_is_bit_equal(config, tmp_path, teacher_file, taught):
    """A run stopped between two saves ends with the weights of a run never stopped."""
    if taught:
        taught = taught | {"teacher": teacher_file}
        if "targets" in taught:
            taught["targets"] = str(tmp_path / "targets")
        config = dataclasses.replace(config, **taught)
    whole, _ = run(config, name="whole")
    interrupt(config, 5)
    weights, reports = run(config)
    assert_same(whole, weights)
    assert [p.step for p in reports] == [5, 6]


def test_interrupted_save_leaves_the_old_state(config, monkeypatch):
    """A save that breaks off half-way leaves a state that the run resumes from."""
    whole, _ = run(config, name="whole")
    real = torch.save

    def broken(state, file):
        if state["counters"][0] == 4:
            file.write(b"half a file")
            raise StopRun
        real(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(StopRun):
            train(config)
    weights, reports = run(config)
    assert_same(whole, weights)
    assert reports[0].step == 3


def test_a_run_that_diverged_keeps_its_last_good_state(config):
    """Weights that are no longer finite replace neither state nor weights."""
    with pytest.raises(InputError, match=r"not finite at step 2; .* smaller learning_rate"):
        run(config, learning_rate=1e20, save_every=1)
    state = torch.load(config.state, weights_only=True)
    assert state["counters"][0] == 1
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())
    assert not Path(config.weights).exists()


def test_a_run_can_be_made_longer_before_its_decay(config):
    """More steps give the run that was longer from the start."""
    run(config, **SHORT)
    assert_same(run(config, steps=8)[0], run(config, steps=8, name="longer")[0])


def test_a_later_end_is_refused_once_the_decay_has_begun(config):
    """The learning rate must not rise again, and an ended run cannot end earlier."""
    train(config)
    for change, message in [
        ({"steps": 8}, "has fallen to 0 and would rise to 0.002; .* begin_from"),
        ({"steps": 4}, "has 6 steps already, steps is 4"),
        ({"decay_steps": 1}, "no step is left to reach steps = 6 and decay_steps = 1"),
    ]:
        with pytest.raises(InputError, match=message):
            run(config, **change)
    assert load_checkpoint(config.weights)[1]["training"]["steps"] == 6


def test_a_decay_can_be_made_shorter(config):
    """A run may end earlier than planned, with a learning rate that falls faster."""
    interrupt(dataclasses.replace(config, steps=20, decay_steps=16), 6)
    run(config, steps=8, decay_steps=4)
    assert load_checkpoint(config.weights)[1]["training"]["steps"] == 8


def test_a_resumed_run_does_not_need_the_weights_it_began_from(config):
    """They are loaded once."""
    train(config)
    begun = {"begin_from": config.weights}
    whole, _ = run(config, name="whole", **begun)
    run(config, name="other", **begun, **SHORT)
    Path(config.weights).unlink()
    assert_same(whole, run(config, name="other", **begun)[0])


def test_a_state_from_before_a_setting_existed_is_resumed(config):
    """A setting that the state lacks has its default."""
    whole, _ = run(config, name="whole")
    run(config, **SHORT)
    state = torch.load(config.state, weights_only=True)
    del state["config"]["begin_from"]
    torch.save(state, config.state)
    assert_same(whole, run(config)[0])


# States that are refused


def test_state_of_another_run_is_refused(config, tmp_path):
    """The error names what differs: settings, chains or version; the state is left alone."""
    run(config, **SHORT)
    before = Path(config.state).read_bytes()
    other = write_chains(tmp_path / "other.npz", clusters=(7, 7, 9, 9, 9))
    for change, message in [
        ({"seed": 9}, r"another run \(seed differ"),
        ({"data": str(other)}, r"on other chains than those of .*other\.npz"),
    ]:
        with pytest.raises(InputError, match=message):
            run(config, **change)
    assert Path(config.state).read_bytes() == before
    state = torch.load(config.state, weights_only=True)
    del state["draws"]  # not stored by the version that sampled crops differently
    torch.save(state, config.state)
    with pytest.raises(InputError, match="a version that sampled crops differently"):
        train(config)


@pytest.mark.parametrize(
    "content", [b"", b"not a state", {"config": None}, {"model": {}}, [1, 2], None, "later version"]
)
def test_a_file_that_is_not_a_state_is_refused(config, content):
    """A damaged state, another torch file, or a state with unknown settings is not overwritten."""
    if isinstance(content, bytes):
        Path(config.state).write_bytes(content)
    elif content == "later version":
        run(config, **SHORT)
        state = torch.load(config.state, weights_only=True)
        state["config"]["momentum"] = 0.9
        torch.save(state, config.state)
    else:
        torch.save(content, config.state)
    before = Path(config.state).read_bytes()
    with pytest.raises(InputError, match="not the state of a training run"):
        train(config)
    assert Path(config.state).read_bytes() == before


# Reports, curve and card


def test_reports_count_steps_and_residues(config):
    """Reports count steps and residues, give finite means, and no time is left at the end."""
    _, seen = run(config)
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    assert all(0 < b.residues - a.residues <= config.tokens for a, b in itertools.pairwise(seen))
    assert all(np.isfinite([p.loss, p.perplexity, p.residues_per_second]).all() for p in seen)
    assert seen[0].seconds_left > 0 == seen[-1].seconds_left
    assert [p.step for p in run(config, name="rarely", report_every=4)[1]] == [4, 6]


def test_steps_without_a_known_residue_are_reported(config, tmp_path):
    """Where all residues of the crops are X the perplexity is NaN, and the run goes on."""
    path = write_chains(tmp_path / "some.npz", (250,), (1,))
    data = str(with_unknown_residues(path, slice(25)))
    _, seen = run(config, data=data, tokens=20, max_length=20)
    assert len(seen) == 6
    assert any(np.isnan(p.perplexity) for p in seen)


def test_a_perplexity_beyond_floats_is_infinite():
    """A run that diverges reports infinity until its weights are not finite."""
    assert _perplexity(1e4) == np.inf
    assert _perplexity(np.log(7)) == pytest.approx(7)
    assert np.isnan(_perplexity(np.nan))


def test_the_curve_is_the_perplexity_of_whole_held_out_chains(config, chains, chain_file):
    """Its last point equals the reference network's on native residues in fixed orders."""
    change = {"validation": str(chain_file), "validate_every": 4}
    _, seen = run(config, **change)
    assert [p.validation and p.validation.step for p in seen] == [None] * 3 + [4, None, 6]
    crops = [whole_chain(chains, int(chain)) for chain in np.concatenate(chains.clusters)]
    batch, S, rank = padded(crops)
    with torch.no_grad():
        found = train(dataclasses.replace(config, **change)).double()(batch, S, rank)
    nll = -found.gather(-1, S[..., None])[..., 0]
    known = (batch.mask > 0) & (S != UNKNOWN)
    last = seen[-1].validation
    assert last.perplexity == pytest.approx(nll[known].mean().exp().item(), rel=1e-4)
    assert last.accuracy == (found.argmax(-1) == S)[known].double().mean()
    assert last.residues == seen[-1].residues


def test_validation_changes_nothing_and_the_curve_is_resumed(config, chain_file):
    """The weights are those of a run without validation, and a resumed run keeps its points."""
    plain, _ = run(config, name="plain")
    validated = {"validation": str(chain_file), "validate_every": 2}
    run(config, **validated, **SHORT)
    assert_same(plain, run(config, **validated)[0])
    _, card = load_checkpoint(config.weights)
    assert [row[0] for row in card["curve"]["rows"]] == [2, 4, 6]


def test_written_weights_are_the_trained_ones_with_a_card(config):
    """The card names the data, the steps and the residues seen, and no path."""
    weights, _ = run(config)
    stored, card = load_checkpoint(config.weights)
    assert_same(weights, stored.state_dict())
    assert card["training"]["data"] == "train.npz"
    assert card["training"]["steps"] == 6
    assert card["residues_seen"] > 0
    assert not any(config.state in str(value) for value in card["training"].values())


# Beginning from weights


@pytest.mark.parametrize("change", [{"k_neighbors": 30}, {"autoregressive": False}])
def test_a_run_begins_from_weights_of_the_same_shapes(config, monkeypatch, change):
    """Before its first step a run has the weights it begins from, and its card names them."""
    first, _ = run(config)
    monkeypatch.setitem(ARCHITECTURES, "other", dataclasses.replace(TINY, **change))
    begun = {"architecture": "other", "begin_from": config.weights}
    weights, _ = run(config, name="other", seed=1, **begun, **STILL)
    for name, weight in first.items():
        assert (weights[name] - weight).abs().max() < 1e-7
    card = load_checkpoint(Path(config.state).with_name("other.safetensors"))[1]
    assert card["training"]["begin_from"] == Path(config.weights).stem


def test_weights_that_do_not_fit_are_refused(config, tmp_path, teacher_file, monkeypatch):
    """A run does not begin from other shapes, a card without training, or the published form."""
    train(config)
    published = tmp_path / "v.pt"
    torch.save({"num_edges": 12, "model_state_dict": formula_weights(TINY).state_dict()}, published)
    monkeypatch.setitem(ARCHITECTURES, "wide", ModelConfig(1, 1, 32, 12))
    wide = {"architecture": "wide", "begin_from": config.weights}
    for change, message in [
        (wide, "43 tensors differ in shape, the first is W_e.bias"),
        ({"begin_from": teacher_file}, "card describes no training"),
        ({"begin_from": str(published)}, "describes no training: .* trained by this package"),
        ({"begin_from": "nowhere"}, "no such weights"),
    ]:
        with pytest.raises(InputError, match=message):
            run(config, name="refused", **change)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("taught", ["plain", "cached", "hidden"])
def test_training_runs_on_every_device_here(config, teacher_file, taught):
    """A run on the accelerator begins at the same loss as on the CPU."""
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("no accelerator on this machine")
    change = {} if taught == "plain" else {"teacher": teacher_file}
    if taught == "hidden":
        change["hidden_weight"] = 1.0
    losses = []
    for device in ("cpu", "cuda" if torch.cuda.is_available() else "mps"):
        if taught == "cached":
            change["targets"] = f"{config.state}.targets.{device}"
        losses.append(run(config, name=device, device=device, **change)[1][0].loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
