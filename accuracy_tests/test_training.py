import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import run as command_line
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import CLUSTERS, LENGTHS, in_double, padded, write_chains

from mpnn import graph
from mpnn.config import ARCHITECTURES, UNKNOWN, ModelConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.training import TrainConfig, forward, learning_rate, train, train_together
from mpnn.training.data import (
    Crop,
    DrawConfig,
    RaggedBatch,
    Residues,
    TrainingChains,
    draw,
    draws_for_step,
    packed,
    whole_chain,
)
from mpnn.training.distillation import PresentTeacher, Teacher, mutated
from mpnn.training.hidden import HiddenMatch
from mpnn.training.job import read_config
from mpnn.training.optimizers import Muon, orthogonalized
from mpnn.training.run import _perplexity
from mpnn.training.settings import TOGETHER
from mpnn.weights import SHIPPED, formula_weights, load_checkpoint, save_checkpoint

TINY = ModelConfig(1, 1, 16, 12)


@pytest.fixture(scope="session")
def chain_file(tmp_path_factory):
    return write_chains(tmp_path_factory.mktemp("chains") / "train.npz")


@pytest.fixture
def chains(chain_file):
    return TrainingChains(chain_file)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture
def config(chain_file, tmp_path):
    return TrainConfig(
        data=str(chain_file),
        weights=str(tmp_path / "tiny.safetensors"),
        state=str(tmp_path / "state.pt"),
        architecture="tiny",
        steps=6,
        warmup_steps=2,
        decay_steps=2,
        tokens=120,
        micro_tokens=60,
        max_length=50,
        save_every=2,
        report_every=1,
    )


@pytest.fixture
def teacher_file(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, formula_weights(TINY), {})
    return str(path)


def log_probs(model, crops: list[Crop], k: int, prepared=lambda batch: batch) -> torch.Tensor:
    """What training computes of some crops, [R, 21]."""
    batch = prepared(RaggedBatch.from_crops(crops, k))
    return forward.log_probs(model, batch, [len(crop) for crop in crops])


def weights_of(model: ProteinMPNN) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(a[name], b[name]) for name in a)


# The rewritten network


@pytest.mark.parametrize("k", [12, 48], ids=["all-have-k", "crops-shorter-than-k"])
def test_rewritten_network_equals_reference(chains, k):
    """Log-probabilities and every gradient equal the reference network's in float64."""
    model = formula_weights(ModelConfig(2, 2, 32, k)).double()
    crops = [draw(chains, DrawConfig(noise=0.1, max_length=40), number) for number in range(3)]
    batch, letters, rank = padded(crops)
    found, _ = graph.neighbors(batch.X[:, :, 1].float(), batch.mask.float(), batch.valid, k)
    batch = dataclasses.replace(batch, E_idx=found)  # found in float32, as in training
    gradients = []
    for outcome in (
        model(batch, letters, rank)[batch.valid],
        log_probs(model, crops, k, in_double),
    ):
        model.zero_grad()
        outcome.gather(1, letters[batch.valid][:, None]).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        gradients[-1]["log_probs"] = outcome.detach()
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=1e-9, atol=1e-9), name


def test_crops_in_a_batch_do_not_see_each_other(chains):
    """A crop's log-probabilities are the same alone and between others."""
    model = formula_weights(TINY)
    crops = [draw(chains, DrawConfig(max_length=40), number) for number in range(3)]
    together = log_probs(model, crops, 12)
    alone = [log_probs(model, [c], 12) for c in crops]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_no_letter_reaches_an_earlier_residue(chains):
    """Changing the letter decoded last changes no log-probability."""
    model = formula_weights(TINY)
    batch = RaggedBatch.from_crops([draw(chains, DrawConfig(), 0)], 12)
    S = batch.S.clone()
    S[batch.rank.argmax()] = (S[batch.rank.argmax()] + 1) % 20
    before = forward.log_probs(model, batch, [len(S)])
    after = forward.log_probs(model, dataclasses.replace(batch, S=S), [len(S)])
    assert torch.equal(before, after)


# Draws and batches


def test_every_round_draws_each_cluster_once(chains):
    """Clusters are drawn, not chains: each comes up once per round, whatever its size."""
    for round_ in range(4):
        crops = [draw(chains, DrawConfig(seed=5), 3 * round_ + place) for place in range(3)]
        assert sorted(CLUSTERS[c.chain] for c in crops) == [7, 9, 30]


def test_every_chain_of_a_cluster_comes_up(chains):
    """Over many rounds all chains are drawn."""
    assert {draw(chains, DrawConfig(), number).chain for number in range(60)} == set(range(5))


def test_a_chain_comes_in_all_of_its_orders(chains):
    """Which chain of a cluster is drawn says nothing of the order in which it is decoded."""
    crops = [draw(chains, DrawConfig(orders=2), number) for number in range(120)]
    assert {(c.chain, c.order) for c in crops} == set(itertools.product(range(5), range(2)))


def test_chains_repeat_after_the_rounds_given(chains):
    """With two rounds a cluster's chain of round 5 is that of round 1; the noise is new."""
    crops = [draw(chains, DrawConfig(rounds=2), number) for number in range(18)]
    for early in crops[3:6]:
        late = next(c for c in crops[15:] if CLUSTERS[c.chain] == CLUSTERS[early.chain])
        assert late.chain == early.chain
        assert not np.array_equal(late.residues.coords, early.residues.coords)
    free = [draw(chains, DrawConfig(), number).chain for number in range(6)]
    assert free == [c.chain for c in crops[:6]]


def test_a_draw_depends_on_seed_and_number_alone(chains, chain_file):
    """The same draw comes out of another chain set after other draws; another seed's differs."""
    config = DrawConfig(seed=3, noise=0.1)
    first = draw(chains, config, 17)
    other = TrainingChains(chain_file)
    draw(other, config, 4)
    again = draw(other, config, 17)
    assert np.array_equal(first.residues.coords, again.residues.coords)
    assert np.array_equal(first.rank, again.rank)
    noisy = [draw(chains, dataclasses.replace(config, seed=seed), 0).rank for seed in range(4)]
    assert len({tuple(rank) for rank in noisy}) == 4


def test_noise_has_the_stated_size(chains):
    """Coordinates move by normal noise of the configured standard deviation."""
    config = DrawConfig(noise=0.3)
    moved = []
    for number in range(30):
        crop = draw(chains, config, number)
        clean = Residues.of(chains[crop.chain]).take(crop.rows)
        moved.append((crop.residues.coords - clean.coords).ravel())
    moved = np.concatenate(moved)
    assert abs(moved.std() - 0.3) < 4 * 0.3 / np.sqrt(2 * len(moved))
    assert abs(moved.mean()) < 4 * 0.3 / np.sqrt(len(moved))


@given(number=st.integers(0, 10**6), shown=st.floats(0.01, 1), k=st.integers(1, 60))
@settings(max_examples=30)
def test_neighbors_shown_are_some_of_the_nearest(chain_file, number, shown, k):
    """A share of the k nearest, the residue itself first, weighing together as much as all."""
    crop = draw(TrainingChains(chain_file), DrawConfig(max_length=40), number)
    whole = RaggedBatch.from_crops([crop], k)
    part = RaggedBatch.from_crops([crop], k, shown=shown)
    there = min(k, len(crop))
    assert part.E_idx.shape[1] == min(k, max(2, round(shown * k)))
    for near, seen, weight in zip(whole.E_idx, part.E_idx, part.neighbor_mask, strict=True):
        seen = seen[weight > 0].tolist()
        assert len(set(seen)) == len(seen) == min(there, max(2, round(shown * there)))
        assert set(seen) <= set(near.tolist())
        assert seen[0] == near[0]
        assert weight.sum() == pytest.approx(there)
    offsets = crop.residues.residue_idx[:, None] - crop.residues.residue_idx[part.E_idx.numpy()]
    assert np.array_equal(np.clip(offsets + 32, 0, 64), part.offset_class.numpy())


