"""Structures end to end: R residues in all, every edge a row, no padding.

Shapes: R residues of all structures, K neighbors, C hidden. Indices point into the R residues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn import graph
from mpnn.batch import Batch
from mpnn.decoding import IntArray, on_device
from mpnn.model import ProteinFeatures, ProteinMPNN
from mpnn.optimizations.exact.blocks import Affine, norm
from mpnn.optimizations.exact.workers import Buffers, Workers

SEARCH_TILE = 64  # rows of the distance matrix held at a time
SMALLEST_EXPONENT = -80.0
"""exp(−80) = 2e-35 stands for everything below: vectorized exp is 40 times slower where it
underflows, and what it leaves, denormals, slows the matrix product that follows."""


def tiles(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover range(count)."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """A batch without its padding, and its graph."""

    valid: NDArray[np.bool_]  # [B, L] host
    lengths: tuple[int, ...]  # residues of each structure
    X: Tensor  # [R, 4, 3] Å
    mask: Tensor  # [R]
    residue_idx: Tensor  # [R]
    chain_encoding: Tensor  # [R]
    E_idx: Tensor  # [R, K] int64
    D: Tensor  # [R, K] Å
    neighbor_mask: Tensor | None  # [R, K]; None where every structure has K residues
    edge_mask: Tensor | None  # [R, K] mask of both ends; None where all atoms are present

    @property
    def complete(self) -> bool:
        """Whether every residue has all its atoms, and K neighbors."""
        return self.edge_mask is None

    @property
    def size(self) -> int:
        """R."""
        return int(self.mask.shape[0])

    @property
    def offsets(self) -> tuple[int, ...]:
        """First residue of each structure."""
        return tuple(int(x) for x in np.cumsum((0, *self.lengths[:-1])))

    def flatten(self, padded: NDArray[np.generic]) -> Tensor:
        """Host array [B, L, ...] -> [R, ...] on the device."""
        return on_device(padded[self.valid], self.mask.device)

    def flatten_samples(self, padded: NDArray[np.generic]) -> Tensor:
        """Host array [B, N, L, ...] -> [N, R, ...] on the device."""
        flat = np.swapaxes(padded, 1, 2)[self.valid]  # [R, N, ...]
        return on_device(np.swapaxes(flat, 0, 1), self.mask.device)

    def unflatten_samples(self, flat: Tensor) -> NDArray[Any]:
        """[N, R, ...] -> host array [B, N, L, ...], 0 at the padding."""
        host = flat.cpu().numpy()
        B, L = self.valid.shape
        padded = np.zeros((B, L, host.shape[0], *host.shape[2:]), host.dtype)
        padded[self.valid] = np.swapaxes(host, 0, 1)
        return np.swapaxes(padded, 1, 2)

    @classmethod
    def from_batch(cls, batch: Batch, k: int, workers: Workers) -> RaggedBatch:
        """Drops the padding and finds the neighbors, unless the batch brings them."""
        valid = batch.valid
        lengths = tuple(batch.lengths.tolist())
        X, mask = batch.X[valid], batch.mask[valid]
        offsets = np.cumsum((0, *lengths))
        K = min(k, max(lengths)) if batch.E_idx is None else batch.E_idx.shape[-1]
        E_idx = torch.arange(len(mask), device=mask.device)[:, None].repeat(1, K)
        D = X.new_zeros(len(mask), K)
        for b, (start, length) in enumerate(zip(offsets, lengths, strict=False)):
            rows = slice(int(start), int(start) + length)
            found = E_idx[rows, : min(K, length)], D[rows, : min(K, length)]
            if batch.E_idx is None:
                _search(X[rows, graph.CA], mask[rows], found, workers)
            else:
                given = batch.E_idx[b, :length, : min(K, length)]
                _measure(X[rows, graph.CA], mask[rows], given, found, workers)
            found[0].add_(int(start))
        short = torch.tensor([min(K, n) for n in lengths], device=mask.device)
        slots = (
            torch.arange(K, device=mask.device) < short.repeat_interleave(batch.lengths)[:, None]
        )
        neighbor_mask = None if bool(slots.all()) else slots.to(mask.dtype)
        edge_mask = None
        if neighbor_mask is not None or not bool(mask.all()):
            edge_mask = mask[:, None] * mask[E_idx] * slots
        return cls(
            valid.cpu().numpy(),
            lengths,
            X,
            mask,
            batch.residue_idx[valid],
            batch.chain_encoding[valid],
            E_idx,
            D,
            neighbor_mask,
            edge_mask,
        )

    def structure_graph(self, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Host E_idx [L_b, K] of one structure within itself, and where the slots are real."""
        start, length = self.offsets[b], self.lengths[b]
        E_idx = self.E_idx[start : start + length].cpu().numpy() - start
        real = np.arange(E_idx.shape[1]) < length
        return E_idx, np.broadcast_to(real, E_idx.shape)


