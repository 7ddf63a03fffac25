"""The encoder in passes over tiles: each pass updates the edges, then computes the next messages.

An edge vector is loaded once per pass, and passes meet only where a layer needs all nodes of the
layer before. What neighbors contribute is multiplied per node at the end of a pass (`Message`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mpnn.flat import Flat
from mpnn.model import DecoderLayer, EncoderLayer, ProteinMPNN
from mpnn.optimizations.exact.blocks import Affine, Message, NodeUpdate, norm
from mpnn.optimizations.exact.graph import EdgeFeatures, FlatGraph, tiles
from mpnn.optimizations.exact.workers import BufferPool, Buffers, Workers

TILE = 32
"""Residues a tile on the CPU: with K = 48 and C = 128 each of its buffers fills 0.8 MB of cache.
Half as many cost a tenth of the speed at L = 955, in operations that are over before they pay;
twice as many gain nothing."""


@dataclass(frozen=True, eq=False)
class ExactEncoding:
    """All that decoding needs of the structures; shapes as in `graph`."""

    graph: FlatGraph
    h_V: Tensor  # noqa: N815 – [R, C]
    edges: Tensor  # [layers, R, K, C], E·h_E; in layer 0 also A·h_i + V·h_j + b1
    encoder_state: Tensor  # [layers - 1, R, C], V·h_j of the encoder's nodes beyond layer 0


@dataclass(frozen=True, eq=False)
class _NodeProducts:
    """What nodes add to the edges of the next pass, [R, C] each: to edge updates and messages."""

    edge_i: Tensor  # A·h_i + b of the edge update
    edge_j: Tensor  # V·h_j
    next_i: Tensor  # A·h_i + b of the next message, the first decoder layer's at the end
    next_j: Tensor  # V·h_j


class Encoder:
    """Structures laid end to end -> ExactEncoding."""

    def __init__(self, model: ProteinMPNN, workers: Workers, buffers: Buffers) -> None:
        self.k, self.width = model.config.k_neighbors, model.config.hidden_dim
        self.workers, self.buffers, self.pool = workers, buffers, BufferPool()
        self.features = EdgeFeatures(model, buffers)
        layers = cast(list[EncoderLayer], list(model.encoder_layers))
        decoder = cast(list[DecoderLayer], list(model.decoder_layers))
        self.messages = [Message(layer.W1, layer.W2) for layer in layers]
        self.first = Affine(layers[0].W1.weight.chunk(3, dim=1)[1], layers[0].W1.bias)
        self.updates = [NodeUpdate(layer) for layer in layers]
        self.edge_messages = [Message(layer.W11, layer.W12) for layer in layers]
        self.edge_norms = [layer.norm3 for layer in layers]
        self.W13 = [Affine(layer.W13.weight, layer.W13.bias) for layer in layers]
        self.decoder = [Message(layer.W1, layer.W2) for layer in decoder]

    def __call__(self, flat: Flat) -> ExactEncoding:
        """Encodes the structures; call it on the workers' main thread."""
        found = FlatGraph.of(
            flat,
            self.k,
            self.buffers.device,
            self.features.buffers.dtype,
            self.buffers.dtype,
            for_each=self.workers.map,
        )
        return _Passes(self, found).run()


