"""Engines in fewer bits: how far they are from float32, and what stays in float32."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from mpnn import graph
from mpnn.batch import Batch
from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.decoding import Constraints, Job, Key, Samples, make_job
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations import Engine, load_engine
from mpnn.optimizations.precision import Int8Linear, quantized
from mpnn.optimizations.reference import ReferenceEngine
from mpnn.regression.outputs import Pair, closeness
from mpnn.structure import read_structure
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights, load_weights

CONFIG = ModelConfig(2, 2, 32, 16)
ENGINES = {
    "half": "mpnn.optimizations.precision:HalfEngine",
    "bfloat16": "mpnn.optimizations.precision:BFloat16Engine",
    "mixed": "mpnn.optimizations.precision:MixedEngine",
    "int8": "mpnn.optimizations.precision:Int8Engine",
    "exact-bfloat16": "mpnn.optimizations.exact_bfloat16:ExactBFloat16Engine",
}
FORMULA = {"half": 0.01, "bfloat16": 0.1, "mixed": 0.003, "int8": 0.2, "exact-bfloat16": 0.1}
"""Largest |Δ log p| in nats with weights by formula, of the published size."""

TRAINED = {"half": 0.03, "bfloat16": 0.2, "mixed": 3e-5, "int8": 0.5, "exact-bfloat16": 0.2}
"""The same with the shipped `minimal`; its file is in float16 already, so mixed changes nothing."""

PUBLISHED = {"half": 0.03, "bfloat16": 0.2, "mixed": 1e-4, "int8": 1.5, "exact-bfloat16": 0.2}
"""The same with v_48_020 on 5L33."""

FLIPPED = {"half": 0.01, "bfloat16": 0.03, "mixed": 0.0, "int8": 0.1, "exact-bfloat16": 0.03}
"""Largest share of residues at which trained weights find another letter likeliest."""

each_engine = pytest.mark.parametrize("name", ENGINES)


def engine_named(name: str, model: ProteinMPNN) -> Engine:
    return load_engine(ENGINES[name], model)


def two_proteins() -> tuple[Batch, Job]:
    """Of different lengths, one with a gap; residue 3 of both is fixed."""
    proteins = [made_up_backbone(32, chains=2, seed=1), made_up_backbone(24, seed=2)]
    mask, coords = proteins[1].mask.copy(), proteins[1].coords.copy()
    mask[10], coords[10] = False, 0
    proteins[1] = dataclasses.replace(proteins[1], mask=mask, coords=coords)
    batch = Batch.from_backbones(proteins)
    constraints = [Constraints.free(protein.mask) for protein in proteins]
    constraints[0].designed[3] = constraints[1].designed[3] = False
    return batch, make_job(batch.S.numpy(), constraints, [Key(1, n, 0.5) for n in range(2)])


def native(job: Job) -> np.ndarray:
    """The given letters for every sample, [B, N, L]."""
    return np.broadcast_to(job.S[:, None], job.rank.shape)


def scored(engine: Engine, batch: Batch, job: Job) -> np.ndarray:
    """Log-probabilities of the complete residues, [M, 21]."""
    log_probs = engine.log_probs(engine.encode(batch), native(job), job.rank)
    return log_probs.swapaxes(1, 2)[batch.mask.numpy() > 0].reshape(-1, 21)


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# --- parity bands -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_size() -> tuple[ProteinMPNN, Batch, Job, np.ndarray]:
    """Weights by formula, a protein of 64 residues, and what the reference makes of it."""
    model = formula_weights(ARCHITECTURES["baseline"])
    protein = made_up_backbone(64)
    batch = Batch.from_backbones([protein])
    job = make_job(batch.S.numpy(), [Constraints.free(protein.mask)], [Key(0, 0, 0.1)])
    return model, batch, job, scored(ReferenceEngine(model), batch, job)


@each_engine
def test_band_with_formula_weights(
    published_size: tuple[ProteinMPNN, Batch, Job, np.ndarray], name: str
) -> None:
    """Log-probabilities are within the engine's band of float32's, and differ by its rounding."""
    model, batch, job, expected = published_size
    difference = largest(scored(engine_named(name, model), batch, job), expected)
    assert FORMULA[name] / 20 < difference < FORMULA[name]


@functools.cache
def minimal() -> tuple[ProteinMPNN, np.ndarray]:
    """The shipped network and the reference's scores of two proteins."""
    model = load_weights("minimal")[0]
    return model, scored(ReferenceEngine(model), *two_proteins())


@each_engine
def test_band_with_trained_weights(name: str) -> None:
    """With the shipped network scores are within the band and likeliest letters hardly change."""
    model, expected = minimal()
    actual = scored(engine_named(name, model), *two_proteins())
    assert largest(actual, expected) < TRAINED[name]
    assert (actual.argmax(-1) != expected.argmax(-1)).mean() <= FLIPPED[name]


