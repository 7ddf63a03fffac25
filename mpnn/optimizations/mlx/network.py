# mypy: disallow-subclassing-any=False
"""The reference network in MLX: the modules of `mpnn.model`, same names in the same order.

A state dict of the torch network loads as it is. What is computed differently, and why:

1. Rows instead of [B, L]: R residues of all structures end to end, so that a gather is one `take`.
2. W1·[h_i | h_E | s_j | h_j] = A·h_i + E·h_E + S·s_j + V·h_j, W1 split by blocks: A and V act on
   nodes instead of edges, S·s_j is a table of 21 rows, E·h_E of the decoder is made once.
3. Σ_j (W3·m_j + b3) = W3·Σ_j m_j + K·b3: one matmul per node instead of one per edge.
4. Decoded and undecoded neighbors stand in one table: rows n·R + j hold the input from j once it is
   decoded in sample n, rows N·R + j the input from before. Ranks say which row an edge reads.

Shapes: B structures, N samples, L residues, K neighbors, C hidden, M message rows, V = 21 residue
types.
"""

from __future__ import annotations

from typing import TypedDict

import mlx.core as mx
from mlx import nn

from mpnn.config import NUM_LETTERS, NUM_POSITIONAL, ModelConfig
from mpnn.graph import NUM_OFFSETS
from mpnn.model import EDGE_INPUT, FEED_FORWARD, MESSAGE_SCALE, ProteinMPNN
from mpnn.optimizations.mlx import graph
from mpnn.optimizations.mlx.metal import Messages, MessageSum, gelu


class Structures(TypedDict):
    """Structures laid end to end as MLX arrays."""

    X: list[mx.array]  # [L, 4, 3] Å of each structure
    mask: mx.array  # [R]
    residue_idx: mx.array  # [R]
    chain_encoding: mx.array  # [R]
    neighbor_mask: mx.array  # [R, K], 0 where a neighbor slot is padding
    E_idx: mx.array | None  # [R, K], neighbors found elsewhere


class Encoded(TypedDict):
    """All that decoding needs of the structures."""

    mask: mx.array  # [R]
    E_idx: mx.array  # [R, K] rows
    neighbor_mask: mx.array  # [R, K], 0 where a neighbor slot is padding
    h_V: mx.array  # [R, C]
    edges: list[mx.array]  # [R, K, C] for each decoder layer, E·h_E + b1
    encoder_state: list[mx.array]  # [R, C] for each decoder layer, V·h_j
    types: list[mx.array]  # [21, C] for each decoder layer, S·s_j


class MLXPositionalEncodings(nn.Module):
    """Linear embedding of the one-hot residue offset: a row of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_OFFSETS, NUM_POSITIONAL)

    def __call__(self, offset_class: mx.array) -> mx.array:
        """[R, K] -> [R, K, 16]."""
        return (self.linear.weight.T + self.linear.bias)[offset_class]


class MLXProteinFeatures(nn.Module):
    """Edge vectors from coordinates: offsets and 25 × 16 radial basis functions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.k = config.k_neighbors
        self.embeddings = MLXPositionalEncodings()
        self.edge_embedding = nn.Linear(EDGE_INPUT, config.hidden_dim, bias=False)
        self.norm_edges = nn.LayerNorm(config.hidden_dim)

    def __call__(self, given: Structures) -> tuple[mx.array, mx.array]:
        """Edge vectors after the LayerNorm [R, K, C] and neighbors E_idx [R, K]."""
        E_idx, D = graph.neighbors(given["X"], given["mask"], self.k, given["E_idx"])
        offsets = graph.relative_positions(given["residue_idx"], given["chain_encoding"], E_idx)
        D = graph.atom_pair_distances(mx.concatenate(given["X"]), E_idx, D)
        E = mx.concatenate([self.embeddings(offsets), graph.rbf(D).flatten(-2)], -1)
        return self.norm_edges(self.edge_embedding(E)), E_idx


