"""The reference with its neighbors found on the host, by a tree instead of all L × L distances.

A tree searches one structure at a time, in float64; what it finds goes with the batch (`E_idx`) to
whatever device and engine the network runs on. It holds complete residues alone. Residues without
atoms come after them by position, as in `mpnn.graph.neighbors`.

Source of the idea: scikit-learn's ball tree, published for devices on which top-k is slow. On a CPU
the trees lose to distances and top-k in torch at 106 residues and win from 500 (k-d tree) or 1,000
(ball tree) on: the claims `cpu-knn-step*` and `kd-tree-step*` say by how much. Of the whole model
the search is under 1 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.neighbors import BallTree

from mpnn import graph
from mpnn.batch import Batch
from mpnn.decoding import IntArray
from mpnn.optimizations.reference import ReferenceEngine

Points = NDArray[np.floating]  # [n, 3] Å
Nearest = Callable[[Points, int], IntArray]
"""The `count` nearest points of every point, closest first: [n, 3] -> [n, count]."""


def ball_tree(points: Points, count: int) -> IntArray:
    """`Nearest` by scikit-learn's ball tree, as published."""
    found: IntArray = BallTree(points).query(points, k=count, return_distance=False)
    return found


def kd_tree(points: Points, count: int) -> IntArray:
    """`Nearest` by scipy's k-d tree."""
    found: IntArray = cKDTree(points).query(points, k=range(1, count + 1))[1]
    return found


def with_neighbors(batch: Batch, k: int, nearest: Nearest) -> Batch:
    """The batch with E_idx [B, L, K], K = min(k, L), as `mpnn.graph.neighbors` finds it.

    Where two complete residues are equally far away the choice may differ. A batch that brings its
    neighbors is left as it is.
    """
    if batch.E_idx is not None:
        return batch
    ca, mask = batch.X[:, :, graph.CA].cpu().numpy(), batch.mask.cpu().numpy() > 0
    B, L = mask.shape
    K = min(k, L)
    E_idx = np.tile(np.arange(K), (B, L, 1))
    for b in range(B):
        whole, rest = np.flatnonzero(mask[b]), np.flatnonzero(~mask[b])  # padding comes last
        count = min(K, len(whole))
        if count:
            E_idx[b, whole, :count] = whole[nearest(ca[b, whole], count)]
            E_idx[b, whole, count:] = rest[: K - count]
    return replace(batch, E_idx=torch.from_numpy(E_idx).to(batch.X.device))


class _TreeEngine(ReferenceEngine):
    """Searches in `encode`, once for all copies of a structure."""

    nearest: Nearest

    def encode(self, batch: Batch) -> Batch:
        """Finds the neighbors; the rest is done when the encoding is used, as published."""
        return with_neighbors(batch, self.model.config.k_neighbors, self.nearest)

    def neighbors(self, encoding: Batch, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b, and where its slots are real: read off."""
        assert encoding.E_idx is not None  # `encode` has seen to it
        valid = encoding.valid[b]
        E_idx = encoding.E_idx[b, valid]
        return E_idx.cpu().numpy(), valid[E_idx].cpu().numpy()


class BallTreeEngine(_TreeEngine):
    """The reference with neighbors by scikit-learn's ball tree, as published."""

    nearest = staticmethod(ball_tree)


class KDTreeEngine(_TreeEngine):
    """The reference with neighbors by scipy's k-d tree."""

    nearest = staticmethod(kd_tree)
