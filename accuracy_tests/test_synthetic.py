"""Synthetic backbones: geometry, density, and stability across versions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.datasets import ChainSet
from mpnn.errors import InputError
from mpnn.synthetic import FREQUENCIES, synthetic_backbone

SIZES = [(1, 1), (2, 2), (3, 1), (20, 1), (27, 3), (150, 1), (400, 2), (600, 1)]
NEIGHBORS = (8, 16, 30, 48)


def distances(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)


def apart(backbone: Backbone) -> NDArray[np.int64]:
    """Residues between two along the chain, [L, L]; many across chains."""
    index = np.arange(len(backbone))
    same = backbone.chain_index[:, None] == backbone.chain_index
    return np.where(same, np.abs(index[:, None] - index), len(backbone) + 10)


def angle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Angle at b in degrees, [M]."""
    u, v = a - b, c - b
    lengths = np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1)
    return np.degrees(np.arccos((u * v).sum(-1) / lengths))


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Torsion about b–c in degrees, [M]."""
    axis = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
    u, v = np.cross(a - b, axis), np.cross(d - c, axis)
    return np.degrees(np.arctan2((np.cross(u, v) * axis).sum(-1), (u * v).sum(-1)))


def radius(ca: NDArray[np.float64]) -> float:
    """Radius of gyration over that of a typical globular chain, 2.2 Å · L^0.38."""
    spread = ((ca - ca.mean(0)) ** 2).sum(-1).mean() ** 0.5
    return float(spread / (2.2 * len(ca) ** 0.38))


def neighbor_table(chains: list[NDArray[np.float64]]) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the 8th, 16th, 30th and 48th neighbor [R, 4], and each chain's radius."""
    columns = [k - 1 for k in NEIGHBORS]
    rows = [np.sort(distances(ca, ca), axis=1)[:, columns] for ca in chains]
    return np.concatenate(rows), np.array([radius(ca) for ca in chains])


@pytest.mark.parametrize(("length", "chains"), SIZES)
def test_sizes_and_names(length, chains):
    """A synthetic backbone has the given length, in chains of equal size numbered from 1."""
    backbone = synthetic_backbone(length, chains)
    counts = np.bincount(backbone.chain_index)
    assert len(backbone) == length
    assert len(counts) == chains
    assert counts.max() - counts.min() <= 1
    assert backbone.mask.all()
    assert "".join(backbone.chain_ids) == "ABC"[:chains]
    assert backbone.numbers.tolist() == [n for count in counts for n in range(1, count + 1)]


def test_chains_after_z_have_two_letters():
    """AA, AB, and so on."""
    assert synthetic_backbone(56, 28).chain_ids[24:] == ("Y", "Z", "AA", "AB")


def test_same_arguments_same_backbone():
    """The same arguments give the same backbone without the cache; another seed gives another."""
    first = synthetic_backbone(80, 2, 5)
    again = synthetic_backbone.__wrapped__(80, 2, 5)
    np.testing.assert_array_equal(first.coords, again.coords)
    assert first.sequence == again.sequence
    assert np.abs(first.coords - synthetic_backbone(80, 2, 6).coords).max() > 1


@pytest.mark.parametrize(("length", "chains"), [(0, 1), (5, 0), (2, 3), (-1, 1)])
def test_impossible_sizes_are_refused(length, chains):
    """Each chain needs a residue, and there must be a chain."""
    with pytest.raises(InputError, match="each chain needs at least one"):
        synthetic_backbone(length, chains)


@pytest.mark.parametrize(("length", "chains"), SIZES)
def test_ideal_bonds(length, chains):
    """Bond lengths and angles are ideal, peptides trans, and bonded CA atoms 3.80 Å apart."""
    backbone = synthetic_backbone(length, chains)
    N, CA, C, oxygen = np.moveaxis(backbone.coords.astype(np.float64), 1, 0)
    np.testing.assert_allclose(np.linalg.norm(CA - N, axis=-1), 1.458, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(C - CA, axis=-1), 1.525, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(oxygen - C, axis=-1), 1.231, atol=1e-4)
    np.testing.assert_allclose(angle(N, CA, C), 111.2, atol=0.02)
    here = np.flatnonzero(np.diff(backbone.chain_index) == 0)
    after = here + 1
    np.testing.assert_allclose(np.linalg.norm(N[after] - C[here], axis=-1), 1.329, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(CA[after] - CA[here], axis=-1), 3.80, atol=0.02)
    np.testing.assert_allclose(angle(CA[here], C[here], N[after]), 116.2, atol=0.02)
    np.testing.assert_allclose(angle(C[here], N[after], CA[after]), 121.7, atol=2.5)
    omega = dihedral(CA[here], C[here], N[after], CA[after])
    np.testing.assert_allclose(np.abs(omega), 180, atol=0.1)
    np.testing.assert_allclose(dihedral(oxygen[here], C[here], N[after], CA[after]), 0, atol=0.1)


