"""Structures end to end as a graph: every edge a row, no padding.

Shapes: R residues of all structures, K neighbors, C hidden. Indices point into the R residues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpnn import graph
from mpnn.flat import Flat
from mpnn.model import ProteinFeatures, ProteinMPNN
from mpnn.optimizations.exact.blocks import Affine, norm
from mpnn.optimizations.exact.workers import Buffers
from mpnn.optimizations.tensors import on_device
from mpnn.schedule import Graph

SEARCH_TILE = 64  # rows of the distance matrix held at a time
SMALLEST_EXPONENT = -80.0
"""exp(−80) = 2e-35 stands for everything below: vectorized exp is 40 times slower where it
underflows, and what it leaves, denormals, slows the matmul that follows."""


def tiles(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover range(count)."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


ForEach = Callable[[Callable[[slice], None], Iterable[slice]], None]
"""Calls a function on every tile: `Workers.map`, or `one_by_one`."""


def one_by_one(work: Callable[[slice], None], items: Iterable[slice]) -> None:
    """Calls `work` on every tile in this thread."""
    for item in items:
        work(item)


@dataclass(frozen=True, eq=False)
class FlatGraph:
    """Structures laid end to end on a device, with their neighbors.

    A neighbor slot that a short structure leaves empty holds the residue itself and is padding.
    """

    lengths: tuple[int, ...]  # residues of each structure
    X: Tensor  # [R, 4, 3] Å
    mask: Tensor  # [R]
    residue_idx: Tensor  # [R]
    chain_encoding: Tensor  # [R]
    E_idx: Tensor  # [R, K] int64
    D: Tensor  # [R, K] Å, 0 where a slot is padding
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

    @classmethod
    def of(
        cls,
        flat: Flat,
        k: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        mask_dtype: torch.dtype | None = None,
        slots: int = 0,
        for_each: ForEach = one_by_one,
    ) -> FlatGraph:
        """Finds the k nearest neighbors, unless neighbors are given.

        Args:
            flat: the structures.
            k: neighbors wanted.
            device: where the graph goes.
            dtype: of coordinates and distances.
            mask_dtype: of masks; `dtype` if None.
            slots: least number of neighbor slots, K; those beyond the neighbors are padding.
            for_each: runs the tiles of the search.
        """
        found = min(k, max(flat.lengths)) if flat.E_idx is None else flat.E_idx.shape[1]
        K = max(found, slots)
        X = on_device(flat.X, device).to(dtype)
        mask = on_device(flat.mask, device).to(mask_dtype or dtype)
        E_idx = torch.arange(flat.size, device=device)[:, None].repeat(1, K)
        D = X.new_zeros(flat.size, K)
        for rows, length in zip(flat.slices, flat.lengths, strict=True):
            count = min(found, length)
            ca, here = X[rows, graph.CA], (E_idx[rows, :count], D[rows, :count])
            if flat.E_idx is None:
                _search(ca, mask[rows], here, for_each)
            else:
                given = on_device(flat.E_idx[rows, :count] - rows.start, device)
                _measure(ca, mask[rows], given, here, for_each)
            here[0].add_(rows.start)
        neighbor_mask = edge_mask = None
        if min(flat.lengths) < K or found < K:
            counts = np.repeat(np.minimum(found, flat.lengths), flat.lengths)
            real = torch.arange(K, device=device) < on_device(counts, device)[:, None]
            neighbor_mask = real.to(mask.dtype)
        if neighbor_mask is not None or not flat.mask.all():
            edge_mask = mask[:, None] * mask[E_idx]
            edge_mask = edge_mask if neighbor_mask is None else edge_mask * neighbor_mask
        residue_idx, chain_encoding = (
            on_device(flat.residue_idx, device),
            on_device(flat.chain_encoding, device),
        )
        return cls(
            flat.lengths, X, mask, residue_idx, chain_encoding, E_idx, D, neighbor_mask, edge_mask
        )

    def of_structure(self, b: int) -> Graph:
        """E_idx [L, K] of one structure within itself, and False at padding, on the host."""
        start = sum(self.lengths[:b])
        rows = slice(start, start + self.lengths[b])
        E_idx = self.E_idx[rows].cpu().numpy() - start
        if self.neighbor_mask is None:
            return E_idx, np.ones(E_idx.shape, bool)
        return E_idx, self.neighbor_mask[rows].float().cpu().numpy() > 0

    def all_structures(self) -> list[Graph]:
        """`of_structure` of every structure."""
        return [self.of_structure(b) for b in range(len(self.lengths))]


def _search(ca: Tensor, mask: Tensor, found: tuple[Tensor, Tensor], for_each: ForEach) -> None:
    """`graph.neighbors` of one structure a few rows at a time; fills E_idx and D [L, K]."""
    E_idx, D = found
    K = E_idx.shape[1]
    whole = bool(mask.all())

    def tile(rows: slice) -> None:
        pair = graph.distance(ca[rows, None], ca[None])
        order = pair
        if not whole:
            pair_mask = mask[rows, None] * mask
            pair = graph.row_adjusted(pair, pair_mask)
            order = pair + graph.masked_last(pair_mask)
        nearest = order.topk(K, dim=-1, largest=False).indices
        D[rows], E_idx[rows] = pair.gather(-1, nearest), nearest

    for_each(tile, tiles(len(ca), _rows_at_once(ca)))


def _measure(
    ca: Tensor, mask: Tensor, given: Tensor, found: tuple[Tensor, Tensor], for_each: ForEach
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

    for_each(tile, tiles(len(ca), _rows_at_once(ca)))


def _rows_at_once(ca: Tensor) -> int:
    return SEARCH_TILE if ca.device.type == "cpu" else len(ca)


class EdgeFeatures:
    """Edge vectors of a tile: offsets from a table, radial functions in reused buffers.

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

    def atoms(self, found: FlatGraph) -> tuple[Tensor, Tensor]:
        """First and second atoms of the 24 pairs beyond CA–CA: [3, R, 24] each, Å."""
        atoms = graph.with_virtual_cb(found.X)
        first, second = torch.tensor(graph.ATOM_PAIRS[1:], device=atoms.device).unbind(-1)
        x = atoms.permute(2, 0, 1)  # [3, R, 5]
        return x[..., first].contiguous(), x[..., second].contiguous()

    def __call__(
        self, found: FlatGraph, atoms: tuple[Tensor, Tensor], rows: slice, out: Tensor
    ) -> None:
        """Writes h_E of the residues `rows` [T·K, C] to `out`."""
        E_idx = found.E_idx[rows]
        edges = E_idx.numel()
        D = self.distances(found, atoms, rows)
        radial = self.buffers.get("radial", edges, D.shape[-1], graph.NUM_RBF)
        torch.sub(D[..., None], self.centers, out=radial)
        radial.square_().mul_(-1 / graph.RBF_SIGMA**2).clamp_(min=SMALLEST_EXPONENT).exp_()
        E = self.buffers.get("x", edges, out.shape[-1])
        torch.index_select(self.offsets, 0, self.offset_class(found, rows), out=E)
        E = self.radial.plus(radial.view(edges, -1), E)
        self.W_e(norm(E, self.norm), out)

    def distances(self, found: FlatGraph, atoms: tuple[Tensor, Tensor], rows: slice) -> Tensor:
        """[T·K, 25] Å."""
        first, second = atoms
        E_idx = found.E_idx[rows]
        T, K = E_idx.shape
        D = self.buffers.get("D", T * K, len(graph.ATOM_PAIRS))
        D[:, 0] = found.D[rows].flatten()
        total = self.buffers.get("total", T * K, first.shape[-1])
        difference = self.buffers.get("difference", T * K, first.shape[-1])
        for axis in range(3):
            torch.index_select(second[axis], 0, E_idx.flatten(), out=difference)
            difference.view(T, K, -1).sub_(first[axis, rows, None]).square_()
            total.copy_(difference) if axis == 0 else total.add_(difference)
        D[:, 1:] = total.add_(graph.DISTANCE_EPS).sqrt_()
        return D

    def offset_class(self, found: FlatGraph, rows: slice) -> Tensor:
        """Class of every edge's residue offset, [T·K] int64."""
        E_idx = found.E_idx[rows]
        offset = found.residue_idx[rows, None] - found.residue_idx[E_idx] + graph.MAX_OFFSET
        same_chain = found.chain_encoding[rows, None] == found.chain_encoding[E_idx]
        clipped = offset.clamp_(0, 2 * graph.MAX_OFFSET)
        return torch.where(same_chain, clipped, graph.NUM_OFFSETS - 1).flatten()
