"""The law of engines, stated once for all that are registered.

Same seed, same sequences and scores as the reference for every kind of structure and job; engines
in reduced precision stay within their band.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from engine_cases import (
    BANDS,
    CLOSE,
    CONFIG,
    EQUAL,
    KINDS,
    NAMES,
    SLOW,
    STRUCTURES,
    TOLERANCE,
    assert_same,
    each,
    engine_of,
    flat_of,
    job_of,
    network,
    reference_samples,
)
from published_arrays import INPUTS, Case

from mpnn.config import SSMConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import ENGINES, exact_form, load_engine
from mpnn.optimizations.one_shot import OneShotEngine
from mpnn.sampling import Samples, sample_all
from mpnn.schedule import rank_of
from mpnn.weights import formula_weights

DOUBLE = ("exact", "staged")  # also run in float64, where identities show to the last digits
TYPES = [(name, "float32") for name in EQUAL if name not in ("reference", "ball-tree", "kd-tree")]
TYPES += [(name, "float64") for name in DOUBLE]


def native(job) -> np.ndarray:
    """The native residue types for every sample, [N, R]."""
    return np.broadcast_to(job.S, job.rank.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structures", STRUCTURES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case[0] in SLOW else []) for case in TYPES],
)
def test_same_sequences_and_scores_as_the_reference(name, dtype, structures, kind):
    """Same seed, same sequences; sampling and scoring agree with the reference's scores."""
    engine, flat, job = (
        engine_of(name, dtype),
        flat_of(structures),
        job_of(STRUCTURES[structures], kind),
    )
    encoding = engine.encode(flat)
    expected = reference_samples(structures, kind, dtype)
    samples = engine.sample(encoding, job)
    assert_same(job, expected, samples, TOLERANCE[dtype], flat.lengths)
    assert (samples.S[:, job.tie_group] == samples.S).all()
    scored = engine.log_probs(encoding, expected.S, job.rank)
    np.testing.assert_allclose(scored, expected.log_probs, rtol=0, atol=TOLERANCE[dtype])


@each(["ball-tree", "kd-tree"])
def test_the_reference_with_a_tree_is_the_reference(name):
    """Neighbors from a tree give the reference's sequences and scores, with gaps and padding."""
    engine, flat, job = engine_of(name), flat_of("several"), job_of(STRUCTURES["several"], "tied")
    samples, expected = (
        engine.sample(engine.encode(flat), job),
        reference_samples("several", "tied"),
    )
    assert_same(job, expected, samples, TOLERANCE["float32"], flat.lengths)


@pytest.mark.parametrize("kind", ["free", "tied"])
@each(CLOSE)
def test_close_engines_stay_in_their_band(name, kind):
    """Engines in reduced precision score within their band, and sample what they score."""
    flat, job = flat_of("several"), job_of(STRUCTURES["several"], kind)
    expected, engine = reference_samples("several", kind), engine_of(name)
    encoding = engine.encode(flat)
    scored = engine.log_probs(encoding, expected.S, job.rank)
    assert 0 < np.abs(scored - expected.log_probs).max() < BANDS[name]
    samples = engine.sample(encoding, job)
    again = engine.log_probs(encoding, samples.S, job.rank)
    assert np.abs(samples.log_probs - again).max() < BANDS[name]
    assert (samples.S == expected.S).mean() > 0.9
    assert (samples.S == job.S)[:, ~job.designed].all()
    assert (samples.S[:, job.tie_group] == samples.S).all()


@each([*EQUAL, *CLOSE])
def test_structures_in_a_batch_do_not_affect_one_another(name):
    """Each structure gets alone what it gets laid end to end with others."""
    engine, backbones = engine_of(name), STRUCTURES["several"]
    flat, expected = Flat.from_backbones(backbones), reference_samples("several", "free")
    job = job_of(backbones)
    together = engine.log_probs(engine.encode(flat), expected.S, job.rank)
    for rows, backbone in zip(flat.slices, backbones, strict=True):
        encoding, alone = engine.encode(Flat.from_backbones([backbone])), job_of([backbone])
        np.testing.assert_array_equal(alone.rank, job.rank[:, rows])
        np.testing.assert_array_equal(alone.gumbel, job.gumbel[:, rows])
        scored = engine.log_probs(encoding, expected.S[:, rows], alone.rank)
        atol = max(TOLERANCE["float32"], BANDS.get(name, 0))
        np.testing.assert_allclose(scored, together[:, rows], rtol=0, atol=atol)
        if name not in CLOSE:
            part = Samples(expected.S[:, rows], expected.log_probs[:, rows])
            assert_same(alone, part, engine.sample(encoding, alone), TOLERANCE["float32"])


