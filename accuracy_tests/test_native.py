"""The compiled engine against the reference: whole jobs of every kind, bits and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from native_build import native_library
from native_cases import (
    BACKBONES,
    KINDS,
    SMALL,
    TOLERANCE,
    WIDE,
    draw,
    expected,
    jobs,
    native,
    reference,
    sampled,
    structures,
    subset,
)

from mpnn import graph
from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.model import Batch
from mpnn.optimizations import load_engine
from mpnn.optimizations.native.engine import NativeEngine
from mpnn.sampling import Constraints, Key, make_job
from mpnn.structure import read_structure
from mpnn.weights import formula_weights, load_weights

# --- equality with the reference ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKBONES)
def test_same_sequences_as_the_reference(name: str, kind: str) -> None:
    """Same seed, same sequences and log-probabilities, for every kind of job and structure."""
    S, log_probs = draw(name, kind)
    expected_S, expected_log_probs = expected(name, kind, SMALL)
    np.testing.assert_array_equal(S, expected_S)
    np.testing.assert_allclose(log_probs, expected_log_probs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [WIDE, ModelConfig(1, 1, 64, 1), ModelConfig(2, 2, 64, 64), ModelConfig(3, 3, 192, 30)],
    ids=lambda c: f"{c.num_encoder_layers}x{c.hidden_dim}_k{c.k_neighbors}",
)
@pytest.mark.parametrize("name", ["one chain", "masked residues"])
def test_sizes_of_networks(name: str, config: ModelConfig) -> None:
    """Other widths, depths and numbers of neighbors give the reference's sequences too."""
    S, log_probs = draw(name, "tied", config)
    expected_S, expected_log_probs = expected(name, "tied", config)
    np.testing.assert_array_equal(S, expected_S)
    np.testing.assert_allclose(log_probs, expected_log_probs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("ranks", ["any", "none before another", "by position"])
def test_teacher_forced_scores_under_any_rank(name: str, ranks: str) -> None:
    """Scores equal the reference's, also where ranks repeat, are negative, or hide everything."""
    flat, rng = structures(name), np.random.default_rng(1)
    S = rng.integers(0, 21, (4, flat.size))
    rank = {
        "any": rng.integers(-5, flat.size // 2 + 1, S.shape),
        "none before another": np.zeros_like(S),
        "by position": np.tile(np.arange(flat.size), (4, 1)),
    }[ranks]
    engine, other = native(SMALL), reference(SMALL)
    np.testing.assert_allclose(
        engine.log_probs(engine.encode(flat), S, rank),
        other.log_probs(other.encode(flat), S, rank),
        rtol=0,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_neighbors_are_the_reference_s(name: str) -> None:
    """Each structure's neighbors are those of `graph.neighbors`, masked ones last by position."""
    flat, engine = structures(name), native(SMALL)
    encoding = engine.encode(flat)
    for b, backbone in enumerate(BACKBONES[name]):
        X = torch.from_numpy(backbone.coords)[None, :, graph.CA]
        mask = torch.from_numpy(backbone.mask)[None]
        E_idx, _ = graph.neighbors(X, mask.float(), torch.ones_like(mask), SMALL.k_neighbors)
        found, real = engine.neighbors(encoding, b)
        assert found.shape == real.shape == (len(backbone), encoding.k)
        np.testing.assert_array_equal(found[:, : E_idx.shape[-1]], E_idx[0])
        assert (real.sum(1) == E_idx.shape[-1]).all()


@pytest.mark.parametrize("repeats", [False, True], ids=["each once", "some twice"])
@pytest.mark.parametrize("name", ["masked residues", "fewer complete residues than K"])
def test_given_neighbors(name: str, repeats: bool) -> None:
    """Neighbors found elsewhere are used as they are, masked and repeated ones at any place."""
    flat = structures(name)
    rng, k = np.random.default_rng(0), 9
    rows = [start + (rng.integers(0, n, (n, k)) if repeats else
                     rng.permuted(np.tile(np.arange(n), (n, 1)), axis=1)[:, :k])
            for start, n in zip(flat.offsets, flat.lengths, strict=True)]  # fmt: skip
    flat = replace(flat, E_idx=np.concatenate(rows))
    S, rank = flat.S[None], np.tile(np.arange(flat.size), (1, 1))
    engine, other = native(SMALL), reference(SMALL)
    encoding = engine.encode(flat)
    np.testing.assert_array_equal(engine.neighbors(encoding, 0)[0], flat.E_idx[: flat.lengths[0]])
    np.testing.assert_allclose(
        engine.log_probs(encoding, S, rank),
        other.log_probs(other.encode(flat), S, rank),
        rtol=0,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("name", ["made_two_chains", "made_short", "made_short_masked"])
@pytest.mark.parametrize("config", [WIDE, ModelConfig(2, 2, 64, 12)], ids=["3x128_k48", "2x64_k12"])
def test_published_numbers(name: str, config: ModelConfig) -> None:
    """Log-probabilities are those that the published implementation gave."""
    folder = Path(__file__).parent / "parity"
    given = np.load(folder / f"{name}.npz")
    size = f"{config.num_encoder_layers}x{config.hidden_dim}_k{config.k_neighbors}"
    published = np.load(folder / f"{name}__{size}.npz")
    mask = given["mask"] > 0
    rank = np.empty(len(mask), np.int64)
    rank[published["decoding_order"].ravel()] = np.arange(len(mask))
    flat = Flat(
        given["X"].astype(np.float32), mask, given["residue_idx"].astype(np.int64),
        given["chain_encoding_all"].astype(np.int64), given["S"].astype(np.int64), (len(mask),),
    )  # fmt: skip
    engine = native(config)
    encoding = engine.encode(flat)
    for ranks, key in ((rank, "log_probs"), (rank * 0, "unconditional_log_probs")):
        actual = engine.log_probs(encoding, flat.S[None], ranks[None])[0]
        np.testing.assert_allclose(actual[mask], published[key][mask], rtol=0, atol=1e-5)


def test_no_further_from_float64_than_torch() -> None:
    """Log-probabilities are as close to the network in float64 as those of the torch form."""
    flat = structures("one chain")
    job = jobs("one chain", "free")
    S = np.tile(flat.S, (3, 1))
    model = formula_weights(WIDE)
    engines = [
        native(WIDE),
        *(load_engine(m, "exact") for m in (model, formula_weights(WIDE).double())),
    ]
    compiled, single, double = (e.log_probs(e.encode(flat), S, job.rank) for e in engines)
    error = [float(np.sqrt(((x - double) ** 2).mean())) for x in (compiled, single)]
    assert error[0] < 1.3 * error[1], error


# --- bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["free", "tied"])
def test_bits_do_not_depend_on_the_batch(kind: str) -> None:
    """One sample of one structure has the bits that it has among other samples and structures."""
    name, engine = "different lengths", native(SMALL)
    flat, job = structures(name), jobs(name, kind, 5)
    S, log_probs = sampled(engine, engine.encode(flat), job)
    for b, backbone in enumerate(BACKBONES[name]):
        rows = slice(flat.offsets[b], flat.offsets[b] + flat.lengths[b])
        alone = engine.encode(Flat.from_backbones([backbone]))
        for samples in (slice(0, 1), slice(1, 3), slice(2, 5)):
            S_alone, log_probs_alone = sampled(engine, alone, subset(job, rows, samples))
            np.testing.assert_array_equal(S_alone, S[samples, rows])
            np.testing.assert_array_equal(log_probs_alone, log_probs[samples, rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_bits_do_not_depend_on_the_threads(kind: str, threads: int) -> None:
    """Any number of threads gives the same bits, on first and on later use."""
    for name in ("three chains", "different lengths"):
        expected_S, expected_log_probs = draw(name, kind)
        for _ in range(3):
            S, log_probs = draw(name, kind, threads=threads)
            np.testing.assert_array_equal(S, expected_S)
            np.testing.assert_array_equal(log_probs, expected_log_probs)


def test_sampler_and_scorer_agree() -> None:
    """Log-probabilities of the draws are the teacher-forced ones of what was drawn, to the bit."""
    engine = native(SMALL)
    for name in BACKBONES:
        encoding, job = engine.encode(structures(name)), jobs(name, "tied")
        S, log_probs = sampled(engine, encoding, job)
        np.testing.assert_array_equal(engine.log_probs(encoding, S, job.rank), log_probs)


def test_two_threads_of_the_caller_share_an_encoding() -> None:
    """Calls from several threads at once give what they give one after another."""
    engine, job = native(SMALL, 2), jobs("three chains", "free")
    encoding = engine.encode(structures("three chains"))
    expected_S = sampled(engine, encoding, job)[0]
    with ThreadPoolExecutor(4) as pool:
        for S, _ in pool.map(lambda _: sampled(engine, encoding, job), range(8)):
            np.testing.assert_array_equal(S, expected_S)


# --- published structures ------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "designed"),
    [("5L33", None), ("6MRR", None), ("3HTN", "AC"), ("4GYT", None), ("6EHB", None), ("4YOW", "A")],
)
def test_published_structures(
    data_dir: Path, weights_dir: Path, name: str, designed: str | None
) -> None:
    """On the published examples with published weights the sequences are the reference's."""
    backbone = read_structure(data_dir / "pdb" / f"{name}.pdb")
    chosen = backbone.chain_ids if designed is None else tuple(designed)
    backbone = backbone.arranged(chosen)
    model, _ = load_weights(weights_dir / "v_48_020.pt")
    flat = Flat.from_backbones([backbone])
    # Symmetric complexes have neighbors at equal distances; both engines get the same choice.
    batch = Batch.from_flat(flat)
    flat = replace(flat, E_idx=model.features.neighbors(batch)[0][0].numpy())
    each = Constraints.free(backbone.mask)
    each.designed[~np.isin(np.array(backbone.chain_ids)[backbone.chain_index], chosen)] = False
    job = make_job(flat.S, [each], [Key(37, n, 0.1) for n in range(2)])
    compiled = NativeEngine(model, library=native_library())
    S, log_probs = sampled(compiled, compiled.encode(flat), job)
    other = load_engine(model, "reference")
    samples = other.sample(other.encode(flat), job)
    np.testing.assert_array_equal(S, samples.S)
    np.testing.assert_allclose(log_probs, samples.log_probs, rtol=0, atol=1e-4)
