"""Checkpoints: our own, the published ones, and where a name leads; all checked before use.

Our own form is safetensors with the configuration and a card (a JSON object that says where the
weights come from) in its metadata. The published form is a torch pickle, read without running code.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mpnn.config import ModelConfig, NetworkConfig, SSMConfig
from mpnn.download import PUBLISHED, cache_folder, cached, fetch, git_blob_id
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.output import write_whole
from mpnn.ssm import SSM

Network = ProteinMPNN | SSM
"""A network of any kind; its `config` says which."""

SHIPPED = Path(__file__).parent / "checkpoints"
"""Folder of the checkpoints that come with the package."""

PREFERRED = ("baseline", "minimal")
"""Shipped names that stand in, first found, where a user names no weights."""

METADATA_KEY = "mpnn"
SCALE = ".int8_scale"
"""Ending of the name of an int8 matrix's scales."""

Card = dict[str, Any]


def make_network(config: NetworkConfig) -> Network:
    """A network of this size with random weights."""
    return SSM(config) if isinstance(config, SSMConfig) else ProteinMPNN(config)


def formula_weights(config: NetworkConfig) -> Network:
    """A network whose weights follow from the names of its parameters: no file is needed.

    Normal numbers w seeded by the name: matrices w/√(last axis), LayerNorm weights 1 + 0.1·w, other
    vectors 0.1·w; drawn in float64 and kept in float32.
    """
    weights = {}
    for name, shape in _shapes(config).items():
        w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if w.ndim > 1:
            w = w / np.sqrt(shape[-1])
        else:
            w = 0.1 * w + (1.0 if name.endswith("weight") else 0.0)
        weights[name] = torch.from_numpy(w).float()
    return _with_weights(config, weights)


def save_checkpoint(
    path: str | Path,
    model: Network,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes our own form, whole or not at all.

    Args:
        path: ends in `.safetensors`.
        model: the network; its configuration is stored too.
        card: what JSON can hold: name, training data, steps, measured accuracy, license.
        dtype: stored type, read back as float32; float16 halves the file. int8 quarters it:
            matrices [rows, columns] as whole numbers with scales [rows, 1], the rest in float16.

    Raises:
        InputError: the path has another ending or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a checkpoint is written as .safetensors; change the ending")
    weights = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    if dtype is torch.int8:
        tensors = _in_int8(weights)
    else:
        tensors = {name: t.to(dtype).contiguous() for name, t in weights.items()}
    about = {"config": dataclasses.asdict(model.config), "card": dict(card)}
    metadata = {METADATA_KEY: json.dumps(about, sort_keys=True, ensure_ascii=False)}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def load_weights(name_or_path: str | Path) -> tuple[Network, Card]:
    """The network that a name or a path leads to, in float32 on the CPU, and its card.

    The card always has `name`. Other keys are those stored with the checkpoint, or, for a published
    one, those of `load_published`.

    Raises:
        InputError: see `find_weights`, `load_checkpoint` and `load_published`.
    """
    path = find_weights(name_or_path)
    own = path.suffix == ".safetensors"
    model, card = load_checkpoint(path) if own else load_published(path)
    return model, {"name": path.stem, **card}


def load_checkpoint(path: str | Path) -> tuple[Network, Card]:
    """Reads our own form: the network in float32 on the CPU, and its card.

    Raises:
        InputError: the file is missing, damaged or not of this form, or a tensor does not fit.
    """
    path = _existing(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); copy or fetch it again"
        ) from error
    if not isinstance(about, dict) or not isinstance(about.get("card"), dict):
        raise InputError(f"{path}: has no configuration inside; mpnn did not write this file")
    config = _stored_config(path, about.get("config"))
    return _with_weights(config, _checked(path, _from_int8(stored), config)), about["card"]


def load_published(path: str | Path) -> tuple[Network, Card]:
    """Reads the published form; layers and width follow from the tensors, k from `num_edges`.

    Returns:
        The network in float32 on the CPU, and a card: `noise_level` in Å (None where the file does
        not say), `blob_id`, and `published`, the name of the published file that has this id or
        None: a local file need not be one.

    Raises:
        InputError: the file is missing, damaged, wants to run code or has another form.
    """
    path = _existing(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the bytes lead it to
        raise InputError(
            f"{path}: cannot be read as a checkpoint, or wants to run code, which is refused "
            f"({_first_sentence(error)}); fetch it again, or name a .safetensors or published .pt"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), dict):
        raise InputError(f"{path}: no model_state_dict inside, as published checkpoints have")
    tensors = content["model_state_dict"]
    config = _implied_config(path, tensors, content.get("num_edges"))
    weights = _checked(path, tensors, config)
    blob_id = git_blob_id(path)
    published = next((name for name, p in PUBLISHED.items() if p.blob_id == blob_id), None)
    card = {
        "noise_level": content.get("noise_level"),
        "blob_id": blob_id,
        "published": published,
    }
    return _with_weights(config, weights), card


