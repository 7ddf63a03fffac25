"""Messages and their sum in one kernel on Metal, and the same in plain MLX for every backend.

For every message row r with its K neighbors, Σ_k mask·gelu(W2·gelu(x_i + E·h_E + x_j) + b2). One
threadgroup computes one row; its edges go through threadgroup memory in tiles, so that of all
[M, K, C] only the edge vectors are read from memory and nothing is written there.

1. Gather in the kernel: the rows of x_j and of the edge vectors are addressed, never copied.
2. Both matmuls by 8 × 8 matrices of a simdgroup, which owns 32 of the C output channels; weights
   are read where the checkpoint has them, W1's block E included.
3. A tile is as many neighbors as divide K evenly, at most 24: 12 KiB at C = 128, so that two
   threadgroups share the 32 KiB of a core.
4. Between the matmuls thread c owns channel c: bias, GELU and the sum need no exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

SIMDGROUP_COLUMNS = 32
"""Output channels of one simdgroup, four 8 × 8 matrices; C threads make C/32 simdgroups."""

LARGEST_TILE = 24
"""Neighbors of one row in threadgroup memory at a time, a multiple of 8."""

LARGEST_C = 32 * 1024 // (4 * LARGEST_TILE) // SIMDGROUP_COLUMNS * SIMDGROUP_COLUMNS
"""Channels of which the largest tile fits 32 KiB: 320."""


@dataclass(frozen=True, eq=False)
class Messages:
    """All messages of one layer, of M rows with K neighbors each."""

    x_i: mx.array  # [M, C] term of the row's own node
    x_j: mx.array  # [*, C] table of the neighbors' terms
    where: mx.array  # [M, K] int32 rows of `x_j`
    mask: mx.array  # [M, K]
    edges: mx.array  # [R, K, C] h_E, or E·h_E where there is no W1
    at: mx.array | None  # [M] int32 rows of `edges`; None: M is so many copies of R, in order
    W1: mx.array | None  # [C, blocks·C], of which E is the second block
    W2: mx.array  # [C, C]
    b2: mx.array  # [C]


MessageSum = Callable[[Messages], mx.array]
"""Σ_k mask·gelu(W2·gelu(x_i + E·h_E + x_j) + b2) of every row: [M, C]."""


def gelu(x: mx.array) -> mx.array:
    """The exact GELU, x·(1 + erf(x/√2))/2, left to `mx.compile` to fuse."""
    return 0.5 * x * (1 + mx.erf(x * 0.5**0.5))


def plain_message_sum(m: Messages) -> mx.array:
    """`MessageSum` in MLX's own operations: the fallback kernel."""
    M, C = m.x_i.shape
    h_E = m.edges if m.at is None else m.edges[m.at]
    if m.W1 is not None:
        h_E = h_E @ m.W1[:, C : 2 * C].T
    R, K, _ = h_E.shape  # of which M are so many copies
    x = m.x_i.reshape(-1, R, 1, C) + h_E + m.x_j[m.where.reshape(-1, R, K)]
    x = gelu(mx.addmm(m.b2, gelu(x), m.W2.T)) * m.mask.reshape(-1, R, K, 1)
    return x.sum(-2).reshape(M, C)


def metal_message_sum(m: Messages) -> mx.array:
    """`MessageSum` in one launch; C must be a multiple of 32, and at most 320."""
    return KERNEL(**launch(m))[0]


def launch(m: Messages) -> dict[str, Any]:
    """Inputs, template and grid of one call of `KERNEL`."""
    (M, K), C = m.where.shape, m.x_i.shape[-1]
    at = mx.arange(M, dtype=mx.int32) % m.edges.shape[0] if m.at is None else m.at
    weights = m.W2 if m.W1 is None else m.W1  # an argument that this template does not read
    return {
        "inputs": [m.x_i, m.x_j, m.where, m.mask, m.edges, at, weights, m.W2, m.b2],
        "template": [
            ("C", C),
            ("K", K),
            ("TILE", tile_of(K)),
            ("W1_COLUMNS", weights.shape[1]),
            ("PRODUCT_WITH_E", m.W1 is not None),
        ],
        "grid": (M * C, 1, 1),
        "threadgroup": (C, 1, 1),
        "output_shapes": [(M, C)],
        "output_dtypes": [mx.float32],
    }


