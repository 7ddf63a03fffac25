"""MLX: the mirrored modules, the sampler, launches; whole jobs against the reference.

On a Mac the same tests run through Metal, the fused kernel included.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

mx = pytest.importorskip("mlx.core")

from mlx.utils import tree_flatten  # noqa: E402
from test_exact import BACKBONES, assert_same, job_of, on_valid  # noqa: E402

from mpnn import graph  # noqa: E402
from mpnn.batch import Batch  # noqa: E402
from mpnn.config import ModelConfig  # noqa: E402
from mpnn.errors import InputError  # noqa: E402
from mpnn.model import ProteinMPNN  # noqa: E402
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
from mpnn.weights import formula_weights  # noqa: E402

CONFIG = ModelConfig(1, 2, 32, 24)
SINGLE = 1e-5
KINDS = ("free", "fixed", "tied", "biased")


@pytest.fixture(scope="module")
def model() -> ProteinMPNN:
    return formula_weights(CONFIG)


@pytest.fixture(params=BACKBONES)
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch.from_backbones(BACKBONES[request.param])


@pytest.fixture(scope="module")
def reference(model: ProteinMPNN) -> ReferenceEngine:
    return ReferenceEngine(model)


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
def test_graph(batch: Batch, model: ProteinMPNN) -> None:
    """Neighbors, their distances and offset classes are the torch functions'."""
    E_idx, D = model.features.neighbors(batch)
    arrays = engine.structures(batch)
    rows_of_E_idx, D_rows = mlx_graph.neighbors(
        arrays["X"][:, :, graph.CA], arrays["mask"], arrays["valid"], CONFIG.k_neighbors, None
    )
    valid = batch.valid.flatten().numpy()
    np.testing.assert_allclose(np.array(D_rows)[valid], D.flatten(0, 1).numpy()[valid], atol=1e-5)
    B, L, _ = E_idx.shape
    given = (E_idx + torch.arange(B)[:, None, None] * L).flatten(0, 1)
    near = np.isfinite(np.array(D_rows))
    np.testing.assert_array_equal(np.array(rows_of_E_idx)[near], given.numpy()[near])
    classes = mlx_graph.relative_positions(
        arrays["residue_idx"].flatten(),
        arrays["chain_encoding"].flatten(),
        mx.array(given.int().numpy()),
    )
    expected = graph.relative_positions(batch.residue_idx, batch.chain_encoding, E_idx)
    np.testing.assert_array_equal(np.array(classes), expected.flatten(0, 1).numpy())
    pairs = mlx_graph.atom_pair_distances(
        arrays["X"].flatten(0, 1), mx.array(given.int().numpy()), mx.array(D.flatten(0, 1).numpy())
    )
    expected = graph.atom_pair_distances(batch.X, E_idx, D).flatten(0, 1)
    np.testing.assert_allclose(
        np.array(mlx_graph.rbf(pairs)), graph.rbf(expected).numpy(), rtol=0, atol=2e-5
    )


@torch.inference_mode()
def test_encoder(batch: Batch, model: ProteinMPNN) -> None:
    """Nodes, and the edges' part of W1 in the decoder, are the torch network's."""
    E_idx = model.features.neighbors(batch)[0]
    batch = dataclasses.replace(batch, E_idx=E_idx)  # equal distances leave a choice
    h_V, h_E, _, neighbor_mask = model.encode(batch)
    encoded = EagerMLXEngine(model).encode(batch).arrays
    valid = batch.valid.flatten().numpy()
    np.testing.assert_allclose(
        np.array(encoded["h_V"])[valid], h_V.flatten(0, 1).numpy()[valid], rtol=0, atol=SINGLE
    )
    C = CONFIG.hidden_dim
    real = neighbor_mask.flatten(0, 1).numpy() > 0
    for layer, edges in zip(model.decoder_layers, encoded["edges"], strict=True):
        part = h_E @ layer.W1.weight[:, C : 2 * C].T + layer.W1.bias
        np.testing.assert_allclose(
            np.array(edges)[real], part.flatten(0, 1).numpy()[real], rtol=0, atol=SINGLE
        )


# --- whole jobs -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_sequences_as_the_reference(
    batch: Batch, kind: str, model: ProteinMPNN, reference: ReferenceEngine
) -> None:
    """Same seed, same sequences and log-probabilities, for every kind of job and structure."""
    assert_same_job(EagerMLXEngine(model), reference, batch, kind)


@pytest.mark.slow  # on the CPU, g++ builds each kernel when it is first used
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [MLXEngine, FusedMLXEngine])
def test_same_sequences_compiled(
    batch: Batch, make: type[MLXEngine], kind: str, model: ProteinMPNN, reference: ReferenceEngine
) -> None:
    """The same under `mx.compile`, messages by the fused kernel or by its twin."""
    assert_same_job(make(model), reference, batch, kind)


