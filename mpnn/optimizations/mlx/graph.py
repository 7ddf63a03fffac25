"""`mpnn.graph` in MLX: the same functions under the same names, from coordinates to edge features.

Structures lie end to end, R rows in all, and neighbors are rows, so a gather is one `take`.
"""

from __future__ import annotations

import mlx.core as mx

from mpnn.config import ATOM_PAIRS, CA, NUM_RBF, RBF_MAX, RBF_MIN, C, N
from mpnn.graph import DISTANCE_EPS, MAX_OFFSET, NUM_OFFSETS, RBF_SIGMA


def with_virtual_cb(X: mx.array) -> mx.array:
    """Appends the ideal Cβ to N, CA, C, O: [R, 4, 3] -> [R, 5, 3], Å."""
    b = X[:, CA] - X[:, N]
    c = X[:, C] - X[:, CA]
    a = mx.linalg.cross(b, c)
    cb = -0.58273431 * a + 0.56802827 * b - 0.54067466 * c + X[:, CA]
    return mx.concatenate([X, cb[:, None]], 1)


def distance(a: mx.array, b: mx.array) -> mx.array:
    """sqrt(|a − b|² + 1e-6) over the last axis, Å; summed x, y, z in that order."""
    d = a - b
    x, y, z = d[..., 0], d[..., 1], d[..., 2]
    return mx.sqrt(x * x + y * y + z * z + DISTANCE_EPS)


def neighbors(
    X: list[mx.array], mask: mx.array, k: int, given: mx.array | None
) -> tuple[mx.array, mx.array]:
    """K nearest residues of the same structure by CA–CA distance, the residue itself included.

    Args:
        X: [L, 4, 3] Å of each structure.
        mask: [R], 1 where all atoms are present.
        k: neighbors wanted; K = min(k, longest L). A shorter structure repeats the residue itself.
        given: [R, K] rows of neighbors found elsewhere, to be measured only; None searches.

    Returns:
        Rows E_idx [R, K] int32, closest first, and their distances [R, K].
    """
    K = min(k, max(len(x) for x in X)) if given is None else given.shape[1]
    E_idx, distances, start = [], [], 0
    for x in X:
        rows = slice(start, start + len(x))
        pair_mask = mask[rows, None] * mask[rows]
        D = row_adjusted(distance(x[:, None, CA], x[:, CA]), pair_mask)
        if given is None:
            found = _nearest(D + masked_last(pair_mask), K)
        else:
            found = given[rows].astype(mx.int32) - start
        E_idx.append(found + start)
        distances.append(mx.take_along_axis(D, found, -1))
        start = rows.stop
    return mx.concatenate(E_idx), mx.concatenate(distances)


def _nearest(order: mx.array, k: int) -> mx.array:
    """Positions of the k smallest of each row [L, L], smallest first; itself where k exceeds L."""
    L = len(order)
    K = min(k, L)
    nearest = mx.argpartition(order, K - 1, -1)[:, :K] if K < L else mx.argsort(order, -1)
    by_distance = mx.argsort(mx.take_along_axis(order, nearest, -1), -1)
    nearest = mx.take_along_axis(nearest, by_distance, -1).astype(mx.int32)
    itself = mx.broadcast_to(mx.arange(L, dtype=mx.int32)[:, None], (L, k - K))
    return mx.concatenate([nearest, itself], -1)


def row_adjusted(D: mx.array, pair_mask: mx.array) -> mx.array:
    """Puts the row's largest unmasked distance where `pair_mask` [..., L, L] is 0."""
    D = D * pair_mask
    return D + (1 - pair_mask) * D.max(-1, keepdims=True)


def masked_last(pair_mask: mx.array) -> mx.array:
    """Offset to add to `row_adjusted` distances so that masked pairs sort last, by position."""
    return (1 - pair_mask) * mx.arange(1, pair_mask.shape[-1] + 1)


def rbf(D: mx.array) -> mx.array:
    """16 Gaussians of a distance in Å: [...] -> [..., 16]."""
    z = (D[..., None] - mx.linspace(RBF_MIN, RBF_MAX, NUM_RBF)) / RBF_SIGMA
    return mx.exp(-(z * z))


def atom_pair_distances(X: mx.array, E_idx: mx.array, D_neighbors: mx.array) -> mx.array:
    """Distances of the 25 atom pairs of every edge: X [R, 4, 3], the rest [R, K] -> [R, K, 25]."""
    atoms = with_virtual_cb(X)
    first, second = (mx.array(side) for side in zip(*ATOM_PAIRS[1:], strict=True))
    D = distance(atoms[:, first][:, None], atoms[:, second][E_idx])
    return mx.concatenate([D_neighbors[..., None], D], -1)


def relative_positions(
    residue_idx: mx.array, chain_encoding: mx.array, E_idx: mx.array
) -> mx.array:
    """Class of the offset between residue and neighbor, 0…65: [R], [R], [R, K] -> [R, K]."""
    offset = residue_idx[:, None] - residue_idx[E_idx]
    same_chain = chain_encoding[:, None] == chain_encoding[E_idx]
    return mx.where(same_chain, mx.clip(offset + MAX_OFFSET, 0, 2 * MAX_OFFSET), NUM_OFFSETS - 1)
