"""The reference network, run in the published way.

Every sample is a copy of the structure that is encoded again; all 25 atom pairs are measured over
all L × L residues; the order mask is a product of permutation matrices, O(L³); residues are decoded
one at a time; scores come from a second pass over the finished sequences. Nothing here is meant to
be fast: speed-ups are stated against it, and sequences must equal its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from mpnn import graph
from mpnn.flat import Flat
from mpnn.model import Batch, DecoderLayer, ProteinMPNN
from mpnn.optimizations.tensors import TensorRows, name_of, on_device, own, synchronize
from mpnn.sampling import Job, Samples
from mpnn.schedule import Graph, IntArray, StepRows


@dataclass(frozen=True, eq=False)
class PaddedStructures:
    """Structures laid end to end, and padded on the device."""

    flat: Flat
    batch: Batch


class ReferenceEngine:
    """Encodes every copy, decodes residue by residue, scores in a second pass."""

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        self.device = device
        self.model = own(model, device)
        self.dtype = name_of(next(model.parameters()).dtype)

    def encode(self, flat: Flat) -> PaddedStructures:
        """Pads the structures alone: the published way encodes each copy when it is used."""
        return PaddedStructures(
            flat, Batch.from_flat(flat, self.device, getattr(torch, self.dtype))
        )

    def neighbors(self, encoding: PaddedStructures, b: int) -> Graph:
        """E_idx [L, K] of structure b, and False where a neighbor slot is padding."""
        valid = encoding.batch.valid[b]
        E_idx = self.model.features.neighbors(encoding.batch)[0][b, valid]
        return E_idx.cpu().numpy(), valid[E_idx].cpu().numpy()

    def synchronize(self) -> None:
        """Blocks until the device has finished all work."""
        synchronize(self.device)

    @torch.inference_mode()
    def log_probs(
        self, encoding: PaddedStructures, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """One full forward pass over N copies of every structure."""
        copies, batch = encoding.flat.repeat(len(S)), repeated(encoding.batch, len(S))

        def padded(x: IntArray) -> Tensor:
            return on_device(copies.padded(x.ravel()), self.device)

        encoded = published_encode(self.model, batch)
        log_p = self.model.decode(encoded, padded(S), padded(rank), batch.mask).cpu().numpy()
        return copies.unpadded(log_p).reshape(*S.shape, -1)

    @torch.inference_mode()
    def sample(self, encoding: PaddedStructures, job: Job) -> Samples:
        """Decodes all copies together, one step after another, then scores the sequences."""
        decoder = _Decoder(self.model, encoding, job, self.device)
        rows = StepRows.of(job, self.steps(encoding, job))
        for now in TensorRows.of(rows, self.device, getattr(torch, self.dtype)).steps():
            decoder.step(now)
        S = decoder.S.cpu().numpy()[decoder.copies.valid].reshape(job.rank.shape)
        return Samples(S, self.log_probs(encoding, S, job.rank))

    def steps(self, encoding: PaddedStructures, job: Job) -> IntArray:  # noqa: ARG002 – for others
        """The published schedule: step of every residue [N, R], one residue of each copy a step.

        Tied residues share a step.
        """
        return job.rank + 1


def repeated(batch: Batch, n: int) -> Batch:
    """Returns n copies of all structures, one set after another, as `Flat.repeat` does."""

    def copies(t: Tensor) -> Tensor:
        return t.repeat(n, *[1] * (t.dim() - 1))

    return Batch(
        X=copies(batch.X),
        mask=copies(batch.mask),
        residue_idx=copies(batch.residue_idx),
        chain_encoding=copies(batch.chain_encoding),
        valid=copies(batch.valid),
        E_idx=None if batch.E_idx is None else copies(batch.E_idx),
    )


def published_encode(model: ProteinMPNN, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`model.encode` with edge features measured over all L × L pairs of residues."""
    features = model.features
    E_idx, D = features.neighbors(batch)
    atoms = graph.with_virtual_cb(batch.X)
    radial = [graph.rbf(D)]
    for a, b in graph.ATOM_PAIRS[1:]:
        pair = graph.distance(atoms[:, :, None, a], atoms[:, None, :, b])  # [B, L, L]
        radial.append(graph.rbf(pair.gather(-1, E_idx)))
    offsets = graph.relative_positions(batch.residue_idx, batch.chain_encoding, E_idx)
    E = torch.cat([features.embeddings(offsets), *radial], -1)
    h_E = model.W_e(features.norm_edges(features.edge_embedding(E)))
    h_V = h_E.new_zeros(*h_E.shape[:2], h_E.shape[-1])
    edge_mask = batch.mask[..., None] * graph.gather_nodes(batch.mask, E_idx)
    for layer in model.encoder_layers:
        h_V, h_E = layer(h_V, h_E, E_idx, batch.mask, edge_mask)
    return h_V, h_E, E_idx, graph.gather_nodes(batch.valid.to(h_V.dtype), E_idx)


def published_visibility(rank: Tensor) -> Tensor:
    """Order mask [B, L, L] by permutation matrices, as published: 1 where column is before row.

    Equals `rank_j < rank_i`; tied ranks are taken apart again by position, then masked.
    """
    order = rank.argsort(dim=-1, stable=True)
    L = rank.shape[-1]
    P = one_hot(order, L).to(torch.float32)
    earlier = 1 - torch.triu(torch.ones(L, L, device=rank.device))
    mask = torch.einsum("ij,biq,bjp->bqp", earlier, P, P)
    return mask * (rank[:, None, :] != rank[:, :, None])


class _Decoder:
    """State of the published sampler: residue types so far and every layer's node vectors."""

    def __init__(
        self, model: ProteinMPNN, encoding: PaddedStructures, job: Job, device: str
    ) -> None:
        N = len(job.rank)
        batch = repeated(encoding.batch, N)
        self.copies = copies = encoding.flat.repeat(N)
        self.model, self.mask = model, batch.mask
        self.h_V, self.h_E, self.E_idx, self.neighbor_mask = published_encode(model, batch)
        rank = on_device(copies.padded(job.rank.ravel()), device)
        self.see = published_visibility(rank).gather(-1, self.E_idx) > 0  # [N·B, L, K]
        layers = len(model.decoder_layers)
        self.stack = [self.h_V] + [torch.zeros_like(self.h_V) for _ in range(layers)]
        self.S = on_device(copies.padded(np.tile(job.S, N)), device)
        self.copy = on_device(copies.structure, device)  # of row n·R + i
        position = np.arange(copies.size) - copies.first_row
        self.position = on_device(position, device)

    def step(self, now: TensorRows) -> None:
        """Computes the rows of one step and samples those that are designed."""
        at = copy, _ = self.copy[now.row], self.position[now.row]
        E_idx, see = self.E_idx[at], self.see[at][..., None]  # [M, K], [M, K, 1]
        neighbor = (copy[:, None], E_idx)
        mask = self.mask[at]
        s_j = self.model.W_s(self.S[neighbor]) * see
        h_E, h_j_encoder = self.h_E[at], self.h_V[neighbor]
        for n, layer in enumerate(cast(list[DecoderLayer], list(self.model.decoder_layers))):
            h_j = torch.where(see, self.stack[n][neighbor], h_j_encoder)
            h_ESV = mask[:, None, None] * torch.cat([h_E, s_j, h_j], -1)
            self.stack[n + 1][at] = layer.update_nodes(
                self.stack[n][at], h_ESV, mask, self.neighbor_mask[at]
            )
        logits = self.model.W_out(self.stack[-1][at])
        self.S[at] = now.sample(logits, self.S[at])
