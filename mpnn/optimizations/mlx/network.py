# mypy: disallow-subclassing-any=False
"""The reference network in MLX: the modules of `mpnn.model`, same names in the same order.

A state dict of the torch network loads as it is. What is computed differently, and why:

1. Rows instead of [B, L]: R = B·L residues end to end, so that a gather is one `take`.
2. W1·[h_i | h_E | s_j | h_j] = A·h_i + E·h_E + S·s_j + V·h_j, W1 split by blocks: A and V act on
   nodes instead of edges, S·s_j is a table of 21 rows, E·h_E of the decoder is made once.
3. Σ_j (W3·m_j + b3) = W3·Σ_j m_j + K·b3: one product per node instead of one per edge.
4. Neighbors seen and unseen stand in one table: rows n·R + j hold what j shows once it is decoded
   in sample n, rows N·R + j what it shows before. Ranks say which row an edge reads.

Shapes: B structures, N samples, L residues, K neighbors, C hidden, M message rows, V = 21 letters.
"""

from __future__ import annotations

from typing import TypedDict

import mlx.core as mx
from mlx import nn

from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.graph import CA, NUM_OFFSETS, NUM_POSITIONAL
from mpnn.model import EDGE_INPUT, FEED_FORWARD, MESSAGE_SCALE
from mpnn.model import ProteinMPNN as TorchProteinMPNN
from mpnn.optimizations.mlx import graph
from mpnn.optimizations.mlx.metal import Messages, MessageSum, gelu


class Structures(TypedDict):
    """A batch as MLX arrays, padded to L residues."""

    X: mx.array  # [B, L, 4, 3] Å
    mask: mx.array  # [B, L]
    residue_idx: mx.array  # [B, L]
    chain_encoding: mx.array  # [B, L]
    valid: mx.array  # [B, L] bool
    E_idx: mx.array | None  # [B, L, K], neighbors found elsewhere


class Encoded(TypedDict):
    """All that decoding needs of the structures."""

    mask: mx.array  # [R]
    E_idx: mx.array  # [R, K] rows
    neighbor_mask: mx.array  # [R, K], 0 where the neighbor is padding
    h_V: mx.array  # [R, C]
    edges: list[mx.array]  # [R, K, C] for each decoder layer, E·h_E + b1
    unseen: list[mx.array]  # [R, C] for each decoder layer, V·h_j
    letters: list[mx.array]  # [21, C] for each decoder layer, S·s_j


class PositionalEncodings(nn.Module):
    """Linear embedding of the one-hot residue offset: a row of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_OFFSETS, NUM_POSITIONAL)

    def __call__(self, offset_class: mx.array) -> mx.array:
        """[R, K] -> [R, K, 16]."""
        return (self.linear.weight.T + self.linear.bias)[offset_class]


class ProteinFeatures(nn.Module):
    """Edge vectors from coordinates: offsets and 25 × 16 radial basis functions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.k = config.k_neighbors
        self.embeddings = PositionalEncodings()
        self.edge_embedding = nn.Linear(EDGE_INPUT, config.hidden_dim, bias=False)
        self.norm_edges = nn.LayerNorm(config.hidden_dim)

    def __call__(self, batch: Structures) -> tuple[mx.array, mx.array]:
        """Edge vectors after the LayerNorm [R, K, C] and neighbors E_idx [R, K]."""
        ca = batch["X"][:, :, CA]
        E_idx, D = graph.neighbors(ca, batch["mask"], batch["valid"], self.k, batch["E_idx"])
        residue, chain = batch["residue_idx"].flatten(), batch["chain_encoding"].flatten()
        offsets = graph.relative_positions(residue, chain, E_idx)
        D = graph.atom_pair_distances(batch["X"].flatten(0, 1), E_idx, D)
        E = mx.concatenate([self.embeddings(offsets), graph.rbf(D).flatten(-2)], -1)
        return self.norm_edges(self.edge_embedding(E)), E_idx


