"""The exact engine: each identity alone, then whole jobs against the reference."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_files import with_gaps

from mpnn import graph
from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.decoding import Constraints, Job, Key, Samples, make_job, with_coloured_order
from mpnn.equality import ROUNDING, flips, largest_difference
from mpnn.errors import InputError
from mpnn.model import MESSAGE_SCALE, ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.optimizations.exact.blocks import (
    FUSED_ROWS,
    SMALL,
    Affine,
    Message,
    NodeUpdate,
    fuses,
    gelu_,
)
from mpnn.optimizations.exact.engine import steps_of
from mpnn.optimizations.exact.ragged import EdgeFeatures, RaggedBatch
from mpnn.optimizations.exact.workers import Buffers, Loans, Workers
from mpnn.optimizations.reference import published_encode, published_visibility
from mpnn.structure import read_structure
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights, load_weights

CONFIG = ModelConfig(2, 3, 64, 24)
CPU = torch.device("cpu")
IDENTITY = 1e-12  # float64
SINGLE = 2e-5  # float32, weights by formula


def model_of(dtype: torch.dtype = torch.float64) -> ProteinMPNN:
    return formula_weights(CONFIG).to(dtype)


BACKBONES = {
    "one chain": [made_up_backbone(70)],
    "three chains": [made_up_backbone(75, chains=3)],
    "shorter than K": [made_up_backbone(15)],
    "masked residues": [with_gaps(made_up_backbone(60), 3, 4, 30, 59)],
    "fewer complete residues than K": [
        with_gaps(made_up_backbone(33), *range(3, 22)),
        made_up_backbone(40, seed=1),
    ],
    "different lengths": [made_up_backbone(n, seed=n) for n in (50, 11, 33)],
}


@pytest.fixture(params=BACKBONES)
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch.from_backbones(BACKBONES[request.param], dtype=torch.float64)


def ragged(batch: Batch, threads: int = 1) -> tuple[RaggedBatch, Workers]:
    workers = Workers(CPU, threads)
    found = workers.run(lambda: RaggedBatch.from_batch(batch, CONFIG.k_neighbors, workers))
    return found, workers


# --- identities -----------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("name", ["W1", "W11"])
def test_w1_split_by_blocks(name: str) -> None:
    """A·h_i + E·h_E + V·h_j + b is W1 of the concatenation, before and after W2."""
    layer = model_of().encoder_layers[0]
    W1, W2 = getattr(layer, name), getattr(layer, name[:-1] + "2")
    message = Message(W1, W2)
    h_i, h_E, h_j = torch.randn(3, 10, CONFIG.hidden_dim, dtype=torch.float64).unbind(0)
    split = message.A(h_i) + message.E(h_E) + message.V(h_j)
    whole = W1(torch.cat([h_i, h_E, h_j], -1))
    torch.testing.assert_close(split, whole, rtol=0, atol=IDENTITY)
    expected = torch.nn.functional.gelu(W2(torch.nn.functional.gelu(whole)))
    actual = message(split, torch.empty_like(split))
    torch.testing.assert_close(actual, expected, rtol=0, atol=IDENTITY)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [FUSED_ROWS - 1, FUSED_ROWS])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_products_in_either_library(
    rows: int, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x·Wᵀ + b, its GELU and its sum are float64's up to rounding, whichever library makes them."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert not (fuses() and capability == "AVX2")
    x, onto = torch.randn(rows, 48), torch.randn(rows, 24)
    W, b = torch.randn(24, 48), torch.randn(24)
    product = Affine(W, b)
    assert product._fused(x) == (rows >= FUSED_ROWS and fuses())
    exact = x.double() @ W.double().t() + b.double()
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=2e-5)
    close(product(x).double(), exact)
    close(product(x, torch.empty(rows, 24)).double(), exact)
    close(product.gelu(x).double(), torch.nn.functional.gelu(exact))
    close(product.plus(x, onto.clone()).double(), onto.double() + exact)
    close(Affine(W)(x).double(), exact - b.double())


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True])
def test_w3_after_the_sum(masked: bool) -> None:
    """W3 of the summed messages is the sum of W3 of each, with and without a mask."""
    layer = model_of().decoder_layers[0]
    T, K, C = 5, 7, CONFIG.hidden_dim
    h, m = torch.randn(T, C, dtype=torch.float64), torch.randn(T, K, C, dtype=torch.float64)
    edge_mask = (torch.rand(T, K) > 0.3).double() if masked else torch.ones(T, K).double()
    total = (layer.W3(m) * edge_mask[..., None]).sum(1) / MESSAGE_SCALE
    expected = layer.norm1(h + total)
    expected = layer.norm2(expected + layer.dense(expected))
    node_mask = torch.tensor([1.0, 1, 0, 1, 1]).double()
    actual = NodeUpdate(layer)(h, m, edge_mask if masked else None, node_mask)
    torch.testing.assert_close(actual, expected * node_mask[:, None], rtol=0, atol=IDENTITY)


@pytest.mark.parametrize("size", [SMALL - 1, SMALL])
def test_gelu_is_exact_on_both_sides_of_small(size: int) -> None:
    """The small and the large path are the erf form in place."""
    x = torch.linspace(-9, 9, size, dtype=torch.float64)
    expected = torch.nn.functional.gelu(x)
    result = gelu_(x)
    assert result.data_ptr() == x.data_ptr()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)


@torch.inference_mode()
def test_memory_is_lent_until_its_borrower_is_collected() -> None:
    """While a borrower lives its memory is its own; afterwards the next loan is the same memory."""

    class Borrower:
        pass

    loans, like, borrower = Loans(), torch.zeros(1), Borrower()
    first = loans.take(like, 4, 6)
    loans.until_collected(borrower, first)
    assert loans.take(like, 2, 6).data_ptr() != first.data_ptr()
    del borrower
    again = loans.take(like, 2, 6)
    assert again.data_ptr() == first.data_ptr()
    loans.until_collected(other := Borrower(), again)
    del other
    assert loans.take(like, 4, 6).data_ptr() == first.data_ptr()  # the whole came back
    assert loans.take(like, 5, 6).shape == (5, 6)


@torch.inference_mode()
def test_edge_features_in_tiles(batch: Batch) -> None:
    """Offsets by table and radial functions by tile equal the reference's edge vectors."""
    model = model_of()
    found, _ = ragged(batch)
    features = EdgeFeatures(model, Buffers(CPU, torch.float64))
    out = torch.empty(found.size, found.E_idx.shape[1], CONFIG.hidden_dim, dtype=torch.float64)
    for start in range(0, found.size, 8):
        rows = slice(start, min(start + 8, found.size))
        features(found, features.atoms(found), rows, out[rows].view(-1, CONFIG.hidden_dim))
    E, E_idx = model.features(batch)
    expected = model.W_e(E)[batch.valid]  # [R, K, C]
    real = graph.gather_nodes(batch.valid, E_idx)[batch.valid]
    torch.testing.assert_close(out[real], expected[real], rtol=0, atol=1e-11)