class MLXPositionWiseFeedForward(nn.Module):
    """The node update between messages."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.W_in = nn.Linear(C, FEED_FORWARD * C)
        self.W_out = nn.Linear(FEED_FORWARD * C, C)

    def __call__(self, h_V: mx.array) -> mx.array:
        """[M, C] -> [M, C]."""
        return self.W_out(gelu(self.W_in(h_V)))


def blocks(W1: nn.Linear) -> list[mx.array]:
    """W1 [C, blocks·C] as one matrix [C, C] for each part of its input, for matmuls from the left.

    They are views of the one parameter; A comes first, E second, V last.
    """
    parts: list[mx.array] = mx.split(W1.weight.T, W1.weight.shape[1] // W1.weight.shape[0])
    return parts


class MLXMessageLayer(nn.Module):
    """What encoder and decoder layers share: messages, their sum, and the node update."""

    def __init__(self, C: int, edge_input: int, message_sum: MessageSum) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(C)
        self.norm2 = nn.LayerNorm(C)
        self.W1 = nn.Linear(C + edge_input, C)
        self.W2 = nn.Linear(C, C)
        self.W3 = nn.Linear(C, C)
        self.dense = MLXPositionWiseFeedForward(C)
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


class MLXEncoderLayer(MLXMessageLayer):
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


class MLXDecoderLayer(MLXMessageLayer):
    """Messages from [h_i | h_E_ij | s_j | h_j]; edges stay as the encoder left them."""

    def __init__(self, C: int, message_sum: MessageSum) -> None:
        super().__init__(C, 3 * C, message_sum)

    def constants(
        self, h_V: mx.array, h_E: mx.array, W_s: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """What no residue type changes: E·h_E + b1 [R, K, C], V·h_j [R, C] and S·s_j [21, C]."""
        _, E, S, V = blocks(self.W1)
        return mx.addmm(self.W1.bias, h_E, E), h_V @ V, W_s @ S

    def commit(self, h_V: mx.array, s: mx.array) -> mx.array:
        """This layer's input from decoded rows with states h_V and residue types s, [M, C] each."""
        return mx.addmm(s, h_V, blocks(self.W1)[-1])

    def __call__(
        self,
        h_V: mx.array,
        table: mx.array,
        where: mx.array,
        edges: mx.array,
        at: mx.array | None,
        mask: mx.array,
        neighbor_mask: mx.array,
    ) -> mx.array:
        """h_V [M, C] -> [M, C]; table (x_j), where, edges and at as in `Messages`."""
        x_i = h_V @ blocks(self.W1)[0]
        W2 = self.W2
        total = self.message_sum(
            Messages(x_i, table, where, neighbor_mask, edges, at, None, W2.weight, W2.bias)
        )
        return self.update_nodes(h_V, total, mask, neighbor_mask)


class MLXProteinMPNN(nn.Module):
    """Structure-conditioned sequence model: p(S | X), one residue after another in any order."""

    def __init__(self, config: ModelConfig, message_sum: MessageSum) -> None:
        super().__init__()
        C = config.hidden_dim
        self.features = MLXProteinFeatures(config)
        self.W_e = nn.Linear(C, C)
        self.W_s = nn.Embedding(NUM_LETTERS, C)
        self.encoder_layers = [
            MLXEncoderLayer(C, message_sum) for _ in range(config.num_encoder_layers)
        ]
        self.decoder_layers = [
            MLXDecoderLayer(C, message_sum) for _ in range(config.num_decoder_layers)
        ]
        self.W_out = nn.Linear(C, NUM_LETTERS)

    @classmethod
    def from_torch(cls, model: ProteinMPNN, message_sum: MessageSum) -> MLXProteinMPNN:
        """The network with the parameters of `model`, in float32."""
        network = cls(model.config, message_sum)
        state = model.state_dict()
        parameters = [(name, mx.array(p.cpu().float().numpy())) for name, p in state.items()]
        network.load_weights(parameters, strict=True)
        mx.eval(network.parameters())
        return network

    def encode(self, given: Structures) -> Encoded:
        """Everything that depends on the structures alone."""
        mask, neighbor_mask = given["mask"], given["neighbor_mask"]
        E, E_idx = self.features(given)
        h_E = self.W_e(E)
        h_V = mx.zeros((E_idx.shape[0], h_E.shape[-1]))
        edge_mask = mask[:, None] * mask[E_idx] * neighbor_mask
        for layer in self.encoder_layers:
            h_V, h_E = layer(h_V, h_E, E_idx, mask, edge_mask)
        constants = [layer.constants(h_V, h_E, self.W_s.weight) for layer in self.decoder_layers]
        edges, encoder_state, types = (list(each) for each in zip(*constants, strict=True))
        return {
            "mask": mask,
            "E_idx": E_idx,
            "neighbor_mask": neighbor_mask,
            "h_V": h_V,
            "edges": edges,
            "encoder_state": encoder_state,
            "types": types,
        }

    def decode(
        self, encoded: Encoded, S: mx.array, rank: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """Every residue at once, given the types of those before it.

        Args:
            encoded: what `encode` returned.
            S: [N, R] residue types.
            rank: [N, R]; j is visible to i where rank_j < rank_i.

        Returns:
            Logits [N·R, 21], and for each decoder layer its table of inputs, [(N+1)·R, C].
        """
        N = len(S)
        where = self.where(encoded, rank)
        mask = mx.tile(encoded["mask"], N)
        neighbor_mask = mx.tile(encoded["neighbor_mask"], (N, 1))
        h_V = mx.tile(encoded["h_V"], (N, 1))
        tables = []
        for n, layer in enumerate(self.decoder_layers):
            decoded = layer.commit(h_V, encoded["types"][n][S.flatten()])
            tables.append(mx.concatenate([decoded, encoded["encoder_state"][n]]))
            h_V = layer(h_V, tables[n], where, encoded["edges"][n], None, mask, neighbor_mask)
        return self.W_out(h_V), tables

    def where(self, encoded: Encoded, rank: mx.array) -> mx.array:
        """Row of a table that each edge reads under rank [N, R]: [N·R, K] int32."""
        N, R = rank.shape
        E_idx = encoded["E_idx"]
        visible = rank[:, E_idx] < rank[..., None]  # [N, R, K]
        # An array, where a number would be compiled into the kernel, and the kernel for each size.
        starts = mx.arange(0, (N + 1) * R, R, dtype=mx.int32)
        first = mx.where(visible, starts[:N, None, None], starts[N])
        return (first + E_idx).reshape(N * R, -1)
