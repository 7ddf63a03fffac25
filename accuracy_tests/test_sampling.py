"""Keyed noise, jobs, sampling of residue types and scores, before any network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mpnn.config import NUM_LETTERS, UNKNOWN
from mpnn.sampling import (
    OMITTED,
    Constraints,
    Key,
    make_job,
    negative_log_likelihood,
    noise,
    sample_types,
)


def test_noise_is_keyed_by_seed_sample_and_residue() -> None:
    """A residue's noise depends on seed and sample, and not on the length of the structure."""
    types, normal = noise(3, 5, 40)
    shorter = noise(3, 5, 17)
    np.testing.assert_array_equal(types[:17], shorter[0])
    np.testing.assert_array_equal(normal[:17], shorter[1])
    for other in (noise(4, 5, 40), noise(3, 6, 40)):
        assert (other[0] != types).all()
        assert (other[1] != normal).all()


def test_noise_has_its_distributions() -> None:
    """Residue types have Gumbel noise (mean 0.5772, variance π²/6), orders standard normals."""
    types, normal = noise(0, 0, 50_000)
    assert types.mean() == pytest.approx(0.5772, abs=0.01)
    assert types.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
    assert normal.mean() == pytest.approx(0, abs=0.02)
    assert normal.var() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(types[:, 0], normal)[0, 1]) < 0.02


LIBRARIES = pytest.mark.parametrize("library", ["numpy", "torch", "mlx"])


def arrays(library: str, *given: np.ndarray | None) -> list[Any]:
    """The same arrays in another library, in float32 for MLX."""
    if library == "numpy":
        return list(given)
    if library == "torch":
        return [None if x is None else torch.from_numpy(x.copy()) for x in given]
    mx = pytest.importorskip("mlx.core")
    kinds = {"f": np.float32, "i": np.int32}
    return [None if x is None else mx.array(x.astype(kinds[x.dtype.kind])) for x in given]


@LIBRARIES
def test_samples_follow_the_softmax(library: str) -> None:
    """Frequencies of 20,000 samples follow softmax((logits + bias) / T), in every library."""
    count, temperature = 20_000, 0.7
    logits, bias = np.linspace(-2, 2, NUM_LETTERS), np.zeros(NUM_LETTERS)
    bias[3], bias[20] = 2.0, OMITTED
    rows = np.tile(logits, (count, 1)), noise(0, 0, count)[0]
    given = *rows, np.full(count, temperature), np.tile(bias, (count, 1))
    types = np.array(sample_types(*arrays(library, *given)).tolist())
    expected = np.exp((logits + bias) / temperature)
    found = np.bincount(types, minlength=NUM_LETTERS) / count
    assert np.abs(found - expected / expected.sum()).max() < 0.01
    assert found[20] == 0


@LIBRARIES
def test_tied_rows_get_one_type_from_the_weighted_mean(library: str) -> None:
    """Rows of a group get the same type, from the mean of weighted logits plus bias."""
    rng = np.random.default_rng(0)
    logits, gumbel, bias = (rng.standard_normal((4, NUM_LETTERS)) for _ in range(3))
    gumbel[2] = gumbel[0]
    weight, group = np.array([0.5, 1.0, 2.0, 1.0]), np.array([0, 1, 0, 2])
    given = logits, gumbel, np.full(4, 0.3), bias, group, weight
    types = np.array(sample_types(*arrays(library, *given)).tolist())
    mean = (0.5 * logits[0] + bias[0] + 2.0 * logits[2] + bias[2]) / 2
    assert types[0] == types[2] == (mean / 0.3 + gumbel[0]).argmax()
    assert types[1] == ((logits[1] + bias[1]) / 0.3 + gumbel[1]).argmax()


def test_jobs_do_not_depend_on_the_split() -> None:
    """Noise and ranks of a sample are the same alone, beside others, and beside longer chains."""
    lengths, rows = (12, 30), (slice(0, 12), slice(12, 42))
    constraints = [Constraints.free(np.ones(n, bool)) for n in lengths]
    constraints[0].tie_group[5] = constraints[1].tie_group[5] = 3
    keys = [Key(1, n, 0.1) for n in range(3)]
    together = make_job(np.arange(42) % 20, constraints, keys)
    assert together.tie_group[[5, 17]].tolist() == [3, 15]
    for b, at in enumerate(rows):
        for n, key in enumerate(keys):
            alone = make_job(together.S[at], constraints[b : b + 1], [key])
            np.testing.assert_array_equal(alone.rank[0], together.rank[n, at])
            np.testing.assert_array_equal(alone.gumbel[0], together.gumbel[n, at])
    np.testing.assert_array_equal(together.gumbel[:, 5], together.gumbel[:, 3])
    np.testing.assert_array_equal(together.gumbel[:, 17], together.gumbel[:, 15])
    part = together.part(slice(1, 3))
    np.testing.assert_array_equal(part.rank, together.rank[1:])
    assert part.temperature.shape == (2,)


def test_free_constraints_forbid_x_alone() -> None:
    """Without rules every residue with coordinates is designed, as any amino acid but X."""
    mask = np.arange(9) != 4
    free = Constraints.free(mask)
    np.testing.assert_array_equal(free.designed, mask)
    assert (free.bias[:, UNKNOWN] == OMITTED).all()
    assert not np.delete(free.bias, UNKNOWN, 1).any()


def test_fixed_residues_of_a_job_are_decoded_first() -> None:
    """In every sample and structure the residues that keep their type precede the others."""
    designed = np.arange(42) % 3 > 0
    parts = np.split(designed, [12])
    constraints = [Constraints.free(part) for part in parts]
    job = make_job(np.zeros(42, np.int64), constraints, [Key(0, n, 0.1) for n in range(4)])
    for rank, own in zip(np.split(job.rank, [12], axis=1), parts, strict=True):
        assert (rank[:, ~own].max(1) < rank[:, own].min(1)).all()


def test_score_is_the_mean_over_counted_residues() -> None:
    """The score is the mean of −log p over the residues that count, NaN where none does."""
    log_probs = np.log(np.full((2, 5, NUM_LETTERS), 0.25))
    log_probs[0, 1] = np.log(0.5)
    S, counted = np.zeros((2, 5), np.int64), np.array([True, True, False, False, False])
    score = negative_log_likelihood(log_probs, S, counted)
    np.testing.assert_allclose(score, [(np.log(4) + np.log(2)) / 2, np.log(4)])
    assert np.isnan(negative_log_likelihood(log_probs, S, np.zeros(5, bool))).all()
