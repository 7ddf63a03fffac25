"""What every layer uses, on weights laid out once: matmuls, and the two identities of messages."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mpnn.model import MESSAGE_SCALE, MessageLayer

SMALL = 8192
"""Elements under which the library's GELU on the CPU is mostly its fixed cost of some 15 µs."""

FUSED_ROWS = 32
"""Rows from which oneDNN's product pays its fixed cost of some 12 µs."""


def gelu_(x: Tensor) -> Tensor:
    """The exact GELU in place: x·(1 + erf(x/√2))/2."""
    if x.numel() < SMALL and x.device.type == "cpu":
        return x.mul_((x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5))
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """LayerNorm over the last axis."""
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


class Affine:
    """x·Wᵀ + b, with a GELU or an addition while the result is still in registers.

    On a CPU with AVX-512 in float32 this is oneDNN's linear primitive, which `torch.compile` emits:
    its product takes half the time of `addmm` on some processors (the library behind `addmm`
    favors one maker), and bias, GELU and addition cost no pass over memory. Few rows, other types,
    other devices and older CPUs take `addmm`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Takes weight [out, in] and bias [out], as `nn.Linear` has them."""
        self.W = weight.t().contiguous()  # [in, out]
        self.b = bias
        self.packed = None
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and fuses():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 512)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Of x [M, in] -> [M, out], in `out` where that is given."""
        if self._fused(x):
            y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.b, "none", [], "")
            return y if out is None else out.copy_(y)
        if self.b is None:
            return torch.mm(x, self.W, out=out)
        return torch.addmm(self.b, x, self.W, out=out)

    def gelu(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The GELU of x·Wᵀ + b; `out` may be used for it."""
        if self._fused(x):
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.packed, self.b, "gelu", [], "none"
            )
            return y
        return gelu_(self(x, out))

    def plus(self, x: Tensor, onto: Tensor) -> Tensor:
        """The sum of `onto` [M, out], which may be overwritten, and x·Wᵀ + b."""
        if self._fused(x):
            y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, onto, self.packed, self.b, "add"
            )
            return y
        onto.addmm_(x, self.W)
        return onto if self.b is None else onto.add_(self.b)

    def _fused(self, x: Tensor) -> bool:
        return self.packed is not None and len(x) >= FUSED_ROWS


def fuses() -> bool:
    """Whether oneDNN's linear primitive is in this build of torch, and pays on this CPU.

    It does with AVX-512. Without, whole jobs took 9 to 12 % longer by it than by `addmm` (AMD EPYC,
    family 25, 2026-11-30).
    """
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return wide and available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Message:
    """gelu(W2·gelu(W1·[h_i | h_E | s_j | h_j])) with W1 split by blocks.

    W1·[h_i | h_E | s_j | h_j] = A·h_i + E·h_E + S·s_j + V·h_j: A and V act on nodes instead of
    edges, S·s_j is a table of 21 rows, E·h_E is independent of residue types. Encoder layers have
    no S. W1's bias goes with A.
    """

    def __init__(self, W1: nn.Linear, W2: nn.Linear) -> None:
        A, E, *_, V = torch.split(W1.weight, W1.out_features, dim=1)
        self.A, self.E, self.V = Affine(A, W1.bias), Affine(E), Affine(V)
        self.W2 = Affine(W2.weight, W2.bias)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Takes x [M, C] before the first GELU, and overwrites it; -> [M, C], perhaps in `out`."""
        return self.W2.gelu(gelu_(x), out)


class NodeUpdate:
    """Sum over neighbors, W3, norm1, feed-forward, norm2.

    Σ_j (W3·m_j + b3) = W3·Σ_j m_j + K·b3: one product per node instead of one per edge.
    """

    def __init__(self, layer: MessageLayer) -> None:
        self.W3 = layer.W3.weight.t().contiguous() / MESSAGE_SCALE
        self.b3 = layer.W3.bias / MESSAGE_SCALE
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.W_in = Affine(layer.dense.W_in.weight, layer.dense.W_in.bias)
        self.W_out = Affine(layer.dense.W_out.weight, layer.dense.W_out.bias)

    def __call__(
        self, h_V: Tensor, m: Tensor, edge_mask: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """h_V [T, C], messages m [T, K, C] before W3, edge_mask [T, K], mask [T] -> [T, C]."""
        if edge_mask is None:
            total = torch.addmm(self.b3, m.sum(1), self.W3, beta=m.shape[1])
        else:
            bias = edge_mask.sum(1, keepdim=True) * self.b3
            total = torch.addmm(bias, torch.bmm(edge_mask[:, None], m)[:, 0], self.W3)
        h = norm(total.add_(h_V), self.norm1)
        h = norm(self.W_out.plus(self.W_in.gelu(h), h), self.norm2)
        return h if mask is None else h.mul_(mask[:, None])