def test_every_draw_shows_other_neighbors(chain_file):
    """What is shown depends on the draw alone, and another draw of a chain shows others."""
    chains, config = TrainingChains(chain_file), DrawConfig(rounds=1)

    def shown(number):
        crop = draw(chains, config, number)
        return crop.chain, RaggedBatch.from_crops([crop], 12, shown=0.5).E_idx

    rounds = [dict(map(shown, range(first, first + 3))) for first in (0, 0, 3)]
    for chain, E_idx in rounds[0].items():
        assert torch.equal(E_idx, rounds[1][chain])
        assert not torch.equal(E_idx, rounds[2][chain])


def test_incomplete_residues_are_left_out_but_counted(chains):
    """Training sees complete residues only, and their numbering keeps the gap."""
    residues = Residues.of(chains[0])
    assert len(residues) == LENGTHS[0] - 1
    assert residues.residue_idx[:5].tolist() == [0, 1, 2, 4, 5]


def test_a_crop_is_the_residues_nearest_to_one_of_them(chains):
    """No residue left out is nearer to the crop's center than one taken, for some center."""
    crop = draw(chains, DrawConfig(noise=0.0, max_length=20), 2)
    ca = Residues.of(chains[crop.chain]).coords[:, 1]
    distance = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
    out = np.setdiff1d(np.arange(len(ca)), crop.rows)
    assert len(crop) == 20
    assert any(distance[c, crop.rows].max() <= distance[c, out].min() for c in crop.rows)


@settings(max_examples=25)
@given(tokens=st.integers(1, 300), micro=st.integers(1, 300), first=st.integers(0, 50))
def test_token_budgets_are_kept(chain_file, tokens, micro, first):
    """Steps and groups hold at most their budget unless one crop alone is larger; none is lost."""
    crops, following = draws_for_step(
        TrainingChains(chain_file), DrawConfig(max_length=50), first, tokens
    )
    assert sum(map(len, crops)) <= tokens or len(crops) == 1
    assert following == first + len(crops)
    groups = list(packed(crops, micro))
    assert [c for group in groups for c in group] == crops
    assert all(sum(map(len, group)) <= micro or len(group) == 1 for group in groups)


def test_short_chains_are_never_drawn(tmp_path):
    """A chain of fewer than 20 complete residues is in no cluster; a file of such is refused."""
    chains = TrainingChains(write_chains(tmp_path / "some.npz", (20, 40, 21), (1, 2, 2)))
    assert [c.tolist() for c in chains.clusters] == [[1, 2]]
    with pytest.raises(InputError, match="no chain has 20 complete residues"):
        TrainingChains(write_chains(tmp_path / "none.npz", (20, 19), (1, 2)))


def of_unknown_letters(path: Path, known: slice) -> Path:
    """The chain file at `path` with X instead of all letters but the `known` ones of each chain."""
    arrays = dict(np.load(path))
    for first, last in itertools.pairwise(arrays["offsets"]):
        letters = arrays["sequence"][first:last]
        kept = letters[known].copy()
        letters[:] = ord("X")
        letters[known] = kept
    np.savez(path, **arrays)
    return path


def test_chains_of_unknown_letters_are_never_drawn(tmp_path):
    """They have nothing to teach, however complete their residues are."""
    path = of_unknown_letters(write_chains(tmp_path / "some.npz", (40, 40), (1, 2)), slice(15))
    with pytest.raises(InputError, match="no chain has 20 complete residues whose letter is known"):
        TrainingChains(path)


# The run


def test_learning_rate_rises_stays_and_falls_to_zero(config):
    """Warm-up, stable, decay; longer runs share all but the decay."""
    long = dataclasses.replace(config, steps=100, warmup_steps=10, decay_steps=20)
    rates = [learning_rate(long, step) for step in range(101)]
    assert rates[0] == pytest.approx(long.learning_rate / 10)
    assert set(rates[9:81]) == {long.learning_rate}
    assert all(a > b for a, b in itertools.pairwise(rates[80:]))
    assert rates[100] == 0
    longer = dataclasses.replace(long, steps=200)
    assert rates[:81] == [learning_rate(longer, step) for step in range(81)]


def test_same_seed_same_run(config, tmp_path):
    """Two runs of one configuration end bit-equal; another seed ends elsewhere."""
    first = weights_of(train(config))
    other = dataclasses.replace(config, state=str(tmp_path / "other.pt"))
    assert_same(first, weights_of(train(other)))
    seeded = dataclasses.replace(config, state=str(tmp_path / "seeded.pt"), seed=1)
    assert not torch.equal(first["W_out.bias"], weights_of(train(seeded))["W_out.bias"])


def test_products_in_bfloat16_change_little(config, tmp_path):
    """With products in bfloat16 the weights stay float32, and the loss is that of float32."""
    losses, ends = [], []
    for precision in ("float32", "bfloat16"):
        state = str(tmp_path / f"{precision}.pt")
        run = dataclasses.replace(config, precision=precision, state=state)
        ends.append(weights_of(train(run, lambda progress: losses.append(progress.loss))))
    single, half = np.reshape(losses, (2, -1))
    assert 0 < np.abs(half / single - 1).max() < 0.01
    assert {w.dtype for w in ends[1].values()} == {torch.float32}


class StopRun(Exception):  # noqa: N818 – no error
    """Stands for whatever ends a run."""


@pytest.mark.parametrize(
    "taught",
    [
        *("not at all", "by kept answers", "by kept answers, some letters replaced"),
        *("by answers of its own", "by hidden vectors", "by half of its neighbors"),
    ],
)
def test_resumed_run_is_bit_equal(config, tmp_path, teacher_file, taught, monkeypatch):
    """A run stopped between two saves ends with the weights of a run never stopped."""
    if taught.startswith("by kept answers"):
        targets = str(tmp_path / "targets")
        config = dataclasses.replace(config, teacher=teacher_file, targets=targets)
        if taught.endswith("replaced"):
            config = dataclasses.replace(config, mutations=0.3, teacher_sees="native")
    elif taught == "by answers of its own":
        config = dataclasses.replace(config, teacher=teacher_file, mutations=0.3)
    elif taught == "by half of its neighbors":
        config = dataclasses.replace(config, neighbors_shown=0.5)
    elif taught == "by hidden vectors":
        monkeypatch.setitem(ARCHITECTURES, "tiny", dataclasses.replace(TINY, hidden_dim=8))
        change = {"teacher": teacher_file, "hidden_weight": 0.5, "optimizer": "muon"}
        config = dataclasses.replace(config, **change)
    whole = weights_of(train(dataclasses.replace(config, state=str(tmp_path / "whole.pt"))))

    def stop(progress):
        if progress.step == 5:
            raise StopRun

    with pytest.raises(StopRun):
        train(config, stop)
    seen = []
    assert_same(whole, weights_of(train(config, seen.append)))
    assert [p.step for p in seen] == [5, 6]


@pytest.fixture
def classmates(config, tmp_path, teacher_file, monkeypatch):
    """Runs of three students of one teacher: alike, narrower with fewer neighbors, one-shot."""
    others = {
        "tiny": TINY,
        "narrow": ModelConfig(1, 1, 8, 9),
        "blind": dataclasses.replace(TINY, autoregressive=False),
    }
    taught = dataclasses.replace(config, teacher=teacher_file, mutations=0.3)
    runs = []
    for number, (name, network) in enumerate(others.items()):
        monkeypatch.setitem(ARCHITECTURES, name, network)
        own = {
            "architecture": name,
            "hidden_weight": number / 2,
            "steps": 6 - number,
            "learning_rate": 1e-3 * (1 + number),
            "optimizer": ("adamw", "muon", "adamw")[number],
            "teacher_weight": 0.9 - number / 5,
            "save_every": 2 + number,
        }
        files = {"weights": f"{name}.safetensors", "state": f"{name}.pt"}
        places = {kind: str(tmp_path / file) for kind, file in files.items()}
        runs.append(dataclasses.replace(taught, **own, **places))
    return runs


