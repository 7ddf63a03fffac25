"""Checkpoints: read back as written, refused when damaged, fetched whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_files import CONFIG, published_content, write_published, write_weights

from mpnn import download, weights
from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.download import git_blob_id
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.weights import (
    default_weights,
    describe,
    find_weights,
    formula_weights,
    load_arrays,
    load_checkpoint,
    load_published,
    load_weights,
    locations,
    save_checkpoint,
)


def assert_same(a: ProteinMPNN, b: ProteinMPNN) -> None:
    """Equal configuration, names and values."""
    assert a.config == b.config
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the machine's cache, shipped checkpoints or MPNN_WEIGHTS."""
    monkeypatch.setattr(download, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "shipped")
    monkeypatch.delenv("MPNN_WEIGHTS", raising=False)


@pytest.mark.parametrize("name", ["baseline", "extreme-v2"])
def test_checkpoint_reads_back(tmp_path: Path, name: str) -> None:
    """A checkpoint gives back configuration, weights and card; writing it again, the same bytes."""
    model, path = formula_weights(ARCHITECTURES[name]), tmp_path / "made.safetensors"
    card = {"license": "MIT", "noise": 0.1, "Å": [1]}
    save_checkpoint(path, model, card)
    found, found_card = load_checkpoint(path)
    assert_same(found, model)
    assert found_card == card
    before = path.read_bytes()
    save_checkpoint(path, model, card)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["made.safetensors"]


def test_half_precision_file_loads_as_float32(tmp_path: Path) -> None:
    """Weights stored in half precision come back in float32 with their rounded values."""
    model, path = formula_weights(CONFIG), tmp_path / "half.safetensors"
    save_checkpoint(path, model, {}, torch.float16)
    found = load_checkpoint(path)[0].state_dict()
    for name, value in model.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.half().float())


def test_int8_file_loads_as_float32(tmp_path: Path) -> None:
    """Matrices come back within half a step of their row's scale, the rest as in float16."""
    model, path = formula_weights(CONFIG), tmp_path / "small.safetensors"
    zero = model.state_dict()["W_out.weight"][3].zero_()  # a row without a largest weight
    save_checkpoint(path, model, {}, torch.int8)
    found = load_checkpoint(path)[0].state_dict()
    for name, value in model.state_dict().items():
        assert found[name].dtype == torch.float32
        if value.ndim == 2:
            step = value.abs().amax(1, keepdim=True) / 127
            assert ((found[name] - value).abs() <= 0.501 * step).all()
        else:
            assert torch.equal(found[name], value.half().float())
    assert torch.equal(found["W_out.weight"][3], zero)
    stored = safetensors.torch.load_file(path)
    assert all(stored[name].dtype == torch.int8 for name in found if found[name].ndim == 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("W_out.weight.int8_scale"), "W_out.weight is not a tensor of real"),
        (lambda t: t.pop("W_out.weight"), r"unexpected W_out.weight.int8_scale"),
        (
            lambda t: t.update({"W_out.weight.int8_scale": torch.ones(2, 1)}),
            r"unexpected W_out.weight.int8_scale",
        ),
    ],
)
def test_int8_without_its_scales_is_refused(tmp_path: Path, spoil, message: str) -> None:
    """A matrix without scales, scales without a matrix or of another shape are named."""
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, formula_weights(CONFIG), {}, torch.int8)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    spoil(tensors)
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)


def test_published_file_loads(tmp_path: Path) -> None:
    """Layers and width follow from the tensors, k from num_edges, and the card gives the noise."""
    config = ModelConfig(2, 3, 32, 20)
    path = write_published(tmp_path / "v.pt", published_content(config))
    model, card = load_published(path)
    assert_same(model, formula_weights(config))
    assert card == {"noise_level": 0.2, "blob_id": git_blob_id(path), "published": None}
    assert load_weights(path)[1]["name"] == "v"


