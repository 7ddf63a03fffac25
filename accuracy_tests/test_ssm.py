"""The state-space network: its scan, what residues hear of, its engine, and its training."""

import dataclasses

import numpy as np
import pytest
import torch
from cli_runs import run
from synthetic_files import write_weights
from training_helpers import crops_of, in_double, padded, write_chains

from mpnn import graph, ssm
from mpnn.config import ARCHITECTURES, ModelConfig, O, SSMConfig
from mpnn.design import Model, load
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import Batch
from mpnn.optimizations import load_engine
from mpnn.sampling import Constraints, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.training import TrainConfig, forward, train
from mpnn.training.data import RaggedBatch, TrainingChains
from mpnn.variants import Variant
from mpnn.weights import formula_weights, load_checkpoint, make_network, save_checkpoint

pytest_plugins = ["cli_fixtures"]

CONFIG = SSMConfig(num_layers=2, hidden_dim=32, num_heads=4, state_dim=8, k_neighbors=8)


@pytest.fixture(scope="module")
def model():
    return formula_weights(CONFIG).double()


def batch_of(*backbones):
    return Batch.from_flat(Flat.from_backbones(backbones), dtype=torch.float64)


# The scan


def one_at_a_time(x, log_a, B, C, segment):
    """The recurrence as it is written down."""
    y, h = [], None
    for t in range(len(x)):
        if t == 0 or segment[t] != segment[t - 1]:
            h = x.new_zeros(x.shape[1], B.shape[1], x.shape[2])  # [H, n, P]
        h = log_a[t].exp()[:, None, None] * h + B[t][:, None] * x[t][:, None]
        y.append(torch.einsum("n,hnp->hp", C[t], h))
    return torch.stack(y)


