"""Published checkpoints with numbers of numpy, and checkpoints as arrays without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_files import CONFIG, published_content, write_published, write_weights

from mpnn.config import ARCHITECTURES
from mpnn.errors import InputError
from mpnn.parameters import parameter_shapes
from mpnn.weights import load_arrays, load_published, load_weights, make_network


@pytest.mark.parametrize(
    "number",
    [
        *(np.int64(3), np.int16(-3), np.uint8(200), np.bool_(True)),
        *(np.float64(0.2), np.float32(0.1), np.float16(1.5)),
    ],
    ids=repr,
)
def test_numpy_numbers_are_read(tmp_path: Path, number: np.generic) -> None:
    """A checkpoint whose epoch, noise and k are numbers of numpy loads with their values."""
    content = {**published_content(), "epoch": number, "noise_level": number}
    content["num_edges"] = np.int32(content["num_edges"])
    model, card = load_published(write_published(tmp_path / "v.pt", content))
    assert card["noise_level"] == number.item()
    assert type(card["noise_level"]) is type(number.item())
    assert model.config.k_neighbors == CONFIG.k_neighbors


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (np.zeros(3), "numpy._core.multiarray._reconstruct"),
        (Path("x"), "pathlib"),
        (Fraction(1, 2), "fractions.Fraction"),
    ],
    ids=["array", "path", "fraction"],
)
def test_a_refused_object_is_named(tmp_path: Path, item: object, name: str) -> None:
    """What could run code is named, with no advice to load it unsafely."""
    path = write_published(tmp_path / "v.pt", {**published_content(), "extra": item})
    with pytest.raises(
        InputError, match=f"holds an object of {name}.*save the file again"
    ) as caught:
        load_published(path)
    assert not re.search("weights_only|safe_globals|allowlist|trust", str(caught.value))
    assert "\n" not in str(caught.value)


class Forged:
    """Pickles as a call of numpy's `scalar` with any arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return np._core.multiarray.scalar, self.arguments


def test_numbers_of_other_byte_orders_are_read(tmp_path: Path) -> None:
    """A number that a big-endian machine wrote has its value."""
    content = {**published_content(), "noise_level": Forged(np.dtype(">i4"), b"\0\0\0\5")}
    assert load_published(write_published(tmp_path / "v.pt", content))[1]["noise_level"] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        (np.dtype("O"), b"x"),
        (np.dtype("V100000"), b"x"),
        (np.dtype([("a", "f8")]), b"12345678"),
        (np.dtype("f8"), b"short"),
        (np.dtype("f8"), None),
        ("f8", b"12345678"),
        (np.dtype("f8"),),
    ],
    ids=repr,
)
def test_forged_numpy_numbers_are_refused(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    """Numbers of other types, too few bytes and other arguments are refused, not interpreted."""
    content = {**published_content(), "epoch": Forged(*arguments)}
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_published(write_published(tmp_path / "v.pt", content))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_those_of_the_networks(name: str) -> None:
    """The table of parameters has the names and shapes of the torch network."""
    network = make_network(ARCHITECTURES[name])
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert parameter_shapes(ARCHITECTURES[name]) == expected


def test_arrays_are_the_networks_parameters(tmp_path: Path) -> None:
    """Arrays are float32 and equal to the parameters of the network built from them."""
    path = write_weights(tmp_path)
    arrays, config, card = load_arrays(path)
    model, same_card = load_weights(path)
    assert (
        (config, card) == (model.config, same_card) == (CONFIG, {"name": "made", "license": "MIT"})
    )
    assert all(array.dtype == np.float32 for array in arrays.values())
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(arrays[key], value.numpy())


def test_loading_arrays_imports_no_torch(tmp_path: Path) -> None:
    """Our own form is read without torch and without any engine."""
    path = write_weights(tmp_path)
    code = (
        f"import sys; from mpnn.weights import load_arrays; load_arrays({str(path)!r})\n"
        "sys.exit(any(m == 'torch' or m.startswith('mpnn.optimizations') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_leaves_the_random_generator_alone(tmp_path: Path) -> None:
    """Building a network draws nothing from torch's generator, and imports no compiler."""
    path = write_weights(tmp_path)
    before = torch.get_rng_state()
    load_weights(path)
    assert torch.equal(torch.get_rng_state(), before)
    code = (
        f"import sys; from mpnn.weights import load_weights; load_weights({str(path)!r})\n"
        "sys.exit(len({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
