"""The reference ProteinMPNN: one readable network, no options, equal to the published one.

Parameter names are those of the published checkpoints, so their files load as they are.
Shapes: B structures, L residues, K neighbors, C hidden, V = 21 letters.
Source: Dauparas et al., Science 378:49–56 (2022), code at github.com/dauparas/ProteinMPNN 8907e66.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, one_hot

from mpnn import graph
from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.flat import Flat

MESSAGE_SCALE = 30.0  # sums over neighbors are divided by this, whatever K is
FEED_FORWARD = 4  # inner width of the feed-forward block in units of C
EDGE_INPUT = graph.NUM_POSITIONAL + len(graph.ATOM_PAIRS) * graph.NUM_RBF  # 416


@dataclass(frozen=True, eq=False)
class Batch:
    """B structures padded to L residues, as tensors.

    `mask` and `valid` differ: a masked residue belongs to the structure but lacks atoms and, as in
    the published network, still takes part as a decoder neighbor; padding takes part in nothing.
    """

    X: Tensor  # [B, L, 4, 3] N, CA, C, O in Å; zeros where mask is 0
    mask: Tensor  # [B, L] float, 1 where all four atoms are present
    residue_idx: Tensor  # [B, L] int64, position + 100 per chain before
    chain_encoding: Tensor  # [B, L] int64, 1, 2, … per chain
    valid: Tensor  # [B, L] bool, False for padding
    E_idx: Tensor | None = None  # [B, L, K] int64, neighbors found elsewhere (k-NN on the CPU)

    @classmethod
    def from_flat(
        cls, flat: Flat, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Batch:
        """Pads the structures to the longest; their order is kept."""
        E_idx = flat.padded_neighbors()
        return cls(
            X=torch.from_numpy(flat.padded(flat.X)).to(device, dtype),
            mask=torch.from_numpy(flat.padded(flat.mask)).to(device, dtype),
            residue_idx=torch.from_numpy(flat.padded(flat.residue_idx)).to(device),
            chain_encoding=torch.from_numpy(flat.padded(flat.chain_encoding)).to(device),
            valid=torch.from_numpy(flat.valid).to(device),
            E_idx=None if E_idx is None else torch.from_numpy(E_idx).to(device),
        )


class PositionalEncodings(nn.Module):
    """Linear embedding of the one-hot residue offset."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(graph.NUM_OFFSETS, graph.NUM_POSITIONAL)

    def forward(self, offset_class: Tensor) -> Tensor:
        """[B, L, K] int64 -> [B, L, K, 16]."""
        classes = one_hot(offset_class, graph.NUM_OFFSETS).to(self.linear.weight.dtype)
        embedded: Tensor = self.linear(classes)
        return embedded


