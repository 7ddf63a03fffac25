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

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.neighbors import BallTree

from mpnn import graph
from mpnn.flat import Flat
from mpnn.optimizations.reference import PaddedStructures, ReferenceEngine
from mpnn.schedule import Graph, IntArray

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


def with_neighbors(flat: Flat, k: int, nearest: Nearest) -> Flat:
    """The structures with E_idx [R, K], K = min(k, L), as `mpnn.graph.neighbors` finds it.

    Where two complete residues are equally far away the choice may differ. Given neighbors are
    left as they are.
    """
    if flat.E_idx is not None:
        return flat
    K = min(k, max(flat.lengths))
    E_idx = np.tile(np.arange(flat.size)[:, None], K)
    for rows in flat.slices:
        whole, masked = (
            np.flatnonzero(m) + rows.start for m in (flat.mask[rows], ~flat.mask[rows])
        )
        slots = min(K, rows.stop - rows.start)
        E_idx[rows, :slots] = np.arange(rows.start, rows.start + slots)
        count = min(K, len(whole))
        if count:
            E_idx[whole, :count] = whole[nearest(flat.X[whole, graph.CA], count)]
            E_idx[whole, count:slots] = masked[: slots - count]
    return flat.with_neighbors(E_idx)


class _TreeEngine(ReferenceEngine):
    """Searches in `encode`, once for all copies of a structure."""

    nearest: Nearest

    def encode(self, flat: Flat) -> PaddedStructures:
        """Finds the neighbors; the rest is done when the encoding is used, as published."""
        k = self.model.config.k_neighbors
        return super().encode(with_neighbors(flat, k, self.nearest))

    def neighbors(self, encoding: PaddedStructures, b: int) -> Graph:
        """E_idx [L, K] of structure b, and where its slots are real: read off."""
        alone = encoding.flat.alone(b)
        assert alone.E_idx is not None  # `encode` has seen to it
        return alone.E_idx, np.ones_like(alone.E_idx, bool)


class BallTreeEngine(_TreeEngine):
    """The reference with neighbors by scikit-learn's ball tree, as published."""

    nearest = staticmethod(ball_tree)


class KDTreeEngine(_TreeEngine):
    """The reference with neighbors by scipy's k-d tree."""

    nearest = staticmethod(kd_tree)