def alone(run):
    """Weights of the same run by itself."""
    apart = {"weights": run.weights.replace(".", "-alone."), "state": f"{run.state}.alone"}
    return weights_of(train(dataclasses.replace(run, **apart)))


def test_students_in_lockstep_learn_as_if_alone(classmates, monkeypatch):
    """Runs together end with the weights of each by itself, and ask their teacher once for all."""
    apart = [alone(run) for run in classmates]
    asked = []
    real = PresentTeacher.answer

    def counted(self, crops):
        asked.append(sum(map(len, crops)))
        return real(self, crops)

    monkeypatch.setattr(PresentTeacher, "answer", counted)
    seen = []
    together = train_together(classmates, lambda run, told: seen.append((run, told.residues)))
    for ours, theirs in zip(together, apart, strict=True):
        assert_same(weights_of(ours), theirs)
    assert sum(asked[1:]) == max(residues for _, residues in seen)  # the first is for the maps
    assert [[run for run, _ in seen].count(run) for run in classmates] == [6, 5, 4]


def test_students_in_lockstep_share_kept_answers(classmates):
    """A state-space student beside others learns as if alone from one file of answers."""
    folder = str(Path(classmates[0].state).with_name("targets"))
    kept = {"targets": folder, "teacher_sees": "native", "hidden_weight": 0.0}
    classmates = [dataclasses.replace(run, **kept) for run in classmates]
    classmates[2] = dataclasses.replace(classmates[2], architecture="ssm")
    apart = [alone(run) for run in classmates]
    for ours, theirs in zip(train_together(classmates, lambda *_: None), apart, strict=True):
        assert_same(weights_of(ours), theirs)


def test_students_that_were_stopped_apart_meet_again(classmates):
    """One that stands some steps behind catches up, and all end as if never stopped."""
    apart = [alone(run) for run in classmates]

    def stop(run, progress):
        if (run, progress.step) == (classmates[0], 5):
            raise StopRun

    with pytest.raises(StopRun):
        train_together(classmates, stop)
    ended, behind = classmates[2], classmates[1]
    assert_same(weights_of(load_checkpoint(ended.weights)[0]), apart[2])  # others go on
    Path(ended.weights).unlink()
    Path(behind.state).unlink()
    steps = []
    together = train_together(
        classmates, lambda run, told: steps.append((told.step, run.architecture))
    )
    for ours, theirs in zip(together, apart, strict=True):
        assert_same(weights_of(ours), theirs)
    assert steps[:4] == [(step, "narrow") for step in (1, 2, 3, 4)]
    assert sorted(steps[4:]) == [(5, "narrow"), (5, "tiny"), (6, "tiny")]
    assert Path(ended.weights).exists()


def test_time_counts_from_the_first_step_of_a_run(classmates, monkeypatch):
    """The pace of a student that waits for others to catch up is that of its own steps."""
    now = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    first, late = classmates[:2]
    train(dataclasses.replace(first, steps=3, decay_steps=0))
    paces = []
    train_together(
        [dataclasses.replace(first, decay_steps=0), late],
        lambda _, told: paces.append((told.step, told.residues_per_second)),
    )
    together = [pace for step, pace in paces if step == 4]
    assert together[0] > 0.5 * together[1]


def test_students_in_lockstep_report_by_name(classmates, tmp_path):
    """Each line of `mpnn distill` with several settings files says whose it is."""
    paths = []
    for run in classmates:
        said = {k: v for k, v in dataclasses.asdict(run).items() if v is not None}
        paths.append(tmp_path / f"{run.architecture}.toml")
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in said.items()]
        paths[-1].write_text("".join(lines), encoding="utf-8")
    done = command_line("distill", *paths, "--set", "steps=3")
    assert done.exit_code == 0
    told = [line for line in done.stderr.splitlines() if "residues/s" in line]
    names = [run.weights for run in classmates]
    assert len(told) == 9
    assert all(line.startswith(tuple(names)) for line in told)


OTHER = {
    "data": "other.npz",
    "seed": 1,
    "noise": 0.5,
    "max_length": 20,
    "tokens": 100,
    "micro_tokens": 30,
    "teacher": "other.safetensors",
    "mutations": 0.5,
    "teacher_sees": "native",
    "targets": "kept",
    "teacher_orders": 3,
    "teacher_rounds": 3,
    "device": "cuda",
    "precision": "bfloat16",
}


@pytest.mark.parametrize("name", TOGETHER)
def test_students_that_share_too_little_are_refused(classmates, name):
    """The setting in which two runs differ is named."""
    if name in ("targets", "teacher_orders", "teacher_rounds"):  # those of kept answers
        kept = {"targets": "folder", "mutations": 0.0, "hidden_weight": 0.0}
        classmates = [dataclasses.replace(run, **kept) for run in classmates]
    differs = dataclasses.replace(classmates[1], **{name: OTHER[name]})
    message = f"trained together: {name} is .* and {re.escape(repr(OTHER[name]))}"
    with pytest.raises(InputError, match=message):
        train_together([classmates[0], differs], lambda *_: None)


def test_what_decides_the_crops_is_shared():
    """All settings on which draws depend are among those that runs in lockstep share."""
    assert {field.name for field in dataclasses.fields(DrawConfig)} - {"orders", "rounds"} < set(
        TOGETHER
    )


@pytest.mark.parametrize("name", ["weights", "state"])
def test_students_that_would_write_one_file_are_refused(classmates, name):
    """No run overwrites another's state or weights."""
    same = dataclasses.replace(classmates[1], **{name: getattr(classmates[0], name)})
    with pytest.raises(InputError, match="two runs, or weights and state of one"):
        train_together([classmates[0], same], lambda *_: None)


@pytest.mark.parametrize("name", ["begin_from", "teacher"])
def test_a_student_that_needs_what_another_is_to_write_is_refused(classmates, name):
    """An older file of that name is not taken for the other's result."""
    one, other = classmates[:2]
    if name == "teacher":
        one = dataclasses.replace(one, teacher=other.weights)
        other = dataclasses.replace(other, teacher=other.weights)
    else:
        one = dataclasses.replace(one, begin_from=other.weights)
    with pytest.raises(InputError, match=f"its {name} .* is still to be written"):
        train_together([one, other], lambda *_: None)


def test_an_unusable_device_is_refused(config):
    """A device that is not there ends a run before it begins, in a sentence."""
    with pytest.raises(InputError, match="device 'abacus' cannot be used"):
        train(dataclasses.replace(config, device="abacus"))


def test_a_run_that_diverged_keeps_its_last_good_state(config):
    """Weights that are no longer finite replace neither state nor weights."""
    steep = dataclasses.replace(config, learning_rate=1e20, save_every=1)
    with pytest.raises(InputError, match=r"no longer finite by step 2; .* smaller learning_rate"):
        train(steep)
    state = torch.load(config.state, weights_only=True)
    assert state["counters"][0] == 1
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())
    assert not Path(config.weights).exists()


def test_a_run_can_be_made_longer(config, tmp_path):
    """Before the decay begins, more steps give the run that was longer from the start."""
    longer = dataclasses.replace(config, steps=8, state=str(tmp_path / "longer.pt"))
    short = dataclasses.replace(config, steps=4, decay_steps=0)
    train(short)
    assert_same(weights_of(train(longer)), weights_of(train(dataclasses.replace(config, steps=8))))


