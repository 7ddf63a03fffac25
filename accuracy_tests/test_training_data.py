"""Training crops: which chains, residues, orders and noise they have, and how they are batched."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import CLUSTERS, LENGTHS, crops_of, with_unknown_residues, write_chains

from mpnn.errors import InputError
from mpnn.training.data import (
    CropConfig,
    RaggedBatch,
    Residues,
    TrainingChains,
    crops_for_step,
    next_crop,
    packed,
)

pytest_plugins = ["training_fixtures"]


def test_every_round_samples_each_cluster_once(chains):
    """Clusters are sampled, not chains: each comes up once per round, whatever its size."""
    for round_ in range(4):
        crops = crops_of(chains, 3, first=3 * round_, seed=5)
        assert sorted(CLUSTERS[c.chain] for c in crops) == [7, 9, 30]


def test_every_chain_comes_up_in_all_of_its_orders(chains):
    """The choice of a cluster's chain is independent of the order in which it is decoded."""
    crops = crops_of(chains, 120, orders=2)
    assert {(c.chain, c.order) for c in crops} == set(itertools.product(range(5), range(2)))


def test_chains_repeat_after_the_given_rounds(chains):
    """With two rounds a cluster's chain of round 5 is that of round 1; the noise is new."""
    crops = crops_of(chains, 18, rounds=2)
    for early in crops[3:6]:
        late = next(c for c in crops[15:] if CLUSTERS[c.chain] == CLUSTERS[early.chain])
        assert late.chain == early.chain
        assert not np.array_equal(late.residues.coords, early.residues.coords)
    assert [c.chain for c in crops_of(chains, 6)] == [c.chain for c in crops[:6]]


def test_a_crop_depends_on_seed_and_number_alone(chains, chain_file):
    """Another chain set gives the same crop after other crops; another seed gives other crops."""
    config = CropConfig(seed=3, noise=0.1)
    first = next_crop(chains, config, 17)
    other = TrainingChains(chain_file)
    next_crop(other, config, 4)
    again = next_crop(other, config, 17)
    for field in ("rank", "uniform", "rows"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert np.array_equal(first.residues.coords, again.residues.coords)
    seeds = [dataclasses.replace(config, seed=seed) for seed in range(4)]
    assert len({tuple(next_crop(chains, seeded, 0).rank) for seeded in seeds}) == 4


def test_coordinate_noise_has_the_configured_standard_deviation(chains):
    """Coordinates move by normal noise of the configured size, without a drift."""
    moved = []
    for crop in crops_of(chains, 30, noise=0.3):
        clean = Residues.of(chains[crop.chain]).take(crop.rows)
        moved.append((crop.residues.coords - clean.coords).ravel())
    moved = np.concatenate(moved)
    assert abs(moved.std() - 0.3) < 4 * 0.3 / np.sqrt(2 * len(moved))
    assert abs(moved.mean()) < 4 * 0.3 / np.sqrt(len(moved))


@given(number=st.integers(0, 10**6), k=st.integers(1, 60))
@settings(max_examples=15)
def test_neighbors_are_the_nearest_and_unused_slots_are_masked(chains, number, k):
    """The k nearest residues of the crop, the residue itself first, with their chain offsets."""
    (crop,) = crops_of(chains, 1, first=number, max_length=40)
    batch = RaggedBatch.from_crops([crop], k)
    ca = crop.residues.coords[:, 1]
    distance = np.linalg.norm(ca[:, None] - ca, axis=-1)
    count = min(k, len(crop))
    assert batch.neighbor_mask.tolist() == [[1.0] * count + [0.0] * (k - count)] * len(crop)
    E_idx = batch.E_idx.numpy()
    found = np.take_along_axis(distance, E_idx[:, :count], 1)
    assert np.allclose(found, np.sort(distance, 1)[:, :count], atol=1e-4)
    assert (E_idx[:, 0] == np.arange(len(crop))).all()
    offsets = crop.residues.residue_idx[:, None] - crop.residues.residue_idx[E_idx]
    assert np.array_equal(np.clip(offsets + 32, 0, 64), batch.offset_class.numpy())


def test_incomplete_residues_are_left_out_but_counted(chains):
    """Training sees complete residues only, and their numbering keeps the gap."""
    residues = Residues.of(chains[0])
    assert len(residues) == LENGTHS[0] - 1
    assert residues.residue_idx[:5].tolist() == [0, 1, 2, 4, 5]


def test_a_crop_is_the_residues_nearest_to_one_of_them(chains):
    """For some center, no residue left out is nearer than one of the crop."""
    (crop,) = crops_of(chains, 1, first=2, noise=0.0, max_length=20)
    ca = Residues.of(chains[crop.chain]).coords[:, 1]
    distance = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
    out = np.setdiff1d(np.arange(len(ca)), crop.rows)
    assert len(crop) == 20
    assert any(distance[c, crop.rows].max() <= distance[c, out].min() for c in crop.rows)


@settings(max_examples=15)
@given(tokens=st.integers(1, 300), micro=st.integers(1, 300), first=st.integers(0, 50))
def test_token_budgets_are_kept(chains, tokens, micro, first):
    """Steps and groups keep to their budget unless a single crop is larger; no crop is lost."""
    crops = crops_for_step(chains, CropConfig(max_length=50), first, tokens)
    assert sum(map(len, crops)) <= tokens or len(crops) == 1
    following = crops_of(chains, len(crops) + 1, first=first, max_length=50)
    for crop, expected in zip(crops, following, strict=False):
        assert np.array_equal(crop.residues.coords, expected.residues.coords)
    assert sum(map(len, following)) > tokens
    groups = list(packed(crops, micro))
    assert [c for group in groups for c in group] == crops
    assert all(sum(map(len, group)) <= micro or len(group) == 1 for group in groups)


def test_chains_with_too_few_usable_residues_are_left_out(tmp_path):
    """A chain needs 20 complete residues of known type; a file without any is refused."""
    chains = TrainingChains(write_chains(tmp_path / "some.npz", (20, 40, 21), (1, 2, 2)))
    assert [c.tolist() for c in chains.clusters] == [[1, 2]]
    short = write_chains(tmp_path / "short.npz", (20, 19), (1, 2))
    unknown = write_chains(tmp_path / "unknown.npz", (40, 40), (1, 2))
    for path in (short, with_unknown_residues(unknown, slice(15))):
        with pytest.raises(InputError, match="no chain has 20 complete residues of known type"):
            TrainingChains(path)
