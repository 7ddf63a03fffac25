"""Length buckets: less padding, the same results."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.optimizations import load_engine
from mpnn.optimizations.buckets import MOST_PADDING, length_buckets, padding
from mpnn.regression.claims import Claim
from mpnn.regression.workloads import WORKLOADS, Workload, about, backbones, cut, make_tasks, side
from mpnn.synthetic import made_up_backbone
from mpnn.variants import Variant
from mpnn.weights import formula_weights

LENGTHS = st.lists(st.integers(1, 500), max_size=40)


@given(LENGTHS, st.integers(1, 8), st.sampled_from([0, 0.05, 0.1, 0.3, 0.9]))
def test_buckets_keep_their_bounds(lengths: list[int], size: int, most: float) -> None:
    """Every protein is in one batch, no batch is too large, and none has too much padding."""
    batches = length_buckets(lengths, size, most)
    assert sorted(p for batch in batches for p in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert all(padding([lengths[p] for p in batch]) <= most for batch in batches)


@given(LENGTHS, st.integers(1, 8), st.sampled_from([0, 0.05, 0.1, 0.3, 0.9]))
def test_a_batch_is_closed_only_when_it_must_be(lengths: list[int], size: int, most: float) -> None:
    """The next shorter protein would have made a batch too large or too much of it padding."""
    batches = [[lengths[p] for p in batch] for batch in length_buckets(lengths, size, most)]
    for batch, after in itertools.pairwise(batches):
        wider = [*batch, after[0]]
        assert after[0] <= min(batch)
        assert len(wider) > size or padding(wider) > most


@pytest.mark.parametrize(("size", "most"), [(0, 0.1), (8, 1.0), (8, -0.1)])
def test_impossible_bounds_are_refused(size: int, most: float) -> None:
    """A batch without room and a share that is none are refused."""
    with pytest.raises(ValueError, match="must be"):
        length_buckets([10, 20], size, most)


def test_padding_is_the_wasted_share() -> None:
    """Padding is counted over all batches together, and nothing is none."""
    assert padding([10, 5]) == 0.25
    assert padding([10, 5], [20, 20, 20]) == 5 / 80
    assert padding([7], [9]) == 0


def test_buckets_waste_less_than_the_order_given() -> None:
    """Of the mixed workload's batch of eight 44 % is padding; in buckets it is under a tenth."""
    lengths = WORKLOADS["score-8x40-320"].lengths
    assert (min(lengths), max(lengths)) == (40, 320)
    assert padding(lengths) == pytest.approx(0.4375)
    batches = length_buckets(lengths, 8)
    assert padding(*([lengths[p] for p in batch] for batch in batches)) < MOST_PADDING
    assert len(batches) < len(lengths)


def test_every_protein_alone_or_in_its_bucket_is_the_same() -> None:
    """The reference's log-probabilities do not depend on who else is in the batch."""
    proteins = [made_up_backbone(n, seed=n) for n in (41, 12, 44, 30, 13, 33)]
    engine = load_engine("reference", formula_weights(ModelConfig(1, 1, 32, 16)))

    def scores(numbers: list[int]) -> dict[int, np.ndarray]:
        batch = Batch.from_backbones([proteins[p] for p in numbers])
        S = batch.S.numpy()[:, None]
        rank = np.broadcast_to(np.arange(S.shape[-1])[::-1], S.shape)
        rank = rank - (S.shape[-1] - batch.lengths.numpy())[:, None, None]  # last residue first
        log_probs = engine.log_probs(batch, S, rank)[:, 0]
        return {p: x[: len(proteins[p])] for p, x in zip(numbers, log_probs, strict=True)}

    batches = length_buckets([len(protein) for protein in proteins], 3)
    assert sorted(map(sorted, batches)) == [[0, 2], [1, 4], [3, 5]]
    for batch in batches:
        together = scores(batch)
        for protein in batch:
            np.testing.assert_allclose(together[protein], scores([protein])[protein], atol=1e-5)


# --- in the suite ---------------------------------------------------------------------------------


def test_outputs_come_in_the_order_of_the_proteins(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the proteins are cut into batches, a side's outputs are in their order."""
    workload = Workload(proteins=4, length=20)
    inputs = [backbones(workload, 0)]
    monkeypatch.setattr("mpnn.regression.workloads.cut", lambda *_: [[3, 0], [2], [1]])
    mixed = side(Variant("minimal-fast"), workload, inputs).call(0)
    assert [output.S.shape[-1] for output in mixed] == workload.lengths
    monkeypatch.undo()
    plain = side(Variant("minimal-fast"), workload, inputs).call(0)
    for a, b in zip(mixed, plain, strict=True):
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)


def test_a_row_states_its_padding() -> None:
    """What is stored of a claim has the share of padding in its subject's batches."""
    claim = Claim("batch", "", "baseline-batch-8", "score-8x40-320")
    assert about(claim, {})["padding"] == pytest.approx(0.4375)
    assert about(Claim("one", "", "baseline", "score-8x40-320"), {})["padding"] == 0


def test_batches_in_the_order_given() -> None:
    """A variant takes as many proteins a call as it says, and the rest in the last."""
    assert cut(Variant(batch=3), [5] * 7) == [[0, 1, 2], [3, 4, 5], [6]]
    workload = Workload(proteins=3, length=20)
    tasks = make_tasks(Variant(batch=2), workload, 0, backbones(workload, 0))
    assert [task.numbers for task in tasks] == [(0, 1), (2,)]
    assert [task.lengths for task in tasks] == [(12, 20), (28,)]