@pytest.mark.macos
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [MLXEngine, FusedMLXEngine])
def test_same_sequences_on_metal(
    batch: Batch, make: type[MLXEngine], kind: str, model: ProteinMPNN, reference: ReferenceEngine
) -> None:
    """The same on a GPU, compiled and with the fused kernel."""
    if not engine.on_metal():
        pytest.skip("needs Metal")
    assert_same_job(make(model), reference, batch, kind)


def assert_same_job(
    subject: MLXEngine, reference: ReferenceEngine, batch: Batch, kind: str
) -> None:
    """Samples equal the reference's, and the scorer says of them what the sampler said."""
    job = job_of(batch, kind)
    encoding = subject.encode(batch)
    ours = on_valid(batch, subject.sample(encoding, job))
    assert_same(job, on_valid(batch, reference.sample(batch, job)), ours, SINGLE)
    scored = dataclasses.replace(ours, log_probs=subject.log_probs(encoding, ours.S, job.rank))
    np.testing.assert_allclose(
        on_valid(batch, scored).log_probs, ours.log_probs, rtol=0, atol=SINGLE
    )


def test_samples_do_not_depend_on_the_parts(
    model: ProteinMPNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample a call and all samples in one call are the same."""
    batch = Batch.from_backbones(BACKBONES["different lengths"])
    subject, job = EagerMLXEngine(model), job_of(batch)
    encoding = subject.encode(batch)
    together = subject.sample(encoding, job)
    scores = subject.log_probs(encoding, together.S, job.rank)
    monkeypatch.setattr(engine, "FLOATS_AT_ONCE", 1)
    apart = subject.sample(encoding, job)
    assert_same(job, on_valid(batch, together), on_valid(batch, apart), SINGLE)
    again = subject.log_probs(encoding, together.S, job.rank)
    np.testing.assert_allclose(again, scores, rtol=0, atol=SINGLE)


@pytest.mark.parametrize("kind", ["free", "tied"])
def test_nothing_to_design(kind: str, model: ProteinMPNN, reference: ReferenceEngine) -> None:
    """With every residue fixed the letters stay, and are scored in the one pass."""
    batch = Batch.from_backbones(BACKBONES["shorter than K"])
    job = job_of(batch, kind)
    job = dataclasses.replace(job, designed=np.zeros_like(job.designed))
    subject = EagerMLXEngine(model)
    ours = subject.sample(subject.encode(batch), job)
    np.testing.assert_array_equal(ours.S, np.broadcast_to(job.S[:, None], ours.S.shape))
    assert_same(job, reference.sample(batch, job), ours, SINGLE)


def test_neighbors(batch: Batch, model: ProteinMPNN, reference: ReferenceEngine) -> None:
    """Neighbors, and where they are real, are the reference's, searched for or given."""
    subject = EagerMLXEngine(model)
    given = dataclasses.replace(batch, E_idx=model.features.neighbors(batch)[0])
    for b, length in enumerate(batch.lengths.tolist()):
        unmasked = batch.mask[b, :length].numpy() > 0
        right, real = reference.neighbors(batch, b)
        for encoding in (subject.encode(batch), subject.encode(given)):
            E_idx, slots = subject.neighbors(encoding, b)
            np.testing.assert_array_equal(slots[unmasked], real[unmasked])
            np.testing.assert_array_equal(
                np.where(slots, E_idx, 0)[unmasked], np.where(real, right, 0)[unmasked]
            )


# --- launches -------------------------------------------------------------------------------


def parts_of(subject: MLXEngine) -> dict[str, Counter[str]]:
    """Launches of the encoder, the scorer and one step of the sampler, by operation."""
    batch = Batch.from_backbones(BACKBONES["one chain"])
    job = job_of(batch, samples=2)
    encoding = EagerMLXEngine(formula_weights(CONFIG)).encode(batch)
    S = engine.rows_of_samples(np.broadcast_to(job.S[:, None], job.rank.shape))
    rank = engine.rows_of_samples(job.rank)
    state = sampler.empty_state(encoding.arrays, S)
    where = subject.network.where(encoding.arrays, rank)
    rows = next(sampler.rows_of(job, engine.steps_of(encoding, job)))
    return {
        "encoder": launches(subject._encode, engine.structures(batch)),
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
    """The fused engine takes Metal where it is, and says so; else it says that it took the twin."""
    taken = FusedMLXEngine(model)
    assert taken.kernel == ("metal" if engine.on_metal() else "twin")
    assert taken.message_sum is (metal_message_sum if engine.on_metal() else plain_message_sum)
    assert MLXEngine(model).kernel == "twin"


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


def test_no_compiler_is_said(model: ProteinMPNN, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, `mx.compile` without a C++ compiler is a sentence, not a crash at first use."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="take the engine mlx-eager"):
        MLXEngine(model)


def test_rounded_products_are_refused() -> None:
    """Products of ten bits, MLX's default on some hardware, do not pass as float32."""
    engine.require_whole_products()

    def rounded(a: Any, b: Any) -> Any:
        return (a.astype(mx.float16) @ b.astype(mx.float16)).astype(mx.float32)

    with pytest.raises(InputError, match="MLX_ENABLE_TF32=0"):
        engine.require_whole_products(rounded)
