"""MLX: the mirrored modules, the sampler and launches.

On a Mac the same tests run through Metal, the fused kernel included.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

mx = pytest.importorskip("mlx.core")

from engine_cases import KINDS, STRUCTURES, assert_same, flat_of, job_of  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mpnn import graph  # noqa: E402
from mpnn.config import ModelConfig  # noqa: E402
from mpnn.errors import InputError  # noqa: E402
from mpnn.flat import Flat  # noqa: E402
from mpnn.model import Batch, ProteinMPNN  # noqa: E402
from mpnn.optimizations.mlx import (  # noqa: E402
    EagerMLXEngine,
    FusedMLXEngine,
    MLXEngine,
    engine,
    sampler,
)
from mpnn.optimizations.mlx import graph as mlx_graph  # noqa: E402
from mpnn.optimizations.mlx.launches import launches  # noqa: E402
from mpnn.optimizations.mlx.metal import (  # noqa: E402
    Messages,
    metal_message_sum,
    plain_message_sum,
)
from mpnn.optimizations.reference import ReferenceEngine  # noqa: E402
from mpnn.schedule import steps_of  # noqa: E402
from mpnn.weights import formula_weights  # noqa: E402

CONFIG = ModelConfig(1, 2, 32, 24)
SINGLE = 1e-5


@pytest.fixture(scope="module")
def model() -> ProteinMPNN:
    return formula_weights(CONFIG)


@pytest.fixture(params=STRUCTURES)
def flat(request: pytest.FixtureRequest) -> Flat:
    return flat_of(request.param)


@pytest.fixture
def batch(flat: Flat) -> Batch:
    return Batch.from_flat(flat)


# --- the mirror -----------------------------------------------------------------------------


def test_same_names_in_the_same_order(model: ProteinMPNN) -> None:
    """Parameters have the torch network's names, order and values."""
    ours = tree_flatten(EagerMLXEngine(model).network.parameters())
    theirs = model.state_dict()
    assert [name for name, _ in ours] == list(theirs)
    for name, value in ours:
        np.testing.assert_array_equal(np.array(value), theirs[name].numpy())


def test_a_model_of_another_type_runs_in_float32() -> None:
    """Float64 parameters arrive as float32."""
    network = EagerMLXEngine(formula_weights(CONFIG).double()).network
    assert {value.dtype for _, value in tree_flatten(network.parameters())} == {mx.float32}


@torch.inference_mode()
def test_graph(flat: Flat, batch: Batch, model: ProteinMPNN) -> None:
    """Neighbors, their distances, offset classes and radial functions are the torch functions'."""
    E_idx, D = model.features.neighbors(batch)
    real = graph.gather_nodes(batch.valid, E_idx)[batch.valid].numpy()
    first = torch.from_numpy(flat.first_row)[:, None]
    own = torch.arange(flat.size)[:, None]
    rows = torch.where(torch.from_numpy(real), E_idx[batch.valid] + first, own)  # [R, K]
    arrays = engine.structures(flat, CONFIG.k_neighbors)
    found, D_rows = mlx_graph.neighbors(arrays["X"], arrays["mask"], CONFIG.k_neighbors, None)
    np.testing.assert_array_equal(np.array(found), rows.numpy())
    np.testing.assert_array_equal(np.array(arrays["neighbor_mask"]) > 0, real)
    np.testing.assert_allclose(np.array(D_rows)[real], D[batch.valid].numpy()[real], atol=1e-5)
    classes = mlx_graph.relative_positions(arrays["residue_idx"], arrays["chain_encoding"], found)
    expected = graph.relative_positions(batch.residue_idx, batch.chain_encoding, E_idx)
    np.testing.assert_array_equal(np.array(classes)[real], expected[batch.valid].numpy()[real])
    pairs = mlx_graph.atom_pair_distances(mx.concatenate(arrays["X"]), found, D_rows)
    expected = graph.rbf(graph.atom_pair_distances(batch.X, E_idx, D))[batch.valid]
    actual = np.array(mlx_graph.rbf(pairs))
    np.testing.assert_allclose(actual[real], expected.numpy()[real], rtol=0, atol=2e-5)


@torch.inference_mode()
def test_encoder(flat: Flat, batch: Batch, model: ProteinMPNN) -> None:
    """Nodes, and the edges' part of W1 in the decoder, are the torch network's."""
    h_V, h_E, _, neighbor_mask = model.encode(batch)
    subject, real = EagerMLXEngine(model), neighbor_mask[batch.valid].numpy() > 0
    encoded = subject.encode(flat).arrays
    expected = h_V[batch.valid].numpy()
    np.testing.assert_allclose(np.array(encoded["h_V"]), expected, rtol=0, atol=SINGLE)
    C = CONFIG.hidden_dim
    for layer, edges in zip(model.decoder_layers, encoded["edges"], strict=True):
        part = (h_E @ layer.W1.weight[:, C : 2 * C].T + layer.W1.bias)[batch.valid].numpy()
        np.testing.assert_allclose(np.array(edges)[real], part[real], rtol=0, atol=SINGLE)


# --- whole jobs -----------------------------------------------------------------------------


@pytest.mark.macos
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [MLXEngine, FusedMLXEngine])
def test_same_sequences_on_metal(make: type[MLXEngine], kind: str, model: ProteinMPNN) -> None:
    """On a GPU, compiled and with the fused kernel, sequences are the reference's."""
    if not engine.on_metal():
        pytest.skip("needs Metal")
    reference, subject = ReferenceEngine(model), make(model)
    for structures in STRUCTURES:
        flat, job = flat_of(structures), job_of(STRUCTURES[structures], kind)
        ours, theirs = (e.sample(e.encode(flat), job) for e in (subject, reference))
        assert_same(job, theirs, ours, SINGLE, flat.lengths)