def tile_of(K: int) -> int:
    """Neighbors a tile: an even share of K, rounded up to a multiple of 8, at most 24."""
    tiles = -(-K // LARGEST_TILE)
    share = -(-K // tiles)
    return -(-share // 8) * 8


HEADER = """
#include <metal_simdgroup_matrix>

// Abramowitz and Stegun 7.1.26, |error| < 1.5e-7; Metal has no erf.
inline float mpnn_erf(float x) {
  float a = metal::fabs(x);
  float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  float tail = p * t * metal::precise::exp(-a * a);
  return x < 0 ? tail - 1.0f : 1.0f - tail;
}

inline float mpnn_gelu(float x) { return 0.5f * x * (1.0f + mpnn_erf(x * 0.70710678f)); }

// tile [TILE, C] = tile · Wᵀ, W [C, C] with `stride` floats from row to row; every simdgroup makes
// 32 columns. Ends with the whole result in place.
template <int TILE, int C>
inline void mpnn_multiply(
    threadgroup float* tile, const device float* W, uint stride, uint simdgroup) {
  metal::simdgroup_float8x8 sums[TILE / 8][4];
  for (int r = 0; r < TILE / 8; r++)
    for (int n = 0; n < 4; n++) sums[r][n] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (int k = 0; k < C; k += 8) {
    metal::simdgroup_float8x8 left, right[4];
    for (int n = 0; n < 4; n++)
      metal::simdgroup_load(right[n], W + (simdgroup * 32 + n * 8) * stride + k, stride, 0, true);
    for (int r = 0; r < TILE / 8; r++) {
      metal::simdgroup_load(left, tile + r * 8 * C + k, C);
      for (int n = 0; n < 4; n++)
        metal::simdgroup_multiply_accumulate(sums[r][n], left, right[n], sums[r][n]);
    }
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);  // all have read the tile
  for (int r = 0; r < TILE / 8; r++)
    for (int n = 0; n < 4; n++)
      metal::simdgroup_store(sums[r][n], tile + r * 8 * C + simdgroup * 32 + n * 8, C);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);  // the result is there
}
"""

SOURCE = """
  threadgroup float tile[TILE * C];
  uint row = threadgroup_position_in_grid.x;
  uint c = thread_position_in_threadgroup.x;
  uint simdgroup = simdgroup_index_in_threadgroup;
  const device float* h_E = edges + uint(at[row]) * K * C;
  float own = x_i[row * C + c];
  float total = 0;
  for (int first = 0; first < K; first += TILE) {
    int count = metal::min(TILE, K - first);
    if (PRODUCT_WITH_E) {
      for (int t = 0; t < TILE; t++) tile[t * C + c] = t < count ? h_E[(first + t) * C + c] : 0.0f;
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      mpnn_multiply<TILE, C>(tile, W1 + C, W1_COLUMNS, simdgroup);
    }
    for (int t = 0; t < TILE; t++) {
      float x = 0;
      if (t < count) {
        float edge = PRODUCT_WITH_E ? tile[t * C + c] : h_E[(first + t) * C + c];
        x = mpnn_gelu(own + edge + x_j[uint(where[row * K + first + t]) * C + c]);
      }
      tile[t * C + c] = x;
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    mpnn_multiply<TILE, C>(tile, W2, C, simdgroup);
    for (int t = 0; t < count; t++)
      total += mask[row * K + first + t] * mpnn_gelu(tile[t * C + c] + b2[c]);
  }
  out[row * C + c] = total;
"""

KERNEL = mx.fast.metal_kernel(
    name="mpnn_message_sum",
    input_names=["x_i", "x_j", "where", "mask", "edges", "at", "W1", "W2", "b2"],
    output_names=["out"],
    header=HEADER,
    source=SOURCE,
)
