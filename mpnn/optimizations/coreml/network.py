"""The network as Core ML is to run it: one structure, a fixed number of residues, no gather.

Shapes: L residues of the bucket, K neighbors, C hidden; edges are [K, C, 1, L] and nodes
[1, C, 1, L], so that the long axis is the last one and every Linear layer is a 1 × 1 convolution
(Apple, "Deploying Transformers on the Apple Neural Engine", 2022).

**Padding changes nothing.** A padded slot of a residue weighs nothing in its sum. A padded residue
is nobody's neighbor; its own slots all weigh something, so that no LayerNorm there sees zeros,
whose variance a device without subnormal numbers cannot divide by, and its result is set to 0.

**Neighbors by a product.** Compute plans of other networks show gathers with computed indices on
the CPU, a trip away from the Neural Engine for each. h · P with P[j, i] = 1 where j is the
neighbor of i picks the same vectors, without rounding, since one term of each sum is not 0. It
costs K·L²·C multiply-adds, at L = 2·C as many as the first product of an encoder message; whether
that is the better bargain is for `plan` and the clock on a Mac to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.model import MESSAGE_SCALE, DecoderLayer, EncoderLayer, MessageLayer, ProteinMPNN

SLOT_WEIGHT = 1 / 32
"""Weight of a real slot in the sum over neighbors: a power of two, which half precision holds. The
rest of the published 1/30 is in W3."""


Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Function:
    """One function of the package: a module at a fixed length."""

    module: nn.Module
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]


class BucketNetwork(nn.Module):
    """The encoder and the score pass; the weights are the same at every length."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        self.config = model.config
        with torch.no_grad():
            self.encoder, self.decoder = BucketEncoder(model), BucketDecoder(model)

    def functions(self, bucket: int) -> dict[str, Function]:
        """`encode_L` and `decode_L` for L = `bucket`."""
        K, C = slots_of(self.config, bucket), self.config.hidden_dim
        node, slot = (1, 1, 1, bucket), (K, 1, 1, bucket)
        edges = (K, C, 1, bucket)
        graph = {"E_idx": (K, 1, bucket), "slot_weight": slot, "mask": node}
        nodes = {"h_V": (1, C, 1, bucket), "h_E": edges}
        letters = {"see": slot, "letters": (K, NUM_LETTERS, 1, bucket)}
        return {
            f"encode_{bucket}": Function(self.encoder, {"E": edges, **graph}, ("h_V", "h_E")),
            f"decode_{bucket}": Function(self.decoder, nodes | graph | letters, ("logits",)),
        }


def slots_of(config: ModelConfig, bucket: int) -> int:
    """K of a bucket: a structure with fewer residues than k leaves some of them empty."""
    return min(config.k_neighbors, bucket)


class BucketEncoder(nn.Module):
    """Everything that depends on the structure alone, from edge vectors on."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        self.W_e = pointwise(model.W_e.weight, model.W_e.bias)
        layers = cast(list[EncoderLayer], list(model.encoder_layers))
        self.layers = nn.ModuleList(
            _BucketEncoderLayer(layer, n == 0) for n, layer in enumerate(layers)
        )

    def forward(
        self, E: Tensor, E_idx: Tensor, slot_weight: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nodes and edges for the decoder.

        Args:
            E: [K, C, 1, L] edge vectors after their LayerNorm.
            E_idx: [K, 1, L] neighbors, as real numbers.
            slot_weight: [K, 1, 1, L] `SLOT_WEIGHT` where both ends have all atoms.
            mask: [1, 1, 1, L], 1 where all atoms are present.

        Returns:
            h_V [1, C, 1, L] and h_E [K, C, 1, L].
        """
        P, h_E = selection(E_idx), self.W_e(E)
        first, *others = cast(list[_BucketEncoderLayer], list(self.layers))
        h_V = first.update(None, h_E, slot_weight, mask)
        h_j = neighbors_of(h_V, P)
        h_E = first.update_edges(h_V, h_E, h_j)
        for layer in others:
            h_V = layer.update(h_V, torch.cat([h_E, h_j], 1), slot_weight, mask)
            h_j = neighbors_of(h_V, P)
            h_E = layer.update_edges(h_V, h_E, h_j)
        return h_V, h_E