def test_a_later_end_is_refused_once_the_decay_has_begun(config):
    """The learning rate would rise again; and what has six steps cannot have had four."""
    train(config)
    for change, message in [
        ({"steps": 8}, "learning rate falls to 0 and would rise to 0.002; .* begin_from"),
        ({"steps": 4}, "has 6 steps already, steps is 4"),
        ({"decay_steps": 1}, "no step left for steps = 6 and decay_steps = 1"),
    ]:
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(config, **change))
    assert load_checkpoint(config.weights)[1]["training"]["steps"] == 6


def test_a_decay_can_be_made_shorter(config):
    """Where time runs out a run may end earlier than it was to, at a rate that falls faster."""

    def stop(progress):
        if progress.step == 6:
            raise StopRun

    with pytest.raises(StopRun):
        train(dataclasses.replace(config, steps=20, decay_steps=16), stop)
    train(dataclasses.replace(config, steps=8, decay_steps=4))
    assert load_checkpoint(config.weights)[1]["training"]["steps"] == 8


def test_interrupted_save_leaves_the_old_state(config, monkeypatch):
    """A save that breaks off half-way leaves a state that the run resumes from."""
    whole = weights_of(train(config))
    Path(config.state).unlink()
    real = torch.save

    def broken(state, file):
        if state["counters"][0] == 4:
            file.write(b"half a file")
            raise StopRun
        real(state, file)

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(StopRun):
        train(config)
    monkeypatch.undo()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", TINY)
        assert_same(whole, weights_of(train(config, seen.append)))
    assert seen[0].step == 3


def test_loss_goes_down_on_one_chain(tmp_path, config):
    """A network learns one chain by heart: far more native letters are likeliest than at first."""
    one = write_chains(tmp_path / "one.npz", (40,), (1,))
    seen = []
    train(
        dataclasses.replace(
            config, data=str(one), steps=60, decay_steps=20, learning_rate=2e-2, report_every=10
        ),
        seen.append,
    )
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[-1].accuracy > 0.5 > seen[0].accuracy


def test_progress_counts_what_was_done(config):
    """Reports count steps and residues, give finite means, and no time is left at the end."""
    seen = []
    train(config, seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    assert all(0 < b.residues - a.residues <= config.tokens for a, b in itertools.pairwise(seen))
    assert all(np.isfinite([p.loss, p.perplexity, p.residues_per_second]).all() for p in seen)
    assert seen[0].seconds_left > 0 == seen[-1].seconds_left


def test_the_end_is_reported_whatever_the_interval(config):
    """A run of six steps that reports every fourth does so at four and at its end."""
    seen = []
    train(dataclasses.replace(config, report_every=4), seen.append)
    assert [p.step for p in seen] == [4, 6]


def test_steps_whose_letters_are_unknown_are_reported(config, tmp_path):
    """Where no letter of the crops is known there is no perplexity, and the run goes on."""
    path = of_unknown_letters(write_chains(tmp_path / "some.npz", (400,), (1,)), slice(25))
    seen = []
    train(dataclasses.replace(config, data=str(path), tokens=20, max_length=20), seen.append)
    assert len(seen) == 6
    assert any(np.isnan(p.perplexity) for p in seen)


def test_a_perplexity_beyond_floats_is_infinite():
    """A run that led far away is told as such until the weights themselves are not finite."""
    assert _perplexity(1e4) == np.inf
    assert _perplexity(np.log(7)) == pytest.approx(7)
    assert np.isnan(_perplexity(np.nan))


def test_plain_loss_is_the_mean_negative_log_likelihood(config):
    """Without teacher and smoothing the perplexity is the exponential of the loss."""
    seen = []
    train(config, seen.append)
    assert [p.perplexity for p in seen] == pytest.approx([np.exp(p.loss) for p in seen])


def test_label_smoothing_is_the_cross_entropy_of_smoothed_letters(config, tmp_path):
    """The first loss is 1 − ε parts native letter and ε parts the mean over all 21 letters."""
    losses = {}
    for smooth in (0.0, 0.5, 1.0):
        seen = []
        state = str(tmp_path / f"{smooth}.pt")
        train(dataclasses.replace(config, state=state, label_smoothing=smooth), seen.append)
        losses[smooth] = seen[0].loss
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-5)
    torch.manual_seed(config.seed)
    crops, _ = draws_for_step(TrainingChains(config.data), config.draws, 0, config.tokens)
    untrained = log_probs(ProteinMPNN(TINY), crops, TINY.k_neighbors)
    assert losses[1.0] == pytest.approx(-untrained.mean().item(), rel=1e-5)


def test_written_weights_are_the_trained_ones_with_a_card(config):
    """The checkpoint holds the returned weights, and says what they were trained on and how far."""
    model = train(config)
    stored, card = load_checkpoint(config.weights)
    assert_same(weights_of(model), weights_of(stored))
    assert card["training"]["data"] == "train.npz"
    assert card["training"]["steps"] == 6
    assert card["residues_seen"] > 0
    assert not any(config.state in str(value) for value in card["training"].values())


# The curve on chains kept aside


def test_the_curve_is_the_networks_perplexity_on_whole_chains(config, chains, chain_file):
    """Its last point is what the reference network says of the native letters in fixed orders.

    It sees all neighbors there, however many training shows.
    """
    seen = []
    kept = dataclasses.replace(
        config, validation=str(chain_file), validate_every=4, neighbors_shown=0.5
    )
    model = train(kept, seen.append)
    assert [p.validation and p.validation.step for p in seen] == [None] * 3 + [4, None, 6]
    crops = [whole_chain(chains, int(chain)) for chain in np.concatenate(chains.clusters)]
    batch, letters, rank = padded(crops)
    with torch.no_grad():
        found = model.double()(batch, letters, rank)
    nll = -found.gather(-1, letters[..., None])[..., 0]
    known = (batch.mask > 0) & (letters != UNKNOWN)
    last = seen[-1].validation
    assert last.perplexity == pytest.approx(nll[known].mean().exp().item(), rel=1e-4)
    assert last.accuracy == (found.argmax(-1) == letters)[known].double().mean()
    assert last.residues == seen[-1].residues
    _, card = load_checkpoint(config.weights)
    assert [row[0] for row in card["curve"]["rows"]] == [4, 6]


def test_measuring_changes_nothing_and_the_curve_is_resumed(config, chain_file, tmp_path):
    """The weights are those of a run that never looked, and a resumed run keeps its points."""
    plain = weights_of(train(dataclasses.replace(config, state=str(tmp_path / "plain.pt"))))
    kept = dataclasses.replace(config, validation=str(chain_file), validate_every=2)
    train(dataclasses.replace(kept, steps=4, decay_steps=0))
    assert_same(plain, weights_of(train(kept)))
    _, card = load_checkpoint(config.weights)
    assert [row[0] for row in card["curve"]["rows"]] == [2, 4, 6]


# Beginning from weights


@pytest.mark.parametrize("change", [{"k_neighbors": 30}, {"autoregressive": False}])
def test_a_run_begins_from_weights_of_the_same_shapes(config, tmp_path, monkeypatch, change):
    """Before its first step a run has the weights it begins from, and its card names them."""
    first = train(config)
    monkeypatch.setitem(ARCHITECTURES, "other", dataclasses.replace(TINY, **change))
    following = dataclasses.replace(
        config,
        architecture="other",
        begin_from=config.weights,
        weights=str(tmp_path / "other.safetensors"),
        state=str(tmp_path / "other.pt"),
        warmup_steps=10**9,  # steps too small to be seen
        weight_decay=0.0,
        seed=1,
    )
    model = train(following)
    for name, weight in weights_of(first).items():
        assert (model.state_dict()[name] - weight).abs().max() < 1e-7
    card = load_checkpoint(following.weights)[1]
    assert card["training"]["begin_from"] == Path(config.weights).stem