def test_a_third_of_the_residues_are_in_right_handed_helices():
    """By the dihedral angles of consecutive CA atoms."""
    CA = synthetic_backbone(600).coords[:, 1].astype(np.float64)
    turns = dihedral(CA[:-3], CA[1:-2], CA[2:-1], CA[3:])
    helical = np.abs(np.abs(turns) - 50) < 12
    assert helical.mean() > 0.33
    assert (turns[helical] > 0).mean() > 0.9


@pytest.mark.parametrize(("length", "chains"), SIZES)
def test_no_clashes(length, chains):
    """Residues that are not bonded are 4.2 Å apart at CA, and 2.6 Å at any atoms."""
    backbone = synthetic_backbone(length, chains)
    far = apart(backbone) >= 2
    between_ca = distances(backbone.coords[:, 1], backbone.coords[:, 1])
    assert between_ca[far].min(initial=9) > 4.19
    atoms = backbone.coords.reshape(-1, 3)
    between = distances(atoms, atoms).reshape(length, 4, length, 4).min((1, 3))
    assert between[far].min(initial=9) > 2.59


def test_bonded_neighbors_do_not_tie():
    """The CA atoms before and after a residue are at different distances, mostly by 1e-3 Å."""
    CA = synthetic_backbone(200).coords[:, 1].astype(np.float64)
    difference = np.abs(np.diff(np.linalg.norm(np.diff(CA, axis=0), axis=-1)))
    assert difference.min() > 1e-6
    assert np.median(difference) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_every_chain_touches_another(seed):
    """Each chain of a complex is compact and within 10 Å of another, CA to CA."""
    backbone = synthetic_backbone(480, 4, seed)
    CA, chain = backbone.coords[:, 1], backbone.chain_index
    between = distances(CA, CA)
    for c in range(4):
        assert between[chain == c][:, chain != c].min() < 10.01
        assert radius(CA[chain == c]) < 1.6


def test_compact_and_dense():
    """Chains are as compact as globular proteins, with their 48 neighbors within 15 to 18 Å."""
    chains = [synthetic_backbone(200, 1, seed).coords[:, 1] for seed in range(6)]
    table, radii = neighbor_table(chains)
    assert 0.95 < radii.mean() < 1.2
    assert 15 < table[:, 3].mean() < 18


def test_residue_types_have_natural_frequencies():
    """None is off by more than five standard errors."""
    sequence = "".join(synthetic_backbone(100, 1, seed).sequence for seed in range(20))
    total = sum(FREQUENCIES.values())
    for letter, percent in FREQUENCIES.items():
        share = percent / total
        error = (share * (1 - share) / len(sequence)) ** 0.5
        assert abs(sequence.count(letter) / len(sequence) - share) < 5 * error


@pytest.mark.data
def test_as_dense_as_real_chains(data_dir):
    """Distances to the k-th neighbor agree with real chains of the same lengths within 10 % at the
    mean and the 10th, 50th and 90th percentile, and so does the mean radius.
    """
    chains = ChainSet(data_dir / "validation.npz")
    real = [chains[i].coords[:, 1].astype(float) for i in range(0, len(chains), 7)]
    made = [
        synthetic_backbone(len(ca), 1, i).coords[:, 1].astype(float) for i, ca in enumerate(real)
    ]
    (real_table, real_radius), (made_table, made_radius) = map(neighbor_table, (real, made))
    np.testing.assert_allclose(made_table.mean(0), real_table.mean(0), rtol=0.1)
    for percent in (10, 50, 90):
        real_distance, made_distance = (
            np.percentile(table, percent, axis=0) for table in (real_table, made_table)
        )
        np.testing.assert_allclose(made_distance, real_distance, rtol=0.1)
    assert made_radius.mean() == pytest.approx(real_radius.mean(), rel=0.1)
