"""Orders, ranks, wavefronts, graph coloring and the rows of each step, before any network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnn.errors import InputError
from mpnn.sampling import Constraints, Job, Key, make_job, noise, with_graph_coloring
from mpnn.schedule import (
    StepRows,
    decoding_order,
    graph_coloring,
    rank_of,
    steps_of,
    wavefront,
)


def random_graph(length: int, k: int, seed: int) -> np.ndarray:
    """Neighbor lists [L, K] of random points, the point itself first."""
    points = np.random.default_rng(seed).normal(size=(length, 3))
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    return np.argsort(distance, axis=1)[:, :k]


def ranks(length: int, samples: int, tie_group: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random ranks [N, L] with all residues designed."""
    designed = np.ones(length, bool)
    return np.stack(
        [
            rank_of(decoding_order(designed, noise(seed, n, length)[1]), tie_group)
            for n in range(samples)
        ]
    )


def longest_path(rank: np.ndarray, E_idx: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Steps [L] by the definition: one more than the largest step among the dependencies."""
    step = np.zeros(len(rank), np.int64)
    for r in np.unique(rank):
        members = np.flatnonzero(rank == r)
        dependencies = [j for i in members for j in E_idx[i] if rank[j] < r]
        step[members] = 1 + max((step[j] for j in dependencies), default=0)
        assert len(np.unique(group[members])) == 1
    return step


def test_fixed_residues_come_first() -> None:
    """Residues that are not designed stand before designed ones in the order."""
    designed = np.arange(60) % 3 == 0
    order = decoding_order(designed, noise(0, 0, 60)[1])
    assert not designed[order[:40]].any()
    assert sorted(order) == list(range(60))


def test_tied_residues_share_the_first_rank() -> None:
    """Members of a tie take the rank of the first of them to come, others keep theirs."""
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_array_equal(rank_of(order), [2, 3, 1, 4, 0])
    np.testing.assert_array_equal(rank_of(order, np.array([0, 1, 2, 2, 4])), [2, 3, 1, 1, 0])


@given(
    length=st.integers(1, 40),
    k=st.integers(1, 12),
    samples=st.integers(1, 3),
    ties=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_wavefront_is_the_longest_path_of_dependencies(
    length: int, k: int, samples: int, ties: int, seed: int
) -> None:
    """Steps equal the definition: none depends on its own step, none comes later than needed."""
    group = np.arange(length)
    for i in range(min(ties, length // 2)):
        group[length // 2 + i] = i
    E_idx = random_graph(length, min(k, length), seed)
    rank = ranks(length, samples, group, seed)
    real = np.ones_like(E_idx, bool)
    steps = wavefront(rank, np.ones(length, bool), E_idx, real, group)
    for n in range(samples):
        np.testing.assert_array_equal(steps[n], longest_path(rank[n], E_idx, group))


def test_known_residues_need_no_step() -> None:
    """Residues that keep their type and come first are step 0; the others take fewer steps."""
    length = 80
    E_idx = random_graph(length, 12, 0)
    designed = np.arange(length) % 10 == 0
    normal = noise(0, 0, length)[1]
    group, real = np.arange(length), np.ones_like(E_idx, bool)
    few = rank_of(decoding_order(designed, normal))[None]
    step = wavefront(few, designed, E_idx, real, group)[0]
    assert (step[~designed] == 0).all()
    assert (step[designed] > 0).all()
    everything = wavefront(ranks(length, 1, group), np.ones(length, bool), E_idx, real, group)
    assert step.max() < everything.max()
    assert wavefront(few, np.zeros(length, bool), E_idx, real, group).max() == 0


def test_known_residue_after_a_designed_one_depends_on_it() -> None:
    """A fixed residue that comes after a designed neighbor is computed after it."""
    E_idx = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    rank, designed = np.array([[0, 1, 2]]), np.array([True, False, True])
    step = wavefront(rank, designed, E_idx, np.ones_like(E_idx, bool), np.arange(3))
    np.testing.assert_array_equal(step, [[1, 2, 3]])


def test_graph_coloring_takes_fewer_steps_and_keeps_fixed_first() -> None:
    """Color classes hold no neighbors, so steps equal colors; fixed residues stay first."""
    length = 200
    E_idx = random_graph(length, 12, 1)
    designed = np.arange(length) % 4 > 0
    normal = np.stack([noise(0, n, length)[1] for n in range(3)])
    rank = np.stack([rank_of(decoding_order(designed, r)) for r in normal])
    group, real = np.arange(length), np.ones_like(E_idx, bool)
    new = graph_coloring(rank, designed, E_idx, real)
    before = wavefront(rank, designed, E_idx, real, group).max()
    after = wavefront(new, designed, E_idx, real, group).max()
    assert after < before
    for n in range(3):
        assert sorted(new[n]) == list(range(length))
        assert new[n][~designed].max() < new[n][designed].min()
    assert (new[0] != new[1]).any()


def test_padded_neighbors_delay_nothing() -> None:
    """Padding is no dependency: neither a wavefront nor a coloring gets a step for it."""
    E_idx, designed = np.array([[0, 1], [1, 0]]), np.ones(2, bool)
    rank, real = np.array([[0, 1]]), np.array([[True, False], [True, False]])
    for padded, steps in ((real, [[1, 1]]), (np.ones_like(real), [[1, 2]])):
        new = graph_coloring(rank, designed, E_idx, padded)
        for order in (rank, new):
            step = wavefront(order, designed, E_idx, padded, np.arange(2))
            np.testing.assert_array_equal(step, steps)


def test_graph_coloring_counts_neighbors_of_either_direction() -> None:
    """Residues 0 and 2 differ in color, though only 2 lists 0, whichever comes first."""
    E_idx = np.array([[0, 0], [1, 1], [2, 0]])
    designed, real = np.ones(3, bool), np.array([[True, False], [True, False], [True, True]])
    for rank, expected in (([[0, 2, 1]], [[0, 1, 2]]), ([[1, 2, 0]], [[2, 1, 0]])):
        new = graph_coloring(np.array(rank), designed, E_idx, real)
        np.testing.assert_array_equal(new, expected)


def two_structures(tied: bool = False) -> tuple[Job, list]:
    """A job of two samples of 12 and 20 residues, and their graphs."""
    lengths, constraints = (12, 20), []
    for length in lengths:
        constraints.append(Constraints.free(np.arange(length) % 5 > 0))
        if tied:
            constraints[-1].tie_group[7] = 2
            constraints[-1].tie_weight[7] = 0.5
    job = make_job(np.arange(32) % 20, constraints, [Key(0, n, 0.1 + n) for n in range(2)])
    E_idx = [random_graph(length, 6, seed) for seed, length in enumerate(lengths)]
    return job, [(E, np.ones_like(E, bool)) for E in E_idx]


@pytest.mark.parametrize("known_first", [True, False])
def test_steps_of_a_job_are_the_wavefronts_of_its_structures(known_first: bool) -> None:
    """Structures laid end to end have the steps that each has alone."""
    job, graphs = two_structures(tied=True)
    step = steps_of(job, graphs, known_first)
    for rows, (E_idx, real) in zip((slice(0, 12), slice(12, 32)), graphs, strict=True):
        designed = job.designed[rows] if known_first else np.ones(len(E_idx), bool)
        ties = job.tie_group[rows] - rows.start
        expected = wavefront(job.rank[:, rows], designed, E_idx, real, ties)
        np.testing.assert_array_equal(step[:, rows], expected)
    assert (step == 0).any() == known_first


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_each_step(tied: bool) -> None:
    """Every row of a step after 0 comes once, in order of steps, with its columns of the job."""
    job, graphs = two_structures(tied)
    step = steps_of(job, graphs)
    rows = StepRows.of(job, step)
    assert sorted(rows.row) == np.flatnonzero(step > 0).tolist()
    assert (np.diff(step.ravel()[rows.row]) >= 0).all()
    parts = list(rows.steps())
    assert [len(part.row) for part in parts] == rows.sizes
    assert len(parts) == step.max()
    for number, part in enumerate(parts, 1):
        sample, residue = np.divmod(part.row, 32)
        assert (step[sample, residue] == number).all()
        np.testing.assert_array_equal(part.residue, residue)
        np.testing.assert_array_equal(part.designed, job.designed[residue])
        np.testing.assert_array_equal(part.gumbel, job.gumbel[sample, residue])
        np.testing.assert_array_equal(part.temperature, job.temperature[sample])
        np.testing.assert_array_equal(part.bias, job.bias[residue])
        np.testing.assert_array_equal(part.weight, job.tie_weight[residue])
        if not tied:
            assert part.group is None
            continue
        heads = sample * 32 + job.tie_group[residue]
        assert sorted(set(part.group)) == list(range(len(set(heads))))
        same = heads[:, None] == heads
        np.testing.assert_array_equal(same, part.group[:, None] == part.group)


def test_rows_of_no_step() -> None:
    """Where nothing is designed no row is left."""
    job, _ = two_structures()
    rows = StepRows.of(job, np.zeros_like(job.rank))
    assert rows.sizes == list(rows.steps()) == []


def test_graph_coloring_of_a_job() -> None:
    """Each structure of a job gets its own graph-coloring order; ties have none."""
    job, graphs = two_structures()
    new = with_graph_coloring(job, graphs)
    for rows, graph in zip((slice(0, 12), slice(12, 32)), graphs, strict=True):
        expected = graph_coloring(job.rank[:, rows], job.designed[rows], *graph)
        np.testing.assert_array_equal(new.rank[:, rows], expected)
    with pytest.raises(InputError, match="graph-coloring order takes no tied residues"):
        with_graph_coloring(two_structures(tied=True)[0], graphs)
