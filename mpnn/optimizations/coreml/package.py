"""From a network to one Core ML package: four functions for each bucket, weights shared."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import torch

from mpnn.download import cache_folder
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations.coreml import network, padding
from mpnn.optimizations.coreml.network import BATCH, BucketNetwork, Function, Layout
from mpnn.weights import save_checkpoint

BUCKETS = (64, 128, 256, 512)
"""Lengths that a package has functions for."""

Weights = Literal["float32", "float16", "int8", "palette6", "palette4"]
"""How weights are stored. Arithmetic is float32 in the first and float16 in all others."""

PACKAGE, CHECKPOINT = "network.mlpackage", "weights.safetensors"

LARGEST_UNCOMPRESSED = 512  # numbers in a weight
COMPRESSED: dict[str, Any] = {
    # One scale for each output channel.
    "int8": cto.OpLinearQuantizerConfig(
        mode="linear_symmetric", granularity="per_channel", weight_threshold=LARGEST_UNCOMPRESSED
    ),
    # A table of 64 or 16 values for each 16 output channels, by k-means; W_out has 21 and stays.
    **{
        f"palette{nbits}": cto.OpPalettizerConfig(
            nbits=nbits,
            granularity="per_grouped_channel",
            group_size=16,
            weight_threshold=LARGEST_UNCOMPRESSED,
        )
        for nbits in (6, 4)
    },
}


class Package(NamedTuple):
    """A package's file, and the layout of its edge arrays."""

    path: Path
    layout: Layout


def dtype_of(weights: Weights) -> np.dtype[Any]:
    """Type of inputs, outputs and arithmetic."""
    return np.dtype(np.float32 if weights == "float32" else np.float16)


def cached_package(
    model: ProteinMPNN,
    buckets: Sequence[int] = BUCKETS,
    weights: Weights = "float16",
    layout: Layout = BATCH,
) -> Package:
    """The package of a network in the user's cache, made if it is not there (a minute).

    The folder is named by a digest of all that goes into it, and holds the checkpoint too.

    Raises:
        InputError: the cache cannot be written.
    """
    folder = cache_folder().with_name("coreml") / digest(model, buckets, weights, layout)
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
                whole = Path(partial, "whole")
                card = {"buckets": list(buckets), "layout": layout.name}
                save_checkpoint(whole / CHECKPOINT, model, card)
                save_package(whole / PACKAGE, model, buckets, weights, layout)
                if not folder.is_dir():  # unless another process was sooner
                    whole.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    return Package(folder / PACKAGE, layout)


def digest(
    model: ProteinMPNN, buckets: Sequence[int], weights: Weights, layout: Layout = BATCH
) -> str:
    """SHA-256 of the weights and of everything else that decides what the package computes."""
    about = [asdict(model.config), list(buckets), weights, layout.name]
    about += [ct.__version__, torch.__version__]
    found = hashlib.sha256(json.dumps(about).encode())
    for module in (network, padding):
        found.update(Path(str(module.__file__)).read_bytes())
    found.update(Path(__file__).read_bytes())
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()[:32]


def save_package(
    path: Path,
    model: ProteinMPNN,
    buckets: Sequence[int] = BUCKETS,
    weights: Weights = "float16",
    layout: Layout = BATCH,
) -> None:
    """Writes a package with the functions of every bucket; weights are stored once.

    Args:
        path: ends in `.mlpackage`.
        model: the network; float32 is used whatever its type.
        buckets: lengths.
        weights: how they are stored.
        layout: of the edge arrays.
    """
    parts = BucketNetwork(copy.deepcopy(model).to("cpu", torch.float32).eval())
    described = ct.utils.MultiFunctionDescriptor()
    with tempfile.TemporaryDirectory() as folder, quietly():
        for bucket in buckets:
            for name, function in parts.functions(bucket, layout).items():
                part = str(Path(folder, f"{name}.mlpackage"))
                converted(function, weights).save(part)
                described.add_function(part, "main", name)
                described.default_function_name = name
        ct.utils.save_multifunction(described, str(path))


def converted(function: Function, weights: Weights) -> Any:
    """One function as a Core ML model.

    `torch.export` writes the graph down: the older tracing is deprecated in torch. It takes no
    variable lengths here, hence the buckets.
    """
    dtype = dtype_of(weights)
    examples = tuple(torch.zeros(shape) for shape in function.inputs.values())
    model = ct.convert(
        torch.export.export(function.module, examples).run_decompositions({}),
        inputs=[ct.TensorType(n, shape, dtype) for n, shape in function.inputs.items()],
        outputs=[ct.TensorType(n, dtype=dtype) for n in function.outputs],
        minimum_deployment_target=ct.target.macOS15,
        compute_precision=ct.precision(dtype.name),
        skip_model_load=True,
    )
    if weights not in COMPRESSED:
        return model
    compress = cto.linear_quantize_weights if weights == "int8" else cto.palettize_weights
    return compress(model, cto.OptimizationConfig(global_config=COMPRESSED[weights]))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the converter's progress bars, and without what torch warns its own callers of."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