@torch.inference_mode()
def test_search_in_tiles(batch: Batch) -> None:
    """Neighbors found a few rows at a time are those of the whole distance matrix."""
    found, _ = ragged(batch, threads=2)
    E_idx, D = graph.neighbors(batch.X[:, :, graph.CA], batch.mask, batch.valid, CONFIG.k_neighbors)
    real = graph.gather_nodes(batch.valid, E_idx)[batch.valid]
    torch.testing.assert_close(found.D[real], D[batch.valid][real], rtol=0, atol=0)


def test_ranks_are_the_published_order_mask() -> None:
    """rank_j < rank_i is the product of permutation matrices, tied ranks included."""
    rank = torch.stack([torch.randperm(20), torch.tensor([0, 1, 1, 3, 4] * 4)])
    expected = (rank[:, None, :] < rank[:, :, None]).float()
    torch.testing.assert_close(published_visibility(rank), expected, rtol=0, atol=0)


@torch.inference_mode()
def test_published_features_are_the_reference_s(batch: Batch) -> None:
    """Measuring all L × L pairs, as published, gives the same encoding as the K neighbors."""
    model = model_of()
    for published, reference in zip(
        published_encode(model, batch), model.encode(batch), strict=True
    ):
        torch.testing.assert_close(published, reference, rtol=0, atol=1e-11)


# --- whole jobs -----------------------------------------------------------------------------


def constraints_of(batch: Batch, kind: str) -> list[Constraints]:
    """Free, fixed, tied or biased constraints of every structure."""
    constraints = []
    for b, length in enumerate(batch.lengths.tolist()):
        c = Constraints.free(batch.mask[b, :length].numpy() > 0)
        half = length // 2
        if kind == "fixed":
            c.designed[np.arange(length) % 10 > 0] = False
        if kind == "tied":
            tied = np.arange(0, half, 3)
            tied = tied[c.designed[tied] & c.designed[tied + half]]
            c.tie_group[tied + half] = tied
            c.tie_weight[tied] = 0.5
        if kind == "biased":
            c.bias[:, 0] -= 1.1
            c.bias[half, 5] += 3.0
        constraints.append(c)
    return constraints