def test_a_run_begins_from_the_mean_of_several(config, tmp_path):
    """Runs of different draws, each on a core of its own, can be gone on with as one."""
    parts, paths = [], []
    for seed in (1, 2, 3):
        paths.append(str(tmp_path / f"{seed}.safetensors"))
        state = str(tmp_path / f"{seed}.pt")
        one = dataclasses.replace(config, seed=seed, weights=paths[-1], state=state)
        parts.append(weights_of(train(one)))
    following = dataclasses.replace(
        config,
        begin_from=paths,
        weights=str(tmp_path / "one.safetensors"),
        state=str(tmp_path / "one.pt"),
        warmup_steps=10**9,  # steps too small to be seen
        weight_decay=0.0,
    )
    model = train(following)
    for name, weight in model.state_dict().items():
        mean = torch.stack([part[name] for part in parts]).mean(0)
        assert (weight - mean).abs().max() < 1e-6
    assert load_checkpoint(following.weights)[1]["training"]["begin_from"] == ["1", "2", "3"]


def test_a_resumed_run_begins_where_it_stopped(config, tmp_path):
    """The weights that a run began from are not needed, nor taken, a second time."""
    train(config)
    following = dataclasses.replace(
        config,
        begin_from=config.weights,
        weights=str(tmp_path / "other.safetensors"),
        state=str(tmp_path / "other.pt"),
    )
    whole = weights_of(train(dataclasses.replace(following, state=str(tmp_path / "whole.pt"))))
    train(dataclasses.replace(following, steps=4, decay_steps=0))
    Path(config.weights).unlink()
    assert_same(whole, weights_of(train(following)))


def test_weights_that_do_not_fit_are_refused(config, tmp_path, teacher_file, monkeypatch):
    """Other shapes, a card without training, and the published form are no beginning."""
    train(config)
    published = tmp_path / "v.pt"
    torch.save({"num_edges": 12, "model_state_dict": formula_weights(TINY).state_dict()}, published)
    monkeypatch.setitem(ARCHITECTURES, "wide", ModelConfig(1, 1, 32, 12))
    wide = {"architecture": "wide", "begin_from": config.weights}
    for change, message in [
        (wide, "43 tensors differ in shape, the first is W_e.bias"),
        ({"begin_from": teacher_file}, "card tells of no training"),
        ({"begin_from": str(published)}, "trained here"),
        ({"begin_from": "nowhere"}, "no such weights"),
        ({"begin_from": [config.weights, "nowhere"]}, "no such weights"),
    ]:
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(config, state=str(tmp_path / "other.pt"), **change))
    assert not (tmp_path / "other.pt").exists()


def test_a_state_of_before_a_setting_is_gone_on_with(config):
    """A state written when there was nothing to begin from resumes as if it said None."""
    whole = weights_of(train(dataclasses.replace(config, steps=6)))
    Path(config.state).unlink()
    train(dataclasses.replace(config, steps=4, decay_steps=0))
    state = torch.load(config.state, weights_only=True)
    del state["config"]["begin_from"]
    torch.save(state, config.state)
    assert_same(whole, weights_of(train(config)))


# Distillation


def test_kept_targets_are_the_teachers_own(chains, teacher_file, tmp_path):
    """A crop's target is the teacher's teacher-forced distribution on the whole chain."""
    teacher = Teacher(teacher_file, chains, 2, tmp_path / "t")
    crop = draw(chains, DrawConfig(max_length=30, orders=2), 2)
    backbone = chains[crop.chain]
    whole = draw(chains, DrawConfig(orders=2), 2)
    assert whole.order == crop.order
    rank = np.full((1, len(backbone)), len(backbone))
    rank[0, backbone.mask] = whole.rank
    flat = Flat.from_backbones([backbone])
    S = torch.from_numpy(flat.S)[None]
    network = formula_weights(TINY)
    expected = network(Batch.from_flat(flat), S, torch.from_numpy(rank)).detach().numpy()[0]
    found = teacher.log_probs(crop)
    assert np.abs(found - expected[backbone.mask][crop.rows]).max() < 5e-3  # float16
    assert np.abs(expected).max() > 1


def test_targets_are_computed_once(chains, teacher_file, tmp_path, monkeypatch):
    """A second run reads the answers that the first one kept."""
    crop = draw(chains, DrawConfig(orders=2), 0)
    first = Teacher(teacher_file, chains, 2, tmp_path / "t").log_probs(crop)

    def refuse(_self, _index):
        raise AssertionError("asked the teacher again")

    monkeypatch.setattr(Teacher, "_answer", refuse)
    assert np.array_equal(first, Teacher(teacher_file, chains, 2, tmp_path / "t").log_probs(crop))
    with pytest.raises(AssertionError, match="asked the teacher again"):
        Teacher(teacher_file, chains, 3, tmp_path / "t").log_probs(crop)


def test_kept_answers_are_of_these_chains(chains, teacher_file, tmp_path):
    """Chains of the same lengths but other coordinates have answers of their own."""
    moved = tmp_path / "moved.npz"
    arrays = dict(np.load(write_chains(moved)))
    np.savez(moved, **arrays | {"nco": arrays["nco"] + 100})
    crop = draw(chains, DrawConfig(orders=2), 0)
    Teacher(teacher_file, chains, 2, tmp_path / "t").log_probs(crop)
    other = TrainingChains(moved)
    crop = draw(other, DrawConfig(orders=2), 0)
    found, fresh = (
        Teacher(teacher_file, other, 2, tmp_path / place).log_probs(crop) for place in ("t", "new")
    )
    assert np.array_equal(found, fresh)


def test_a_row_that_was_written_in_part_is_asked_again(chains, teacher_file, tmp_path):
    """What a machine that went down left of an answer is not taken for one."""
    crop = draw(chains, DrawConfig(orders=2), 0)
    teacher = Teacher(teacher_file, chains, 2, tmp_path)
    whole = teacher.log_probs(crop)
    teacher.kept[:, :, 12:] = 0
    assert np.array_equal(teacher.log_probs(crop), whole)


@pytest.mark.parametrize("content", [b"", b"no array", "a folder", "another shape"])
def test_answers_that_cannot_be_read_are_named(chains, teacher_file, tmp_path, content):
    """A damaged file of answers, or something else in its place, is said to be that."""
    Teacher(teacher_file, chains, 2, tmp_path / "t")
    (path,) = (tmp_path / "t").iterdir()
    if content == "a folder":
        path.unlink()
        path.mkdir()
    elif content == "another shape":
        np.save(path, np.zeros((2, 3, 21), np.float16))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: .* remove it"):
        Teacher(teacher_file, chains, 2, tmp_path / "t")


def test_answers_need_a_folder(chains, teacher_file):
    """A file where the folder of answers is to be is named."""
    with pytest.raises(InputError, match="cannot be written"):
        Teacher(teacher_file, chains, 2, teacher_file)


def test_kept_answers_replace_letters_for_the_student_alone(chains, teacher_file, tmp_path):
    """They stay those for native letters; some letters become draws from them."""
    crops = [draw(chains, DrawConfig(max_length=30, orders=2), number) for number in range(3)]
    native, expected = Teacher(teacher_file, chains, 2, tmp_path).answer(crops)
    S, soft = Teacher(teacher_file, chains, 2, tmp_path, mutations=0.6).answer(crops)
    assert torch.equal(soft, expected)
    assert torch.equal(S, mutated(native, expected, crops, 0.6))
    lot = torch.from_numpy(np.concatenate([crop.lot for crop in crops]))
    replaced = lot[:, 0] < 0.6
    assert torch.equal(S[~replaced], native[~replaced])
    assert (S[replaced] != native[replaced]).float().mean() > 0.5


