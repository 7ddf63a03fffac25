"""Executes a saved Core ML package on any machine, operation by operation, in numpy.

What Core ML is handed is read back from the file, and each operation is computed as Apple's
specification of it says, in one of two arithmetics:

- exact: everything in float64. Is the converted graph the same function as the torch one?
- rounded: in float32, and every result rounded to the type it has in the file. What does storing
  float16 cost? A device may round inside an operation too, and in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from mpnn.optimizations.coreml.network import BATCH, Layout

Array = NDArray[Any]


class MILEvaluator:
    """A predictor that needs no Core ML.

    Attributes:
        exact: the arithmetic.
        calls: functions called so far.
        layout: of the file's edge arrays.
    """

    dtype = np.dtype(np.float64)  # of the inputs, which are then kept as any other value

    def __init__(self, path: Path, exact: bool, layout: Layout = BATCH) -> None:
        self.layout = layout
        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        self.program = load(spec, spec.specificationVersion, model.weights_dir)
        self.exact = exact
        self.calls: list[str] = []
        self.largest: dict[str, float] = {}
        """Largest magnitude that the results of each type of operation had."""

    def __call__(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            KeyError: there is no such function or input, or an operation is unknown here.
            ValueError: an input has another shape than the function says.
        """
        self.calls.append(function)
        body = self.program.functions[function]
        values: dict[Any, Any] = {}
        for name, var in body.inputs.items():
            if tuple(var.shape) != inputs[name].shape:
                raise ValueError(f"{name}: {inputs[name].shape} instead of {tuple(var.shape)}")
            values[var] = self.stored(var, inputs[name])
        for op in body.operations:
            out = op.outputs[0]
            if op.op_type == "const":
                result = out.val
            else:
                given = {n: value_of(v, values) for n, v in op.inputs.items() if v is not None}
                result = OPERATIONS[op.op_type](**given)
                if tuple(out.shape) != np.shape(result):
                    raise ValueError(f"{out.name}: {np.shape(result)}, not {tuple(out.shape)}")
            values[out] = self.stored(out, result)
            if op.op_type != "const" and np.size(result):
                largest = self.largest.get(op.op_type, 0.0)
                self.largest[op.op_type] = max(largest, float(np.abs(result).max()))
        return {var.name: values[var] for var in body.outputs}

    def stored(self, var: Any, value: Any) -> Any:
        """A value as the file's type and the arithmetic keep it."""
        if isinstance(value, str | bool) or var.is_tensor_or_scalar_of("bool"):
            return value
        if not types.is_float(var.dtype):
            return np.asarray(value)
        if self.exact:
            return np.asarray(value, np.float64)
        return np.asarray(value, types.nptype_from_builtin(var.dtype)).astype(np.float32)

    def operations(self, function: str) -> list[Any]:
        """The operations of a function that compute something when it is called."""
        skipped = ("const", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense")
        found = self.program.functions[function].operations
        return [op for op in found if op.op_type not in skipped]


def value_of(given: Any, values: Mapping[Any, Any]) -> Any:
    """What an operation's argument holds: a value, or several of them."""
    return [values[v] for v in given] if isinstance(given, tuple | list) else values[given]


def conv(
    x: Array, weight: Array, bias: Array | float = 0.0, groups: int = 1, **shape: Any
) -> Array:
    """1 × 1 convolutions alone: [B, I, H, L] with [O, I, 1, 1]."""
    assert groups == 1
    assert weight.shape[2:] == (1, 1)
    assert not np.any(shape["pad"])
    assert np.all(shape["strides"] == np.ones(2))
    B, _, H, L = x.shape
    return (weight[:, :, 0, 0] @ x.reshape(B, -1, H * L) + np.reshape(bias, (-1, 1))).reshape(
        B, -1, H, L
    )


def gelu(x: Array, mode: str) -> Array:
    """The erf form alone."""
    assert mode == "EXACT"
    return torch.nn.functional.gelu(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def layer_norm(x: Array, axes: Array, epsilon: Array, **affine: Any) -> Array:
    """Over `axes`, without weight and bias."""
    assert not affine
    centerd = x - x.mean(tuple(axes), keepdims=True)
    return centerd / np.sqrt((centerd**2).mean(tuple(axes), keepdims=True) + epsilon)


def matmul(x: Array, y: Array, transpose_x: bool, transpose_y: bool) -> Array:
    """The product, neither factor transposed."""
    assert not transpose_x
    assert not transpose_y
    return x @ y


def concat(values: list[Array], axis: int, interleave: bool) -> Array:
    """One after another."""
    assert not interleave
    return np.concatenate(values, axis)


def dequantized(data: Array, scale: Array, offset: Array | float = 0.0) -> Array:
    """(data − offset) · scale, each scale for a block of equal size along every axis."""
    blocks = [n // m for n, m in zip(data.shape, scale.shape, strict=True)]
    for axis, size in enumerate(blocks):
        scale = np.repeat(scale, size, axis)
        offset = np.repeat(offset, size, axis) if np.ndim(offset) else offset
    return (data.astype(np.float64) - offset) * scale


def looked_up(indices: Array, lut: Array) -> Array:
    """Values from tables lut [..., 2^bits, 1], each for a block of equal size of the indices."""
    found = np.empty(indices.shape)
    tables = lut.shape[:-2]
    sizes = [n // m for n, m in zip(indices.shape, tables, strict=True)]
    for block in np.ndindex(*tables):
        at = tuple(slice(p * s, (p + 1) * s) for p, s in zip(block, sizes, strict=True))
        found[at] = lut[block][indices[at].astype(int), 0]
    return found


OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "concat": concat,
    "constexpr_blockwise_shift_scale": dequantized,
    "constexpr_lut_to_dense": looked_up,
    "conv": conv,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "gelu": gelu,
    "identity": lambda x: x,
    "layer_norm": layer_norm,
    "matmul": matmul,
    "mul": lambda x, y: x * y,
    "reduce_sum": lambda x, axes, keep_dims: x.sum(tuple(axes), keepdims=bool(keep_dims)),
    "relu": lambda x: np.maximum(x, 0),
    "reshape": lambda x, shape: np.reshape(x, tuple(shape)),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "sub": lambda x, y: x - y,
}
"""By MIL type; a package with any other operation cannot be run here."""
