"""The yardstick: the reference network, run in the published way.

Every sample is a copy of the structure that is encoded again; all 25 atom pairs are measured over
all L × L residues; the order mask is a product of permutation matrices, O(L³); residues are decoded
one at a time; scores come from a second pass over the finished sequences. Nothing here is meant to
be fast: speed-ups are stated against it, and sequences must equal its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from mpnn import graph
from mpnn.batch import Batch
from mpnn.decoding import IntArray, Job, Samples, draw, on_device, slot_of
from mpnn.model import DecoderLayer, ProteinMPNN
from mpnn.optimizations import own, synchronize


class ReferenceEngine:
    """Encodes every copy, decodes residue by residue, scores in a second pass."""

    rows_per_call = 1024  # samples × residues: each copy's edge features take 500 kB a residue

    def __init__(self, model: ProteinMPNN, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = own(model, self.device)
        self.dtype = next(model.parameters()).dtype

    def encode(self, batch: Batch) -> Batch:
        """Nothing: the published way encodes each copy when it is used."""
        return batch

    def neighbors(self, encoding: Batch, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b, and where its slots are real."""
        valid = encoding.valid[b]
        E_idx = self.model.features.neighbors(encoding)[0][b, valid]
        return E_idx.cpu().numpy(), valid[E_idx].cpu().numpy()

    def synchronize(self) -> None:
        """Waits for the device."""
        synchronize(self.device)

    @torch.inference_mode()
    def log_probs(self, encoding: Batch, S: IntArray, rank: IntArray) -> NDArray[np.floating]:
        """One full forward pass over N copies of every structure."""
        B, N, L = S.shape
        batch = encoding.repeat(N)
        order = on_device(rank, self.device).flatten(0, 1)
        log_p = self.model.decode(
            published_encode(self.model, batch),
            on_device(S, self.device).flatten(0, 1),
            order,
            batch.mask,
        )
        return log_p.reshape(B, N, L, -1).cpu().numpy()

    @torch.inference_mode()
    def sample(self, encoding: Batch, job: Job) -> Samples:
        """Decodes all copies in step, one rank after another, then scores what was drawn."""
        B, N, L = job.rank.shape
        batch = encoding.repeat(N)
        decoder = _Decoder(self.model, batch, _copies(job, self.device, self.dtype), job.tied)
        for rows in one_at_a_time(job.rank.reshape(B * N, L)):
            decoder.step(*(on_device(r, self.device) for r in rows))
        S = decoder.S.reshape(B, N, L).cpu().numpy()
        return Samples(S, self.log_probs(encoding, S, job.rank))


def one_at_a_time(rank: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """The published schedule: copies and residues [R] of every rank in turn, rank [B·N, L].

    Each step takes one residue of every copy, or one tied group of it.
    """
    for r in range(int(rank.max()) + 1):
        copy, residue = np.nonzero(rank == r)
        if len(copy):
            yield copy, residue


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


@dataclass(frozen=True)
class _Copies:
    """A job with one row for each copy, on the device."""

    S: Tensor  # [B·N, L]
    designed: Tensor  # [B·N, L] bool
    rank: Tensor  # [B·N, L]
    gumbel: Tensor  # [B·N, L, 21]
    temperature: Tensor  # [B·N]
    bias: Tensor  # [B·N, L, 21]
    tie_group: Tensor  # [B·N, L]
    tie_weight: Tensor  # [B·N, L]


def _copies(job: Job, device: torch.device, dtype: torch.dtype) -> _Copies:
    B, N, _ = job.rank.shape

    def each(x: NDArray[np.generic]) -> Tensor:
        t = on_device(x, device)
        return (t.to(dtype) if t.is_floating_point() else t).repeat_interleave(N, 0)

    def flat(x: NDArray[np.generic]) -> Tensor:
        t = on_device(x, device).flatten(0, 1)
        return t.to(dtype) if t.is_floating_point() else t

    return _Copies(
        each(job.S),
        each(job.designed),
        flat(job.rank),
        flat(job.gumbel),
        on_device(job.temperature, device).to(dtype).repeat(B),
        each(job.bias),
        each(job.tie_group),
        each(job.tie_weight),
    )


class _Decoder:
    """State of the published sampler: the letters so far and every layer's node vectors."""

    def __init__(self, model: ProteinMPNN, batch: Batch, job: _Copies, tied: bool) -> None:
        self.model, self.job, self.mask, self.tied = model, job, batch.mask, tied
        self.h_V, self.h_E, self.E_idx, self.neighbor_mask = published_encode(model, batch)
        self.see = published_visibility(job.rank).gather(-1, self.E_idx) > 0  # [B·N, L, K]
        layers = len(model.decoder_layers)
        self.stack = [self.h_V] + [torch.zeros_like(self.h_V) for _ in range(layers)]
        self.S = job.S.clone()

    def step(self, copy: Tensor, residue: Tensor) -> None:
        """Computes the residues [R] of the copies [R], and draws letters for the designed ones."""
        at = (copy, residue)
        E_idx, see = self.E_idx[at], self.see[at][..., None]  # [R, K], [R, K, 1]
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
        group = self.job.tie_group[at]
        drawn = draw(
            logits,
            self.job.gumbel[copy, group],
            self.job.temperature[copy],
            self.job.bias[at],
            slot_of(copy * self.S.shape[1] + group) if self.tied else None,
            self.job.tie_weight[at],
        )
        self.S[at] = torch.where(self.job.designed[at], drawn, self.S[at])
