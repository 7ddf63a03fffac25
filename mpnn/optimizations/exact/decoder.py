"""The decoder on flat rows: row n·R + i is residue i of sample n.

**One table for decoded and undecoded neighbors.** Rows n·R + j hold the input from neighbor j once
it is decoded in sample n, rows N·R + j the input from before: the encoder state and no residue
type. The row that an edge reads is chosen once for every edge; then its input is one gathered row.

**First layer by residue type.** Its nodes are still the encoder's, so all of W1's product but the
residue type is a constant of the edge (`ExactEncoding.edges[0]`); one of 21 rows, or a row of
zeros, is added.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mpnn.config import NUM_LETTERS
from mpnn.model import DecoderLayer, ProteinMPNN
from mpnn.optimizations.exact.blocks import Affine, Message, NodeUpdate
from mpnn.optimizations.exact.encoder import TILE, ExactEncoding
from mpnn.optimizations.exact.graph import tiles
from mpnn.optimizations.exact.workers import Buffers, Workers
from mpnn.sampling import Samples

NO_TYPE = NUM_LETTERS
"""Row of zeros after the 21 residue types in a table of their products."""


class DecoderWeights:
    """The decoder's blocks, and the products of the 21 residue types with each layer's S."""

    def __init__(self, model: ProteinMPNN) -> None:
        layers = cast(list[DecoderLayer], list(model.decoder_layers))
        self.messages = [Message(layer.W1, layer.W2) for layer in layers]
        self.updates = [NodeUpdate(layer) for layer in layers]
        S = [layer.W1.weight.chunk(4, dim=1)[2] for layer in layers]
        products = [model.W_s.weight @ block.t() for block in S]
        self.types = [torch.cat([p, torch.zeros_like(p[:1])]) for p in products]  # [22, C]
        self.W_out = Affine(model.W_out.weight, model.W_out.bias)


class Decoder:
    """One decoding of N samples: residue types so far, the tables of inputs, and the logits."""

    def __init__(
        self,
        weights: DecoderWeights,
        encoding: ExactEncoding,
        S: Tensor,
        rank: Tensor,
        workers: Workers,
        buffers: Buffers,
    ) -> None:
        """S [N, R] residue types, known ones at least; rank [N, R]."""
        self.net, self.encoding = weights, encoding
        self.workers, self.buffers = workers, buffers
        N, self.R = rank.shape
        self.rows = N * self.R
        self.K, self.C = encoding.edges.shape[2:]
        graph = encoding.graph
        no_type = torch.full_like(graph.E_idx[:, 0], NO_TYPE)
        self.S = torch.cat([S.flatten(), no_type])  # [(N + 1)·R]
        visible = rank[:, graph.E_idx] < rank[..., None]  # [N, R, K]
        sample = torch.arange(N, device=S.device)[:, None, None]
        where = torch.where(visible, sample, N) * self.R + graph.E_idx
        self.where = where.view(self.rows, self.K).to(torch.int32)
        self.decoded = [
            torch.cat([u.new_empty(self.rows, self.C), u]) for u in encoding.encoder_state
        ]  # [(N + 1)·R, C] for each layer beyond the first
        self.logits = encoding.h_V.new_empty(self.rows, NUM_LETTERS)

    def teacher_forced(self, rows: Tensor | None = None) -> None:
        """Computes `rows` [M] (all if None) whose residue types are known, layer by layer."""
        h = self.encoding.h_V.repeat(self.rows // self.R, 1)
        pieces = self._pieces(rows)
        for layer in range(len(self.net.messages)):

            def piece(rows: slice | Tensor, layer: int = layer) -> None:
                residues = self.residues(rows)
                h[rows] = self.layer(layer, h[rows], self.where[rows], residues)
                self.commit_layer(layer + 1, rows, h[rows])

            self.workers.map(piece, pieces)
        for done in pieces:
            self.logits[done] = self.net.W_out(h[done])

    def decode(self, rows: Tensor, residues: Tensor, where: Tensor) -> list[Tensor]:
        """Computes rows [M] without open dependencies; the states [M, C] after every layer."""
        states = [self.encoding.h_V.index_select(0, residues)]
        for layer in range(len(self.net.messages)):
            states.append(self.layer(layer, states[-1], where, residues))
        self.logits[rows] = self.net.W_out(states[-1])
        return states

    def commit(self, rows: Tensor, types: Tensor, states: list[Tensor]) -> None:
        """Gives rows [M] their residue types, and makes them visible to later rows."""
        self.S[rows] = types
        for layer in range(1, len(self.net.messages)):
            self.commit_layer(layer, rows, states[layer])

    def samples(self) -> Samples:
        """Residue types and log-probabilities, on the host."""
        log_probs = self.logits.log_softmax(-1).view(-1, self.R, NUM_LETTERS)
        S = self.S[: self.rows].view(-1, self.R)
        return Samples(S.cpu().numpy(), log_probs.cpu().numpy())

    def layer(self, layer: int, h: Tensor, where: Tensor, residues: slice | Tensor) -> Tensor:
        """One decoder layer: h [T, C], where [T, K] in the table, residues [T] -> [T, C]."""
        message, shape = self.net.messages[layer], (where.numel(), self.C)
        x, y = self.buffers.get("x", *shape), self.buffers.get("y", *shape)
        edges = self.encoding.edges[layer]  # [R, K, C]
        if isinstance(residues, slice):
            constant = edges[residues].view(shape)
        else:
            constant = y
            torch.index_select(edges, 0, residues, out=y.view(-1, self.K, self.C))
        if layer == 0:
            types = self.S.index_select(0, where.flatten())
            torch.index_select(self.net.types[0], 0, types, out=x)
        else:
            torch.index_select(self.decoded[layer - 1], 0, where.flatten(), out=x)
            x.view(-1, self.K, self.C).add_(message.A(h)[:, None])
        m = message(x.add_(constant), y).view(-1, self.K, self.C)
        graph = self.encoding.graph
        slots = None if graph.neighbor_mask is None else graph.neighbor_mask[residues]
        mask = None if graph.complete else graph.mask[residues]
        return self.net.updates[layer](h, m, slots, mask)

    def commit_layer(self, layer: int, rows: slice | Tensor, h: Tensor) -> None:
        """Writes decoded rows with states h [T, C] into the table of `layer`, if it has one."""
        if 0 < layer < len(self.net.messages):
            types = self.net.types[layer][self.S[rows]]
            self.decoded[layer - 1][rows] = self.net.messages[layer].V.plus(h, types)

    def residues(self, rows: slice | Tensor) -> slice | Tensor:
        """Residue of each row; a slice stays within one sample and remains one."""
        if isinstance(rows, slice):
            start = rows.start % self.R
            return slice(start, start + rows.stop - rows.start)
        return rows % self.R

    def _pieces(self, rows: Tensor | None) -> list[slice | Tensor]:
        size = TILE if self.workers.tiled else self.R
        if rows is not None:
            return list(torch.split(rows, size))
        starts = range(0, self.rows, self.R)
        return [slice(s + t.start, s + t.stop) for s in starts for t in tiles(self.R, size)]
