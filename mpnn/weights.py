"""Checkpoints: our own, the published ones, and the files that names lead to; checked before use.

Our own form is safetensors with the configuration and a card (a JSON object that says where the
weights come from) in its metadata; it is read without importing torch. The published form is a
torch pickle (`mpnn.published_weights`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import safetensors
from numpy.typing import NDArray

from mpnn.atomic import write_whole
from mpnn.config import ARCHITECTURES, ModelConfig, NetworkConfig, SSMConfig
from mpnn.download import PUBLISHED, cache_folder, cached, fetch, git_blob_id
from mpnn.errors import InputError
from mpnn.parameters import Arrays, deterministic_arrays, parameter_shapes
from mpnn.published_weights import read_published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mpnn.model import ProteinMPNN
    from mpnn.ssm import SSM

Network: TypeAlias = "ProteinMPNN | SSM"
"""A torch network of any kind; its `config` says which."""

SHIPPED = Path(__file__).parent / "checkpoints"
"""Folder of the checkpoints that come with the package."""

PREFERRED = ("baseline", "minimal")
"""Shipped names to use where none is given, in order of preference."""

METADATA_KEY = "mpnn"
NOT_IN_NUMPY = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})
"""Types of safetensors, in its own words."""

SCALE = ".int8_scale"
"""Ending of the name of an int8 matrix's scales."""

Card = dict[str, Any]


class Checkpoint(NamedTuple):
    """What a file of weights holds.

    Attributes:
        arrays: float32 parameters by name, with the shapes of `parameter_shapes(config)`.
        config: size of the network.
        card: what is known about the weights.
    """

    arrays: Arrays
    config: NetworkConfig
    card: Card


def load_arrays(name_or_path: str | Path) -> Checkpoint:
    """Loads the weights that a name or a path leads to, as numpy arrays.

    The card always has `name`. Other keys are those stored with the checkpoint, or, for a published
    one, `noise_level` in Å (None where the file does not say), `blob_id`, and `published`, the name
    of the published file that has this id or None: a local file need not be one.

    Raises:
        InputError: `find_weights` finds nothing, or the file is damaged, would run code, is of
            another form, has a tensor that does not fit or other tensors than its card states, or
            is shipped under the name of another network.
    """
    path = find_weights(name_or_path)
    arrays, config, card = _read_own(path) if path.suffix == ".safetensors" else _read_pickle(path)
    named = ARCHITECTURES.get(path.stem)
    if path.parent == SHIPPED and named and named != config:
        raise InputError(
            f"{path}: holds weights of {config}, and {path.stem} is {named}: the files have been "
            "swapped; install mpnn again"
        )
    return Checkpoint(arrays, config, {"name": path.stem, **card})


def load_weights(name_or_path: str | Path) -> tuple[Network, Card]:
    """Loads the weights that a name or a path leads to, as a torch network on the CPU.

    Returns:
        The network in float32, and the card; see `load_arrays`.

    Raises:
        InputError: see `load_arrays`.
    """
    arrays, config, card = load_arrays(name_or_path)
    return build_network(config, arrays), card


def load_checkpoint(path: str | Path) -> tuple[Network, Card]:
    """Reads our own form: the network in float32 on the CPU, and its card as stored.

    Raises:
        InputError: the file is missing, damaged or not of this form, or a tensor does not fit.
    """
    arrays, config, card = _read_own(_existing(path))
    return build_network(config, arrays), card


def load_published(path: str | Path) -> tuple[Network, Card]:
    """Reads the published form: the network in float32 on the CPU, and its card (`load_arrays`).

    Raises:
        InputError: the file is missing, damaged, would run code or has another form.
    """
    arrays, config, card = _read_pickle(_existing(path))
    return build_network(config, arrays), card


