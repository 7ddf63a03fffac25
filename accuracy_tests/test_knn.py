"""Neighbors found on the host by a tree: the same graph, in every engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from engines import HERE, cases
from made_up_files import with_gaps
from test_exact import BACKBONES

from mpnn import graph
from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.decoding import Constraints, Key, make_job
from mpnn.errors import InputError
from mpnn.optimizations import Engine, load_engine
from mpnn.regression.claims import Claim
from mpnn.regression.outputs import SAME_DISTANCE, GraphPair, same_neighbors
from mpnn.regression.timing import PairedTiming
from mpnn.regression.workloads import accuracy, sides
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from mpnn.optimizations.knn import Nearest, ball_tree, kd_tree, with_neighbors

CONFIG = ModelConfig(1, 2, 32, 24)
TREES = {"BallTreeEngine": ball_tree, "KDTreeEngine": kd_tree}
TOLERANCE = 1e-5


CASES = BACKBONES | {
    "one residue": [made_up_backbone(1)],
    "no complete residue": [with_gaps(made_up_backbone(5), *range(5)), made_up_backbone(8)],
}


@pytest.fixture(params=CASES)
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch.from_backbones(CASES[request.param])


def engine_named(cls: str) -> Engine:
    return load_engine(f"mpnn.optimizations.knn:{cls}", formula_weights(CONFIG))


def distances(batch: Batch, E_idx: torch.Tensor) -> torch.Tensor:
    """Distances as the network sees them, infinite to padding: [B, L, K]."""
    ca = batch.X[:, :, graph.CA]
    pair_mask = batch.mask[:, :, None] * batch.mask[:, None]
    D = graph.row_adjusted(graph.distance(ca[:, :, None], ca[:, None]), pair_mask)
    return D.masked_fill(~batch.valid[:, None], torch.inf).gather(-1, E_idx)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_same_neighbor_distances(batch: Batch, tree: Nearest) -> None:
    """Every residue's neighbors are as far away, slot by slot, as those of distances and top-k."""
    found = with_neighbors(batch, CONFIG.k_neighbors, tree).E_idx
    ca = batch.X[:, :, graph.CA]
    E_idx, _ = graph.neighbors(ca, batch.mask, batch.valid, CONFIG.k_neighbors)
    assert found.shape == E_idx.shape
    assert all(len(set(row.tolist())) == len(row) for row in found.flatten(0, 1))
    expected = distances(batch, E_idx)[batch.valid]
    torch.testing.assert_close(
        distances(batch, found)[batch.valid], expected, rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("cls", TREES)
def test_neighbors_within_a_structure(batch: Batch, cls: str) -> None:
    """An engine's graph counts residues within each structure and knows which slots are real."""
    engine = engine_named(cls)
    reference = load_engine("reference", formula_weights(CONFIG))
    for b, length in enumerate(batch.lengths.tolist()):
        E_idx, real = engine.neighbors(engine.encode(batch), b)
        K = min(CONFIG.k_neighbors, batch.X.shape[1])
        assert E_idx.shape == real.shape == (length, K)
        assert np.array_equal(real, E_idx < length)
        assert np.array_equal(real, reference.neighbors(batch, b)[1])


@pytest.mark.parametrize("cls", TREES)
@pytest.mark.parametrize("name", [name for name in CASES if name != "no complete residue"])
def test_whole_model_is_the_reference(name: str, cls: str) -> None:
    """Scores and letters are the reference's, with gaps and padding too."""
    batch = Batch.from_backbones(CASES[name])
    constraints = [Constraints.free(backbone.mask) for backbone in CASES[name]]
    job = make_job(batch.S.numpy(), constraints, [Key(1, n, 0.5) for n in range(2)])
    engines = [load_engine("reference", formula_weights(CONFIG)), engine_named(cls)]
    theirs, ours = (engine.sample(engine.encode(batch), job) for engine in engines)
    assert np.array_equal(ours.S, theirs.S)
    complete = batch.mask.numpy() > 0
    difference = np.abs(ours.log_probs - theirs.log_probs).max((1, 3))
    assert difference[complete].max() < TOLERANCE


@pytest.mark.parametrize("name", BACKBONES)
def test_the_exact_engine_with_a_tree(name: str) -> None:
    """With a tree's graph the exact engine scores as the reference does without."""
    model = formula_weights(CONFIG)
    batch = Batch.from_backbones(CASES[name])
    S = batch.S.numpy()[:, None]
    rank = np.random.default_rng(0).permutation(S.shape[-1]) + np.zeros_like(S)
    reference, exact = load_engine("reference", model), load_engine("exact", model)
    given = with_neighbors(batch, CONFIG.k_neighbors, kd_tree)
    theirs = reference.log_probs(batch, S, rank)[:, 0]
    ours = exact.log_probs(exact.encode(given), S, rank)[:, 0]
    complete = batch.mask.numpy() > 0
    assert np.abs(ours - theirs)[complete].max() < TOLERANCE


@pytest.mark.parametrize("engine", cases(HERE))
def test_every_engine_takes_given_neighbors(engine: str) -> None:
    """With a graph of its own in the batch every engine follows the reference there."""
    model = formula_weights(CONFIG)
    proteins = [made_up_backbone(40, seed=1), made_up_backbone(31, seed=2)]
    batch = Batch.from_backbones(proteins)
    # A sparser graph than the network's own: every second of its neighbors, in another order.
    own = graph.neighbors(batch.X[:, :, graph.CA], batch.mask, batch.valid, CONFIG.k_neighbors)[0]
    given = dataclasses.replace(batch, E_idx=own[..., 0:24:2].flip(-1).contiguous())
    S = batch.S.numpy()[:, None]
    rank = np.stack([np.random.default_rng(n).permutation(40) for n in range(2)])[:, None]
    reference = load_engine("reference", model)
    try:
        runner = load_engine(engine, model)
    except InputError as error:
        pytest.skip(str(error))
    valid = batch.valid.numpy()
    theirs, plain, ours = (
        e.log_probs(e.encode(b), S, rank)[:, 0][valid]
        for e, b in [(reference, given), (reference, batch), (runner, given)]
    )
    moved = np.abs(theirs - plain).max()
    assert moved > 0.1
    assert np.abs(ours - theirs).max() < 0.2 * moved


def test_given_neighbors_are_kept() -> None:
    """A batch that brings its neighbors is not searched again."""
    batch = Batch.from_backbones([made_up_backbone(30)])
    given = dataclasses.replace(batch, E_idx=torch.arange(5).expand(1, 30, 5))
    assert with_neighbors(given, 24, kd_tree) is given


# --- the claim of the step alone --------------------------------------------------------------


@pytest.mark.parametrize("cls", TREES)
def test_the_search_alone_is_what_is_timed(cls: str) -> None:
    """A claim on the step times E_idx of each protein on both sides, and holds for both trees."""
    claim = Claim("step", "", f"mpnn.optimizations.knn:{cls}", "neighbors-106")
    outputs = tuple({number: side.call(number) for number in range(2)} for side in sides(claim))
    assert all(E_idx.shape == (106, 48) for side in outputs for (E_idx,) in side.values())
    timing = PairedTiming((), (), (), (1, 1), 1, None, outputs)
    judged = accuracy(claim, timing)
    assert judged.passed
    assert judged.figures["max_abs_distance"] < TOLERANCE


def test_a_wrong_neighbor_is_seen() -> None:
    """One neighbor replaced by the next farther residue fails the check of the step."""
    protein = made_up_backbone(60)
    E_idx = engine_named("KDTreeEngine").encode(Batch.from_backbones([protein])).E_idx[0].numpy()
    wrong = E_idx.copy()
    farther = with_neighbors(Batch.from_backbones([protein]), 25, kd_tree).E_idx[0, :, 24]
    wrong[20, -1] = farther[20]
    judged = same_neighbors([GraphPair(protein, E_idx, wrong)])
    assert not judged.passed
    assert judged.figures["max_abs_distance"] > SAME_DISTANCE
