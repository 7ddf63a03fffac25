"""The decoder on flat rows: row n·R + i is residue i of sample n.

**One table for seen and unseen neighbors.** Rows n·R + j hold what neighbor j shows once it is
decoded in sample n, rows N·R + j what it shows before: the encoder's state and no letter. Where
a neighbor stands is decided once for every edge; then an edge's input is one gathered row.

**First layer by letter.** Its nodes are still the encoder's, so all of W1's product but the letter
is a constant of the edge (`ExactEncoding.edges[0]`); one of 21 rows, or a row of zeros, is added.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mpnn.config import NUM_LETTERS
from mpnn.decoding import Samples
from mpnn.model import DecoderLayer, ProteinMPNN
from mpnn.optimizations.exact.blocks import Affine, Message, NodeUpdate
from mpnn.optimizations.exact.encoder import TILE, ExactEncoding
from mpnn.optimizations.exact.ragged import tiles
from mpnn.optimizations.exact.workers import Buffers, Workers

UNSEEN = NUM_LETTERS
"""Row of zeros behind the 21 letters in a table of letter products."""


class DecoderWeights:
    """The decoder's blocks, and the products of the 21 letters with each layer's S."""

    def __init__(self, model: ProteinMPNN) -> None:
        layers = cast(list[DecoderLayer], list(model.decoder_layers))
        self.messages = [Message(layer.W1, layer.W2) for layer in layers]
        self.updates = [NodeUpdate(layer) for layer in layers]
        S = [layer.W1.weight.chunk(4, dim=1)[2] for layer in layers]
        products = [model.W_s.weight @ block.t() for block in S]
        self.letters = [torch.cat([p, torch.zeros_like(p[:1])]) for p in products]  # [22, C]
        self.W_out = Affine(model.W_out.weight, model.W_out.bias)


class Decoder:
    """One decoding of N samples: letters so far, what every row shows, and the logits."""

    def __init__(
        self,
        weights: DecoderWeights,
        encoding: ExactEncoding,
        S: Tensor,
        rank: Tensor,
        workers: Workers,
        buffers: Buffers,
    ) -> None:
        """S [N, R] letters, known ones at least; rank [N, R]."""
        self.net, self.encoding = weights, encoding
        self.workers, self.buffers = workers, buffers
        N, self.R = rank.shape
        self.rows = N * self.R
        self.K, self.C = encoding.edges.shape[2:]
        graph = encoding.graph
        unseen = torch.full_like(graph.E_idx[:, 0], UNSEEN)
        self.S = torch.cat([S.flatten(), unseen])  # [(N + 1)·R]
        seen = rank[:, graph.E_idx] < rank[..., None]  # [N, R, K]
        sample = torch.arange(N, device=S.device)[:, None, None]
        where = torch.where(seen, sample, N) * self.R + graph.E_idx
        self.where = where.view(self.rows, self.K).to(torch.int32)
        self.shown = [
            torch.cat([u.new_empty(self.rows, self.C), u]) for u in encoding.unseen
        ]  # [(N + 1)·R, C] for each layer beyond the first
        self.logits = encoding.h_V.new_empty(self.rows, NUM_LETTERS)

    def teacher_forced(self, rows: Tensor | None = None) -> None:
        """Computes `rows` [M] (all if None) whose letters are known, layer by layer."""
        h = self.encoding.h_V.repeat(self.rows // self.R, 1)
        pieces = self._pieces(rows)
        for layer in range(len(self.net.messages)):

            def piece(rows: slice | Tensor, layer: int = layer) -> None:
                residues = self.residues(rows)
                h[rows] = self.layer(layer, h[rows], self.where[rows], residues)
                self.show(layer + 1, rows, h[rows])

            self.workers.map(piece, pieces)
        for done in pieces:
            self.logits[done] = self.net.W_out(h[done])

    def decode(self, rows: Tensor, residues: Tensor, where: Tensor) -> list[Tensor]:
        """Computes rows [M] that wait for nobody; the states [M, C] after every layer."""
        states = [self.encoding.h_V.index_select(0, residues)]
        for layer in range(len(self.net.messages)):
            states.append(self.layer(layer, states[-1], where, residues))
        self.logits[rows] = self.net.W_out(states[-1])
        return states

    def settle(self, rows: Tensor, letters: Tensor, states: list[Tensor]) -> None:
        """Gives rows [M] their letters, and shows them to the rows that wait for them."""
        self.S[rows] = letters
        for layer in range(1, len(self.net.messages)):
            self.show(layer, rows, states[layer])

    def samples(self) -> Samples:
        """Letters and log-probabilities, on the host."""
        graph, N = self.encoding.graph, self.rows // self.R
        log_probs = self.logits.log_softmax(-1).view(N, self.R, NUM_LETTERS)
        S = self.S[: self.rows].view(N, self.R)
        return Samples(graph.unflatten_samples(S), graph.unflatten_samples(log_probs))

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
            letters = self.S.index_select(0, where.flatten())
            torch.index_select(self.net.letters[0], 0, letters, out=x)
        else:
            torch.index_select(self.shown[layer - 1], 0, where.flatten(), out=x)
            x.view(-1, self.K, self.C).add_(message.A(h)[:, None])
        m = message(x.add_(constant), y).view(-1, self.K, self.C)
        graph = self.encoding.graph
        slots = None if graph.neighbor_mask is None else graph.neighbor_mask[residues]
        mask = None if graph.complete else graph.mask[residues]
        return self.net.updates[layer](h, m, slots, mask)

    def show(self, layer: int, rows: slice | Tensor, h: Tensor) -> None:
        """Writes what decoded rows with states h [T, C] show to `layer`, if there is one."""
        if 0 < layer < len(self.net.messages):
            letters = self.net.letters[layer][self.S[rows]]
            self.shown[layer - 1][rows] = self.net.messages[layer].V.plus(h, letters)

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
