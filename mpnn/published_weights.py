"""The published form of a checkpoint: a torch pickle, read without running code from it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpnn.config import ModelConfig
from mpnn.errors import InputError
from mpnn.parameters import parameter_shapes

_NUMPY_SCALAR = "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""The object that torch names when it refuses one."""


def read_published(path: Path) -> tuple[dict[Any, Any], ModelConfig, Any]:
    """Reads a published checkpoint; layers and width follow from the tensors, k from `num_edges`.

    Returns:
        The parameters by name, float32 arrays where they have the network's shape, else the file's
        objects; the configuration; and what the file gives as `noise_level`.

    Raises:
        InputError: the file is damaged, would run code, or has another form.
    """
    content = _unpickled(path)
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), dict):
        raise InputError(f"{path}: no model_state_dict inside, as published checkpoints have")
    tensors = content["model_state_dict"]
    config = _implied_config(path, tensors, content.get("num_edges"))
    shapes = parameter_shapes(config)
    arrays = {name: _as_array(value, shapes.get(name)) for name, value in tensors.items()}
    return arrays, config, content.get("noise_level")


def _unpickled(path: Path) -> Any:
    """What the pickle holds: tensors, containers, numbers and text; anything else is refused."""
    import torch

    allowed: list[Any] = [(_Dtype, "numpy.dtype"), *((_scalar, name) for name in _NUMPY_SCALAR)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # about old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead it to
        if refused := _REFUSED.search(str(error)):
            raise InputError(
                f"{path}: holds an object of {refused[1]}, which could run code, which is refused; "
                "save the file again with model_state_dict, num_edges and noise_level alone"
            ) from error
        raise InputError(
            f"{path}: cannot be read as a checkpoint, or would run code, which is refused "
            f"({type(error).__name__}); fetch it again, or name a .safetensors or published .pt"
        ) from error


class _Dtype:
    """Stands in for numpy.dtype while unpickling, whose own state a file could corrupt.

    Numpy pickles a number as its type, such as "f8" and a byte order, and its bytes.
    """

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|[iuf][1248]", code):
            raise ValueError(f"numpy type {code!r} is not a number")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = (">" if state[1] == ">" else "<") + self.code


def _scalar(dtype: object, data: object) -> bool | int | float:
    """The number that a pickled numpy scalar holds, as Python's own."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise ValueError("a numpy number is damaged")
    value: bool | int | float = np.frombuffer(data, dtype.code, 1)[0].item()
    return value


def _as_array(value: Any, shape: tuple[int, ...] | None) -> Any:
    """A tensor of real numbers of this shape as a float32 array; anything else as it is."""
    import torch

    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        return value
    plain = value.layout == torch.strided and value.device.type == "cpu"
    return value.detach().float().numpy() if plain and value.is_floating_point() else value


def _implied_config(path: Path, tensors: Mapping[Any, Any], k: object) -> ModelConfig:
    """The configuration that published tensors imply.

    Raises:
        InputError: k is not a whole number, or the tensors are of another kind of network.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"{path}: the number of neighbors is {k!r}; a whole number is needed")
    shape: tuple[int, ...] = tuple(getattr(tensors.get("W_e.bias"), "shape", ()))
    width = shape[0] if len(shape) == 1 else 0
    encoder_layers, decoder_layers = (_count_layers(tensors, p) for p in ("encoder", "decoder"))
    if not (width and encoder_layers and decoder_layers):
        raise InputError(
            f"{path}: not the tensors of a ProteinMPNN: encoder_layers.0…, decoder_layers.0… and "
            "W_e.bias [C] are needed; a CA-only or ligand model cannot be used"
        )
    return ModelConfig(encoder_layers, decoder_layers, width, k)


def _count_layers(tensors: Mapping[Any, Any], part: str) -> int:
    prefix = f"{part}_layers."
    names = [str(name) for name in tensors]
    return len({name.split(".")[1] for name in names if name.startswith(prefix)})