def test_samples_do_not_depend_on_the_parts(
    model: ProteinMPNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample a call and all samples in one call are the same."""
    flat, job = flat_of("several"), job_of(STRUCTURES["several"])
    subject = EagerMLXEngine(model)
    encoding = subject.encode(flat)
    together = subject.sample(encoding, job)
    scores = subject.log_probs(encoding, together.S, job.rank)
    monkeypatch.setattr(engine, "FLOATS_AT_ONCE", 1)
    apart = subject.sample(encoding, job)
    assert_same(job, together, apart, SINGLE, flat.lengths)
    again = subject.log_probs(encoding, together.S, job.rank)
    np.testing.assert_allclose(again, scores, rtol=0, atol=SINGLE)


# --- launches -------------------------------------------------------------------------------


def parts_of(subject: MLXEngine) -> dict[str, Counter[str]]:
    """Launches of the encoder, the scorer and one step of the sampler, by operation."""
    flat, job = flat_of("one chain"), job_of(STRUCTURES["one chain"], samples=2)
    encoding = EagerMLXEngine(formula_weights(CONFIG)).encode(flat)
    S = sampler.on_device(np.tile(job.S, (2, 1)))
    rank = sampler.on_device(job.rank)
    state = sampler.empty_state(encoding.arrays, S)
    where = subject.network.where(encoding.arrays, rank)
    rows = next(sampler.rows_of(job, steps_of(job, [encoding.graph(0)])))
    return {
        "encoder": launches(subject._encode, engine.structures(flat, CONFIG.k_neighbors)),
        "scorer": launches(subject._decode, encoding.arrays, S, rank),
        "step": launches(subject._steps[False], encoding.arrays, where, state, rows),
    }


def test_launches_of_the_network(model: ProteinMPNN) -> None:
    """`mx.compile` halves the launches of every part, and no GELU is one of its own."""
    eager, compiled = parts_of(EagerMLXEngine(model)), parts_of(MLXEngine(model))
    for part in eager:
        assert eager[part]["Erf"] > 0
        assert compiled[part]["Erf"] == 0
        assert 0 < compiled[part].total() < 0.6 * eager[part].total(), part


def test_launches_of_messages() -> None:
    """A layer's messages are 17 launches eager, 6 compiled and one in the Metal kernel."""
    M, K, C = 5, 12, 64
    tables = mx.zeros((M, C)), mx.zeros((7, C)), mx.zeros((M, K), mx.int32), mx.ones((M, K))
    given = (*tables, mx.zeros((3, K, C)), mx.zeros(M, mx.int32), mx.zeros((C, C)), mx.zeros(C))

    def plain(*x: Any) -> Any:
        return plain_message_sum(Messages(*x[:6], None, *x[6:]))

    def kernel(*x: Any) -> Any:
        return metal_message_sum(Messages(*x[:6], None, *x[6:]))

    recorded: list[dict[str, Any]] = []
    mx.export_function(recorded.append, kernel, *given)  # recording needs no Metal
    names = [r["name"] for r in recorded if r["type"] == "primitive"]
    assert launches(plain, *given).total() == 17
    assert launches(mx.compile(plain), *given).total() == 6
    assert names == ["CustomKernel"]


# --- what cannot be ---------------------------------------------------------------------------


def test_the_kernel_is_named(model: ProteinMPNN) -> None:
    """The fused engine names what it runs: Metal where that is, the fallback kernel elsewhere."""
    taken = FusedMLXEngine(model)
    assert taken.kernel == ("metal" if engine.on_metal() else "fallback")
    assert taken.message_sum is (metal_message_sum if engine.on_metal() else plain_message_sum)
    assert MLXEngine(model).kernel == "fallback"


@pytest.mark.parametrize("C", [48, 352])
def test_the_kernel_refuses_other_widths(C: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Metal, a width that the kernel cannot take is an error that names the way out."""
    monkeypatch.setattr(engine, "on_metal", lambda: True)
    with pytest.raises(InputError, match=f"at most 320, not {C}; take the engine mlx"):
        FusedMLXEngine(formula_weights(ModelConfig(1, 1, C, 12)))


def test_another_device_is_refused(model: ProteinMPNN) -> None:
    """MLX has its own device, so torch's others are refused."""
    with pytest.raises(InputError, match="leave the device at cpu, not mps"):
        MLXEngine(model, "mps")


@pytest.mark.parametrize("mock", [False, True])
def test_no_compiler_is_said(
    mock: bool, model: ProteinMPNN, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the CPU, `mx.compile` without a C++ compiler is a sentence, not a crash at first use.

    A Mac without command line tools has a `g++` on its path that only asks to install them.
    """
    if mock:
        (tmp_path / "g++").write_text("#!/bin/sh\necho no developer tools were found >&2; exit 1\n")
        (tmp_path / "g++").chmod(0o755)
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="take the engine mlx-eager"):
        MLXEngine(model)


def test_rounded_matmuls_are_refused() -> None:
    """Matmuls of ten bits, MLX's default on some hardware, do not pass as float32."""
    engine.require_float32_matmuls()

    def rounded(a: Any, b: Any) -> Any:
        return (a.astype(mx.float16) @ b.astype(mx.float16)).astype(mx.float32)

    with pytest.raises(InputError, match="MLX_ENABLE_TF32=0"):
        engine.require_float32_matmuls(rounded)
