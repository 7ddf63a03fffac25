"""Teachers, cached and online, and students that follow their hidden states."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import TINY, crops_of, log_probs, native_of, padded, run, write_chains

from mpnn.config import UNKNOWN, ModelConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.training import train
from mpnn.training.data import RaggedBatch, TrainingChains
from mpnn.training.distillation import CachedTeacher, OnlineTeacher, mutated
from mpnn.training.hidden import HiddenMatch
from mpnn.weights import formula_weights, load_checkpoint, save_checkpoint

pytest_plugins = ["training_fixtures"]


def reference_outputs(crops, S):
    """Log-probabilities [R, 21] of the reference network for noised crops with residues S."""
    batch, letters, rank = padded(crops)
    letters[batch.valid] = S
    return formula_weights(TINY).double()(batch, letters, rank).float()[batch.valid]


# Cached outputs


@pytest.fixture
def cached(config, chains, teacher_file, tmp_path):
    """Opens the cached outputs of the tiny teacher, two orders of each chain."""

    def open_(folder="t", of=chains, **settings):
        settings |= {"teacher": teacher_file, "targets": str(tmp_path / folder)}
        return CachedTeacher(dataclasses.replace(config, **settings), of)

    return open_


def test_cached_outputs_are_the_teachers_own(chains, cached):
    """A crop's target is the teacher-forced distribution of the reference on the whole chain."""
    (crop,) = crops_of(chains, 1, first=2, max_length=30, orders=2)
    (whole,) = crops_of(chains, 1, first=2, orders=2)
    assert whole.order == crop.order
    backbone = chains[crop.chain]
    rank = np.full((1, len(backbone)), len(backbone))
    rank[0, backbone.mask] = whole.rank
    flat = Flat.from_backbones([backbone])
    network, S = formula_weights(TINY), torch.from_numpy(flat.S)[None]
    expected = network(Batch.from_flat(flat), S, torch.from_numpy(rank)).detach().numpy()[0]
    found = cached().log_probs(crop)
    assert np.abs(found - expected[backbone.mask][crop.rows]).max() < 5e-3  # float16
    assert np.abs(expected).max() > 1


def test_outputs_are_computed_once(chains, cached, monkeypatch):
    """A second run reads them; another number of orders needs its own."""
    (crop,) = crops_of(chains, 1, orders=2)
    first = cached().log_probs(crop)

    def refuse(_self, _index):
        raise AssertionError("computed again")

    monkeypatch.setattr(CachedTeacher, "_compute", refuse)
    assert np.array_equal(first, cached().log_probs(crop))
    with pytest.raises(AssertionError, match="computed again"):
        cached(teacher_orders=3).log_probs(crop)


def test_cached_outputs_belong_to_their_chains(chains, cached, tmp_path):
    """Chains of the same lengths but other coordinates have their own outputs."""
    moved = tmp_path / "moved.npz"
    arrays = dict(np.load(write_chains(moved)))
    np.savez(moved, **arrays | {"nco": arrays["nco"] + 100})
    cached().log_probs(crops_of(chains, 1, orders=2)[0])
    other = TrainingChains(moved)
    (crop,) = crops_of(other, 1, orders=2)
    found, fresh = (cached(folder, other).log_probs(crop) for folder in ("t", "new"))
    assert np.array_equal(found, fresh)


def test_partly_written_outputs_are_computed_again(chains, cached):
    """Rows that a crash left incomplete are not taken for log-probabilities."""
    (crop,) = crops_of(chains, 1, orders=2)
    teacher = cached()
    whole = teacher.log_probs(crop)
    teacher.cache[:, :, 12:] = 0
    assert np.array_equal(teacher.log_probs(crop), whole)


@pytest.mark.parametrize("content", [b"", b"no array", "a folder", "another shape"])
def test_unreadable_caches_are_refused(cached, tmp_path, content):
    """A damaged file of outputs, or something else in its place, is named."""
    cached()
    (path,) = (tmp_path / "t").iterdir()
    if content == "a folder":
        path.unlink()
        path.mkdir()
    elif content == "another shape":
        np.save(path, np.zeros((2, 3, 21), np.float16))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: .* remove it"):
        cached()


def test_cached_outputs_need_a_folder(cached, teacher_file):
    """A file in place of the folder is named."""
    with pytest.raises(InputError, match="cannot be written"):
        cached(teacher_file)


def test_cached_outputs_mutate_residues_for_the_student_alone(chains, cached):
    """The outputs stay those for native residues; some residues are sampled from them."""
    crops = crops_of(chains, max_length=30, orders=2)
    native, expected = cached().outputs(crops)
    S, soft = cached(mutations=0.6, teacher_sees="native").outputs(crops)
    assert torch.equal(soft, expected)
    assert torch.equal(S, mutated(native, expected, crops, 0.6))
    replaced = torch.from_numpy(np.concatenate([crop.uniform[:, 0] for crop in crops])) < 0.6
    assert torch.equal(S[~replaced], native[~replaced])
    assert (S[replaced] != native[replaced]).float().mean() > 0.5