def digest(arrays: Arrays) -> str:
    """Digest of float32 parameters by name, which a card states of the weights it measured."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape} ".encode())
        total.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return total.hexdigest()[:32]


def formula_weights(config: NetworkConfig) -> Network:
    """A torch network with deterministic weights (`deterministic_arrays`): no file is needed."""
    return build_network(config, deterministic_arrays(config))


def make_network(config: NetworkConfig) -> Network:
    """A torch network of this size with random weights."""
    from mpnn.model import ProteinMPNN
    from mpnn.ssm import SSM

    return SSM(config) if isinstance(config, SSMConfig) else ProteinMPNN(config)


def build_network(config: NetworkConfig, arrays: Arrays) -> Network:
    """A torch network with these parameters, whose memory it shares."""
    import torch

    # Its random weights are thrown away. Building on the meta device would need none, but imports
    # torch._dynamo and sympy, which takes a second; a forked generator leaves the caller's alone.
    with torch.random.fork_rng(devices=[]):
        model = make_network(config)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict(tensors, assign=True)
    return model


def save_checkpoint(
    path: str | Path,
    model: Network,
    card: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes our own form, whole or not at all.

    Args:
        path: ends in `.safetensors`.
        model: the network; its configuration is stored too.
        card: what JSON can hold: name, training data, steps, measured accuracy, license.
        dtype: stored type, read back as float32; None stores float32, float16 halves the file.
            int8 quarters it: matrices [rows, columns] as whole numbers with scales [rows, 1], the
            rest in float16.

    Raises:
        InputError: the path has another ending or cannot be written.
    """
    import safetensors.torch
    import torch

    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a checkpoint is written as .safetensors; change the ending")
    weights = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    if dtype is torch.int8:
        tensors = _in_int8(weights)
    else:
        tensors = {name: t.to(dtype or torch.float32).contiguous() for name, t in weights.items()}
    about = {"config": dataclasses.asdict(model.config), "card": dict(card)}
    metadata = {METADATA_KEY: json.dumps(about, sort_keys=True, ensure_ascii=False)}
    write_whole(path, safetensors.torch.save(tensors, metadata))


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


def locations() -> dict[str, dict[str, str]]:
    """Every name that `find_weights` takes, in groups, and in words where its file is."""
    groups = {"shipped with this package": dict.fromkeys(shipped(), "here")}
    for name, published in PUBLISHED.items():
        repository = published.repository
        group = groups.setdefault(f"{repository.name} ({repository.license})", {})
        local = _local(name) or cache_folder() / f"{name}.pt"
        group[name] = str(local) if local.is_file() else "to be fetched"
    return groups


def describe(name: str) -> dict[str, Any]:
    """What is known about weights: source and license of a published name, and the card.

    Args:
        name: as in `find_weights`; a published file is not fetched.

    Raises:
        InputError: there are no such weights, or they cannot be used.
    """
    found: dict[str, Any] = {}
    if name in PUBLISHED and not Path(name).is_file():
        published = PUBLISHED[name]
        repository = published.repository
        local = _local(name) or cached(name)
        found = {
            "name": name,
            "about": repository.about,
            "license": repository.license,
            "source": f"https://github.com/{repository.name}",
            "path": published.path,
            "published_id": published.blob_id,
            "file": str(local or f"to be fetched: `mpnn weights fetch {name}`"),
        }
        if local is None:
            return found
    path = find_weights(name)
    _, config, card = load_arrays(path)
    return {**found, "file": str(path), "network": str(config), **card, "name": name}


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
    """A published name's file in the folder `MPNN_WEIGHTS`, taken as it is.

    It may bear the name itself or that of the repository's file.
    """
    folder = os.environ.get("MPNN_WEIGHTS")
    if not folder:
        return None
    other = PUBLISHED[name].file_name
    names = [f"{name}.pt", *([other] if other.removesuffix(".pt") not in PUBLISHED else [])]
    return next((path for path in (Path(folder, n) for n in names) if path.is_file()), None)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a .safetensors or published .pt checkpoint")
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty; copy or fetch it again")
    return path


