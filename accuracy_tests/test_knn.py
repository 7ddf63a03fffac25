"""Neighbors found on the host by a tree: the same graph as by distances and top-k."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_cases import CONFIG, STRUCTURES, engine_of
from synthetic_files import with_gaps

from mpnn import graph
from mpnn.flat import Flat
from mpnn.model import Batch
from mpnn.regression.claims import Claim
from mpnn.regression.outputs import SAME_DISTANCE, GraphPair, same_neighbors
from mpnn.regression.timing import PairedTiming
from mpnn.regression.workloads import accuracy, sides
from mpnn.synthetic import synthetic_backbone

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from mpnn.optimizations.knn import Nearest, ball_tree, kd_tree, with_neighbors

TREES = {"ball-tree": ball_tree, "kd-tree": kd_tree}
TOLERANCE = 1e-5
CASES = STRUCTURES | {
    "no complete residue": [with_gaps(synthetic_backbone(5), *range(5)), synthetic_backbone(8)],
    "long": [synthetic_backbone(150, chains=2)],
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("structures", CASES)
def test_same_neighbor_distances(structures: str, tree: Nearest) -> None:
    """Every residue's neighbors are as far away, slot by slot, as those of distances and top-k."""
    flat, k = Flat.from_backbones(CASES[structures]), CONFIG.k_neighbors
    found = Batch.from_flat(with_neighbors(flat, k, tree))
    ca, valid = found.X[:, :, graph.CA], found.valid
    pair_mask = found.mask[:, :, None] * found.mask[:, None]
    D = graph.row_adjusted(graph.distance(ca[:, :, None], ca[:, None]), pair_mask)
    D = D.masked_fill(~valid[:, None], torch.inf)
    E_idx, expected = graph.neighbors(ca, found.mask, valid, k)
    assert found.E_idx.shape == E_idx.shape
    assert all(len(set(row.tolist())) == len(row) for row in found.E_idx[valid])
    actual = D.gather(-1, found.E_idx)[valid]
    torch.testing.assert_close(actual, expected[valid], rtol=0, atol=TOLERANCE)


def test_given_neighbors_are_kept() -> None:
    """Structures that bring their neighbors are not searched again."""
    flat = Flat.from_backbones([synthetic_backbone(30)])
    given = flat.with_neighbors(np.tile(np.arange(5), (30, 1)))
    assert with_neighbors(given, 24, kd_tree) is given


@pytest.mark.parametrize("structures", STRUCTURES)
def test_the_exact_engine_with_a_tree(structures: str) -> None:
    """With a tree's graph the exact engine scores as the reference does without."""
    flat = Flat.from_backbones(STRUCTURES[structures])
    rank = np.random.default_rng(0).permutation(flat.size)[None]
    reference, exact = engine_of("reference"), engine_of("exact")
    given = with_neighbors(flat, CONFIG.k_neighbors, kd_tree)
    theirs = reference.log_probs(reference.encode(flat), flat.S[None], rank)
    ours = exact.log_probs(exact.encode(given), flat.S[None], rank)
    assert np.abs(ours - theirs)[0, flat.mask].max() < TOLERANCE


# --- the claim of the step alone --------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_the_search_alone_is_what_is_timed(name: str) -> None:
    """A claim on the step times E_idx of each protein on both sides, and holds for both trees."""
    claim = Claim("step", "", name, "neighbors-106")
    outputs = tuple({number: side.call(number) for number in range(2)} for side in sides(claim))
    assert all(E_idx.shape == (106, 48) for side in outputs for (E_idx,) in side.values())
    timing = PairedTiming((), (), (), (1, 1), 1, None, {}, 1.0, outputs)
    judged = accuracy(claim, timing)
    assert judged.passed
    assert judged.figures["max_abs_distance"] < TOLERANCE


def test_a_wrong_neighbor_is_seen() -> None:
    """One neighbor replaced by the next farther residue fails the check of the step."""
    protein = synthetic_backbone(60)
    flat, k = Flat.from_backbones([protein]), CONFIG.k_neighbors
    E_idx = with_neighbors(flat, k + 1, kd_tree).E_idx
    right, wrong = E_idx[:, :k], E_idx[:, :k].copy()
    wrong[20, -1] = E_idx[20, k]
    assert same_neighbors([GraphPair(protein, right, right.copy())]).passed
    judged = same_neighbors([GraphPair(protein, right, wrong)])
    assert not judged.passed
    assert judged.figures["max_abs_distance"] > SAME_DISTANCE
