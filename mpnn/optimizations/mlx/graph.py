"""`mpnn.graph` in MLX: the same functions under the same names, from coordinates to edge features.

Neighbors are rows: residue l of structure b is row b·L + l of R = B·L, so a gather is one `take`.
"""

from __future__ import annotations

import mlx.core as mx

from mpnn import graph
from mpnn.graph import (
    CA,
    DISTANCE_EPS,
    MAX_OFFSET,
    NUM_OFFSETS,
    NUM_RBF,
    RBF_MAX,
    RBF_MIN,
    RBF_SIGMA,
    C,
    N,
)


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
    ca: mx.array, mask: mx.array, valid: mx.array, k: int, given: mx.array | None
) -> tuple[mx.array, mx.array]:
    """K = min(k, L) nearest residues by CA–CA distance, the residue itself included.

    Args:
        ca: [B, L, 3] Å.
        mask: [B, L], 1 where all atoms are present.
        valid: [B, L] bool, False for padding.
        k: neighbors wanted.
        given: [B, L, K] neighbors found elsewhere, to be measured only; None searches.

    Returns:
        Rows E_idx [R, K] int32, closest first, and their distances [R, K].
    """
    B, L = mask.shape
    pair_mask = mask[:, :, None] * mask[:, None]
    D = row_adjusted(distance(ca[:, :, None], ca[:, None]), pair_mask)
    if given is None:
        D = mx.where(valid[:, None], D, mx.inf)
        order = D + behind(pair_mask)
        K = min(k, L)
        nearest = mx.argpartition(order, K - 1, -1)[..., :K] if K < L else mx.argsort(order, -1)
        by_distance = mx.argsort(mx.take_along_axis(order, nearest, -1), -1)
        given = mx.take_along_axis(nearest, by_distance, -1)
    given = given.astype(mx.int32)
    D_neighbors = mx.take_along_axis(D, given, -1)
    rows = given + mx.arange(0, B * L, L, dtype=mx.int32)[:, None, None]
    return rows.reshape(B * L, -1), D_neighbors.reshape(B * L, -1)


def row_adjusted(D: mx.array, pair_mask: mx.array) -> mx.array:
    """Puts the row's largest unmasked distance where `pair_mask` [..., L, L] is 0."""
    D = D * pair_mask
    return D + (1 - pair_mask) * D.max(-1, keepdims=True)


def behind(pair_mask: mx.array) -> mx.array:
    """What to add to `row_adjusted` distances so that masked pairs sort last, by position."""
    return (1 - pair_mask) * mx.arange(1, pair_mask.shape[-1] + 1)


def rbf(D: mx.array) -> mx.array:
    """16 Gaussians of a distance in Å: [...] -> [..., 16]."""
    z = (D[..., None] - mx.linspace(RBF_MIN, RBF_MAX, NUM_RBF)) / RBF_SIGMA
    return mx.exp(-(z * z))


def atom_pair_distances(X: mx.array, E_idx: mx.array, D_neighbors: mx.array) -> mx.array:
    """Distances of the 25 atom pairs of every edge: X [R, 4, 3], the rest [R, K] -> [R, K, 25]."""
    atoms = with_virtual_cb(X)
    first, second = (mx.array(side) for side in zip(*graph.ATOM_PAIRS[1:], strict=True))
    D = distance(atoms[:, first][:, None], atoms[:, second][E_idx])
    return mx.concatenate([D_neighbors[..., None], D], -1)


def relative_positions(
    residue_idx: mx.array, chain_encoding: mx.array, E_idx: mx.array
) -> mx.array:
    """Class of the offset between residue and neighbor, 0…65: [R], [R], [R, K] -> [R, K]."""
    offset = residue_idx[:, None] - residue_idx[E_idx]
    same_chain = chain_encoding[:, None] == chain_encoding[E_idx]
    return mx.where(same_chain, mx.clip(offset + MAX_OFFSET, 0, 2 * MAX_OFFSET), NUM_OFFSETS - 1)