def _read_own(path: Path) -> Checkpoint:
    """Reads our own form, with numpy alone; the card as stored."""
    try:
        with safetensors.safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            names = [*file.keys()]
            lacking = NOT_IN_NUMPY & {file.get_slice(name).get_dtype() for name in names}
            stored = {} if lacking else {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); copy or fetch it again"
        ) from error
    if lacking:  # even where another package has taught numpy the type
        raise InputError(
            f"{path}: its tensors are {min(lacking)}, which numpy cannot read; store them in "
            "float32 or float16"
        )
    if not isinstance(about, dict) or not isinstance(about.get("card"), dict):
        raise InputError(f"{path}: has no configuration inside; mpnn did not write this file")
    config = _stored_config(path, about.get("config"))
    arrays = _checked(path, _from_int8(stored), config)
    _check_digest(path, arrays, about["card"])
    return Checkpoint(arrays, config, about["card"])


def _check_digest(path: Path, arrays: Arrays, card: Card) -> None:
    """Refuses tensors other than those whose recovery the card states, where it has a digest."""
    measured = card.get("measured")
    stated = measured.get("digest") if isinstance(measured, dict) else None
    if stated is not None and stated != (found := digest(arrays)):
        raise InputError(
            f"{path}: its tensors have digest {found}, and its card states the recovery of "
            f"{stated}; copy the file again or install mpnn again, or, if the change is meant, "
            "leave `measured` out of the card"
        )


def _read_pickle(path: Path) -> Checkpoint:
    """Reads the published form; the card without `name`."""
    arrays, config, noise_level = read_published(path)
    blob_id = git_blob_id(path)
    published = next((name for name, p in PUBLISHED.items() if p.blob_id == blob_id), None)
    card = {"noise_level": noise_level, "blob_id": blob_id, "published": published}
    return Checkpoint(_checked(path, arrays, config), config, card)


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


def _in_int8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with the scales of their rows, the largest of each at ±127."""
    import torch

    tensors = {}
    for name, t in weights.items():
        if t.ndim != 2:
            tensors[name] = t.half().contiguous()
            continue
        scale = (t.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(t.dtype).tiny)
        tensors[name] = (t / scale).round().to(torch.int8).contiguous()
        tensors[name + SCALE] = scale
    return tensors


def _from_int8(stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What `_in_int8` wrote, as float32; other arrays, and scales that fit none, as they are."""
    arrays = dict(stored)
    for name, scale in stored.items():
        matrix = stored.get(name.removesuffix(SCALE))
        if name.endswith(SCALE) and matrix is not None and scale.shape == (len(matrix), 1):
            arrays[name.removesuffix(SCALE)] = matrix * arrays.pop(name)
    return arrays


def _checked(path: Path, found: Mapping[Any, Any], config: NetworkConfig) -> Arrays:
    """The parameters in float32.

    Raises:
        InputError: names, shapes or values are not those of the network.
    """
    shapes = parameter_shapes(config)
    missing = [name for name in shapes if name not in found]
    extra = [str(name) for name in found if name not in shapes]
    if missing or extra:
        raise InputError(
            f"{path}: tensors do not match {config}: missing {_listed(missing)}; unexpected "
            f"{_listed(extra)}; a CA-only or ligand model cannot be used"
        )
    for name, shape in shapes.items():
        array = found[name]
        if not hasattr(array, "shape"):
            raise InputError(f"{path}: {name} is not a tensor of real numbers")
        if tuple(array.shape) != shape:
            raise InputError(f"{path}: {name} has shape {tuple(array.shape)}, not {shape}")
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise InputError(f"{path}: {name} is not a tensor of real numbers")
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {name} holds NaN or infinity; fetch or train it again")
    return {name: found[name].astype(np.float32, copy=False) for name in shapes}


def _listed(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
