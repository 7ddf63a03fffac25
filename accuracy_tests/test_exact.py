"""The exact engine: each identity alone, its threads, and published structures."""

from __future__ import annotations

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
from engine_cases import (
    CONFIG,
    STRUCTURES,
    TOLERANCE,
    assert_same,
    engine_of,
    flat_of,
    job_of,
    network,
)

from mpnn import graph
from mpnn.equality import ROUNDING, flips, largest_difference
from mpnn.flat import Flat
from mpnn.model import MESSAGE_SCALE, Batch, ProteinMPNN
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
from mpnn.optimizations.exact.graph import EdgeFeatures, FlatGraph
from mpnn.optimizations.exact.workers import BufferPool, Buffers, Workers
from mpnn.optimizations.reference import published_encode, published_visibility
from mpnn.sampling import Constraints, Key, Samples, make_job, with_graph_coloring
from mpnn.schedule import steps_of
from mpnn.structure import read_structure
from mpnn.weights import load_weights

CPU = torch.device("cpu")
IDENTITY = 1e-12  # float64


@pytest.fixture(params=STRUCTURES)
def structures(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def flat(structures: str) -> Flat:
    return flat_of(structures)


@pytest.fixture
def batch(flat: Flat) -> Batch:
    return Batch.from_flat(flat, dtype=torch.float64)


def model_of() -> ProteinMPNN:
    return network("float64")


def graph_of(flat: Flat, threads: int = 1) -> FlatGraph:
    workers = Workers(CPU, threads)
    find = functools.partial(FlatGraph.of, dtype=torch.float64, for_each=workers.map)
    return workers.run(lambda: find(flat, CONFIG.k_neighbors))


def real_slots(batch: Batch, E_idx: torch.Tensor) -> torch.Tensor:
    """Where the neighbors of the padded structures are no padding, [R, K]."""
    return graph.gather_nodes(batch.valid, E_idx)[batch.valid]


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
def test_buffers_are_reused_once_their_owner_is_collected() -> None:
    """While an owner lives its memory is its own; afterwards the pool gives the same memory."""

    class Owner:
        pass

    pool, like, owner = BufferPool(), torch.zeros(1), Owner()
    first = pool.take(like, 4, 6)
    pool.until_collected(owner, first)
    assert pool.take(like, 2, 6).data_ptr() != first.data_ptr()
    del owner
    again = pool.take(like, 2, 6)
    assert again.data_ptr() == first.data_ptr()
    pool.until_collected(other := Owner(), again)
    del other
    assert pool.take(like, 4, 6).data_ptr() == first.data_ptr()  # the whole came back
    assert pool.take(like, 5, 6).shape == (5, 6)


@torch.inference_mode()
def test_edge_features_in_tiles(flat: Flat, batch: Batch) -> None:
    """Offsets by table and radial functions by tile equal the reference's edge vectors."""
    model, found, C = model_of(), graph_of(flat), CONFIG.hidden_dim
    features = EdgeFeatures(model, Buffers(CPU, torch.float64))
    out = torch.empty(found.size, found.E_idx.shape[1], C, dtype=torch.float64)
    for start in range(0, found.size, 8):
        rows = slice(start, min(start + 8, found.size))
        features(found, features.atoms(found), rows, out[rows].view(-1, C))
    E, E_idx = model.features(batch)
    expected, real = model.W_e(E)[batch.valid], real_slots(batch, E_idx)
    torch.testing.assert_close(out[real], expected[real], rtol=0, atol=1e-11)


@torch.inference_mode()
def test_search_in_tiles(flat: Flat, batch: Batch) -> None:
    """Neighbors found a few rows at a time are those of the whole distance matrix."""
    found = graph_of(flat, threads=2)
    E_idx, D = graph.neighbors(batch.X[:, :, graph.CA], batch.mask, batch.valid, CONFIG.k_neighbors)
    real = real_slots(batch, E_idx)
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


# --- schedules and threads ------------------------------------------------------------------


def test_sampler_and_scorer_agree_to_the_last_digits(structures: str, flat: Flat) -> None:
    """Log-probabilities when sampling are the teacher-forced ones of what was sampled."""
    engine = engine_of("exact", "float64")
    encoding = engine.encode(flat)
    for kind in ("free", "fixed", "tied"):
        job = job_of(STRUCTURES[structures], kind)
        samples = engine.sample(encoding, job)
        scored = engine.log_probs(encoding, samples.S, job.rank)
        np.testing.assert_allclose(samples.log_probs, scored, rtol=0, atol=IDENTITY)


def test_samples_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread and three give the same sequences, and scores equal but for rounding."""
    flat, results = flat_of("several"), []
    job = job_of(STRUCTURES["several"], samples=5)
    monkeypatch.setattr("mpnn.optimizations.exact.engine.ROWS_PER_WORKER", 1)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        engine = load_engine(network(), "exact")
        results.append(engine.sample(engine.encode(flat), job))
    np.testing.assert_array_equal(results[0].S, results[1].S)
    assert largest_difference(*results) < TOLERANCE["float32"]


@pytest.mark.parametrize("structures", ["one chain", "several"])
def test_graph_coloring_order_gives_legal_samples(structures: str) -> None:
    """Under the graph-coloring order too the sequences equal the reference's, in fewer steps."""
    flat, job = flat_of(structures), job_of(STRUCTURES[structures])
    engines = [engine_of(name, "float64") for name in ("reference", "exact")]
    encodings = [engine.encode(flat) for engine in engines]
    graphs = [
        [engine.neighbors(encoding, b) for b in range(len(flat.lengths))]
        for engine, encoding in zip(engines, encodings, strict=True)
    ]
    colored = [with_graph_coloring(job, found) for found in graphs]
    np.testing.assert_array_equal(colored[0].rank, colored[1].rank)
    assert steps_of(colored[0], graphs[0]).max() < steps_of(job, graphs[0]).max()
    expected, actual = (
        engine.sample(encoding, colored[0])
        for engine, encoding in zip(engines, encodings, strict=True)
    )
    assert_same(colored[0], expected, actual, TOLERANCE["float64"], flat.lengths)


def test_a_difference_that_is_no_near_tie_is_told() -> None:
    """The comparison names a planted difference in its structure, and calls it no rounding."""
    flat, job = flat_of("several"), job_of(STRUCTURES["several"])
    engine = engine_of("exact")
    samples = engine.sample(engine.encode(flat), job)
    other = samples.S.copy()
    for residue in (20, 60):  # of two structures
        other[1, residue] = (other[1, residue] + 1) % 20
    found = flips(job, samples, Samples(other, samples.log_probs), flat.lengths)
    expected = [(1, 20, False), (1, 60, False)]
    assert [(f.sample, f.residue, f.is_rounding) for f in found] == expected


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
    workers, main_failed = Workers(CPU, 2), threading.Event()
    begun, ended = [], []

    def tile(item: int) -> None:
        begun.append(item)
        if threading.current_thread() is main:
            if len(begun) == 1:
                helper_works.wait()
            main_failed.set()
            raise ZeroDivisionError
        helper_works.set()
        if main_failed.wait() and ended:
            time.sleep(0.05)  # long enough for the main thread to say that it failed
        ended.append(item)

    helper_works = threading.Event()
    main = workers.run(threading.current_thread)
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
    flat = Flat.from_backbones([backbone])
    model, _ = load_weights(weights_dir / "v_48_020.pt")
    reference, exact = load_engine(model, "reference"), load_engine(model, "exact")
    # Symmetric complexes have neighbors at equal distances; both engines get the same choice.
    flat = flat.with_neighbors(reference.neighbors(reference.encode(flat), 0)[0])
    constraints = Constraints.free(backbone.mask)
    chains = np.array(backbone.chain_ids)[backbone.chain_index]
    constraints.designed[~np.isin(chains, chosen)] = False
    job = make_job(flat.S, [constraints], [Key(37, n, 0.1) for n in range(2)])
    expected, actual = (e.sample(e.encode(flat), job) for e in (reference, exact))
    assert_same(job, expected, actual, ROUNDING)
