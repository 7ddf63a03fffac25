"""Each identity of the compiled engine alone, against float64."""

from __future__ import annotations

import ctypes
import functools
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from native_build import native_library
from native_cases import SMALL, draw, jobs, native, sampled, structures, subset

from mpnn import graph
from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.optimizations.native.engine import _edge_embedding, _Getter, folded
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

C = 128


@functools.cache
def library() -> ctypes.CDLL:
    return native_library()


def applied(function: str, x: np.ndarray, *sizes: int) -> np.ndarray:
    """What a function makes of float32 x in place."""
    y = np.ascontiguousarray(x, np.float32).copy()
    pointer = ctypes.c_void_p(y.ctypes.data)
    getattr(library(), f"mpnn_probe_{function}")(pointer, *map(ctypes.c_int32, sizes or (y.size,)))
    return y


def matmul(x: np.ndarray, weight: np.ndarray, picked: np.ndarray | None = None) -> np.ndarray:
    """x·weightᵀ, or x·weight[:, picked]ᵀ, by the micro-kernel."""
    x, weight = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(weight, np.float32)
    y = np.empty((len(x), len(weight)), np.float32)
    kept = None if picked is None else np.ascontiguousarray(picked, np.int32)
    pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in (x, weight, y, kept)]
    sizes = (len(x), x.shape[1], weight.shape[1], len(weight))
    library().mpnn_probe_matmul(*pointers, *map(ctypes.c_int32, sizes))
    return y


def test_gelu() -> None:
    """max(x, 0) − δ(|x|) with a polynomial δ is x·Φ(x) to float32's rounding, everywhere."""
    x = np.concatenate([np.linspace(-9, 9, 2**16), [0, -0.0, 1e-30, -1e4, 1e4, 3e38, -3e38]])
    x = np.resize(x.astype(np.float32), (len(x) + 63) // 64 * 64)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    error = np.abs(applied("gelu", x) - exact)
    assert error[np.abs(x) < 9].max() < 8e-7
    assert (error <= 2e-6 * np.maximum(1, np.abs(exact))).all()


def test_gelu_of_one_value_has_the_same_bits_anywhere() -> None:
    """A value's GELU does not depend on the values beside it."""
    x = np.random.default_rng(0).standard_normal(640).astype(np.float32)
    np.testing.assert_array_equal(applied("gelu", x)[::-1], applied("gelu", x[::-1]))


def test_exponential() -> None:
    """e^x for x ≤ 0 is float64's to 3e-7 of itself, and 2e-35 at most where that underflows."""
    x = np.linspace(-80, 0, 64 * 500).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(applied("exponential", x) - exact) <= 3e-7 * exact + 1e-9 * (x < -10)).all()
    assert (applied("exponential", np.full(64, -1e9)) < 2e-35).all()
    assert (applied("exponential", np.zeros(64)) == 1).all()


def test_layer_norm() -> None:
    """LayerNorm is float64's, also of rows far from zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, C)) * 3 + np.array([[0], [1], [-50], [0.01], [100]])
    gain, bias = rng.standard_normal((2, C)).astype(np.float32)
    x = x.astype(np.float32)
    y = x.copy()
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (gain, bias)]
    library().mpnn_probe_layer_norm(ctypes.c_void_p(y.ctypes.data), 5, C, *pointers)
    exact = torch.nn.functional.layer_norm(
        torch.from_numpy(x).double(), (C,), *(torch.from_numpy(a).double() for a in (gain, bias))
    )
    np.testing.assert_allclose(y, exact, rtol=0, atol=5e-5)
    np.testing.assert_allclose(y[:2], exact[:2], rtol=0, atol=3e-6)


def test_log_softmax() -> None:
    """Log-probabilities are float64's, and those of forbidden residue types too."""
    x = np.random.default_rng(0).standard_normal(21).astype(np.float32) * 5
    x[3] = -70
    exact = torch.from_numpy(x).double().log_softmax(-1)
    np.testing.assert_allclose(applied("log_softmax", x, 21), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 11, 12, 13, 24, 48])
@pytest.mark.parametrize("columns", [32, 128])
def test_micro_kernel(rows: int, columns: int) -> None:
    """x·W is float64's for every number of rows, and a row has the same bits among any others."""
    rng = np.random.default_rng(rows)
    x, weight = rng.standard_normal((rows, 96)), rng.standard_normal((columns, 96))
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    y = matmul(x, weight)
    np.testing.assert_allclose(y, x.astype(float) @ weight.T.astype(float), rtol=0, atol=5e-5)
    np.testing.assert_array_equal(matmul(x[-1:], weight), y[-1:])


def test_part_of_the_depth() -> None:
    """Rows of the weights that are picked give what the others times 0 give with them."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((12, 400)), rng.standard_normal((64, 400))
    picked = np.flatnonzero(rng.random(400) < 0.6)
    outside = np.zeros_like(x)
    outside[:, picked] = x[:, picked]
    np.testing.assert_array_equal(matmul(x[:, picked], weight, picked), matmul(outside, weight))


def test_radial_functions_out_of_reach() -> None:
    """Beyond 5.4 Å from its center a radial function is below a sixth of float32's epsilon."""
    left_out = math.exp(-((5.4 / graph.RBF_SIGMA) ** 2))
    assert left_out < np.finfo(np.float32).eps / 6
    D = torch.linspace(0, 40, 4001, dtype=torch.float64)
    beyond = (D[:, None] - graph.rbf_centers(D)).abs() > 5.4
    assert graph.rbf(D)[beyond].max() <= left_out