class BucketDecoder(nn.Module):
    """Logits of every residue given the letters that it sees."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        layers = cast(list[DecoderLayer], list(model.decoder_layers))
        self.layers = nn.ModuleList(
            _BucketDecoderLayer(layer, model.W_s.weight) for layer in layers
        )
        self.W_out = pointwise(model.W_out.weight, model.W_out.bias)

    def forward(
        self,
        h_V: Tensor,
        h_E: Tensor,
        E_idx: Tensor,
        slot_weight: Tensor,
        mask: Tensor,
        see: Tensor,
        letters: Tensor,
    ) -> Tensor:
        """Logits [1, 21, 1, L].

        Args:
            h_V: [1, C, 1, L] nodes.
            h_E: [K, C, 1, L] edges.
            E_idx: [K, 1, L] neighbors, as real numbers.
            slot_weight: [K, 1, 1, L] `SLOT_WEIGHT` where the neighbor is no padding.
            mask: [1, 1, 1, L], 1 where all atoms are present.
            see: [K, 1, 1, L], 1 where the neighbor is decoded before the residue.
            letters: [K, 21, 1, L], 1 at the neighbor's letter where it is seen.
        """
        P = selection(E_idx)
        h_j = encoder_state = neighbors_of(h_V, P)
        for n, layer in enumerate(cast(list[_BucketDecoderLayer], list(self.layers))):
            if n > 0:
                h_j = see * neighbors_of(h_V, P) + (1 - see) * encoder_state
            h_V = layer.update(h_V, torch.cat([h_E, h_j, letters], 1), slot_weight, mask)
        logits: Tensor = self.W_out(h_V)
        return logits


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A Linear layer [out, in] as a 1 × 1 convolution over channels."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv = conv.to(weight.dtype).requires_grad_(False)
    conv.weight.copy_(weight[..., None, None])
    if bias is not None and conv.bias is not None:
        conv.bias.copy_(bias)
    return conv


def per_channel(vector: Tensor) -> nn.Parameter:
    """[C] -> [C, 1, 1], which broadcasts over nodes and edges."""
    return nn.Parameter(vector.detach()[:, None, None].clone(), requires_grad=False)


def selection(E_idx: Tensor) -> Tensor:
    """P [K, L, L], 1 at [k, j, i] where j is neighbor k of residue i: E_idx [K, 1, L] as numbers.

    Built by arithmetic on whole numbers, which half precision holds exactly up to 2,048.
    """
    j = torch.arange(E_idx.shape[-1], dtype=E_idx.dtype, device=E_idx.device)
    return relu(1 - (E_idx - j[None, :, None]).abs())


def neighbors_of(h_V: Tensor, P: Tensor) -> Tensor:
    """Vectors of the neighbors: h_V [1, C, 1, L], P [K, L, L] -> [K, C, 1, L]."""
    return (h_V.squeeze(2) @ P).unsqueeze(2)


class _BucketMessages(nn.Module):
    """gelu(W2 · gelu(W1 · [h_i | edge])), W1 split into its node part and its edge part."""

    def __init__(self, W1: Tensor, b1: Tensor, W2: nn.Linear, nodes: bool = True) -> None:
        super().__init__()
        C = W2.out_features
        self.node = pointwise(W1[:, :C]) if nodes else None
        self.edge = pointwise(W1[:, C:], b1)
        self.W2 = pointwise(W2.weight, W2.bias)

    def forward(self, h_V: Tensor | None, edges: Tensor) -> Tensor:
        """Nodes [1, C, 1, L] (None while zero), edges [K, ·, 1, L] -> [K, C, 1, L]."""
        x = self.edge(edges)
        if self.node is not None:
            x = x + self.node(h_V)
        return gelu(self.W2(gelu(x)))


class _ChannelNorm(nn.Module):
    """LayerNorm over the channels.

    The bias is subtracted with its sign turned: the converter would make a scale with an added
    bias into a batch norm, whose own epsilon is 5e-6 off.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.minus_bias = per_channel(norm.weight), per_channel(-norm.bias)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[·, C, 1, L] -> the same, by the operations that the converter knows as a LayerNorm."""
        x = x - x.mean(1, keepdim=True)
        variance = (x * x).mean(1, keepdim=True)
        return x * torch.rsqrt(variance + self.eps) * self.weight - self.minus_bias


class _BucketNodeUpdate(nn.Module):
    """What encoder and decoder layers share: messages, their sum, W3 of it, and the node update."""

    def __init__(self, layer: MessageLayer, messages: _BucketMessages) -> None:
        super().__init__()
        scale = 1 / (SLOT_WEIGHT * MESSAGE_SCALE)
        self.messages = messages
        self.W3 = pointwise(layer.W3.weight * scale)
        self.b3 = per_channel(layer.W3.bias * scale)
        self.norm1, self.norm2 = _ChannelNorm(layer.norm1), _ChannelNorm(layer.norm2)
        self.W_in = pointwise(layer.dense.W_in.weight, layer.dense.W_in.bias)
        self.W_out = pointwise(layer.dense.W_out.weight, layer.dense.W_out.bias)

    def update(
        self, h_V: Tensor | None, edges: Tensor, slot_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """h_V [1, C, 1, L] (None while zero), edges [K, ·, 1, L] -> [1, C, 1, L]."""
        messages = self.messages(h_V, edges) * slot_weight
        h = self.W3(messages.sum(0, keepdim=True)) + self.b3 * slot_weight.sum(0, keepdim=True)
        h = self.norm1(h if h_V is None else h_V + h)
        h = self.norm2(h + self.W_out(gelu(self.W_in(h))))
        return cast(Tensor, h * mask)


class _BucketEncoderLayer(_BucketNodeUpdate):
    """Nodes from messages, then edges in the same way."""

    def __init__(self, layer: EncoderLayer, first: bool) -> None:
        C = layer.W2.out_features
        W1 = layer.W1.weight[:, : 2 * C] if first else layer.W1.weight
        super().__init__(layer, _BucketMessages(W1, layer.W1.bias, layer.W2, nodes=not first))
        self.edge_messages = _BucketMessages(layer.W11.weight, layer.W11.bias, layer.W12)
        self.W13 = pointwise(layer.W13.weight, layer.W13.bias)
        self.norm3 = _ChannelNorm(layer.norm3)

    def update_edges(self, h_V: Tensor, h_E: Tensor, h_j: Tensor) -> Tensor:
        """h_E [K, C, 1, L] -> the same, updated."""
        message = self.W13(self.edge_messages(h_V, torch.cat([h_E, h_j], 1)))
        return cast(Tensor, self.norm3(h_E + message))


class _BucketDecoderLayer(_BucketNodeUpdate):
    """Messages from [h_i | h_E | h_j | letter]: W1's letter part is a table of 21 columns."""

    def __init__(self, layer: DecoderLayer, W_s: Tensor) -> None:
        A, E, S, V = layer.W1.weight.chunk(4, 1)
        W1 = torch.cat([A, E, V, S @ W_s.t()], 1)
        super().__init__(layer, _BucketMessages(W1, layer.W1.bias, layer.W2))
