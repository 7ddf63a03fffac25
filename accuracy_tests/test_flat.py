"""Structures laid end to end, taken apart, repeated and padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpnn.flat import Flat
from mpnn.model import Batch
from mpnn.synthetic import synthetic_backbone

BACKBONES = [synthetic_backbone(n, chains, n) for n, chains in ((12, 2), (5, 1), (9, 1))]


@pytest.fixture
def flat() -> Flat:
    E_idx = np.tile(np.arange(26)[:, None], 7)  # own row in slots beyond a structure's length
    for rows in (slice(0, 12), slice(12, 17), slice(17, 26)):
        K = min(7, rows.stop - rows.start)
        E_idx[rows, :K] = rows.start + np.arange(K)[::-1]
    return Flat.from_backbones(BACKBONES).with_neighbors(E_idx)


def assert_equal(a: Flat, b: Flat) -> None:
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_structures_keep_their_order(flat: Flat) -> None:
    """Lengths, offsets, structure numbers and first rows describe the same layout."""
    assert flat.lengths == (12, 5, 9)
    assert flat.offsets == (0, 12, 17)
    assert flat.size == 26
    assert flat.structure.tolist() == [0] * 12 + [1] * 5 + [2] * 9
    assert flat.first_row.tolist() == [0] * 12 + [12] * 5 + [17] * 9
    for rows, backbone in zip(flat.slices, BACKBONES, strict=True):
        np.testing.assert_array_equal(flat.X[rows], backbone.coords)
        np.testing.assert_array_equal(flat.chain_encoding[rows], backbone.chain_encoding)
        np.testing.assert_array_equal(flat.residue_idx[rows], backbone.residue_idx)


def test_a_structure_alone_is_that_structure(flat: Flat) -> None:
    """Taking a structure out gives what laying it alone gives, neighbors counted within it."""
    for b, backbone in enumerate(BACKBONES):
        alone = flat.alone(b)
        K = min(7, len(backbone))
        E_idx = np.tile(np.arange(K)[::-1], (len(backbone), 1))
        assert_equal(alone, Flat.from_backbones([backbone]).with_neighbors(E_idx))


def test_copies_are_laid_one_set_after_another(flat: Flat) -> None:
    """Every copy is the structures again, neighbors within the copy."""
    twice = flat.repeat(2)
    assert_equal(twice, twice.repeat(1))
    expected = Flat.from_backbones(BACKBONES * 2)
    E_idx = np.concatenate([flat.E_idx, flat.E_idx + 26])
    assert_equal(twice, expected.with_neighbors(E_idx))


def test_padding_is_undone(flat: Flat) -> None:
    """Rows come back from their padded form; padding holds the fill and is not valid."""
    rows = np.random.default_rng(0).normal(size=(26, 3))
    padded = flat.padded(rows, fill=-1)
    assert padded.shape == (3, 12, 3)
    np.testing.assert_array_equal(flat.unpadded(padded), rows)
    assert (padded[~flat.valid] == -1).all()
    assert flat.valid.sum(1).tolist() == [12, 5, 9]


def test_padded_neighbors_are_positions_and_point_to_padding(flat: Flat) -> None:
    """A slot beyond a structure's length points to padding, all others to their residue."""
    E_idx = flat.padded_neighbors()
    assert E_idx.shape == (3, 12, 7)
    assert (E_idx[1, :5] == [4, 3, 2, 1, 0, 5, 6]).all()
    assert (E_idx[2, :9] == [6, 5, 4, 3, 2, 1, 0]).all()
    short = flat.alone(1).repeat(2)  # nothing is longer than 5, so no slot is left for padding
    assert (short.padded_neighbors() == [4, 3, 2, 1, 0]).all()
    assert Flat.from_backbones(BACKBONES).padded_neighbors() is None


def test_a_batch_is_the_padded_structures(flat: Flat) -> None:
    """Tensors have the wanted type, zeros at the padding and no residue types."""
    batch = Batch.from_flat(flat, dtype=torch.float64)
    assert batch.X.dtype == batch.mask.dtype == torch.float64
    np.testing.assert_array_equal(flat.unpadded(batch.X.numpy()), flat.X)
    np.testing.assert_array_equal(flat.unpadded(batch.mask.numpy()) > 0, flat.mask)
    np.testing.assert_array_equal(batch.E_idx.numpy(), flat.padded_neighbors())
    assert not batch.X[~batch.valid].any()


def test_no_structures_are_refused() -> None:
    """A batch of no structures is an error."""
    with pytest.raises(ValueError, match="at least one"):
        Flat.from_backbones([])