def find_weights(name_or_path: str | Path) -> Path:
    """Where weights lie: a path, a shipped name, or a published name.

    A published one is looked for in the folder `MPNN_WEIGHTS` (whose files are taken as they are),
    then in the user's cache, then downloaded.

    Raises:
        InputError: there is no such file and no such name, or the download fails.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = str(name_or_path)
    if name in shipped():
        return SHIPPED / f"{name}.safetensors"
    if name in PUBLISHED:
        return _local(name) or cached(name) or fetch(name)
    raise InputError(
        f"{name}: no such weights; give the path of a .safetensors or published .pt file, or one "
        f"of {', '.join([*shipped(), *PUBLISHED])}"
    )


def shipped() -> list[str]:
    """Names of the checkpoints that come with the package, in alphabetical order."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def locations() -> dict[str, str]:
    """Every name that `find_weights` takes, and in words where its file is."""
    where = dict.fromkeys(shipped(), "shipped")
    for name, published in PUBLISHED.items():
        local = _local(name) or cache_folder() / f"{name}.pt"
        where[name] = str(local) if local.is_file() else f"to be fetched: {published.path}"
    return where


def default_weights() -> str:
    """The shipped checkpoint used where none is named.

    Raises:
        InputError: neither of `PREFERRED` is shipped.
    """
    for name in PREFERRED:
        if name in shipped():
            return name
    raise InputError(
        "no weights come with this build: name some with --weights, a published name such as "
        "v_48_020 (downloaded once, 7 MB) or the path of a checkpoint"
    )


def _local(name: str) -> Path | None:
    """A published name's file in the folder `MPNN_WEIGHTS`, taken as it is."""
    folder = os.environ.get("MPNN_WEIGHTS")
    path = Path(folder or "", f"{name}.pt")
    return path if folder and path.is_file() else None


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a .safetensors or published .pt checkpoint")
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty; copy or fetch it again")
    return path


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by name."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in make_network(config).state_dict().items()}


def _with_weights(config: NetworkConfig, weights: Mapping[str, Tensor]) -> Network:
    with torch.device("meta"):
        model = make_network(config)
    model.load_state_dict(weights, assign=True)
    return model


def _stored_config(path: Path, stored: object) -> NetworkConfig:
    """The configuration in our own form; what older files do not say has its default.

    Raises:
        InputError: it is missing, or no configuration of a network.
    """
    if not isinstance(stored, dict) or "k_neighbors" not in stored:
        raise InputError(f"{path}: has no configuration inside; mpnn did not write this file")
    kind = SSMConfig if "state_dim" in stored else ModelConfig
    try:
        return kind(**stored)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its configuration {stored} is of no network known here ({error}); a newer "
            "mpnn may have written it"
        ) from error


def _implied_config(path: Path, tensors: Mapping[Any, Any], k: object) -> ModelConfig:
    """The configuration that published tensors imply.

    Raises:
        InputError: k is no whole number, or the tensors are of another kind of network.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"{path}: the number of neighbors is {k!r}; a whole number is needed")
    bias = tensors.get("W_e.bias")
    width = len(bias) if isinstance(bias, Tensor) and bias.dim() == 1 else 0
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


def _in_int8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with the scales of their rows, the largest of each at ±127."""
    tensors = {}
    for name, t in weights.items():
        if t.ndim != 2:
            tensors[name] = t.half().contiguous()
            continue
        scale = (t.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(t.dtype).tiny)
        tensors[name] = (t / scale).round().to(torch.int8).contiguous()
        tensors[name + SCALE] = scale
    return tensors


def _from_int8(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_in_int8` wrote, as float32; other tensors, and scales that fit none, as they are."""
    tensors = dict(stored)
    for name, scale in stored.items():
        matrix = stored.get(name.removesuffix(SCALE))
        if name.endswith(SCALE) and matrix is not None and scale.shape == (len(matrix), 1):
            tensors[name.removesuffix(SCALE)] = matrix * tensors.pop(name)
    return tensors


def _checked(path: Path, tensors: Mapping[Any, Any], config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors in float32.

    Raises:
        InputError: names, shapes or values are not those of the network.
    """
    shapes = _shapes(config)
    missing = [name for name in shapes if name not in tensors]
    extra = [str(name) for name in tensors if name not in shapes]
    if missing or extra:
        raise InputError(
            f"{path}: tensors do not match {config}: missing {_listed(missing)}; unexpected "
            f"{_listed(extra)}; a CA-only or ligand model cannot be used"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InputError(f"{path}: {name} is not a tensor of real numbers")
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}, not {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} holds NaN or infinity; fetch or train it again")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _listed(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