def _search(ca: Tensor, mask: Tensor, found: tuple[Tensor, Tensor], workers: Workers) -> None:
    """`graph.neighbors` of one structure a few rows at a time; fills E_idx and D [L, K]."""
    E_idx, D = found
    K = E_idx.shape[1]
    whole = bool(mask.all())
    rows_at_once = SEARCH_TILE if ca.device.type == "cpu" else len(ca)

    def tile(rows: slice) -> None:
        pair = graph.distance(ca[rows, None], ca[None])
        order = pair
        if not whole:
            pair_mask = mask[rows, None] * mask
            pair = graph.row_adjusted(pair, pair_mask)
            order = pair + graph.behind(pair_mask)
        nearest = order.topk(K, dim=-1, largest=False).indices
        D[rows], E_idx[rows] = pair.gather(-1, nearest), nearest

    workers.map(tile, tiles(len(ca), rows_at_once))


def _measure(
    ca: Tensor, mask: Tensor, given: Tensor, found: tuple[Tensor, Tensor], workers: Workers
) -> None:
    """Distances of neighbors found elsewhere, as `graph.neighbors` gives them."""
    E_idx, D = found
    E_idx.copy_(given)
    whole = bool(mask.all())

    def tile(rows: slice) -> None:
        if whole:
            D[rows] = graph.distance(ca[rows, None], ca[given[rows]])
        else:
            pair = graph.distance(ca[rows, None], ca[None])
            pair = graph.row_adjusted(pair, mask[rows, None] * mask)
            D[rows] = pair.gather(-1, given[rows])

    workers.map(tile, tiles(len(ca), SEARCH_TILE if ca.device.type == "cpu" else len(ca)))


class EdgeFeatures:
    """Edge vectors of a tile: offsets from a table, radial functions in kept buffers.

    The positional encoding and its columns of the edge embedding are one table of 66 rows.
    """

    def __init__(self, model: ProteinMPNN, buffers: Buffers) -> None:
        features: ProteinFeatures = model.features
        linear = features.embeddings.linear
        weight = features.edge_embedding.weight
        positional, radial = weight[:, : graph.NUM_POSITIONAL], weight[:, graph.NUM_POSITIONAL :]
        self.offsets = (linear.weight.t() + linear.bias) @ positional.t()  # [66, C]
        self.radial = Affine(radial)
        self.norm = features.norm_edges
        self.W_e = Affine(model.W_e.weight, model.W_e.bias)
        self.centers = graph.rbf_centers(radial)
        self.buffers = buffers

    def atoms(self, ragged: RaggedBatch) -> tuple[Tensor, Tensor]:
        """First and second atoms of the 24 pairs beyond CA–CA: [3, R, 24] each, Å."""
        atoms = graph.with_virtual_cb(ragged.X)
        first, second = torch.tensor(graph.ATOM_PAIRS[1:], device=atoms.device).unbind(-1)
        x = atoms.permute(2, 0, 1)  # [3, R, 5]
        return x[..., first].contiguous(), x[..., second].contiguous()

    def __call__(
        self, ragged: RaggedBatch, atoms: tuple[Tensor, Tensor], rows: slice, out: Tensor
    ) -> None:
        """Writes h_E of the residues `rows` [T·K, C] to `out`."""
        E_idx = ragged.E_idx[rows]
        edges = E_idx.numel()
        D = self.distances(ragged, atoms, rows)
        radial = self.buffers.get("radial", edges, D.shape[-1], graph.NUM_RBF)
        torch.sub(D[..., None], self.centers, out=radial)
        radial.square_().mul_(-1 / graph.RBF_SIGMA**2).clamp_(min=SMALLEST_EXPONENT).exp_()
        E = self.buffers.get("x", edges, out.shape[-1])
        torch.index_select(self.offsets, 0, self.offset_class(ragged, rows), out=E)
        E = self.radial.plus(radial.view(edges, -1), E)
        self.W_e(norm(E, self.norm), out)

    def distances(self, ragged: RaggedBatch, atoms: tuple[Tensor, Tensor], rows: slice) -> Tensor:
        """[T·K, 25] Å."""
        first, second = atoms
        E_idx = ragged.E_idx[rows]
        T, K = E_idx.shape
        D = self.buffers.get("D", T * K, len(graph.ATOM_PAIRS))
        D[:, 0] = ragged.D[rows].flatten()
        total = self.buffers.get("total", T * K, first.shape[-1])
        difference = self.buffers.get("difference", T * K, first.shape[-1])
        for axis in range(3):
            torch.index_select(second[axis], 0, E_idx.flatten(), out=difference)
            difference.view(T, K, -1).sub_(first[axis, rows, None]).square_()
            total.copy_(difference) if axis == 0 else total.add_(difference)
        D[:, 1:] = total.add_(graph.DISTANCE_EPS).sqrt_()
        return D

    def offset_class(self, ragged: RaggedBatch, rows: slice) -> Tensor:
        """Class of every edge's residue offset, [T·K] int64."""
        E_idx = ragged.E_idx[rows]
        offset = ragged.residue_idx[rows, None] - ragged.residue_idx[E_idx] + graph.MAX_OFFSET
        same_chain = ragged.chain_encoding[rows, None] == ragged.chain_encoding[E_idx]
        clipped = offset.clamp_(0, 2 * graph.MAX_OFFSET)
        return torch.where(same_chain, clipped, graph.NUM_OFFSETS - 1).flatten()