@pytest.mark.data
@each_engine
def test_band_with_published_weights(name: str, data_dir, weights_dir) -> None:
    """The same with the published network on a real protein."""
    model = load_weights(weights_dir / "v_48_020.pt")[0]
    protein = read_structure(data_dir / "pdb" / "5L33.pdb")
    batch = Batch.from_backbones([protein])
    job = make_job(batch.S.numpy(), [Constraints.free(protein.mask)], [Key(0, 0, 0.1)])
    actual = scored(engine_named(name, model), batch, job)
    expected = scored(ReferenceEngine(model), batch, job)
    assert largest(actual, expected) < PUBLISHED[name]
    assert (actual.argmax(-1) != expected.argmax(-1)).mean() <= FLIPPED[name]


@each_engine
def test_samples_are_scored_as_they_are_drawn(name: str) -> None:
    """What sampling says of its letters is, within the band, what scoring says of them."""
    model = formula_weights(CONFIG)
    batch, job = two_proteins()
    engine = engine_named(name, model)
    encoding = engine.encode(batch)
    drawn = engine.sample(encoding, job)
    again = engine.log_probs(encoding, drawn.S, job.rank)
    complete = np.broadcast_to((batch.mask.numpy() > 0)[:, None], drawn.S.shape)
    assert largest(drawn.log_probs[complete], again[complete]) < FORMULA[name]
    reference = ReferenceEngine(model).sample(batch, job)
    assert (drawn.S == reference.S)[complete].mean() > 0.9
    assert np.array_equal(drawn.S[:, :, 3], native(job)[:, :, 3])  # fixed


# --- what stays in float32 ----------------------------------------------------------------------


@each_engine
def test_results_are_float32(name: str) -> None:
    """Log-probabilities are float32 and sum to one as float32 does; that is what goes in too."""
    engine = engine_named(name, formula_weights(CONFIG))
    batch, job = two_proteins()
    log_probs = scored(engine, batch, job)
    assert log_probs.dtype == np.float32
    assert engine.dtype == torch.float32
    assert largest(np.exp(log_probs.astype(float)).sum(-1), np.ones(len(log_probs))) < 1e-6


@each_engine
def test_neighbors_are_found_in_float32(name: str) -> None:
    """Far from the origin, where half types see steps of Å, neighbors are the reference's."""
    model = formula_weights(CONFIG)
    batch, _ = two_proteins()
    far = dataclasses.replace(batch, X=batch.X + 300 * batch.mask[..., None, None])
    engine, reference = engine_named(name, model), ReferenceEngine(model)
    for b in range(2):
        complete = batch.mask[b][batch.valid[b]].numpy() > 0
        actual, expected = (e.neighbors(e.encode(far), b)[0] for e in (engine, reference))
        np.testing.assert_array_equal(actual[complete], expected[complete])


@each_engine
def test_the_callers_network_is_left_alone(name: str) -> None:
    """Loading an engine changes no parameter of the network that it was given."""
    model = formula_weights(CONFIG)
    before = copy.deepcopy(model.state_dict())
    engine_named(name, model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not model.W_out._forward_hooks


@each_engine
def test_a_double_network_is_run_in_the_engines_type(name: str) -> None:
    """A network in float64 gives what the same network in float32 gives."""
    batch, job = two_proteins()
    models = formula_weights(CONFIG), formula_weights(CONFIG).double()
    single, double = (scored(engine_named(name, model), batch, job) for model in models)
    assert np.array_equal(single, double)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_published_runtime_error(dtype: torch.dtype) -> None:
    """A network that is only converted fails on float32 coordinates."""
    model = formula_weights(CONFIG).to(dtype)
    with pytest.raises(RuntimeError, match="dtype"):
        scored(ReferenceEngine(model), *two_proteins())


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 0.0625), (torch.bfloat16, 0.5)])
def test_coordinates_in_half_types_are_no_way_out(dtype: torch.dtype, step: float) -> None:
    """100 Å from the origin a half type's steps are this large, and residues change neighbors."""
    ca = Batch.from_backbones([made_up_backbone(150)]).X[:, :, graph.CA] + 100
    assert torch.nextafter(ca.new_tensor(100).to(dtype), ca.new_tensor(128).to(dtype)) - 100 == step
    valid = torch.ones(ca.shape[:2], dtype=torch.bool)
    right, _ = graph.neighbors(ca, valid.float(), valid, 48)
    rounded, _ = graph.neighbors(ca.to(dtype), valid.to(dtype), valid, 48)
    same = [set(a) == set(b) for a, b in zip(right[0].tolist(), rounded[0].tolist(), strict=True)]
    assert not all(same)


# --- mixed and int8 layers ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [("mixed", torch.float16), ("int8", torch.int8)])
def test_all_linear_layers_are_converted(name: str, dtype: torch.dtype) -> None:
    """The published 43 layers have weights of the type; all else is float32."""
    engine = engine_named(name, formula_weights(ARCHITECTURES["baseline"]))
    tensors = [*engine.model.parameters(), *engine.model.buffers()]
    assert sum(t.dtype == dtype for t in tensors) == 43
    assert all(t.dtype in (dtype, torch.float32) for t in tensors)
    assert not any(isinstance(module, nn.Linear) for module in engine.model.modules())


