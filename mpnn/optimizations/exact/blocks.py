"""The two identities that every layer uses, on weights laid out for row-major products."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mpnn.model import MESSAGE_SCALE, MessageLayer

SMALL = 8192
"""Elements under which the library's GELU on the CPU is mostly its fixed cost of some 15 µs."""


def gelu_(x: Tensor) -> Tensor:
    """The exact GELU in place: x·(1 + erf(x/√2))/2."""
    if x.numel() < SMALL and x.device.type == "cpu":
        return x.mul_((x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5))
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """LayerNorm over the last axis."""
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


class Message:
    """gelu(W2·gelu(W1·[h_i | h_E | s_j | h_j])) with W1 split by blocks.

    W1·[h_i | h_E | s_j | h_j] = A·h_i + E·h_E + S·s_j + V·h_j: A and V act on nodes instead of
    edges, S·s_j is a table of 21 rows, E·h_E is independent of letters. Encoder layers have no S.
    """

    def __init__(self, W1: nn.Linear, W2: nn.Linear) -> None:
        blocks = [b.t().contiguous() for b in torch.split(W1.weight, W1.out_features, dim=1)]
        self.A, self.E, self.V = blocks[0], blocks[1], blocks[-1]
        self.S = blocks[2]  # V again in an encoder layer
        self.b1 = W1.bias
        self.W2, self.b2 = W2.weight.t().contiguous(), W2.bias

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Takes x [M, C] before the first GELU, and overwrites it; the result [M, C] is `out`."""
        torch.addmm(self.b2, gelu_(x), self.W2, out=out)
        return gelu_(out)


class NodeUpdate:
    """Sum over neighbours, W3, norm1, feed-forward, norm2.

    Σ_j (W3·m_j + b3) = W3·Σ_j m_j + K·b3: one product per node instead of one per edge.
    """

    def __init__(self, layer: MessageLayer) -> None:
        self.W3 = layer.W3.weight.t().contiguous() / MESSAGE_SCALE
        self.b3 = layer.W3.bias / MESSAGE_SCALE
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.W_in, self.b_in = layer.dense.W_in.weight.t().contiguous(), layer.dense.W_in.bias
        self.W_out, self.b_out = layer.dense.W_out.weight.t().contiguous(), layer.dense.W_out.bias

    def __call__(self, h_V: Tensor, m: Tensor, edge_mask: Tensor | None, mask: Tensor) -> Tensor:
        """h_V [T, C], messages m [T, K, C] before W3, edge_mask [T, K], mask [T] -> [T, C]."""
        if edge_mask is None:
            total, bias = m.sum(1), self.b3 * m.shape[1]
        else:
            total = torch.bmm(edge_mask[:, None], m)[:, 0]
            bias = edge_mask.sum(1, keepdim=True) * self.b3
        h = norm(torch.addmm(bias, total, self.W3).add_(h_V), self.norm1)
        inner = gelu_(torch.addmm(self.b_in, h, self.W_in))
        h = norm(torch.addmm(self.b_out, inner, self.W_out).add_(h), self.norm2)
        return h.mul_(mask[:, None])