@pytest.mark.parametrize("kept", [True, False])
def test_a_student_comes_nearer_to_its_teacher(config, teacher_file, tmp_path, kept):
    """Trained on the teacher's distributions alone, the cross-entropy to them falls."""
    seen = []
    train(
        dataclasses.replace(
            config,
            teacher=teacher_file,
            targets=str(tmp_path / "t") if kept else None,
            mutations=0.0 if kept else 0.3,
            teacher_weight=1.0,
            steps=40,
            learning_rate=1e-2,
            report_every=10,
        ),
        seen.append,
    )
    assert seen[-1].loss < 0.9 * seen[0].loss


def teacher_says(teacher, crops, letters):
    """The answers [R, 21] of the reference network to noised crops with other letters."""
    batch, S, rank = padded(crops)
    S[batch.valid] = letters
    return teacher.double()(batch, S, rank).float()[batch.valid]


@pytest.mark.parametrize("mutations", [0.0, 0.4, 1.0])
def test_a_teacher_asked_each_time_sees_what_the_student_sees(chains, teacher_file, mutations):
    """Its answers are those for the crop's noise and order, and for the letters it replaced."""
    crops = [draw(chains, DrawConfig(max_length=30, noise=0.1), number) for number in range(3)]
    S, soft = PresentTeacher(teacher_file, mutations).answer(crops)
    native = torch.from_numpy(np.concatenate([crop.residues.S for crop in crops]))
    share = float((native != S).float().mean())
    assert (share == 0) if mutations == 0 else (0.5 * mutations < share <= 1.2 * mutations)
    assert (soft - teacher_says(formula_weights(TINY), crops, S)).abs().max() < 1e-4


@pytest.mark.parametrize("sees", ["shown", "native"])
def test_a_teacher_that_sees_no_letters_is_asked_without(chains, tmp_path, sees):
    """The answers of a one-shot teacher are what it says by itself, whatever letters are shown."""
    model = formula_weights(dataclasses.replace(TINY, autoregressive=False))
    save_checkpoint(tmp_path / "teacher.safetensors", model, {})
    crops = [draw(chains, DrawConfig(max_length=30, noise=0.1), number) for number in range(3)]
    _, soft = PresentTeacher(str(tmp_path / "teacher.safetensors"), 0.5, sees).answer(crops)
    torch.testing.assert_close(soft, log_probs(model, crops, TINY.k_neighbors))


def test_a_teacher_can_see_the_native_letters_where_the_student_does_not(chains, teacher_file):
    """It then answers for the native letters, and replaces the same ones for the student."""
    crops = [draw(chains, DrawConfig(max_length=30, noise=0.1), number) for number in range(3)]
    S, soft = PresentTeacher(teacher_file, 0.6, "native").answer(crops)
    native = torch.from_numpy(np.concatenate([crop.residues.S for crop in crops]))
    assert (native != S).any()
    assert (soft - teacher_says(formula_weights(TINY), crops, native)).abs().max() < 1e-4
    assert torch.equal(S, PresentTeacher(teacher_file, 0.6).answer(crops)[0])


def test_letters_are_drawn_from_the_teachers_distribution(chains, teacher_file):
    """Where all letters are replaced, each is the residue at which the teacher's sum passes."""
    crops = [draw(chains, DrawConfig(max_length=30), 0)]
    _, first = PresentTeacher(teacher_file, 0.0).answer(crops)
    S, _ = PresentTeacher(teacher_file, 1.0).answer(crops)
    sums = np.cumsum(first.exp().numpy()[:, :UNKNOWN], 1)
    marks = crops[0].lot[:, 1] * sums[:, -1]
    assert S.tolist() == [np.searchsorted(row, u) for row, u in zip(sums, marks, strict=True)]
    again = draw(chains, DrawConfig(max_length=30), 0)
    assert np.array_equal(again.lot, crops[0].lot)


def hidden_error(student, teacher, crops):
    """How far the hidden vectors of a student are from its teacher's."""
    match = HiddenMatch(student, teacher)
    with match.listening(), torch.no_grad():
        for model in (student, teacher):
            log_probs(model, crops, model.config.k_neighbors)
    batch = RaggedBatch.from_crops(crops, student.config.k_neighbors)
    return float(match.error(batch.neighbor_mask))


def test_equal_networks_have_equal_hidden_vectors(chains):
    """A network misses nothing of itself, on padded neighbors too; another misses something."""
    crops = [draw(chains, DrawConfig(max_length=length), length) for length in (9, 30)]
    config = ModelConfig(2, 2, 16, 12)
    teacher = formula_weights(config)
    assert hidden_error(formula_weights(config), teacher, crops) == 0
    torch.manual_seed(0)
    assert hidden_error(ProteinMPNN(config), teacher, crops) > 0.5


def test_a_student_that_knows_the_mean_misses_all_of_the_variance(chains):
    """Constant vectors, the means of the teacher's, miss a share of 1 of their variance."""
    crops = [draw(chains, DrawConfig(max_length=30), number) for number in range(2)]
    teacher, student = (formula_weights(ModelConfig(1, 1, 16, 8)) for _ in range(2))
    match = HiddenMatch(student, teacher)
    with match.listening(), torch.no_grad():
        log_probs(teacher, crops, 8)
        for name in match.pairs:  # a LayerNorm of no weight says its bias whatever it is given
            norm = student.get_submodule(name)
            norm.weight.zero_()
            norm.bias.copy_(match._states[1][name].flatten(0, -2).mean(0))
        log_probs(student, crops, 8)
    mask = RaggedBatch.from_crops(crops, 8).neighbor_mask
    assert float(match.error(mask)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("k", [5, 20], ids=["fewer-neighbors", "more-neighbors"])
def test_edges_are_compared_with_those_of_the_same_neighbors(chains, k):
    """Edges of the encoder's first layer, of the same weights, agree where both have them."""
    crops = [draw(chains, DrawConfig(max_length=30), 3)]
    teacher, student = (formula_weights(ModelConfig(1, 1, 16, n)) for n in (12, k))
    for network in (teacher, student):  # an edge is then a function of its two residues alone
        for parameter in network.encoder_layers[0].W3.parameters():
            torch.nn.init.zeros_(parameter)
    match = HiddenMatch(student, teacher)
    match.pairs = {name: name for name in match.pairs if name.endswith("norm3")}
    with match.listening(), torch.no_grad():
        for model in (student, teacher):
            log_probs(model, crops, model.config.k_neighbors)
    assert float(match.error(RaggedBatch.from_crops(crops, k).neighbor_mask)) < 1e-10


def test_a_shallow_student_follows_the_ends_of_equal_parts():
    """Two layers follow the second and third of three; a wider teacher is met by linear maps."""
    match = HiddenMatch(ProteinMPNN(ModelConfig(2, 1, 8)), ProteinMPNN(ModelConfig(3, 3, 16)))
    assert match.pairs == {
        "encoder_layers.0.norm2": "encoder_layers.1.norm2",
        "encoder_layers.0.norm3": "encoder_layers.1.norm3",
        "encoder_layers.1.norm2": "encoder_layers.2.norm2",
        "encoder_layers.1.norm3": "encoder_layers.2.norm3",
        "decoder_layers.0.norm2": "decoder_layers.2.norm2",
    }
    assert {tuple(p.shape) for p in match.parameters()} == {(16, 8), (16,)}


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "float32"), ("muon", "bfloat16")])
def test_hidden_vectors_come_nearer(config, teacher_file, optimizer, precision):
    """Asked to, a student learns its teacher's hidden vectors."""
    asked = {"hidden_weight": 1.0, "optimizer": optimizer, "teacher": teacher_file}
    seen = []
    long = {"steps": 40, "learning_rate": 1e-2, "report_every": 10}
    train(dataclasses.replace(config, precision=precision, **asked, **long), seen.append)
    assert seen[-1].hidden_error < 0.15 * seen[0].hidden_error
    _, card = load_checkpoint(config.weights)
    assert {key: card["training"][key] for key in asked} == asked | {"teacher": "teacher"}