# Online teachers


@pytest.fixture
def online(config, teacher_file):
    """Loads the tiny teacher, or another one."""

    def load(mutations=0.0, sees="shown", teacher=teacher_file):
        settings = {"mutations": mutations, "teacher_sees": sees, "teacher": str(teacher)}
        return OnlineTeacher(dataclasses.replace(config, **settings))

    return load


@pytest.mark.parametrize("mutations", [0.0, 0.4, 1.0])
def test_an_online_teacher_sees_what_the_student_sees(chains, online, mutations):
    """Its outputs are those for the crop's noise and order, and for the mutated residues."""
    crops = crops_of(chains, max_length=30, noise=0.1)
    S, soft = online(mutations).outputs(crops)
    share = float((native_of(crops) != S).float().mean())
    assert (share == 0) if mutations == 0 else (0.5 * mutations < share <= 1.2 * mutations)
    assert (soft - reference_outputs(crops, S)).abs().max() < 1e-4


def test_an_online_teacher_can_see_native_residues(chains, online):
    """Its outputs are then those for native residues; the student sees the same mutations."""
    crops = crops_of(chains, max_length=30, noise=0.1)
    S, soft = online(0.6, "native").outputs(crops)
    native = native_of(crops)
    assert (native != S).any()
    assert (soft - reference_outputs(crops, native)).abs().max() < 1e-4
    assert torch.equal(S, online(0.6).outputs(crops)[0])


@pytest.mark.parametrize("sees", ["shown", "native"])
def test_a_one_shot_teacher_sees_no_residue_types(chains, online, tmp_path, sees):
    """Its outputs do not depend on the residues of the crop."""
    model = formula_weights(dataclasses.replace(TINY, autoregressive=False))
    save_checkpoint(tmp_path / "teacher.safetensors", model, {})
    crops = crops_of(chains, max_length=30, noise=0.1)
    _, soft = online(0.5, sees, tmp_path / "teacher.safetensors").outputs(crops)
    torch.testing.assert_close(soft, log_probs(model, crops))


def test_mutations_are_sampled_from_the_teachers_distribution(chains, online):
    """Each is the residue type at which the cumulative probability passes a uniform number."""
    crops = crops_of(chains, 1, max_length=30)
    _, first = online().outputs(crops)
    S, _ = online(1.0).outputs(crops)
    sums = np.cumsum(first.exp().numpy()[:, :UNKNOWN], 1)
    marks = crops[0].uniform[:, 1] * sums[:, -1]
    assert S.tolist() == [np.searchsorted(row, u) for row, u in zip(sums, marks, strict=True)]


# Students


@pytest.mark.parametrize("kind", ["cached", "online"])
def test_a_student_approaches_its_teacher(config, teacher_file, tmp_path, kind):
    """Trained on the teacher's distributions alone, the cross-entropy to them falls."""
    how = {"targets": str(tmp_path / "t")} if kind == "cached" else {"mutations": 0.3}
    long = {"steps": 16, "learning_rate": 1e-2, "report_every": 4}
    _, seen = run(config, teacher=teacher_file, teacher_weight=1.0, **how, **long)
    assert seen[-1].loss < 0.9 * seen[0].loss


def test_cards_and_states_tell_cached_from_online(config, teacher_file, tmp_path):
    """A run is not resumed with the other kind of teacher, and its card names the kind."""
    config = dataclasses.replace(config, teacher=teacher_file, targets=str(tmp_path / "targets"))
    train(config)
    settings = load_checkpoint(config.weights)[1]["training"]
    assert (settings["answers"], settings["teacher_orders"]) == ("kept", 2)
    with pytest.raises(InputError, match=r"another run \(targets differ"):
        train(dataclasses.replace(config, targets=None))
    run(config, name="other", targets=None, mutations=0.3)
    settings = load_checkpoint(tmp_path / "other.safetensors")[1]["training"]
    assert settings["answers"] == "asked for every crop"
    assert "teacher_orders" not in settings


# Hidden states


def matched(student, teacher, crops, change=None):
    """The hidden error of a student, after `change`, if any, of the recorded states of both."""
    match = HiddenMatch(student, teacher)
    with match.recording():
        with torch.no_grad():
            log_probs(teacher, crops)
        log_probs(student, crops)
    if change is not None:
        change(match._states)
    return match.error(RaggedBatch.from_crops(crops, student.config.k_neighbors).neighbor_mask)


def test_equal_networks_have_equal_hidden_states(chains):
    """The error is 0 against itself, with padded neighbors too, and large for other weights."""
    crops = [*crops_of(chains, 1, max_length=9), *crops_of(chains, 1, first=1, max_length=30)]
    config = ModelConfig(2, 2, 16, 12)
    teacher = formula_weights(config)
    assert matched(formula_weights(config), teacher, crops) == 0
    torch.manual_seed(0)
    assert matched(ProteinMPNN(config), teacher, crops) > 0.5