def test_edge_embedding_folded_by_qr() -> None:
    """W_e·LayerNorm(embedding) + b is Rᵀ·(Qᵀ·P·embedding)/s + b′ with Rᵀ lower triangular.

    The embedding of the 25 ordered pairs is that of sums and differences of 15 unordered ones.
    """
    model = formula_weights(ModelConfig(1, 1, 128, 48)).double()
    weights = {name: x.numpy() for name, x in model.state_dict().items()}
    get = _Getter(weights)
    offsets, even, odd, T, bias, centers = _edge_embedding(get)
    np.testing.assert_array_equal(T, np.tril(T))
    rng = np.random.default_rng(0)
    functions, offset = rng.random((7, 25, 16)), rng.integers(0, 66, 7)
    of_pair = {pair: functions[:, p] for p, pair in enumerate(graph.ATOM_PAIRS)}
    mixed = [(of_pair[a, b], of_pair[b, a]) for a, b in combinations(range(5), 2)]
    sums = np.hstack([*(r + back for r, back in mixed), *(of_pair[a, a] for a in range(5))])
    differences = np.hstack([r - back for r, back in mixed])
    x = offsets[offset] + sums @ even.T + differences @ odd.T
    folded_edges = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) @ T.T + bias
    features = model.features
    one_hot = torch.from_numpy(np.eye(66)[offset])
    positional = features.embeddings.linear(one_hot)
    whole = torch.cat([positional, torch.from_numpy(functions.reshape(7, 400))], -1)
    edges = model.W_e(features.norm_edges(features.edge_embedding(whole))).detach()
    np.testing.assert_allclose(folded_edges, edges, rtol=0, atol=1e-6)  # weights in float32
    np.testing.assert_allclose(centers, graph.rbf_centers(torch.zeros(1)), rtol=0, atol=1e-6)


def test_every_parameter_is_read() -> None:
    """Changing any parameter changes what the engine is given: none is forgotten."""
    weights = {name: x.numpy() for name, x in formula_weights(SMALL).state_dict().items()}

    def total(changed: dict[str, np.ndarray]) -> float:
        tensors = folded(weights | changed, SMALL)
        return sum(float((x.astype(float) * (i + 1)).sum()) for i, x in enumerate(tensors))

    before = total({})
    for name, x in weights.items():
        change = np.zeros_like(x)
        change.flat[0] = 1
        assert total({name: x + change}) != before, name


def test_w3_after_the_sum_and_masked_messages() -> None:
    """A residue with masked neighbors counts the bias of W3 once for each that is not."""
    flat = structures("masked residues")
    assert not flat.mask.all()
    log_probs = draw("masked residues", "free")[1]
    assert np.isfinite(log_probs).all()
    masked = log_probs[:, ~flat.mask]  # whose states are 0: the bias of the output layer alone
    bias = formula_weights(SMALL).W_out.bias.detach()
    np.testing.assert_allclose(
        masked, np.broadcast_to(bias.log_softmax(-1), masked.shape), atol=1e-6
    )


def test_first_layer_messages_remembered() -> None:
    """Samples that share messages, and those beyond the memo's room, have the bits of one alone."""
    flat, job = structures("one chain"), jobs("one chain", "free", 24)
    engine = native(SMALL)
    S, log_probs = sampled(engine, engine.encode(flat), job)
    shown = [len(np.unique(S[:, i])) for i in range(flat.size)]
    assert np.mean(shown) > 4  # more messages than the memo has room for, four an edge
    for n in (0, 11, 23):
        alone = subset(job, slice(0, flat.size), slice(n, n + 1))
        S_alone, log_probs_alone = sampled(engine, engine.encode(flat), alone)
        np.testing.assert_array_equal(S_alone[0], S[n])
        np.testing.assert_array_equal(log_probs_alone[0], log_probs[n])


def test_wavefront_is_decoding_one_at_a_time() -> None:
    """A residue drawn in its step has the bits that it has given earlier residues alone."""
    flat, job = structures("three chains"), jobs("three chains", "fixed")
    engine = native(SMALL)
    encoding = engine.encode(flat)
    S, log_probs = sampled(engine, encoding, job)
    for i in range(0, flat.size, 9):  # what i sees does not depend on residues that come after it
        later = job.rank > job.rank[:, i : i + 1]
        other = np.where(later, (S + 7) % 21, S)
        scored = engine.log_probs(encoding, other, job.rank)
        np.testing.assert_array_equal(scored[:, i], log_probs[:, i])


def test_edges_of_all_decoder_layers_at_once() -> None:
    """Multiplying edges before decoding, as several samples do, changes no bit of a later job."""
    flat, job = structures("one chain"), jobs("one chain", "free")
    one = subset(job, slice(0, flat.size), slice(0, 1))
    engine = native(SMALL)
    encoding = engine.encode(flat)
    before = sampled(engine, encoding, one)[1]
    sampled(engine, encoding, job)  # three samples: from here on the edges are multiplied
    np.testing.assert_array_equal(sampled(engine, encoding, one)[1], before)


def test_rotation_and_translation() -> None:
    """A structure moved as a whole keeps its distributions."""
    backbone = synthetic_backbone(40)
    flat = Flat.from_backbones([backbone])
    Q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    Q *= np.linalg.det(Q)
    moved = (flat.X.astype(float) @ Q.T + [30, -20, 5]).astype(np.float32)
    rank = np.arange(40)[None]
    engine = native(SMALL)
    both = [
        engine.log_probs(engine.encode(f), flat.S[None], rank)
        for f in (
            flat,
            Flat(moved, flat.mask, flat.residue_idx, flat.chain_encoding, flat.S, flat.lengths),
        )
    ]
    np.testing.assert_allclose(*both, rtol=0, atol=2e-4)