def job_of(batch: Batch, kind: str = "free", samples: int = 3, temperature: float = 0.3) -> Job:
    keys = [Key(7, n, temperature) for n in range(samples)]
    return make_job(batch.S.numpy(), constraints_of(batch, kind), keys)


def assert_same(job: Job, expected: Samples, actual: Samples, tolerance: float) -> None:
    """Sequences are equal but for near-ties that rounding flips, which are named."""
    found = flips(job, expected, actual)
    assert all(flip.is_rounding for flip in found), found
    assert len(found) <= 1, f"more near-ties than can be chance: {found}"
    assert largest_difference(expected, actual) < tolerance


def on_valid(batch: Batch, samples: Samples) -> Samples:
    """The samples with 0 at the padding, where engines may say anything."""
    valid = batch.valid.numpy()[:, None]
    return Samples(np.where(valid, samples.S, 0), np.where(valid[..., None], samples.log_probs, 0))


@pytest.mark.parametrize("name", ["exact", "jacobi"])
@pytest.mark.parametrize("kind", ["free", "fixed", "tied", "biased"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_same_sequences_as_the_reference(
    batch: Batch, name: str, kind: str, dtype: torch.dtype
) -> None:
    """Same seed, same sequences and log-probabilities, for every kind of job and structure."""
    model = model_of(dtype)
    batch = dataclasses.replace(batch, X=batch.X.to(dtype), mask=batch.mask.to(dtype))
    job = job_of(batch, kind)
    expected, actual = (
        engine.sample(engine.encode(batch), job)
        for engine in (load_engine("reference", model), load_engine(name, model))
    )
    expected, actual = on_valid(batch, expected), on_valid(batch, actual)
    assert_same(job, expected, actual, 1e-10 if dtype == torch.float64 else SINGLE)


def test_sampler_and_scorer_agree(batch: Batch) -> None:
    """Log-probabilities of the draws are the teacher-forced ones of what was drawn."""
    engine = load_engine("exact", model_of())
    encoding = engine.encode(batch)
    for kind in ("free", "fixed", "tied"):
        job = job_of(batch, kind)
        samples = engine.sample(encoding, job)
        scored = engine.log_probs(encoding, samples.S, job.rank)
        np.testing.assert_allclose(samples.log_probs, scored, rtol=0, atol=1e-12)


def test_samples_do_not_depend_on_the_split() -> None:
    """One sample at a time, all at once, one structure or several: the same sequences."""
    backbones = BACKBONES["different lengths"]
    batch = Batch.from_backbones(backbones)
    engine = load_engine("exact", model_of(torch.float32))
    together = engine.sample(engine.encode(batch), job_of(batch, samples=4)).S
    for b, backbone in enumerate(backbones):
        alone = Batch.from_backbones([backbone])
        for n in range(4):
            job = make_job(alone.S.numpy(), constraints_of(alone, "free"), [Key(7, n, 0.3)])
            S = engine.sample(engine.encode(alone), job).S[0, 0]
            np.testing.assert_array_equal(S, together[b, n, : len(backbone)])


def test_samples_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread and three give the same sequences, and scores equal but for rounding."""
    batch = Batch.from_backbones(BACKBONES["one chain"])
    job = job_of(batch, samples=5)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        engine = load_engine("exact", model_of(torch.float32))
        results.append(engine.sample(engine.encode(batch), job))
    np.testing.assert_array_equal(results[0].S, results[1].S)
    assert largest_difference(*results) < SINGLE


def test_coloured_order_gives_legal_samples(batch: Batch) -> None:
    """Under the color-class order too the sequences equal the reference's, in fewer steps."""
    model = model_of()
    engines = [load_engine(name, model) for name in ("reference", "exact")]
    encodings = [engine.encode(batch) for engine in engines]
    graphs = [
        [engine.neighbors(encoding, b) for b in range(len(batch.mask))]
        for engine, encoding in zip(engines, encodings, strict=True)
    ]
    random = job_of(batch)
    job = with_coloured_order(random, graphs[1])
    np.testing.assert_array_equal(job.rank, with_coloured_order(random, graphs[0]).rank)
    expected, actual = (
        engine.sample(encoding, job) for engine, encoding in zip(engines, encodings, strict=True)
    )
    assert_same(job, on_valid(batch, expected), on_valid(batch, actual), 1e-10)
    ragged_batch = encodings[1].graph
    assert steps_of(ragged_batch, job).max() <= steps_of(ragged_batch, random).max()


def test_coloured_order_refuses_ties() -> None:
    """Tied residues have no color of their own, so the order says no."""
    batch = Batch.from_backbones(BACKBONES["one chain"])
    with pytest.raises(InputError, match="tied"):
        with_coloured_order(job_of(batch, "tied"), [])


def test_a_flip_that_is_no_near_tie_is_told() -> None:
    """The comparison names a planted difference, and calls it no rounding."""
    batch = Batch.from_backbones(BACKBONES["one chain"])
    job = job_of(batch)
    engine = load_engine("exact", model_of(torch.float32))
    samples = engine.sample(engine.encode(batch), job)
    other = samples.S.copy()
    other[0, 1, 20] = (other[0, 1, 20] + 1) % 20
    found = flips(job, samples, Samples(other, samples.log_probs))
    assert [(f.sample, f.residue, f.is_rounding) for f in found] == [(1, 20, False)]


FORKED = """
import os, signal, sys, torch
from mpnn.optimizations.exact.workers import Workers
workers = Workers(torch.device("cpu"), 2)
def work():
    done = []
    workers.map(done.append, range(8))
    return len(done)
assert workers.run(work) == 8
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(300)
os._exit(0 if workers.run(work) == 8 else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """A child of a process that has used an engine can use it too: threads are not inherited."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert subprocess.run(command, check=False).returncode == 0


def test_an_error_in_a_tile_reaches_the_caller() -> None:
    """An exception on any thread is raised where the work was asked for."""
    workers = Workers(CPU, 2)

    def fail(item: int) -> None:
        if item == 3:
            raise ZeroDivisionError("tile 3")

    with pytest.raises(ZeroDivisionError, match="tile 3"):
        workers.run(lambda: workers.map(fail, range(8)))


def test_nothing_goes_on_after_an_error_in_a_tile() -> None:
    """When the error arrives no other thread writes any more, and what was left is not begun."""
    workers, leader_failed = Workers(CPU, 2), threading.Event()
    begun, ended = [], []

    def tile(item: int) -> None:
        begun.append(item)
        if threading.current_thread() is leader:
            if len(begun) == 1:
                helper_works.wait()
            leader_failed.set()
            raise ZeroDivisionError
        helper_works.set()
        if leader_failed.wait() and ended:
            time.sleep(0.05)  # long enough for the leader to say that it failed
        ended.append(item)

    helper_works = threading.Event()
    leader = workers.run(threading.current_thread)
    with pytest.raises(ZeroDivisionError):
        workers.run(lambda: workers.map(tile, range(40)))
    assert len(ended) == len(begun) - 1 < 39


# --- published structures -------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "designed"),
    [
        ("5L33", None),
        ("6MRR", None),
        ("3HTN", ["A", "C"]),
        ("4GYT", None),
        ("6EHB", None),
        ("4YOW", ["A"]),
    ],
)
def test_published_structures(
    data_dir: Path, weights_dir: Path, name: str, designed: list[str] | None
) -> None:
    """On the published examples with published weights the sequences are the reference's."""
    backbone = read_structure(data_dir / "pdb" / f"{name}.pdb")
    chosen = backbone.chain_ids if designed is None else tuple(designed)
    backbone = backbone.arranged(chosen)
    batch = Batch.from_backbones([backbone])
    model, _ = load_weights(weights_dir / "v_48_020.pt")
    # Symmetric complexes have neighbors at equal distances; both engines get the same choice.
    E_idx = model.features.neighbors(batch)[0]
    batch = dataclasses.replace(batch, E_idx=E_idx)
    constraints = Constraints.free(backbone.mask)
    chains = np.array(backbone.chain_ids)[backbone.chain_index]
    constraints.designed[~np.isin(chains, chosen)] = False
    keys = [Key(37, n, 0.1) for n in range(2)]
    job = make_job(batch.S.numpy(), [constraints], keys)
    expected, actual = (
        engine.sample(engine.encode(batch), job)
        for engine in (load_engine("reference", model), load_engine("exact", model))
    )
    assert_same(job, expected, actual, ROUNDING)
