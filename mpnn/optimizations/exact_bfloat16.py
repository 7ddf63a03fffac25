"""The exact engine with its matmuls in bfloat16: exact rewrites, but rounded numbers.

Distances, the choice of neighbors and radial functions are float32, and so are the read-out, the
noise and the log-probabilities. Everything between, edges above all, is bfloat16: half the memory
to move, and on processors with bfloat16 matmuls (avx512_bf16, AMX, Apple from M2 on) a multiple of
the arithmetic. Residue types are sampled from slightly different probabilities, so sequences may
differ.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mpnn.model import ProteinMPNN
from mpnn.optimizations.exact.blocks import Affine
from mpnn.optimizations.exact.decoder import Decoder
from mpnn.optimizations.exact.encoder import ExactEncoding
from mpnn.optimizations.exact.engine import ExactEngine
from mpnn.optimizations.exact.graph import EdgeFeatures
from mpnn.optimizations.exact.workers import Buffers
from mpnn.schedule import IntArray

NARROW = torch.bfloat16


class ExactBFloat16Engine(ExactEngine):
    """Inputs and outputs are float32."""

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        model = copy.deepcopy(model).to(device, torch.float32)
        super().__init__(copy.deepcopy(model).to(NARROW), device)
        self.dtype = "float32"
        with torch.inference_mode():
            buffers = Buffers(torch.device(device), torch.float32)
            self.encoder.features = _EdgeFeatures(model, buffers)
            self.decoder.W_out = _Widening(model.W_out.weight, model.W_out.bias)

    def decoder_for(self, encoding: ExactEncoding, S: IntArray, rank: IntArray) -> Decoder:
        """A decoder of S [N, R] under rank [N, R], with logits in float32."""
        decoder = super().decoder_for(encoding, S, rank)
        decoder.logits = decoder.logits.float()
        return decoder


class _EdgeFeatures(EdgeFeatures):
    """Edge vectors in float32, but for the two matmuls."""

    def __init__(self, model: ProteinMPNN, buffers: Buffers) -> None:
        super().__init__(model, buffers)
        self.radial = _Rounding(self.radial.W.t().to(NARROW))
        self.W_e = _Rounding(model.W_e.weight.to(NARROW), model.W_e.bias.to(NARROW))


class _Rounding(Affine):
    """A matmul in bfloat16 of float32 values."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return super().__call__(x.to(NARROW), out)

    def plus(self, x: Tensor, onto: Tensor) -> Tensor:
        return onto.add_(self(x))


class _Widening(Affine):
    """A matmul in float32 of bfloat16 values."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return super().__call__(x.float(), out)