def test_maps_that_are_there_are_found(chains):
    """Where the teacher's states are a linear function of the student's, fitted maps give them."""
    crops = [draw(chains, DrawConfig(max_length=30), number) for number in range(3)]
    student = formula_weights(dataclasses.replace(TINY, hidden_dim=8))
    match, other = (HiddenMatch(student, formula_weights(TINY)) for _ in range(2))

    def listen():
        with match.listening(), torch.no_grad():
            log_probs(student, crops, TINY.k_neighbors)
            ours, theirs = match._states
            for name, followed in match.pairs.items():
                theirs[followed] = other.maps[name.replace(".", "_")](ours[name])

    mask = RaggedBatch.from_crops(crops, TINY.k_neighbors).neighbor_mask
    listen()
    match.fit(mask)
    listen()
    assert match.error(mask).item() < 0.01


def test_maps_are_fitted_to_what_a_student_begins_from(config, teacher_file, monkeypatch):
    """A channel that says nothing in the weights taken over has no part in its map."""
    narrow = dataclasses.replace(TINY, hidden_dim=8)
    begun = formula_weights(narrow)
    begun.encoder_layers[0].norm2.weight.data[3] = 0
    monkeypatch.setitem(ARCHITECTURES, "tiny", narrow)
    save_checkpoint(Path(config.weights), begun, {"training": {}})
    fitted = []
    real = HiddenMatch.fit

    def kept(self, mask):
        real(self, mask)
        fitted.append(self.maps["encoder_layers_0_norm2"].weight.detach().clone())

    monkeypatch.setattr(HiddenMatch, "fit", kept)
    asked = {"hidden_weight": 1.0, "teacher": teacher_file, "begin_from": config.weights}
    train(dataclasses.replace(config, weights=config.weights.replace("tiny", "taught"), **asked))
    (weight,) = fitted
    assert torch.equal(weight.abs().amax(0) == 0, torch.arange(8) == 3)