class ProteinFeatures(nn.Module):
    """Edge vectors from coordinates: offsets and 25 × 16 radial basis functions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.k = config.k_neighbors
        self.embeddings = PositionalEncodings()
        self.edge_embedding = nn.Linear(EDGE_INPUT, config.hidden_dim, bias=False)
        self.norm_edges = nn.LayerNorm(config.hidden_dim)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Edge vectors after the LayerNorm [B, L, K, C] and neighbors E_idx [B, L, K]."""
        E_idx, D = self.neighbors(batch)
        offsets = graph.relative_positions(batch.residue_idx, batch.chain_encoding, E_idx)
        radial = graph.rbf(graph.atom_pair_distances(batch.X, E_idx, D))  # [B, L, K, 25, 16]
        E = torch.cat([self.embeddings(offsets), radial.flatten(-2)], -1)  # [B, L, K, 416]
        return self.norm_edges(self.edge_embedding(E)), E_idx

    def neighbors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Neighbors and their distances: searched for here, or those that the batch brings."""
        ca = batch.X[:, :, graph.CA]
        if batch.E_idx is None:
            return graph.neighbors(ca, batch.mask, batch.valid, self.k)
        D = graph.distance(ca[:, :, None], ca[:, None, :])
        D = graph.row_adjusted(D, batch.mask[:, :, None] * batch.mask[:, None, :])
        return batch.E_idx, D.gather(-1, batch.E_idx)


class PositionWiseFeedForward(nn.Module):
    """The node update between messages."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.W_in = nn.Linear(C, FEED_FORWARD * C)
        self.W_out = nn.Linear(FEED_FORWARD * C, C)

    def forward(self, h_V: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        updated: Tensor = self.W_out(gelu(self.W_in(h_V)))
        return updated


class MessageLayer(nn.Module):
    """What encoder and decoder layers share: messages, their sum, and the node update."""

    def __init__(self, C: int, edge_input: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(C)
        self.norm2 = nn.LayerNorm(C)
        self.W1 = nn.Linear(C + edge_input, C)
        self.W2 = nn.Linear(C, C)
        self.W3 = nn.Linear(C, C)
        self.dense = PositionWiseFeedForward(C)

    def update_nodes(self, h_V: Tensor, h_EV: Tensor, mask: Tensor, edge_mask: Tensor) -> Tensor:
        """One round of messages.

        Args:
            h_V: [..., C] nodes to update.
            h_EV: [..., K, edge_input] what each message reads besides h_V.
            mask: [...] of the nodes.
            edge_mask: [..., K] of the messages.

        Returns:
            [..., C] updated nodes.
        """
        h_EV = torch.cat([h_V[..., None, :].expand(*h_EV.shape[:-1], -1), h_EV], -1)
        message = self.W3(gelu(self.W2(gelu(self.W1(h_EV)))))
        message = (message * edge_mask[..., None]).sum(-2) / MESSAGE_SCALE
        h_V = self.norm1(h_V + message)
        h_V = self.norm2(h_V + self.dense(h_V))
        return h_V * mask[..., None]


class EncoderLayer(MessageLayer):
    """Messages from [h_i | h_E_ij | h_j], then the edges are updated in the same way."""

    def __init__(self, C: int) -> None:
        super().__init__(C, edge_input=2 * C)
        self.norm3 = nn.LayerNorm(C)
        self.W11 = nn.Linear(3 * C, C)
        self.W12 = nn.Linear(C, C)
        self.W13 = nn.Linear(C, C)

    def forward(
        self, h_V: Tensor, h_E: Tensor, E_idx: Tensor, mask: Tensor, edge_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h_V [B, L, C], h_E [B, L, K, C] -> the same, updated."""
        h_EV = torch.cat([h_E, graph.gather_nodes(h_V, E_idx)], -1)
        h_V = self.update_nodes(h_V, h_EV, mask, edge_mask)
        h_j = graph.gather_nodes(h_V, E_idx)
        h_EV = torch.cat([h_V[:, :, None].expand_as(h_j), h_E, h_j], -1)
        message = self.W13(gelu(self.W12(gelu(self.W11(h_EV)))))
        return h_V, self.norm3(h_E + message)


class DecoderLayer(MessageLayer):
    """Messages from [h_i | h_E_ij | s_j | h_j]; edges stay as the encoder left them."""

    def __init__(self, C: int) -> None:
        super().__init__(C, edge_input=3 * C)


class ProteinMPNN(nn.Module):
    """Structure-conditioned sequence model: p(S | X), one residue after another in any order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.hidden_dim
        self.config = config
        self.features = ProteinFeatures(config)
        self.W_e = nn.Linear(C, C)
        self.W_s = nn.Embedding(NUM_LETTERS, C)
        self.encoder_layers = nn.ModuleList(
            EncoderLayer(C) for _ in range(config.num_encoder_layers)
        )
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(C) for _ in range(config.num_decoder_layers)
        )
        self.W_out = nn.Linear(C, NUM_LETTERS)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything that depends on the structure alone.

        Returns:
            h_V [B, L, C], h_E [B, L, K, C], E_idx [B, L, K] int64 and neighbor_mask [B, L, K],
            which is 0 where the neighbor is padding.
        """
        E, E_idx = self.features(batch)
        h_E = self.W_e(E)
        h_V = h_E.new_zeros(*h_E.shape[:2], h_E.shape[-1])
        edge_mask = batch.mask[..., None] * graph.gather_nodes(batch.mask, E_idx)
        for layer in self.encoder_layers:
            h_V, h_E = layer(h_V, h_E, E_idx, batch.mask, edge_mask)
        return h_V, h_E, E_idx, graph.gather_nodes(batch.valid.to(h_V.dtype), E_idx)

    def decode(
        self,
        encoded: tuple[Tensor, Tensor, Tensor, Tensor],
        S: Tensor,
        rank: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Log-probabilities of every letter given the letters decoded before it.

        Args:
            encoded: what `encode` returned.
            S: [B, L] int64 letters.
            rank: [B, L]; j is visible to i where rank_j < rank_i.
            mask: [B, L].

        Returns:
            [B, L, 21].
        """
        h_V, h_E, E_idx, neighbor_mask = encoded
        see = graph.visible(rank, E_idx)[..., None]  # [B, L, K, 1]
        s_j = graph.gather_nodes(self.W_s(S), E_idx) * see
        h_j_encoder = graph.gather_nodes(h_V, E_idx)
        for layer in cast(list[DecoderLayer], list(self.decoder_layers)):
            h_j = torch.where(see, graph.gather_nodes(h_V, E_idx), h_j_encoder)
            h_ESV = mask[:, :, None, None] * torch.cat([h_E, s_j, h_j], -1)
            h_V = layer.update_nodes(h_V, h_ESV, mask, neighbor_mask)
        logits: Tensor = self.W_out(h_V)
        return logits.log_softmax(-1)

    def forward(self, batch: Batch, S: Tensor, rank: Tensor) -> Tensor:
        """Teacher-forced log-probabilities [B, L, 21] of `S` [B, L] under the order `rank`."""
        return self.decode(self.encode(batch), S, rank, batch.mask)