@each([*EQUAL, *CLOSE])
def test_samples_do_not_depend_on_the_split(name):
    """One sample at a time gives the sequences of all at once."""
    engine, backbones = engine_of(name), STRUCTURES["shorter than K"]
    encoding, job = engine.encode(Flat.from_backbones(backbones)), job_of(backbones, "biased")
    together = engine.sample(encoding, job)
    for n in range(3):
        alone = engine.sample(encoding, job.part(slice(n, n + 1)))
        np.testing.assert_array_equal(alone.S[0], together.S[n])


@pytest.mark.parametrize("given", INPUTS)
@each(EQUAL)
def test_published_values(name, given):
    """Teacher-forced and unconditional values are those of the published implementation."""
    case, engine = Case(given, "2x64_k12"), engine_of(name)
    rank = np.stack([rank_of(case.order), np.zeros(len(case.S), np.int64)])
    actual = engine.log_probs(engine.encode(case.flat), np.tile(case.S, (2, 1)), rank)
    assert case.worst(actual[0], "log_probs") < 1e-5
    assert case.worst(actual[1], "unconditional_log_probs") < 1e-5


@each([*EQUAL, *CLOSE])
def test_neighbors(name):
    """Each structure's neighbors are the reference's, numbered within the structure."""
    flat, engine, reference = flat_of("several"), engine_of(name), engine_of("reference")
    encoding, expected = engine.encode(flat), reference.encode(flat)
    for b, rows in enumerate(flat.slices):
        (E_idx, real), (right, right_real) = (
            engine.neighbors(encoding, b),
            reference.neighbors(expected, b),
        )
        assert E_idx.dtype == np.int64
        assert real.dtype == bool
        assert E_idx.shape == real.shape
        assert len(E_idx) == flat.lengths[b]
        for i in np.flatnonzero(flat.mask[rows]):
            np.testing.assert_array_equal(E_idx[i][real[i]], right[i][right_real[i]])


@each([*EQUAL, *CLOSE])
def test_given_neighbors(name):
    """Neighbors found elsewhere, here every second one in another order, are used as they are."""
    flat, engine, reference = flat_of("several"), engine_of(name), engine_of("reference")
    encoding = reference.encode(flat)
    E_idx = np.repeat(np.arange(flat.size)[:, None], 6, 1)
    for b, (rows, length) in enumerate(zip(flat.slices, flat.lengths, strict=True)):
        found = reference.neighbors(encoding, b)[0][:, :length]  # without padding
        half = found[:, ::2][:, ::-1][:, :6]
        E_idx[rows, : half.shape[1]] = half + rows.start
        E_idx[rows, half.shape[1] : length] = (
            found[:, : max(0, min(6, length) - half.shape[1])] + rows.start
        )
    given = flat.with_neighbors(E_idx)
    job = job_of(STRUCTURES["several"])
    theirs, plain, ours = (
        e.log_probs(e.encode(f), native(job), job.rank)
        for e, f in [(reference, given), (reference, flat), (engine, given)]
    )
    moved = np.abs(theirs - plain).max()
    assert moved > 0.1
    assert np.abs(ours - theirs).max() < max(TOLERANCE["float32"], BANDS.get(name, 0))
    graphs = [e.neighbors(e.encode(given), 0) for e in (engine, reference)]
    real = graphs[0][1]
    np.testing.assert_array_equal(graphs[0][0][real], graphs[1][0][graphs[1][1]])


@pytest.mark.parametrize("kind", ["free", "tied"])
@each([*EQUAL, *CLOSE])
def test_nothing_designed(name, kind):
    """With every residue fixed the residue types stay, and are scored."""
    engine, job = engine_of(name), job_of(STRUCTURES["several"], kind)
    job = dataclasses.replace(job, designed=np.zeros_like(job.designed))
    encoding = engine.encode(flat_of("several"))
    samples = engine.sample(encoding, job)
    np.testing.assert_array_equal(samples.S, native(job))
    scored = engine.log_probs(encoding, native(job), job.rank)
    atol = max(TOLERANCE["float32"], BANDS.get(name, 0))
    np.testing.assert_allclose(samples.log_probs, scored, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["fixed", "tied"])