def test_blob_id_of_a_known_file(tmp_path: Path) -> None:
    """`hello` and a line feed have the id that `git hash-object` prints."""
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """A published-looking file with code inside is refused, and the code does not run."""
    content = {**published_content(), "extra": Malicious(tmp_path / "ran")}
    path = write_published(tmp_path / "evil.pt", content)
    with pytest.raises(InputError, match=r"object of posix\.mkdir, which could run code"):
        load_weights(path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(InputError, match="run code, which is refused"):
        load_weights(tmp_path / "plain.pt")
    assert not (tmp_path / "ran").exists()


def test_types_that_numpy_lacks_are_named(tmp_path: Path) -> None:
    """A checkpoint in bfloat16 is refused with the types to store instead."""
    path = tmp_path / "w.safetensors"
    save_checkpoint(path, formula_weights(CONFIG), {}, torch.bfloat16)
    with pytest.raises(InputError, match=r"BF16.*store them in float32 or float16"):
        load_weights(path)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model_state_dict"].pop(name)


def replaced(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model_state_dict"].update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("W_out.bias"), "missing W_out.bias"),
        (without("W_e.bias"), "not the tensors of a ProteinMPNN"),
        (replaced("ligand.weight", torch.zeros(2)), "unexpected ligand.weight"),
        (replaced(7, torch.zeros(2)), "unexpected 7"),
        (replaced("W_out.bias", torch.zeros(21).to_sparse()), "not a tensor of real"),
        (replaced("W_out.bias", torch.zeros(21, dtype=torch.complex64)), "not a tensor of real"),
        (replaced("encoder_layers.x.W1.bias", torch.zeros(2)), "missing encoder_layers.1"),
        (replaced("W_out.bias", torch.zeros(20)), r"W_out.bias has shape \(20,\), not \(21,\)"),
        (replaced("W_out.bias", [0.0] * 21), "W_out.bias is not a tensor"),
        (replaced("W_out.bias", torch.zeros(21, dtype=torch.int64)), "not a tensor of real"),
        (replaced("W_out.bias", torch.full((21,), torch.nan)), "W_out.bias holds NaN"),
        (replaced("W_e.bias", torch.tensor(1.0)), "not the tensors of a ProteinMPNN"),
        (replaced("W_e.bias", torch.zeros(0)), "not the tensors of a ProteinMPNN"),
        (lambda content: content.update(num_edges="48"), "neighbors is '48'"),
        (lambda content: content.update(num_edges=0), "neighbors is 0"),
        (lambda content: content.pop("num_edges"), "neighbors is None"),
        (lambda content: content.pop("model_state_dict"), "no model_state_dict"),
    ],
)
def test_published_file_that_does_not_fit(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Missing, extra, misshapen and unreal tensors are refused by name."""
    content = published_content()
    damage(content)
    with pytest.raises(InputError, match=message):
        load_published(write_published(tmp_path / "v.pt", content))


@pytest.mark.parametrize("content", [None, [], "text", {"a": 1}, torch.zeros(3)], ids=repr)
def test_other_content_is_refused(tmp_path: Path, content: Any) -> None:
    """A torch file that holds something else is refused."""
    with pytest.raises(InputError, match="no model_state_dict"):
        load_published(write_published(tmp_path / "v.pt", content))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, suffix: str, keep: float) -> None:
    """A file cut short anywhere is refused by name, and the message says to get it again."""
    path = write_weights(tmp_path)
    if suffix == ".pt":
        path = write_published(tmp_path / "v.pt", published_content())
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(InputError, match=f"{path.name}.*again"):
        load_weights(path)


@given(content=st.binary(min_size=1, max_size=300), suffix=st.sampled_from([".pt", ".safetensors"]))
def test_any_bytes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    """No file content leads to anything but a refusal."""
    path = tmp_path_factory.mktemp("bytes") / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_weights(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no configuration inside"),
        ({"mpnn": "{"}, "not a whole safetensors file"),
        ({"mpnn": "[]"}, "no configuration inside"),
        ({"mpnn": json.dumps({"card": {}})}, "no configuration inside"),
        (
            {"mpnn": json.dumps({"card": {}, "config": {"k_neighbors": 8, "depth": 2}})},
            "is of no network known here .*depth",
        ),
        (
            {"mpnn": json.dumps({"card": {}, "config": {"k_neighbors": 8, "autoregressive": 1}})},
            "autoregressive must be true or false, not 1",
        ),
        (
            {"mpnn": json.dumps({"card": {}, "config": {"k_neighbors": 8, "hidden_dim": 64}})},
            r"do not match ModelConfig\(.*hidden_dim=64.* missing encoder_layers.1",
        ),
    ],
)
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    """Safetensors without our configuration, or with another one, are refused."""
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(formula_weights(CONFIG).state_dict(), path, metadata)
    with pytest.raises(InputError, match=message):
        load_weights(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A path that is not a file is refused with the names that exist."""
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match="v_48_020"):
            load_weights(path)
        with pytest.raises(InputError, match="no such file"):
            load_checkpoint(path)


