"""Bad input to the compiled engine: everything is refused before it reaches the library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


EXTREME = (0, 1, -1, 21, 999, 2**31, -(2**40), 2**62, 1e-30, -1e7, 1e30, np.nan, np.inf, -np.inf)
TYPES = (np.int8, np.int64, np.uint64, np.float32, np.float64, np.bool_)
CUTS = (np.s_[:-1], np.s_[None], np.s_[..., :-1], np.s_[:0])


@st.composite
def changes(draw: Any, arrays: tuple[str, ...]) -> dict[str, Any]:
    """What to do to one array: put extreme numbers in places, or change its type or shape."""
    kind = draw(st.sampled_from(("numbers", "type", "shape")))
    options = {"numbers": EXTREME, "type": TYPES, "shape": CUTS}[kind]
    places = draw(st.lists(st.integers(0, 2**20), min_size=1, max_size=4))
    array = draw(st.sampled_from(arrays))
    return {"array": array, "kind": kind, "to": draw(st.sampled_from(options)), "places": places}


def changed(x: np.ndarray, change: dict[str, Any]) -> np.ndarray:
    if change["kind"] == "shape":
        return x[change["to"]]
    with np.errstate(invalid="ignore"):
        if change["kind"] == "type":
            return x.astype(change["to"])
        y, number = np.array(x), np.float64(change["to"])
        y.flat[[place % x.size for place in change["places"]]] = number.astype(x.dtype)
        return y


@given(changes(("X", "mask", "residue_idx", "chain_encoding", "E_idx")))
@settings(max_examples=150)
def test_any_structure_is_refused_or_encoded(change: dict[str, Any]) -> None:
    """Whatever an array holds, the library is not called, or its scores are finite numbers."""
    flat, rng = structures("masked residues"), np.random.default_rng(0)
    flat = replace(flat, E_idx=rng.integers(0, flat.size, (flat.size, 7)))  # some repeat
    flat = replace(flat, **{change["array"]: changed(getattr(flat, change["array"]), change)})
    try:
        encoding = native(SMALL).encode(flat)
    except InputError:
        return
    S = np.zeros((1, flat.size), np.int64)
    assert np.isfinite(native(SMALL).log_probs(encoding, S, S)).all()


@given(changes(tuple(BAD_JOBS)))
@settings(max_examples=150)
def test_any_job_is_refused_or_sampled(change: dict[str, Any]) -> None:
    """Whatever an array holds, the library is not called, or it gives residue types and scores."""
    job, engine = jobs("one chain", "tied"), native(SMALL)
    job = replace(job, **{change["array"]: changed(getattr(job, change["array"]), change)})
    try:
        S, log_probs = sampled(engine, engine.encode(structures("one chain")), job)
    except InputError:
        return
    assert ((S >= 0) & (S < 21)).all()
    assert not np.isnan(log_probs).any()


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