def test_a_narrow_student_begins_with_fitted_maps(config, teacher_file, monkeypatch):
    """It misses less than who knows the mean, still less in the end; its file holds no maps."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", dataclasses.replace(TINY, hidden_dim=8))
    asked = {"hidden_weight": 1.0, "optimizer": "muon", "teacher": teacher_file}
    long = {"steps": 40, "learning_rate": 1e-3, "report_every": 1}
    errors = []
    train(
        dataclasses.replace(config, precision="bfloat16", **asked, **long),
        lambda seen: errors.append(seen.hidden_error),
    )
    assert errors[-1] < errors[0] < 1
    trained, _ = load_checkpoint(config.weights)
    assert trained.config.hidden_dim == 8


def test_the_hidden_error_moves_the_student_itself(chains):
    """It has a gradient for every layer before what it compares, and none for the teacher."""
    crops = [draw(chains, DrawConfig(max_length=30), 0)]
    torch.manual_seed(1)
    student, teacher = ProteinMPNN(TINY), formula_weights(TINY)
    match = HiddenMatch(student, teacher)
    with match.listening():
        with torch.no_grad():
            log_probs(teacher, crops, TINY.k_neighbors)
        log_probs(student, crops, TINY.k_neighbors)
    match.error(RaggedBatch.from_crops(crops, TINY.k_neighbors).neighbor_mask).backward()
    untouched = {name for name, p in student.named_parameters() if p.grad is None}
    assert untouched == {"W_out.weight", "W_out.bias"}  # the letters come after all states
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_hidden_error_enters_the_loss_by_its_weight(config, teacher_file, weight):
    """At the first step the loss is that without it, and the weighted error of every residue."""
    losses, errors = [], []

    def note(progress):
        losses.append(progress.loss)
        errors.append(progress.hidden_error)

    for hidden_weight in (0.0, weight):
        change = {"hidden_weight": hidden_weight, "state": f"{config.state}.{hidden_weight}"}
        once = {"steps": 1, "decay_steps": 0, "micro_tokens": config.tokens}
        train(dataclasses.replace(config, teacher=teacher_file, **once, **change), note)
    assert errors[0] == 0 < errors[1]
    assert losses[1] - losses[0] == pytest.approx(weight * errors[1], rel=1e-4)


def test_hidden_vectors_are_those_of_the_letters_that_the_student_sees(config, teacher_file):
    """Where all letters are replaced, a student equal to its teacher still misses nothing."""
    save_checkpoint(Path(config.weights), formula_weights(TINY), {"training": {}})
    begun = {"begin_from": config.weights, "weights": config.weights.replace("tiny", "taught")}
    taught = {"teacher": teacher_file, "mutations": 1.0, "hidden_weight": 1.0, "steps": 1}
    seen = []
    train(dataclasses.replace(config, decay_steps=0, **begun, **taught), seen.append)
    assert seen[0].hidden_error < 1e-4  # a checkpoint's weights are rounded


def test_edges_that_are_not_there_do_not_count(chains):
    """Whatever stands at padded neighbors, of student or teacher, the error is the same."""
    crops = [draw(chains, DrawConfig(max_length=9), 0)]
    torch.manual_seed(0)
    student, teacher = ProteinMPNN(TINY), formula_weights(TINY)
    match = HiddenMatch(student, teacher)
    mask = RaggedBatch.from_crops(crops, TINY.k_neighbors).neighbor_mask
    assert mask.min() == 0
    errors = []
    for added in ((0, 0), (5, 0), (0, 5)):
        with match.listening(), torch.no_grad():
            for model in (student, teacher):
                log_probs(model, crops, TINY.k_neighbors)
        for states, amount in zip(match._states, added, strict=True):
            states["encoder_layers.0.norm3"][mask == 0] += amount
        errors.append(float(match.error(mask)))
    assert errors[0] == errors[1] == errors[2] > 0


@pytest.mark.parametrize("shape", [(3, 5), (16, 16), (64, 16)])
def test_updates_are_made_orthogonal(shape):
    """Singular vectors stay, singular values come near 1, and no matrix minds its neighbors."""
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    U, _, V = torch.linalg.svd(noise, full_matrices=False)
    G = U * torch.linspace(1, 5, min(shape)) @ V
    found = orthogonalized(G)
    values = U.mT @ found @ V.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert torch.allclose(values, torch.diag_embed(diagonal), atol=1e-4)
    assert float(diagonal.min()) > 0.6
    assert float(diagonal.max()) < 1.3
    assert torch.allclose(orthogonalized(G[1:2])[0], found[1], atol=1e-5)


def test_muon_is_that_of_torch_but_for_rounding():
    """Three steps on matrices of two shapes differ by what bfloat16 costs."""
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


def test_muon_follows_the_schedule(config):
    """Matrices of layers move as far as the learning rate lets them, and not at all at 0."""
    moved = {}
    for rate in (0.0, 1e-3, 2e-3):
        change = {"learning_rate": rate, "weight_decay": 0.0, "state": f"{config.state}.{rate}"}
        once = {"steps": 1, "decay_steps": 0, "warmup_steps": 0, "optimizer": "muon"}
        ends = weights_of(train(dataclasses.replace(config, **once, **change)))
        moved[rate] = ends["encoder_layers.0.W2.weight"]
    far, near = moved[2e-3] - moved[0.0], moved[1e-3] - moved[0.0]
    assert torch.allclose(far, 2 * near, atol=1e-6)
    # As large as a step of AdamW: 0.2 · lr for each number, by the definition of the scaling.
    assert float(near.square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.2)


def test_muon_and_adamw_differ_in_the_matrices_of_layers_alone(config):
    """At the first step, what is no matrix of a layer moves in the same way."""
    begun = {}
    for optimizer in ("adamw", "muon"):
        changes = {"optimizer": optimizer, "state": f"{config.state}.{optimizer}"}
        short = dataclasses.replace(config, steps=1, decay_steps=0, **changes)
        begun[optimizer] = weights_of(train(short))
    ours, theirs = begun.values()
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differ == {name for name in ours if "layers" in name and ours[name].dim() == 2}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_settings_of_shipped_runs_are_read(path):
    """The settings beside a shipped checkpoint are those of a run of its architecture."""
    config = read_config(str(path))
    assert config.architecture == path.stem
    assert Path(config.weights).name == f"{path.stem}.safetensors"


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "huge"}, "there are: baseline"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"tokens": -4}, "tokens must be at least 1, not -4"),
        ({"label_smoothing": 1.5}, "between 0 and 1, not 1.5"),
        ({"teacher": "v_48_002", "teacher_orders": 4}, "are of kept answers: give `targets`"),
        ({"mutations": 0.3}, "mutations above 0 needs a teacher, from whose answers"),
        ({"hidden_weight": 0.3}, "hidden_weight above 0 needs a teacher that is asked each time"),
        (
            {"teacher": "v_48_002", "hidden_weight": 1.0, "neighbors_shown": 0.5},
            "hidden_weight above 0 needs neighbors_shown = 1",
        ),
        ({"neighbors_shown": 0.0}, "neighbors_shown must lie above 0 and be 1 at most, not 0.0"),
        ({"neighbors_shown": 1.1}, "neighbors_shown must lie above 0 and be 1 at most, not 1.1"),
        ({"hidden_weight": -1.0}, "hidden_weight must be 0 or more, not -1.0"),
        ({"hidden_weight": float("nan")}, "hidden_weight must be 0 or more, not nan"),
        ({"optimizer": "sgd"}, "optimizer is adamw or muon, not 'sgd'"),
        ({"teacher": "v_48_002", "targets": "t", "mutations": 0.3}, 'teacher_sees = "native"'),
        ({"mutations": -0.1}, "between 0 and 1, not -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be 0 or more, not nan"),
        ({"noise": -1.0}, "noise must be 0 or more, not -1.0"),
        ({"weight_decay": float("inf")}, "weight_decay must be 0 or more, not inf"),
        ({"warmup_steps": -5}, "warmup_steps must be 0 or more, not -5"),
        ({"decay_steps": -3}, "decay_steps must be 0 or more, not -3"),
        ({"decay_steps": 7}, "decay_steps is 7, of 6 steps"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"seed": 2**63}, "seed must be below"),
        ({"teacher_sees": "all"}, "teacher_sees is shown or native, not 'all'"),
        ({"teacher": "v_48_002", "teacher_sees": "native"}, "mutations must be above 0"),
        ({"begin_from": "v_48_020"}, "random weights or with .safetensors that were trained here"),
        ({"begin_from": ["tiny", "v_48_020"]}, "that were trained here"),
        ({"begin_from": []}, "names no weights"),
        ({"begin_from": ["tiny", 2]}, "names weights, not 2"),
        ({"weights": "tiny.pt"}, "written as .safetensors"),
    ],
)
def test_bad_settings_are_refused(config, change, message):
    """Each setting out of its range is named with what came."""
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **change)


def test_a_network_without_such_layers_has_no_hidden_vectors_to_compare(config, teacher_file):
    """A state-space network cannot be asked to follow the layers of another kind."""
    asked = {"architecture": "ssm", "teacher": teacher_file, "hidden_weight": 0.1}
    with pytest.raises(InputError, match="must be 0 for ssm, whose layers are of another kind"):
        dataclasses.replace(config, **asked)


def test_missing_and_foreign_data_files_are_refused(config, tmp_path):
    """A file that is missing, no archive, or lacks an array is named."""
    noise = tmp_path / "noise.npz"
    noise.write_bytes(b"no archive")
    partial = tmp_path / "partial.npz"
    np.savez(partial, ca=np.zeros(3))
    for path, message in [("gone.npz", "gone.npz"), (noise, "no readable"), (partial, "nco")]:
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(config, data=str(path)))


def test_kept_answers_are_no_present_teacher(config, teacher_file, tmp_path):
    """A run is not resumed with another way to teach, and its card says which it was."""
    targets = str(tmp_path / "targets")
    config = dataclasses.replace(config, teacher=teacher_file, targets=targets)
    train(config)
    settings = load_checkpoint(config.weights)[1]["training"]
    assert (settings["answers"], settings["teacher_orders"]) == ("kept", 2)
    with pytest.raises(InputError, match=r"another run \(targets differ"):
        train(dataclasses.replace(config, targets=None))
    other = {"targets": None, "state": str(tmp_path / "other.pt"), "mutations": 0.3}
    train(dataclasses.replace(config, **other))
    settings = load_checkpoint(config.weights)[1]["training"]
    assert settings["answers"] == "asked for every crop"
    assert "teacher_orders" not in settings


def test_state_of_another_run_is_refused(config):
    """Resuming with another seed names the setting that differs, and leaves the state alone."""
    train(config)
    before = Path(config.state).read_bytes()
    with pytest.raises(InputError, match=r"another run \(seed differ"):
        train(dataclasses.replace(config, seed=9))
    assert Path(config.state).read_bytes() == before


def test_chains_that_changed_are_refused(config, tmp_path):
    """A run goes on with the chains it began with; so does one that drew from them otherwise."""
    train(dataclasses.replace(config, steps=4))
    other = write_chains(tmp_path / "other.npz", clusters=(7, 7, 9, 9, 9))
    with pytest.raises(InputError, match=r"on other chains than those of .*other\.npz"):
        train(dataclasses.replace(config, data=str(other)))
    state = torch.load(config.state, weights_only=True)
    del state["draws"]  # was not kept by versions that drew in another way
    torch.save(state, config.state)
    with pytest.raises(InputError, match="a version that drew crops in another way"):
        train(config)


def test_a_state_of_a_later_version_is_refused(config):
    """A setting that is not known here may be one that matters."""
    train(dataclasses.replace(config, steps=4))
    state = torch.load(config.state, weights_only=True)
    state["config"]["momentum"] = 0.9
    torch.save(state, config.state)
    with pytest.raises(InputError, match="not the state of a training run"):
        train(config)


@pytest.mark.parametrize(
    "content", [b"", b"not a state at all", {"config": None}, {"model": {}}, [1, 2], None]
)
def test_a_file_that_is_no_state_is_refused(config, content):
    """A damaged state, or another file of torch's, is named, not overwritten."""
    if isinstance(content, bytes):
        Path(config.state).write_bytes(content)
    else:
        torch.save(content, config.state)
    before = Path(config.state).read_bytes()
    with pytest.raises(InputError, match="not the state of a training run"):
        train(config)
    assert Path(config.state).read_bytes() == before


@pytest.mark.parametrize("taught", ["not at all", "by kept answers", "by hidden vectors"])
def test_training_runs_on_every_device_here(config, teacher_file, taught, monkeypatch):
    """A run on the accelerator, where there is one, starts at the same loss as on the CPU."""
    if torch.cuda.is_available():
        device = "cuda"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        pytest.skip("no accelerator on this machine")
    if taught == "by hidden vectors":
        monkeypatch.setitem(ARCHITECTURES, "tiny", dataclasses.replace(TINY, hidden_dim=8))
        config = dataclasses.replace(config, teacher=teacher_file, hidden_weight=1.0)
    losses = []
    for name in ("cpu", device):
        seen = []
        apart = {"device": name, "state": f"{config.state}.{name}"}
        if taught == "by kept answers":
            apart |= {"teacher": teacher_file, "targets": f"{config.state}.targets.{name}"}
        train(dataclasses.replace(config, **apart), seen.append)
        losses.append(seen[0].loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