@each(EQUAL)
def test_one_shot_sampling_is_sampling_with_nothing_visible(name, kind):
    """One pass and all residues at once give what the engine's own sampler gives at rank 0."""
    engine, job = engine_of(name), job_of(STRUCTURES["several"], kind)
    blind = dataclasses.replace(job, rank=np.zeros_like(job.rank))
    one_shot = OneShotEngine(engine)
    encoding = one_shot.encode(flat_of("several"))
    expected, found = engine.sample(encoding, blind), one_shot.sample(encoding, job)
    np.testing.assert_array_equal(found.S, expected.S)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=1e-5)
    others = np.random.default_rng(0).integers(20, size=job.rank.shape)
    scored = one_shot.log_probs(encoding, others, job.rank)
    np.testing.assert_allclose(scored, found.log_probs, rtol=0, atol=1e-5)


@each([*EQUAL, *CLOSE])
def test_results_are_host_arrays_of_the_stated_type(name):
    """Sequences are int64, log-probabilities have the engine's type and sum to one."""
    engine, job = engine_of(name), job_of(STRUCTURES["shorter than K"], samples=2)
    samples = engine.sample(engine.encode(flat_of("shorter than K")), job)
    assert engine.device == "cpu"
    assert (samples.S.dtype, samples.log_probs.dtype) == (np.int64, np.dtype(engine.dtype))
    assert (samples.S.shape, samples.log_probs.shape) == ((2, 9), (2, 9, 21))
    total = np.exp(samples.log_probs.astype(float)).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-5)
    engine.synchronize()


@each([name for name in NAMES if name not in ("coreml", "onnx")])
def test_an_engine_keeps_the_weights_it_was_made_with(name):
    """Training the network leaves its engines alone, and making one leaves the network alone."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    try:
        engine = load_engine(model, name)
    except InputError as error:
        pytest.skip(str(error))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    flat, job = flat_of("shorter than K"), job_of(STRUCTURES["shorter than K"])
    first = engine.log_probs(engine.encode(flat), native(job), job.rank)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    np.testing.assert_array_equal(
        engine.log_probs(engine.encode(flat), native(job), job.rank), first
    )


# The registry


def test_the_default_engine_follows_the_network():
    """A ProteinMPNN runs in the exact engine, a state-space network in its own."""
    forms = {"exact-native": "NativeEngine", "exact-torch": "ExactEngine"}
    form, reason = exact_form(network())
    assert type(load_engine(network())).__name__ == forms[form]
    assert bool(reason) == (form == "exact-torch")
    assert type(load_engine(network().double())).__name__ == "ExactEngine"
    assert type(load_engine(formula_weights(SSMConfig(1, 16, 4, 4, 8)))).__name__ == "SSMEngine"


@pytest.mark.parametrize(
    "name",
    ["nowhere.engine:Engine", "mpnn.model:Engine", "fast", ":", "x:", "mpnn.config:ModelConfig"],
)
def test_a_name_without_an_engine_is_refused(name):
    """The error names what was given; nothing else is loaded instead."""
    with pytest.raises(InputError, match=re.escape(name)):
        load_engine(network(), name)


def test_an_engine_for_other_networks_is_refused():
    """The error says which networks the engine runs and which engine to take."""
    model = formula_weights(SSMConfig(1, 16, 4, 4, 8))
    with pytest.raises(InputError, match=r"exact runs ProteinMPNN .* state-space .* engine ssm"):
        load_engine(model, "exact")
    with pytest.raises(InputError, match=r"ssm runs state-space .* ProteinMPNN .* engine exact"):
        load_engine(network(), "ssm")


@pytest.mark.parametrize(
    ("name", "package"),
    [("onnx", "onnxruntime"), ("kd-tree", "scipy.spatial"), ("mlx", "mlx.core")],
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    """Where a package is missing the error has the command that installs it."""
    module = ENGINES[name].target.partition(":")[0]
    for loaded in [m for m in sys.modules if m.startswith(module)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'mpnn\[{ENGINES[name].extra}\]'"):
        load_engine(network(), name)


def test_choosing_an_engine_imports_no_torch():
    """The registry, sampling and schedules need numpy alone, and weights need no engine."""
    code = """
import sys
import mpnn.equality, mpnn.optimizations, mpnn.sampling, mpnn.schedule
assert "torch" not in sys.modules
import mpnn.model
assert not {"mpnn.structure", "mpnn.backbone", "gemmi"} & sys.modules.keys()
import mpnn.weights
assert not [m for m in sys.modules if m.startswith("mpnn.optimizations.exact")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sampling_all_at_once_is_sampling_one_by_one():
    """`sample_all` samples N sequences as N jobs of one sequence each."""
    job = job_of(STRUCTURES["several"], "tied")
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(21), len(job.S)))
    together = sample_all(log_probs, job)
    for n in range(3):
        alone = sample_all(log_probs, job.part(slice(n, n + 1)))
        np.testing.assert_array_equal(alone.S[0], together.S[n])
    assert CONFIG.autoregressive
