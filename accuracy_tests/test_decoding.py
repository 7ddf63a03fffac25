"""Noise, orders, the wavefront schedule and the draw, before any network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpnn.config import NUM_LETTERS
from mpnn.decoding import (
    Constraints,
    Key,
    coloured,
    decoding_order,
    draw,
    make_job,
    negative_log_likelihood,
    noise,
    rank_of,
    slot_of,
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


def longest_waits(rank: np.ndarray, E_idx: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Steps [L] by the definition: one more than the largest step among what is waited for."""
    step = np.zeros(len(rank), np.int64)
    for r in np.unique(rank):
        members = np.flatnonzero(rank == r)
        waits = [j for i in members for j in E_idx[i] if rank[j] < r]
        step[members] = 1 + max((step[j] for j in waits), default=0)
        assert len(np.unique(group[members])) == 1
    return step


def test_noise_is_keyed_by_seed_sample_and_residue() -> None:
    """A residue's numbers depend on seed and sample, and not on the length of the structure."""
    letters, normal = noise(3, 5, 40)
    shorter = noise(3, 5, 17)
    np.testing.assert_array_equal(letters[:17], shorter[0])
    np.testing.assert_array_equal(normal[:17], shorter[1])
    for other in (noise(4, 5, 40), noise(3, 6, 40)):
        assert (other[0] != letters).all()
        assert (other[1] != normal).all()


def test_noise_has_its_distributions() -> None:
    """Letters' noise is Gumbel (mean 0.5772, variance π²/6), the order's is standard normal."""
    letters, normal = noise(0, 0, 50_000)
    assert letters.mean() == pytest.approx(0.5772, abs=0.01)
    assert letters.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
    assert normal.mean() == pytest.approx(0, abs=0.02)
    assert normal.var() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(letters[:, 0], normal)[0, 1]) < 0.02


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
def test_wavefront_is_the_longest_chain_of_waits(
    length: int, k: int, samples: int, ties: int, seed: int
) -> None:
    """Steps equal the definition: nobody waits for its own step, nobody comes later than needed."""
    group = np.arange(length)
    for i in range(min(ties, length // 2)):
        group[length // 2 + i] = i
    E_idx = random_graph(length, min(k, length), seed)
    rank = ranks(length, samples, group, seed)
    real = np.ones_like(E_idx, bool)
    steps = wavefront(rank, np.ones(length, bool), E_idx, real, group)
    for n in range(samples):
        np.testing.assert_array_equal(steps[n], longest_waits(rank[n], E_idx, group))


def test_known_residues_need_no_step() -> None:
    """Residues that keep their letter and come first are step 0; the designed ones wait less."""
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


def test_known_residue_after_a_designed_one_waits() -> None:
    """A fixed residue that comes after a designed neighbor is computed after it."""
    E_idx = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    rank, designed = np.array([[0, 1, 2]]), np.array([True, False, True])
    step = wavefront(rank, designed, E_idx, np.ones_like(E_idx, bool), np.arange(3))
    np.testing.assert_array_equal(step, [[1, 2, 3]])


def test_coloured_order_takes_fewer_steps_and_keeps_fixed_first() -> None:
    """Color classes hold no neighbors, so steps equal colors; fixed residues stay first."""
    length = 200
    E_idx = random_graph(length, 12, 1)
    designed = np.arange(length) % 4 > 0
    normal = np.stack([noise(0, n, length)[1] for n in range(3)])
    rank = np.stack([rank_of(decoding_order(designed, r)) for r in normal])
    group, real = np.arange(length), np.ones_like(E_idx, bool)
    new = coloured(rank, designed, E_idx, real)
    before = wavefront(rank, designed, E_idx, real, group).max()
    after = wavefront(new, designed, E_idx, real, group).max()
    assert after < before
    for n in range(3):
        assert sorted(new[n]) == list(range(length))
        assert new[n][~designed].max() < new[n][designed].min()
    assert (new[0] != new[1]).any()


def test_draw_follows_the_softmax() -> None:
    """Frequencies of 20,000 draws follow softmax((logits + bias) / T)."""
    count, temperature = 20_000, 0.7
    gumbel = torch.from_numpy(noise(0, 0, count)[0])
    logits = torch.linspace(-2, 2, NUM_LETTERS, dtype=torch.float64)
    bias = torch.zeros(NUM_LETTERS, dtype=torch.float64)
    bias[3], bias[20] = 2.0, -1e8
    drawn = draw(
        logits.expand(count, -1),
        gumbel,
        torch.full((count,), temperature, dtype=torch.float64),
        bias.expand(count, -1),
    )
    expected = ((logits + bias) / temperature).softmax(0)
    found = torch.bincount(drawn, minlength=NUM_LETTERS) / count
    assert (found - expected).abs().max() < 0.01
    assert found[20] == 0


def test_tied_rows_get_one_letter_from_the_weighted_mean() -> None:
    """Rows of a group draw the same letter from the mean of their weighted logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, NUM_LETTERS, generator=generator)
    gumbel = torch.randn(4, NUM_LETTERS, generator=generator)
    gumbel[2] = gumbel[0]
    weight, temperature = torch.tensor([0.5, 1.0, 2.0, 1.0]), torch.full((4,), 0.3)
    slot = slot_of(torch.tensor([7, 9, 7, 11]))
    drawn = draw(logits, gumbel, temperature, torch.zeros(4, NUM_LETTERS), slot, weight)
    mean = (0.5 * logits[0] + 2.0 * logits[2]) / 2
    assert drawn[0] == drawn[2] == (mean / 0.3 + gumbel[0]).argmax()
    assert drawn[1] == (logits[1] / 0.3 + gumbel[1]).argmax()


def test_jobs_do_not_depend_on_the_split() -> None:
    """Noise and ranks of a sample are the same alone, beside others, and beside longer chains."""
    lengths = (12, 30)
    S = np.zeros((2, 30), np.int64)
    constraints = [Constraints.free(np.ones(n, bool)) for n in lengths]
    keys = [Key(1, n, 0.1) for n in range(3)]
    together = make_job(S, constraints, keys)
    for b, length in enumerate(lengths):
        for n, key in enumerate(keys):
            alone = make_job(S[b : b + 1, :length], constraints[b : b + 1], [key])
            np.testing.assert_array_equal(alone.rank[0, 0], together.rank[b, n, :length])
            np.testing.assert_array_equal(alone.gumbel[0, 0], together.gumbel[b, n, :length])


def test_score_is_the_mean_over_counted_residues() -> None:
    """The score is the mean of −log p over the residues that count, NaN where none does."""
    log_probs = np.log(np.full((2, 5, NUM_LETTERS), 0.25))
    log_probs[0, 1] = np.log(0.5)
    S, counted = np.zeros((2, 5), np.int64), np.array([True, True, False, False, False])
    score = negative_log_likelihood(log_probs, S, counted)
    np.testing.assert_allclose(score, [(np.log(4) + np.log(2)) / 2, np.log(4)])
    assert np.isnan(negative_log_likelihood(log_probs, S, np.zeros(5, bool))).all()
