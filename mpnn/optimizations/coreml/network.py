"""The network as Core ML is to run it: one structure, a fixed number of residues, no gather.

Shapes: L residues of the bucket, K neighbors, C hidden, M rows of a step; edges are [K, C, 1, L],
or [1, C, K, L] in the other `Layout`, and nodes [1, C, 1, L], so that the long axis is the last one
and every Linear layer is a 1 × 1 convolution (Apple, "Deploying Transformers on the Apple Neural
Engine", 2022). Shapes below are those of the first layout.

**Padding changes nothing.** A padded slot of a residue weighs nothing in its sum. A padded residue
is no residue's neighbor; its own slots all weigh something, so that no LayerNorm there sees zeros,
whose variance a device without subnormal numbers cannot divide by, and its result is set to 0.

**Neighbors by a matmul.** Compute plans of other networks show gathers with computed indices on
the CPU, a trip away from the Neural Engine for each. h · P with P[j, i] = 1 where j is the
neighbor of i picks the same vectors, without rounding, since one term of each sum is not 0. It
costs K·L²·C multiply-adds, at L = 2·C as many as the first product of an encoder message; whether
that is the better bargain is for `plan` and the clock on a Mac to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.model import MESSAGE_SCALE, DecoderLayer, EncoderLayer, MessageLayer, ProteinMPNN

SLOT_WEIGHT = 1 / 32
"""Weight of a real slot in the sum over neighbors: a power of two, which half precision holds. The
rest of the published 1/30 is in W3."""

Shape = tuple[int, ...]

STEP_ROWS = 8
"""M, rows of one `step_L` call; wavefronts with more take several."""


@dataclass(frozen=True)
class Layout:
    """Where the K neighbor slots of an edge array lie; the sum over them follows from its shape.

    Attributes:
        name: name of the axis.
        axis: its number.
    """

    name: str
    axis: int

    def shape(self, K: int, C: int, L: int) -> Shape:
        """Shape of an edge array: [K, C, 1, L] or [1, C, K, L]."""
        return (K, C, 1, L) if self.axis == 0 else (1, C, K, L)

    def slots_first(self, x: NDArray[Any]) -> NDArray[Any]:
        """An edge array as a view [K, C, 1, L]."""
        return x.swapaxes(0, self.axis)


BATCH, HEIGHT = Layout("batch", 0), Layout("height", 2)
LAYOUTS = {layout.name: layout for layout in (BATCH, HEIGHT)}


@dataclass(frozen=True, eq=False)
class Function:
    """One function of the package: a module at a fixed length."""

    module: nn.Module
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]


class BucketNetwork(nn.Module):
    """Encoder, decoder, both as one, and a step; the weights are the same at every length."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        self.config = model.config
        with torch.no_grad():
            self.encoder, self.decoder = BucketEncoder(model), BucketDecoder(model)
        self.score, self.step = BucketScore(self.encoder, self.decoder), BucketStep(self.decoder)

    def functions(self, L: int, layout: Layout = BATCH) -> dict[str, Function]:
        """`score_L`, `encode_L`, `decode_L` and `step_L` for a bucket of L residues."""
        K, C, M = slots_of(self.config, L), self.config.hidden_dim, STEP_ROWS
        states = range(1, self.config.num_decoder_layers)
        slot, node = layout.shape(K, 1, L), (1, C, 1, L)
        E, E_idx, mask = {"E": layout.shape(K, C, L)}, {"E_idx": slot}, {"mask": (1, 1, 1, L)}
        graph = E_idx | {"decoder_weight": slot} | mask
        types = {"see": slot, "types": layout.shape(K, NUM_LETTERS, L)}
        encoded = {"h_V": node, "h_E": layout.shape(K, C, L)}
        rows = {name: (*shape[:-1], M) for name, shape in (encoded | graph | types).items()}
        new = ("logits", *(f"new_{n}" for n in states))
        return {
            f"score_{L}": Function(
                self.score, E | {"encoder_weight": slot} | graph | types, ("logits",)
            ),
            f"encode_{L}": Function(
                self.encoder, E | E_idx | {"encoder_weight": slot} | mask, ("h_V", "h_E")
            ),
            f"decode_{L}": Function(self.decoder, encoded | graph | types, new),
            f"step_{L}": Function(
                self.step, rows | {f"state_{n}": node for n in (0, *states)}, new
            ),
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
        self, E: Tensor, E_idx: Tensor, encoder_weight: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nodes and edges for the decoder.

        Args:
            E: [K, C, 1, L] edge vectors after their LayerNorm.
            E_idx: [K, 1, 1, L] neighbors, as real numbers.
            encoder_weight: [K, 1, 1, L] `SLOT_WEIGHT` where both ends have all atoms.
            mask: [1, 1, 1, L], 1 where all atoms are present.

        Returns:
            h_V [1, C, 1, L] and h_E [K, C, 1, L].
        """
        return self.encode(E, selection(E_idx, E.shape[-1]), encoder_weight, mask)

    def encode(
        self, E: Tensor, P: Tensor, encoder_weight: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, with `selection` made before."""
        h_E = self.W_e(E)
        first, *others = cast(list[_BucketEncoderLayer], list(self.layers))
        h_V = first.update(None, h_E, encoder_weight, mask)
        h_j = neighbors_of(h_V, P, encoder_weight)
        h_E = first.update_edges(h_V, h_E, h_j)
        for layer in others:
            h_V = layer.update(h_V, torch.cat([h_E, h_j], 1), encoder_weight, mask)
            h_j = neighbors_of(h_V, P, encoder_weight)
            h_E = layer.update_edges(h_V, h_E, h_j)
        return h_V, h_E


class BucketDecoder(nn.Module):
    """Logits of every residue given the residue types visible to it."""

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
        decoder_weight: Tensor,
        mask: Tensor,
        see: Tensor,
        types: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits [1, 21, 1, L], and states [1, C, 1, L] after every layer but the last.

        Args:
            h_V: [1, C, 1, L] nodes.
            h_E: [K, C, 1, L] edges.
            E_idx: [K, 1, 1, L] neighbors, as real numbers.
            decoder_weight: [K, 1, 1, L] `SLOT_WEIGHT` where the neighbor is no padding.
            mask: [1, 1, 1, L], 1 where all atoms are present.
            see: [K, 1, 1, L], 1 where the neighbor is decoded before the residue.
            types: [K, 21, 1, L], 1 at the neighbor's residue type where it is visible.
        """
        P = selection(E_idx, h_V.shape[-1])
        return self.decode(h_V, h_E, P, decoder_weight, mask, see, types)

    def decode(
        self,
        h_V: Tensor,
        h_E: Tensor,
        P: Tensor,
        decoder_weight: Tensor,
        mask: Tensor,
        see: Tensor,
        types: Tensor,
        *states: Tensor,
    ) -> tuple[Tensor, ...]:
        """The same, with `selection` made before; `states` are those that neighbors have.

        They are what enters each layer, of all residues; without them, what is computed here.
        """
        new, encoder_state = [], None
        for n, layer in enumerate(cast(list[_BucketDecoderLayer], list(self.layers))):
            h_j = neighbors_of(states[n] if states else h_V, P, see)
            if encoder_state is None:
                encoder_state = h_j
            else:
                h_j = see * h_j + (1 - see) * encoder_state
            h_V = layer.update(h_V, torch.cat([h_E, h_j, types], 1), decoder_weight, mask)
            new.append(h_V)
        return self.W_out(h_V), *new[:-1]


class BucketScore(nn.Module):
    """Encoder and decoder in one program: P is made once, and edges never leave it."""

    def __init__(self, encoder: BucketEncoder, decoder: BucketDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        E: Tensor,
        encoder_weight: Tensor,
        E_idx: Tensor,
        decoder_weight: Tensor,
        mask: Tensor,
        see: Tensor,
        types: Tensor,
    ) -> Tensor:
        """Logits [1, 21, 1, L]; arguments are those of the encoder and the decoder."""
        P = selection(E_idx, E.shape[-1])
        h_V, h_E = self.encoder.encode(E, P, encoder_weight, mask)
        return self.decoder.decode(h_V, h_E, P, decoder_weight, mask, see, types)[0]


class BucketStep(nn.Module):
    """The decoder for M rows of one wavefront, which see no row of their own step."""

    def __init__(self, decoder: BucketDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        h_V: Tensor,
        h_E: Tensor,
        E_idx: Tensor,
        decoder_weight: Tensor,
        mask: Tensor,
        see: Tensor,
        types: Tensor,
        *states: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits [1, 21, 1, M], and the rows' states [1, C, 1, M] after every layer but the last.

        Args:
            h_V: [1, C, 1, M] nodes of the rows; all others but `states` are theirs too.
            h_E: [K, C, 1, M].
            E_idx: [K, 1, 1, M].
            decoder_weight: [K, 1, 1, M].
            mask: [1, 1, 1, M].
            see: [K, 1, 1, M].
            types: [K, 21, 1, M].
            states: [1, C, 1, L] of all residues, what enters each layer.
        """
        P = selection(E_idx, states[0].shape[-1])
        return self.decoder.decode(h_V, h_E, P, decoder_weight, mask, see, types, *states)


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


def selection(E_idx: Tensor, L: int) -> Tensor:
    """P, 1 where j is the neighbor: E_idx [K, 1, 1, M] as numbers -> [K, L, M].

    In the other layout [1, 1, K, M] -> [1, L, K·M]. Built by arithmetic on whole numbers, which
    half precision holds exactly up to 2,048.
    """
    j = torch.arange(L, dtype=E_idx.dtype, device=E_idx.device)
    i = E_idx.squeeze(2) if E_idx.shape[2] == 1 else E_idx.flatten(2)
    return relu(1 - (i - j[None, :, None]).abs())


def neighbors_of(h_V: Tensor, P: Tensor, slots: Tensor) -> Tensor:
    """Vectors of the neighbors: h_V [1, C, 1, L] and P -> [K, C, 1, M], laid out as `slots`."""
    h_j = h_V.squeeze(2) @ P
    if slots.shape[2] == 1:
        return h_j.unsqueeze(2)
    return h_j.reshape(*h_j.shape[:2], *slots.shape[2:])


def sum_over_slots(x: Tensor) -> Tensor:
    """[K, C, 1, M] -> [1, C, 1, M]; in the other layout as a product with ones."""
    if x.shape[2] == 1:
        return x.sum(0, keepdim=True)
    return torch.ones((1, x.shape[2]), dtype=x.dtype, device=x.device) @ x


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
        h = self.W3(sum_over_slots(messages)) + self.b3 * sum_over_slots(slot_weight)
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
    """Messages from [h_i | h_E | h_j | type]: W1's type part is a table of 21 columns."""

    def __init__(self, layer: DecoderLayer, W_s: Tensor) -> None:
        A, E, S, V = layer.W1.weight.chunk(4, 1)
        W1 = torch.cat([A, E, V, S @ W_s.t()], 1)
        super().__init__(layer, _BucketMessages(W1, layer.W1.bias, layer.W2))
