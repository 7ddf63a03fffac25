"""The reference in reduced precision: the whole network in a half type, or its Linear layers alone.

Coordinates, distances, the choice of neighbors, radial functions and log-probabilities stay in
float32 in every engine here; so `dtype`, the type of what goes in and comes out, is float32.

Why the network cannot simply be converted: 100 Å from the origin a coordinate in float16 has steps
of 0.06 Å and one in bfloat16 of 0.5 Å, so residues get other neighbors; and from coordinates in
float32 come radial functions in float32, which no half Linear layer takes. Two hooks are the whole
remedy: the edge embedding rounds its input, and the output layer widens its result.

float16 matmuls are slow where the processor has none (x86 before avx512_fp16); bfloat16 ones are
fast from avx512_bf16 on. int8 matmuls go through `torch._int_mm`, which has no MPS kernel, and on
CUDA none for the 21 letters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations.reference import PaddedStructures, ReferenceEngine

INT8_MAX = 127
SMALLEST_SCALE = 1e-30
"""Stands for the scale of a row of zeros, which has none."""


class _NarrowEngine(ReferenceEngine):
    """Parameters and activations in `narrow`."""

    narrow: torch.dtype

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        super().__init__(narrowed(model, self.narrow), device)
        self.dtype = "float32"

    def encode(self, flat: Flat) -> PaddedStructures:
        """Rounds the mask alone, which is exact: a float32 factor would widen the product."""
        encoding = super().encode(flat)
        batch = replace(encoding.batch, mask=encoding.batch.mask.to(self.narrow))
        return replace(encoding, batch=batch)


class HalfEngine(_NarrowEngine):
    """The whole network in float16."""

    narrow = torch.float16


class BFloat16Engine(_NarrowEngine):
    """The whole network in bfloat16."""

    narrow = torch.bfloat16


class MixedEngine(ReferenceEngine):
    """Weights of Linear layers in float16; biases, activations and matmuls in float32."""

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        super().__init__(with_linears(model, HalfWeightLinear), device)


class Int8Engine(ReferenceEngine):
    """Linear layers in int8: a scale for each output channel, and one for each row of the input.

    Raises:
        InputError: the device is not the CPU.
    """

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        if torch.device(device).type != "cpu":
            raise InputError(f"int8 matmuls run on the CPU alone, not on {device}; take cpu")
        super().__init__(with_linears(model, Int8Linear), device)


def narrowed(model: ProteinMPNN, dtype: torch.dtype) -> ProteinMPNN:
    """A copy of the network in `dtype` that takes radial functions and gives logits in float32."""
    model = copy.deepcopy(model).to(dtype)
    model.features.edge_embedding.register_forward_pre_hook(lambda _, given: given[0].to(dtype))
    model.W_out.register_forward_hook(lambda _model, _given, logits: logits.float())
    return model


def with_linears(model: ProteinMPNN, make: Callable[[nn.Linear], nn.Module]) -> ProteinMPNN:
    """A copy of the network in float32 with `make` of each Linear layer in its place."""
    model = copy.deepcopy(model).float()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child))
    return model


class HalfWeightLinear(nn.Module):
    """A Linear layer that keeps its weight in float16 and widens it for every product."""

    weight: Tensor  # [out, in] float16

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().half())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] float32."""
        return linear(x.float(), self.weight.float(), self.bias)


class Int8Linear(nn.Module):
    """y = (q_x · q_W)·s_x·s_W + b with q in −127…127: symmetric, and exact in the product itself.

    Weights are rounded once, inputs when they come ("dynamic"). torch.ao.quantization does the same
    with one scale for a whole input, and is deprecated.
    """

    weight: Tensor  # [out, in] int8
    scale: Tensor  # [out]

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantized(layer.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] float32."""
        q, scale = quantized(x.float().flatten(0, -2))
        product: Tensor = torch._int_mm(q, self.weight.t())  # [rows, out] int32
        y = (product * scale).mul_(self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [M, C] as int8 [M, C] and their scales [M, 1]: x ≈ q·scale, off by half a scale."""
    scale = (x.abs().amax(-1, keepdim=True) / INT8_MAX).clamp_(min=SMALLEST_SCALE)
    return (x / scale).round_().to(torch.int8), scale