def test_checkpoint_ending(tmp_path: Path) -> None:
    """A checkpoint is written under its own ending only."""
    with pytest.raises(InputError, match=r"\.safetensors"):
        save_checkpoint(tmp_path / "w.pt", formula_weights(CONFIG), {})


def test_where_weights_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path comes first, then shipped names, then MPNN_WEIGHTS, then the cache."""
    with pytest.raises(InputError, match="--weights"):
        default_weights()
    for name in ("minimal", "baseline"):
        save_checkpoint(tmp_path / "shipped" / f"{name}.safetensors", formula_weights(CONFIG), {})
        assert default_weights() == name
        assert find_weights(name) == tmp_path / "shipped" / f"{name}.safetensors"
    write_published(tmp_path / "v_48_020.pt", published_content())
    monkeypatch.setenv("MPNN_WEIGHTS", str(tmp_path))
    assert find_weights("v_48_020") == tmp_path / "v_48_020.pt"
    where = {name: place for group in locations().values() for name, place in group.items()}
    assert where["minimal"] == "here"
    assert where["v_48_020"] == str(tmp_path / "v_48_020.pt")
    assert where["v_48_002"] == where["soluble_v_48_020"] == "to be fetched"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_published(Path("minimal"), published_content())
    assert find_weights("minimal") == Path("minimal")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("v48_020_epoch300_hyper.pt", "hyper_v_48_020"),
        ("sol_pottsmpnn_msa_20.pt", "sol_pottsmpnn_msa_20"),
        ("pottsmpnn_30.pt", "pottsmpnn_30"),
    ],
)
def test_weights_of_other_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str
) -> None:
    """A file of the published form is found under its name here and loaded, with its source."""
    monkeypatch.setenv("MPNN_WEIGHTS", str(tmp_path))
    write_published(tmp_path / file, {**published_content(), "noise_level": 0.2})
    checkpoint = load_arrays(name)
    assert checkpoint.config == CONFIG
    assert checkpoint.card["noise_level"] == 0.2
    about = describe(name)
    assert about["file"] == str(tmp_path / file)
    assert about["license"] == "MIT"
    assert about["blob_id"] != about["published_id"]  # of a file that this test made


@pytest.mark.data
@pytest.mark.parametrize("name", ["v_48_002", "v_48_020"])
def test_published_weights_load(weights_dir: Path, name: str) -> None:
    """Published files load with the published size and the noise in their name."""
    model, card = load_published(weights_dir / f"{name}.pt")
    assert model.config == ModelConfig()
    assert sum(p.numel() for p in model.parameters()) == 1_660_485
    assert card["noise_level"] == pytest.approx(int(name[-3:]) / 100)