class _Passes:
    """The state of one encoding: edges, nodes, and the products between two passes."""

    def __init__(self, encoder: Encoder, graph: FlatGraph) -> None:
        self.net, self.graph = encoder, graph
        self.R, self.K = graph.E_idx.shape
        self.C = encoder.width
        self.h_E = encoder.buffers.get("h_E", self.R, self.K, self.C)
        self.h_V = self.h_E.new_zeros(self.R, self.C)
        self.edges = encoder.pool.take(self.h_E, len(encoder.decoder), self.R, self.K, self.C)
        self.atoms = encoder.features.atoms(graph)
        self.products = self._empty_products()

    def run(self) -> ExactEncoding:
        """Layers + 1 passes over all tiles."""
        for layer in range(len(self.net.messages) + 1):
            following = self._empty_products()
            self._pass(layer, following)
            self.products = following
        further = self.net.decoder[1:]
        encoder_state = self.h_V.new_empty(len(further), self.R, self.C)
        for out, message in zip(encoder_state, further, strict=True):
            message.V(self.h_V, out)
        encoding = ExactEncoding(self.graph, self.h_V, self.edges, encoder_state)
        self.net.pool.until_collected(encoding, self.edges)
        return encoding

    def _empty_products(self) -> _NodeProducts:
        return _NodeProducts(*(torch.empty_like(self.h_V) for _ in range(4)))

    def _pass(self, layer: int, following: _NodeProducts) -> None:
        """Edges as layer `layer` reads them, then its messages, nodes and products."""

        def tile(rows: slice) -> None:
            if layer == 0:
                self.net.features(self.graph, self.atoms, rows, self._edges(rows))
            else:
                self._update_edges(layer - 1, rows)
            if layer < len(self.net.messages):
                self._update_nodes(layer, rows)
                self._multiply_nodes(layer, rows, following)
            else:
                self._decoder_edges(rows)

        self.net.workers.map(tile, tiles(self.R, TILE if self.net.workers.tiled else self.R))

    def _edges(self, rows: slice) -> Tensor:
        return self.h_E[rows].view(-1, self.C)  # [T·K, C]

    def _input(self, rows: slice, at_i: Tensor, at_j: Tensor, E: Affine) -> Tensor:
        """at_i + at_j + E·h_E of the tile's edges, [T·K, C]."""
        edges = self._edges(rows)
        x = self.net.buffers.get("x", *edges.shape)
        torch.index_select(at_j, 0, self.graph.E_idx[rows].flatten(), out=x)
        x.view(-1, self.K, self.C).add_(at_i[rows, None])
        return E.plus(edges, x)

    def _update_edges(self, layer: int, rows: slice) -> None:
        net, edges = self.net, self._edges(rows)
        message = net.edge_messages[layer]
        x = self._input(rows, self.products.edge_i, self.products.edge_j, message.E)
        y = message(x, net.buffers.get("y", *edges.shape))
        edges.copy_(norm(net.W13[layer].plus(y, edges), net.edge_norms[layer]))

    def _update_nodes(self, layer: int, rows: slice) -> None:
        net, edges, graph = self.net, self._edges(rows), self.graph
        if layer == 0:  # all nodes are still zero
            x = net.first(edges, net.buffers.get("x", *edges.shape))
        else:
            x = self._input(rows, self.products.next_i, self.products.next_j, net.messages[layer].E)
        y = net.messages[layer](x, net.buffers.get("y", *edges.shape))
        edge_mask = None if graph.edge_mask is None else graph.edge_mask[rows]
        mask = None if graph.complete else graph.mask[rows]
        m = y.view(-1, self.K, self.C)
        self.h_V[rows] = net.updates[layer](self.h_V[rows], m, edge_mask, mask)

    def _multiply_nodes(self, layer: int, rows: slice, out: _NodeProducts) -> None:
        h_V, edge = self.h_V[rows], self.net.edge_messages[layer]
        following = (*self.net.messages[1:], self.net.decoder[0])[layer]
        edge.A(h_V, out.edge_i[rows])
        edge.V(h_V, out.edge_j[rows])
        following.A(h_V, out.next_i[rows])
        following.V(h_V, out.next_j[rows])

    def _decoder_edges(self, rows: slice) -> None:
        edges = self._edges(rows)
        for layer, message in enumerate(self.net.decoder):
            out = self.edges[layer, rows].view(-1, self.C)
            if layer == 0:
                at = self.products
                out.copy_(self._input(rows, at.next_i, at.next_j, message.E))
            else:
                message.E(edges, out)