def inputs(lengths, seed=0, strongest=3.0):
    """Arguments of `scan` for chains of these lengths; decays from none to exp(−`strongest`)."""
    rng = torch.Generator().manual_seed(seed)
    R, H, P, n = sum(lengths), 3, 4, 5

    def normal(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    log_a = -strongest * torch.rand(R, H, generator=rng, dtype=torch.float64) ** 2
    number = torch.arange(len(lengths)) * 3 + 1
    segment = number.repeat_interleave(torch.tensor(lengths))
    return normal(R, H, P), log_a, normal(R, n), normal(R, n), segment


@pytest.mark.parametrize(
    "lengths",
    [(1,), (31,), (32,), (33,), (200,), (1, 1, 1), (32, 32), (5, 90, 31, 3), (10, 128, 2)],
    ids=str,
)
@pytest.mark.parametrize("strongest", [0.0, 3.0, 300.0])
def test_scan_is_the_recurrence(lengths, strongest):
    """Chunks give what a step for each residue gives, and every chain begins with no memory."""
    given = inputs(lengths, strongest=strongest)
    assert torch.allclose(ssm.scan(*given), one_at_a_time(*given), rtol=1e-11, atol=1e-11)


def test_gradients_of_the_scan_are_those_of_the_recurrence():
    """Every input's gradient is that of a step for each residue, and finite at strong decays."""
    for strongest in (3.0, 1000.0):
        gradients = []
        for function in (ssm.scan, one_at_a_time):
            *given, segment = inputs((20, 75), strongest=strongest)
            given = [tensor.requires_grad_() for tensor in given]
            function(*given, segment).square().sum().backward()
            gradients.append([tensor.grad for tensor in given])
        for ours, expected in zip(*gradients, strict=True):
            assert torch.isfinite(ours).all()
            assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_scan_keeps_single_precision_over_thousands_of_residues():
    """In float32 the error after 3,000 residues is rounding, not that of a sum of all decays."""
    given = inputs((3000,), strongest=10.0)
    expected = ssm.scan(*given)
    single = ssm.scan(*(t.float() if t.is_floating_point() else t for t in given))
    assert (single - expected).abs().max() < 1e-5 * expected.abs().max()


def test_scan_of_no_residues():
    """Nothing comes of nothing."""
    assert ssm.scan(*(tensor[:0] for tensor in inputs((4,)))).shape == (0, 3, 4)


# The network


def test_batch_equals_one_by_one(model):
    """Structures in a batch, of one chain or several, get what each gets alone."""
    backbones = [synthetic_backbone(n, c, n) for n, c in [(50, 2), (23, 1), (41, 3)]]
    with torch.inference_mode():
        together = model(batch_of(*backbones))
        for b, backbone in enumerate(backbones):
            alone = model(batch_of(backbone))[0]
            assert (together[b, : len(alone)] - alone).abs().max() < 1e-10
    assert torch.allclose(together.exp().sum(-1), torch.ones(1, dtype=torch.float64))


def test_rotation_and_translation_change_nothing(model):
    """Distances alone enter."""
    batch = batch_of(synthetic_backbone(40))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turn = turn * turn.det()
    moved = dataclasses.replace(batch, X=batch.X @ turn.T + 7.0)
    with torch.inference_mode():
        assert (model(batch) - model(moved)).abs().max() < 1e-5  # √(d² + 1e-6) ties aside


def far_apart(length=30):
    """Two chains 500 Å from each other: no neighbor list reaches across."""
    batch = batch_of(synthetic_backbone(2 * length, 2))
    X = batch.X.clone()
    X[:, length:] += 500.0
    return dataclasses.replace(batch, X=X)


def bent(batch, residue):
    """The same structure with one oxygen moved: it changes few edges but no neighbor list."""
    X = batch.X.clone()
    X[0, residue, O] += 0.5
    return dataclasses.replace(batch, X=X)


@pytest.mark.parametrize(("moved", "chain"), [(0, slice(0, 30)), (59, slice(30, 60))])
def test_residues_hear_their_whole_chain_and_no_other(model, moved, chain):
    """A change at either end of a chain is heard at its other end, and nowhere in the next one."""
    batch = far_apart()
    with torch.inference_mode():
        change = (model(bent(batch, moved)) - model(batch))[0].abs().amax(-1)
        assert (change[chain] > 1e-9).all()
        change[chain] = 0
        assert change.max() < 1e-12  # a product may round a row by what stands in others


def test_incomplete_residues_are_passed_over(model):
    """Residues without all atoms neither speak nor hear; they get normalized probabilities."""
    backbone = synthetic_backbone(40)
    whole = batch_of(backbone)
    backbone.mask[[0, 11, 12, 39]] = False
    backbone.coords[~backbone.mask] = 0
    holed = batch_of(backbone)
    keep = torch.from_numpy(backbone.mask)
    without = Batch(
        *(
            getattr(whole, name)[:, keep]
            for name in ("X", "mask", "residue_idx", "chain_encoding", "valid")
        )
    )
    with torch.inference_mode():
        found, expected = model(holed)[0], model(without)[0]
    assert (found[keep] - expected).abs().max() < 1e-10
    assert torch.allclose(found.exp().sum(-1), torch.ones(1, dtype=torch.float64))


def test_heads_begin_with_memories_of_one_to_a_hundred_residues():
    """Before training, the decays at rest are exp(−1/τ) for τ from 1 to 100."""
    for layer in make_network(SSMConfig()).layers:
        for direction in (layer.forward_direction, layer.backward_direction):
            step = torch.nn.functional.softplus(direction.select.bias[:8])
            assert (1 / step[[0, 7]]).tolist() == pytest.approx([1, 100], rel=1e-3)
            assert (step.diff() < 0).all()


# The engine


def structures():
    """Two of different lengths, one with chains and a residue without coordinates."""
    backbones = [synthetic_backbone(37), synthetic_backbone(26, chains=2, seed=1)]
    backbones[1].mask[7] = False
    backbones[1].coords[7] = 0
    return backbones


def test_engine_gives_the_networks_values(model):
    """Tiles and fused features change nothing but rounding, for any number of samples."""
    flat = Flat.from_backbones(structures())
    with torch.inference_mode():
        expected = flat.unpadded(model(batch_of(*structures())).numpy())
    engine = load_engine(model)
    S = np.zeros((3, flat.size), np.int64)
    found = engine.log_probs(engine.encode(flat), S, S)
    assert found.shape == (3, flat.size, 21)
    assert np.abs(found - expected).max() < 1e-10


def test_engine_samples_under_the_rules(model):
    """Fixed and tied residues, omissions: the job's rules hold, and samples differ."""
    flat, rules = (
        Flat.from_backbones(structures()),
        [Constraints.free(b.mask) for b in structures()],
    )
    rules[0].designed[3:6] = False
    rules[0].tie_group[30] = 8
    rules[1].bias[:, :18] -= 1e8
    job = make_job(flat.S, rules, [Key(0, n, 1.0) for n in range(4)])
    engine = load_engine(model)
    first, second = (engine.sample(engine.encode(flat), job).S[:, rows] for rows in flat.slices)
    assert np.array_equal(first[:, 3:6], np.tile(job.S[3:6], (4, 1)))
    assert np.array_equal(first[:, 30], first[:, 8])
    assert set(second[:, rules[1].designed].ravel()) <= {18, 19}
    assert len({sample.tobytes() for sample in first}) == 4


def test_structure_without_a_complete_residue(model):
    """Where nothing is known, every residue gets the same probabilities."""
    backbone = synthetic_backbone(5)
    backbone.mask[:] = False
    backbone.coords[:] = 0
    with torch.inference_mode():
        expected = model(batch_of(backbone))[0].numpy()
    assert np.ptp(expected, axis=0).max() == 0
    engine, S = load_engine(model), np.zeros((1, 5), np.int64)
    found = engine.log_probs(engine.encode(Flat.from_backbones([backbone])), S, S)[0]
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize(
    ("config", "engine", "message"),
    [
        (
            CONFIG,
            "exact",
            "engine exact runs ProteinMPNN networks, and these weights .* take .*ssm",
        ),
        (CONFIG, "steam", "no engine is called 'steam'"),
        (ModelConfig(1, 1, 16, 8), "ssm", "engine ssm runs state-space .* take engine exact"),
    ],
)
def test_engines_of_another_kind_of_network_are_refused(tmp_path, config, engine, message):
    """Library and command line say what the engine runs, what the weights are, and what to take."""
    path = write_weights(tmp_path, config)
    with pytest.raises(InputError, match=message):
        load(path, engine)
    result = run("design", "none.pdb", "--weights", path, "--engine", engine)
    assert result.exit_code == 2


# Checkpoints, library, command line


def test_checkpoint_reads_back(tmp_path):
    """Kind, sizes and weights come back; the engine follows from the kind."""
    made = formula_weights(CONFIG)
    save_checkpoint(tmp_path / "s.safetensors", made, {"license": "MIT"})
    found, card = load_checkpoint(tmp_path / "s.safetensors")
    assert found.config == CONFIG
    assert card == {"license": "MIT"}
    assert all(torch.equal(found.state_dict()[k], v) for k, v in made.state_dict().items())
    assert load(tmp_path / "s.safetensors").config == CONFIG


def test_sizes_that_do_not_fit_are_refused():
    """Heads must divide the inner width, and sizes are whole numbers of at least 1."""
    with pytest.raises(ValueError, match="5 heads do not divide"):
        SSMConfig(num_heads=5)
    with pytest.raises(ValueError, match="state_dim must be a whole number"):
        SSMConfig(state_dim=0)


def test_designs_and_scores(model):
    """Designs do not depend on the batch, and each mode of scoring gives the same values."""
    made = Model(load_engine(model), CONFIG, {"name": "made"})
    backbone = synthetic_backbone(30, chains=2)
    many = made.design(backbone, 3, fixed="A3-5").designs
    few = made.design(backbone, 3, batch_size=1, order="graph-coloring", fixed="A3-5").designs
    assert [d.sequence for d in many] == [d.sequence for d in few]
    scores = [made.score(backbone, mode=m) for m in ("ordered", "conditional", "unconditional")]
    assert np.array_equal(scores[0].log_probs, scores[1].log_probs)
    assert np.array_equal(scores[0].log_probs, scores[2].log_probs)
    assert made.score(backbone, many[0].sequence, fixed="A3-5").score == pytest.approx(
        many[0].score
    )


def test_command_line_designs_and_scores(here):
    """`mpnn design` and `mpnn score` take such a checkpoint with its engine."""
    path = write_weights(here, CONFIG)
    for command in ("design", "score"):
        result = run(command, "dimer.pdb", "--weights", path, "--engine", "ssm", "--out", "-")
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) > 3