class PositionWiseFeedForward(nn.Module):
    """The node update between messages."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.W_in = nn.Linear(C, FEED_FORWARD * C)
        self.W_out = nn.Linear(FEED_FORWARD * C, C)

    def __call__(self, h_V: mx.array) -> mx.array:
        """[M, C] -> [M, C]."""
        return self.W_out(gelu(self.W_in(h_V)))


def blocks(W1: nn.Linear) -> list[mx.array]:
    """W1 [C, blocks·C] as one matrix [C, C] for each part of its input, for products from the left.

    They are views of the one parameter; A comes first, E second, V last.
    """
    parts: list[mx.array] = mx.split(W1.weight.T, W1.weight.shape[1] // W1.weight.shape[0])
    return parts


class MessageLayer(nn.Module):
    """What encoder and decoder layers share: messages, their sum, and the node update."""

    def __init__(self, C: int, edge_input: int, message_sum: MessageSum) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(C)
        self.norm2 = nn.LayerNorm(C)
        self.W1 = nn.Linear(C + edge_input, C)
        self.W2 = nn.Linear(C, C)
        self.W3 = nn.Linear(C, C)
        self.dense = PositionWiseFeedForward(C)
        self.message_sum = message_sum

    def update_nodes(
        self, h_V: mx.array, total: mx.array, mask: mx.array, edge_mask: mx.array
    ) -> mx.array:
        """h_V [M, C], sums of messages before W3 [M, C], mask [M], edge_mask [M, K] -> [M, C]."""
        count = edge_mask.sum(-1, keepdims=True)
        message = (total @ self.W3.weight.T + count * self.W3.bias) / MESSAGE_SCALE
        h_V = self.norm1(h_V + message)
        h_V = self.norm2(h_V + self.dense(h_V))
        return h_V * mask[:, None]


class EncoderLayer(MessageLayer):
    """Messages from [h_i | h_E_ij | h_j], then the edges are updated in the same way."""

    def __init__(self, C: int, message_sum: MessageSum) -> None:
        super().__init__(C, 2 * C, message_sum)
        self.norm3 = nn.LayerNorm(C)
        self.W11 = nn.Linear(3 * C, C)
        self.W12 = nn.Linear(C, C)
        self.W13 = nn.Linear(C, C)

    def __call__(
        self,
        h_V: mx.array,
        h_E: mx.array,
        E_idx: mx.array,
        mask: mx.array,
        edge_mask: mx.array,
    ) -> tuple[mx.array, mx.array]:
        """h_V [R, C], h_E [R, K, C] -> the same, updated."""
        A, _, V = blocks(self.W1)
        x_i, x_j = mx.addmm(self.W1.bias, h_V, A), h_V @ V
        W2 = self.W2
        total = self.message_sum(
            Messages(x_i, x_j, E_idx, edge_mask, h_E, None, self.W1.weight, W2.weight, W2.bias)
        )
        h_V = self.update_nodes(h_V, total, mask, edge_mask)
        A, E, V = blocks(self.W11)
        x = h_E @ E + mx.addmm(self.W11.bias, h_V, A)[:, None] + (h_V @ V)[E_idx]
        message = self.W13(gelu(self.W12(gelu(x))))
        return h_V, self.norm3(h_E + message)


class DecoderLayer(MessageLayer):
    """Messages from [h_i | h_E_ij | s_j | h_j]; edges stay as the encoder left them."""

    def __init__(self, C: int, message_sum: MessageSum) -> None:
        super().__init__(C, 3 * C, message_sum)

    def constants(
        self, h_V: mx.array, h_E: mx.array, W_s: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """What no letter changes: E·h_E + b1 [R, K, C], V·h_j [R, C] and S·s_j [21, C]."""
        _, E, S, V = blocks(self.W1)
        return mx.addmm(self.W1.bias, h_E, E), h_V @ V, W_s @ S

    def show(self, h_V: mx.array, s: mx.array) -> mx.array:
        """What decoded rows with states h_V [M, C] and letters s [M, C] show to this layer."""
        return mx.addmm(s, h_V, blocks(self.W1)[-1])

    def __call__(
        self,
        h_V: mx.array,
        shown: mx.array,
        where: mx.array,
        edges: mx.array,
        at: mx.array | None,
        mask: mx.array,
        neighbor_mask: mx.array,
    ) -> mx.array:
        """h_V [M, C] -> [M, C]; shown, where, edges and at as in `Messages`."""
        x_i = h_V @ blocks(self.W1)[0]
        W2 = self.W2
        total = self.message_sum(
            Messages(x_i, shown, where, neighbor_mask, edges, at, None, W2.weight, W2.bias)
        )
        return self.update_nodes(h_V, total, mask, neighbor_mask)


class ProteinMPNN(nn.Module):
    """Structure-conditioned sequence model: p(S | X), one residue after another in any order."""

    def __init__(self, config: ModelConfig, message_sum: MessageSum) -> None:
        super().__init__()
        C = config.hidden_dim
        self.features = ProteinFeatures(config)
        self.W_e = nn.Linear(C, C)
        self.W_s = nn.Embedding(NUM_LETTERS, C)
        self.encoder_layers = [
            EncoderLayer(C, message_sum) for _ in range(config.num_encoder_layers)
        ]
        self.decoder_layers = [
            DecoderLayer(C, message_sum) for _ in range(config.num_decoder_layers)
        ]
        self.W_out = nn.Linear(C, NUM_LETTERS)

    @classmethod
    def from_torch(cls, model: TorchProteinMPNN, message_sum: MessageSum) -> ProteinMPNN:
        """The network with the parameters of `model`, in float32."""
        network = cls(model.config, message_sum)
        state = model.state_dict()
        parameters = [(name, mx.array(p.cpu().float().numpy())) for name, p in state.items()]
        network.load_weights(parameters, strict=True)
        mx.eval(network.parameters())
        return network

    def encode(self, batch: Structures) -> Encoded:
        """Everything that depends on the structure alone."""
        mask, valid = batch["mask"].flatten(), batch["valid"].flatten()
        E, E_idx = self.features(batch)
        h_E = self.W_e(E)
        h_V = mx.zeros((E_idx.shape[0], h_E.shape[-1]))
        edge_mask = mask[:, None] * mask[E_idx]
        for layer in self.encoder_layers:
            h_V, h_E = layer(h_V, h_E, E_idx, mask, edge_mask)
        constants = [layer.constants(h_V, h_E, self.W_s.weight) for layer in self.decoder_layers]
        edges, unseen, letters = (list(each) for each in zip(*constants, strict=True))
        return {
            "mask": mask,
            "E_idx": E_idx,
            "neighbor_mask": valid[E_idx].astype(mx.float32),
            "h_V": h_V,
            "edges": edges,
            "unseen": unseen,
            "letters": letters,
        }

    def decode(
        self, encoded: Encoded, S: mx.array, rank: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """Every residue at once, given the letters of those before it.

        Args:
            encoded: what `encode` returned.
            S: [N, R] letters.
            rank: [N, R]; j is visible to i where rank_j < rank_i.

        Returns:
            Logits [N·R, 21], and for each decoder layer the table of what rows show, [(N+1)·R, C].
        """
        N = len(S)
        where = self.where(encoded, rank)
        mask = mx.tile(encoded["mask"], N)
        neighbor_mask = mx.tile(encoded["neighbor_mask"], (N, 1))
        h_V = mx.tile(encoded["h_V"], (N, 1))
        tables = []
        for n, layer in enumerate(self.decoder_layers):
            seen = layer.show(h_V, encoded["letters"][n][S.flatten()])
            tables.append(mx.concatenate([seen, encoded["unseen"][n]]))
            h_V = layer(h_V, tables[n], where, encoded["edges"][n], None, mask, neighbor_mask)
        return self.W_out(h_V), tables

    def where(self, encoded: Encoded, rank: mx.array) -> mx.array:
        """Row of a table that each edge reads under rank [N, R]: [N·R, K] int32."""
        N, R = rank.shape
        E_idx = encoded["E_idx"]
        seen = rank[:, E_idx] < rank[..., None]  # [N, R, K]
        # An array, where a number would be compiled into the kernel, and the kernel for each size.
        starts = mx.arange(0, (N + 1) * R, R, dtype=mx.int32)
        first = mx.where(seen, starts[:N, None, None], starts[N])
        return (first + E_idx).reshape(N * R, -1)