def test_rounding_to_int8_is_to_the_nearest() -> None:
    """A rounded row is off by at most half its scale, its largest element by nothing."""
    x = torch.randn(50, 33) * torch.logspace(-6, 6, 50)[:, None]
    x[7] = 0
    q, scale = quantized(x)
    error = (q * scale - x).abs()
    assert (error <= 0.5001 * scale).all()
    at = x.abs().argmax(-1, keepdim=True)
    assert (error.gather(1, at) <= 1e-6 * x.abs().gather(1, at)).all()
    assert not q[7].any()


@pytest.mark.parametrize("bias", [True, False])
def test_int8_product_is_exact(bias: bool) -> None:
    """The layer is the product of the rounded factors: nothing else is lost, nothing overflows."""
    layer = nn.Linear(512, 21, bias=bias)
    layer.weight.data[:3] = 1  # rows of the largest value: sums of 512·127²
    x = torch.randn(3, 5, 512)
    x[0, 0] = 2
    (q, s), (W, s_W) = quantized(x.flatten(0, 1)), quantized(layer.weight.data)
    expected = (q.double() @ W.double().t()) * s.double() * s_W.double().t()
    if bias:
        expected += layer.bias.data.double()
    actual = Int8Linear(layer)(x)
    assert actual.shape == (3, 5, 21)
    actual = actual.double().flatten(0, 1).detach()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_int8_says_where_it_runs() -> None:
    """Another device than the CPU is refused in a sentence, before anything is moved there."""
    with pytest.raises(InputError, match="CPU alone, not on mps"):
        load_engine(ENGINES["int8"], formula_weights(CONFIG), "mps")


# --- how claims judge closeness -------------------------------------------------------------------


def made_up_pair(change: Callable[[Samples], Samples], samples: int = 0) -> Pair:
    """A protein of 20 residues with random log-probabilities, and the same after a change."""
    rng = np.random.default_rng(0)
    protein = made_up_backbone(20)
    keys = [Key(0, n, 0.1) for n in range(max(1, samples))]
    S = Batch.from_backbones([protein]).S.numpy()
    job = make_job(S, [Constraints.free(protein.mask)], keys)
    logits = torch.from_numpy(rng.standard_normal((*job.rank.shape, 21)))
    right = Samples(native(job).copy(), logits.log_softmax(-1).numpy())
    return Pair("made up", job, right, change(Samples(right.S.copy(), right.log_probs.copy())))


def shifted(by: float) -> Callable[[Samples], Samples]:
    """Adds to one log-probability."""

    def change(samples: Samples) -> Samples:
        samples.log_probs[0, 0, 4, 7] += by
        return samples

    return change


def test_the_same_is_close() -> None:
    """Equal outputs pass any band, with every figure at zero."""
    judged = closeness([made_up_pair(shifted(0))], 0.0)
    assert judged.passed
    assert set(judged.figures.values()) == {0}


@pytest.mark.parametrize(("by", "passed"), [(0.09, True), (0.11, False), (np.nan, False)])
def test_the_band_decides(by: float, passed: bool) -> None:
    """One log-probability beyond the band fails the claim, and so does one that is no number."""
    judged = closeness([made_up_pair(shifted(0)), made_up_pair(shifted(by))], 0.1)
    assert judged.passed == passed
    assert judged.figures["max_abs_log_prob"] == pytest.approx(by, nan_ok=True)


def test_figures_of_closeness() -> None:
    """Flips, divergence and the change of expected recovery are those of the changed residue."""

    def change(samples: Samples) -> Samples:
        row = samples.log_probs[0, 0, 4]
        row[:] = np.log(0.5 / 20)
        row[samples.S[0, 0, 4]] = np.log(0.5)
        return samples

    pair = made_up_pair(change)
    before, after = (x.log_probs[0, 0, 4] for x in (pair.reference, pair.subject))
    letter = pair.job.S[0, 4]
    assert before.argmax() != letter
    judged = closeness([pair], 9.0)
    assert judged.figures["letters_flipped"] == pytest.approx(1 / 20)
    kl = (np.exp(before) * (before - after)).sum() / 20
    assert judged.figures["kl"] == pytest.approx(kl)
    gained = (0.5 - np.exp(before[letter])) / 20
    assert judged.figures["expected_recovery_change"] == pytest.approx(gained)
    assert f"{100 * gained:+.2f} points" in judged.text


def test_only_residues_with_the_same_letters_before_them_are_compared() -> None:
    """After the first letter that differs log-probabilities may differ; at it and before, not."""

    def flip_then_shift(rank_shifted: int) -> Callable[[Samples], Samples]:
        def change(samples: Samples) -> Samples:
            order = made_up_pair(shifted(0), samples=2).job.rank[0, 1].argsort()
            samples.S[0, 1, order[10]] = (samples.S[0, 1, order[10]] + 1) % 20
            samples.log_probs[0, 1, order[rank_shifted]] += 1
            return samples

        return change

    pairs = [made_up_pair(flip_then_shift(rank), samples=2) for rank in range(20)]
    passed = [closeness([pair], 0.5).passed for pair in pairs]
    assert passed == [False] * 11 + [True] * 9