def test_a_student_that_outputs_the_mean_has_an_error_of_one(chains):
    """The error is in units of the variance of the teacher's states."""

    def take_means(states):
        for name, t in states[1].items():
            states[0][name] = t.flatten(0, -2).mean(0).expand_as(t)

    config = ModelConfig(1, 1, 16, 8)
    student, teacher = (formula_weights(config) for _ in range(2))
    error = matched(student, teacher, crops_of(chains, 2, max_length=30), take_means)
    assert error.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("k", [5, 20], ids=["fewer-neighbors", "more-neighbors"])
def test_edges_are_compared_with_those_of_the_same_neighbors(chains, k):
    """Edges of the encoder's first layer, of the same weights, agree where both have them."""

    def first_edges_only(states):
        for network in states:
            for name in network:
                if not name.endswith("norm3"):
                    network[name] = torch.arange(8.0).view(4, 2)  # equal, and not constant

    teacher, student = (formula_weights(ModelConfig(1, 1, 16, n)) for n in (12, k))
    for network in (teacher, student):  # an edge is then a function of its two residues alone
        for parameter in network.encoder_layers[0].W3.parameters():
            torch.nn.init.zeros_(parameter)
    crops = crops_of(chains, 1, first=3, max_length=30)
    assert matched(student, teacher, crops, first_edges_only).item() < 1e-10


def test_padded_edges_do_not_count(chains):
    """Whatever student or teacher have in unused slots, the error is the same."""
    crops = crops_of(chains, 1, max_length=9)
    torch.manual_seed(0)
    student, teacher = ProteinMPNN(TINY), formula_weights(TINY)
    mask = RaggedBatch.from_crops(crops, TINY.k_neighbors).neighbor_mask
    assert mask.min() == 0

    def add(amounts):
        def change(states):
            for network, amount in zip(states, amounts, strict=True):
                network["encoder_layers.0.norm3"].data[mask == 0] += amount

        return change

    errors = [matched(student, teacher, crops, add(a)).item() for a in ((0, 0), (5, 0), (0, 5))]
    assert errors[0] == errors[1] == errors[2] > 0


def test_the_hidden_error_has_gradients_for_the_student_alone(chains):
    """All layers before the compared states get one, and the teacher none."""
    torch.manual_seed(1)
    student, teacher = ProteinMPNN(TINY), formula_weights(TINY)
    matched(student, teacher, crops_of(chains, 1, max_length=30)).backward()
    untouched = {name for name, p in student.named_parameters() if p.grad is None}
    assert untouched == {"W_out.weight", "W_out.bias"}  # they come after all states
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_hidden_error_enters_the_loss_by_its_weight(config, teacher_file, weight):
    """At the first step the loss is that without it plus the weighted error."""
    once = {"steps": 1, "decay_steps": 0, "micro_tokens": config.tokens, "teacher": teacher_file}
    plain, hidden = (run(config, name=str(w), hidden_weight=w, **once)[1][0] for w in (0.0, weight))
    assert plain.hidden_error == 0 < hidden.hidden_error
    assert hidden.loss - plain.loss == pytest.approx(weight * hidden.hidden_error, rel=1e-4)


def test_hidden_states_are_compared_on_the_mutated_residues(config, teacher_file):
    """Where all residues are mutated, a student equal to its teacher still has no error."""
    save_checkpoint(Path(config.weights), formula_weights(TINY), {"training": {}})
    taught = {"teacher": teacher_file, "mutations": 1.0, "hidden_weight": 1.0}
    begun = {"begin_from": config.weights, "steps": 1, "decay_steps": 0}
    _, seen = run(config, name="taught", **taught, **begun)
    assert seen[0].hidden_error < 1e-4  # the weights of a checkpoint are rounded


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "float32"), ("muon", "bfloat16")])
def test_hidden_states_approach_the_teachers(config, teacher_file, optimizer, precision):
    """The error falls, and the card names the settings."""
    taught = {"hidden_weight": 1.0, "optimizer": optimizer, "teacher": teacher_file}
    long = {"steps": 16, "learning_rate": 1e-2, "report_every": 4}
    _, seen = run(config, precision=precision, **taught, **long)
    assert seen[-1].hidden_error < 0.5 * seen[0].hidden_error
    _, card = load_checkpoint(config.weights)
    assert {key: card["training"][key] for key in taught} == taught | {"teacher": "teacher"}


@pytest.mark.parametrize("other", [ModelConfig(1, 1, 8, 12), ModelConfig(2, 1, 16, 12)])
def test_a_student_of_other_layers_or_width_is_refused(config, tmp_path, other):
    """Its hidden states do not correspond to its teacher's."""
    save_checkpoint(tmp_path / "other.safetensors", formula_weights(other), {})
    with pytest.raises(InputError, match=r"differ in layers or width: .* set hidden_weight = 0"):
        run(config, teacher=str(tmp_path / "other.safetensors"), hidden_weight=1.0)