def test_variant_loads_with_its_engine(monkeypatch):
    """The registry's row makes the engine from the architecture's configuration."""
    monkeypatch.setitem(ARCHITECTURES, "tiny-ssm", CONFIG)
    assert Variant("tiny-ssm", "ssm").load().model.config == CONFIG
    with pytest.raises(InputError, match="take engine ssm"):
        Variant("tiny-ssm").load()


# Training


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory):
    return write_chains(tmp_path_factory.mktemp("chains") / "train.npz")


def test_trained_as_run(chain_file, model):
    """Training computes the network's own log-probabilities and gradients, in float64."""
    chains = TrainingChains(chain_file)
    crops = crops_of(chains, noise=0.1, max_length=40)
    batch, _, _ = padded(crops)
    found, _ = graph.neighbors(batch.X[:, :, 1].float(), batch.mask.float(), batch.valid, 8)
    batch = dataclasses.replace(batch, E_idx=found)  # found in float32, as in training
    ragged = in_double(RaggedBatch.from_crops(crops, CONFIG.k_neighbors))
    gradients = []
    for log_probs in (
        model(batch)[batch.valid],
        forward.log_probs(model, ragged, [len(crop) for crop in crops]),
    ):
        model.zero_grad()
        log_probs.gather(1, ragged.S[:, None]).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        gradients[-1]["log_probs"] = log_probs.detach()
    for name, expected in gradients[0].items():
        assert expected.abs().max() > 0, name
        assert torch.allclose(gradients[1][name], expected, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_state_space_network_learns(tmp_path, monkeypatch, precision):
    """It learns a chain by heart, with matmuls in either precision; its checkpoint designs."""
    monkeypatch.setitem(ARCHITECTURES, "tiny-ssm", CONFIG)
    chain, seen = write_chains(tmp_path / "one.npz", (40,), (1,)), []
    config = TrainConfig(
        data=str(chain), weights=str(tmp_path / "tiny.safetensors"),
        state=str(tmp_path / "state.pt"), architecture="tiny-ssm", steps=60, decay_steps=20,
        warmup_steps=2, tokens=120, micro_tokens=120, learning_rate=1e-2, report_every=10,
        precision=precision,
    )  # fmt: skip
    train(config, seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss
    model = load(config.weights)
    assert model.card["training"]["architecture"] == "tiny-ssm"
    assert len(model.design(synthetic_backbone(30), num_seqs=2).designs) == 2


def test_resumed_run_is_bit_equal(chain_file, tmp_path, monkeypatch):
    """A run stopped half-way ends with the weights of a run never stopped, distilled or not."""
    monkeypatch.setitem(ARCHITECTURES, "tiny-ssm", CONFIG)
    teacher = write_weights(tmp_path, CONFIG)
    config = TrainConfig(
        data=str(chain_file), weights=str(tmp_path / "tiny.safetensors"),
        state=str(tmp_path / "state.pt"), architecture="tiny-ssm", steps=4, decay_steps=0,
        tokens=120, micro_tokens=60, max_length=50, teacher=str(teacher),
        targets=str(tmp_path / "targets"),
    )  # fmt: skip
    with pytest.raises(InputError, match="cannot be an online teacher"):
        train(dataclasses.replace(config, targets=None))
    whole = train(dataclasses.replace(config, state=str(tmp_path / "whole.pt"))).state_dict()
    train(dataclasses.replace(config, steps=2))
    again = train(config).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
