"""Bad input to the compiled engine: everything is refused before it reaches the library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from native_build import native_library
from native_cases import SMALL, draw, jobs, native, sampled, structures

from mpnn.config import ModelConfig
from mpnn.errors import InputError
from mpnn.optimizations.native import unsupported
from mpnn.optimizations.native.engine import NativeEngine, default_threads
from mpnn.weights import Checkpoint, formula_weights


def broken(x: np.ndarray, at: Any, value: Any) -> np.ndarray:
    y = np.array(x)
    y[at] = value
    return y


BAD_FLATS = {
    "X": [
        lambda f: f.X[:, :3],
        lambda f: f.X.astype(np.float64),
        lambda f: broken(f.X, (3, 1, 0), np.nan),
        lambda f: broken(f.X, (3, 1, 0), np.inf),
        lambda f: broken(f.X, (3, 1, 0), 1e7),
    ],
    "mask": [lambda f: f.mask.astype(np.float32), lambda f: f.mask[:-1]],
    "residue_idx": [lambda f: f.residue_idx.astype(np.int32)],
    "chain_encoding": [lambda f: f.chain_encoding[None]],
    "lengths": [lambda f: (f.size - 1,), lambda f: (f.size, 0), lambda _: ()],
    "E_idx": [
        lambda f: np.full((f.size, 5), f.size),
        lambda f: np.full((f.size, 5), -1),
        lambda f: np.zeros((f.size, 200), np.int64),
        lambda f: np.zeros((f.size, 0), np.int64),
        lambda f: np.zeros((f.size, 5), np.int32),
        lambda f: np.zeros((f.size - 1, 5), np.int64),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "n"), [(field, n) for field, cases in BAD_FLATS.items() for n in range(len(cases))]
)
def test_bad_structures_are_refused(field: str, n: int) -> None:
    """Arrays of another shape, type or range than `Flat` says never reach the library."""
    flat = structures("one chain")
    with pytest.raises(InputError):
        native(SMALL).encode(replace(flat, **{field: BAD_FLATS[field][n](flat)}))


BAD_JOBS = {
    "S": [lambda j: broken(j.S, 0, 21), lambda j: broken(j.S, 0, -1), lambda j: j.S[:-1]],
    "designed": [lambda j: j.designed.astype(np.int64)],
    "rank": [lambda j: j.rank[:, :-1], lambda j: j.rank[:0], lambda j: broken(j.rank, (0, 0), 999)],
    "gumbel": [lambda j: broken(j.gumbel, (0, 0, 0), np.nan), lambda j: j.gumbel[1:]],
    "temperature": [lambda j: j.temperature * 0, lambda j: -j.temperature],
    "bias": [lambda j: broken(j.bias, (0, 0), np.inf), lambda j: j.bias[:, :20]],
    "tie_group": [
        lambda j: broken(j.tie_group, 5, -1),
        lambda j: broken(j.tie_group, 5, 9999),
        lambda j: broken(j.tie_group, [0, 1], [1, 0]),
    ],
    "tie_weight": [lambda j: broken(j.tie_weight, 5, np.nan)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "n"), [(field, n) for field, cases in BAD_JOBS.items() for n in range(len(cases))]
)
def test_bad_jobs_are_refused(field: str, n: int) -> None:
    """Arrays of another shape, type or range than `Job` says never reach the library."""
    engine, job = native(SMALL), jobs("one chain", "tied")
    encoding = engine.encode(structures("one chain"))
    with pytest.raises(InputError):
        sampled(engine, encoding, replace(job, **{field: BAD_JOBS[field][n](job)}))


def test_tied_residues_of_two_structures_are_refused() -> None:
    """A group within two structures has no common order, so it is refused."""
    engine, job = native(SMALL), jobs("different lengths", "free")
    encoding = engine.encode(structures("different lengths"))
    rank = broken(job.rank, (slice(None), 55), job.rank[:, 2])
    with pytest.raises(InputError, match="same structure"):
        sampled(engine, encoding, replace(job, tie_group=broken(job.tie_group, 55, 2), rank=rank))


def test_arrays_that_are_not_contiguous() -> None:
    """Views with strides give what copies of them give."""
    engine, job = native(SMALL), jobs("one chain", "free")
    flat = structures("one chain")
    strided = replace(flat, X=np.asfortranarray(flat.X), S=np.repeat(flat.S, 2)[::2])
    broadcast = replace(
        job, gumbel=np.asfortranarray(job.gumbel), rank=job.rank[:, ::-1].copy()[:, ::-1]
    )
    np.testing.assert_array_equal(
        sampled(engine, engine.encode(strided), broadcast)[0], draw("one chain", "free")[0]
    )


def test_networks_that_are_not_supported() -> None:
    """Other widths, too many neighbors and other devices are refused with a reason."""
    assert unsupported(SMALL) == ""
    assert "hidden size" in unsupported(ModelConfig(hidden_dim=96))
    assert "neighbors" in unsupported(ModelConfig(k_neighbors=129))
    assert "ProteinMPNN" in unsupported("ssm")
    for config in (ModelConfig(hidden_dim=96), None):
        with pytest.raises(InputError, match="exact-torch"):
            NativeEngine(Checkpoint({}, config, {}), library=native_library())
    with pytest.raises(InputError, match="not on mps"):
        NativeEngine(formula_weights(SMALL), "mps", library=native_library())


def test_wrong_weights_are_refused() -> None:
    """A missing tensor, one of another size and one with NaN are errors that say which."""
    weights = {name: x.numpy() for name, x in formula_weights(SMALL).state_dict().items()}
    nan, short = np.full(64, np.nan, np.float32), np.zeros(20, np.float32)
    without = {name: x for name, x in weights.items() if name != "W_s.weight"}
    for wrong, match in (
        (weights | {"W_e.bias": nan}, r"W_e\.bias"),
        (weights | {"W_out.bias": short}, "should have 21 elements"),
        (without, r"lack W_s\.weight"),
    ):
        with pytest.raises(InputError, match=match):
            NativeEngine(Checkpoint(wrong, SMALL, {}), library=native_library())


def test_threads_that_cannot_be() -> None:
    """A job needs at least one thread."""
    with pytest.raises(InputError, match="0 threads"):
        NativeEngine(formula_weights(SMALL), threads=0, library=native_library())
    assert default_threads() >= 1
