#include <algorithm>
#include <cmath>

#include "activations.h"
#include "encoding.h"

namespace mpnn {
namespace {

constexpr int PADDED = 32;  // 25 pairs, filled up to whole vectors
constexpr int EDGES = 12;   // edges whose radial functions are one matmul
constexpr float DISTANCE_EPS = 1e-6f, SIGMA = 1.25f;
constexpr float REACH = 5.4f;  // Å: exp(-(5.4 / 1.25)²) = 8e-9, below float32's rounding of what it is added to
constexpr int MAX_OFFSET = 32;

// N CA C O CB = 0 … 4; first atom on residue i, second on its neighbor j, in the order of the weights.
constexpr int FIRST[PAIRS] = {1, 0, 2, 3, 4, 1, 1, 1, 1, 0, 0, 0, 4, 4, 3, 0, 2, 3, 4, 2, 3, 4, 2, 3, 2};
constexpr int SECOND[PAIRS] = {1, 0, 2, 3, 4, 0, 2, 3, 4, 2, 3, 4, 2, 3, 2, 1, 1, 1, 1, 0, 0, 0, 4, 4, 3};

// Appends the ideal Cβ to N, CA, C, O.
void with_virtual_cb(const float* X, float (&atom)[5][3]) {
  std::copy_n(X, 12, &atom[0][0]);
  float b[3], c[3];
  for (int d = 0; d < 3; ++d) b[d] = atom[1][d] - atom[0][d], c[d] = atom[2][d] - atom[1][d];
  const float a[3] = {b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0]};
  for (int d = 0; d < 3; ++d) atom[4][d] = -0.58273431f * a[d] + 0.56802827f * b[d] - 0.54067466f * c[d] + atom[1][d];
}

}  // namespace

Features::Features(const Network& network, const Structures& structures, const Graph& found)
    : net(network), given(structures), graph(found), first(size_t(found.R) * 3 * PADDED),
      second(size_t(found.R) * 3 * PADDED) {
  for (int i = 0; i < graph.R; ++i) {
    float atom[5][3];
    with_virtual_cb(given.X + size_t(i) * 12, atom);
    for (int d = 0; d < 3; ++d)
      for (int p = 0; p < PADDED; ++p) {
        first[(size_t(i) * 3 + d) * PADDED + p] = atom[FIRST[p < PAIRS ? p : 0]][d];
        second[(size_t(i) * 3 + d) * PADDED + p] = atom[SECOND[p < PAIRS ? p : 0]][d];
      }
  }
}

// Distances of the 25 pairs of the edges [from, to) of residue i to scratch.distances, in Å.
void Features::distances(int i, int from, int to, Scratch& scratch, float& least, float& most) const {
  const int32_t* idx = graph.neighbors(i);
  const float* f = first + size_t(i) * 3 * PADDED;
  Vector low = splat(1e9f), high = {};
  for (int r = from; r < to; ++r) {
    const float* s = second + size_t(idx[r]) * 3 * PADDED;
    float* D = scratch.distances + size_t(r - from) * PADDED;
    for (int c = 0; c < PADDED; c += LANES) {
      const Vector x = load(f + c) - load(s + c), y = load(f + PADDED + c) - load(s + PADDED + c);
      const Vector z = load(f + 2 * PADDED + c) - load(s + 2 * PADDED + c);
      const Vector square = multiply_add(x, x, multiply_add(y, y, multiply_add(z, z, splat(DISTANCE_EPS))));
      const Vector d = square_root(square);
      low = minimum(low, d), high = maximum(high, d);
      store(D + c, d);
    }
    D[0] = graph.D[size_t(i) * graph.K + r];  // as the search left it: a masked pair's is the largest
    low = minimum(low, splat(D[0])), high = maximum(high, splat(D[0]));
  }
  least = low[0], most = high[0];
  for (int v = 1; v < LANES; ++v) least = std::min(least, low[v]), most = std::max(most, high[v]);
}

const float* Features::offset(int i, int j) const {
  const int64_t apart = given.residue_idx[i] - given.residue_idx[j] + MAX_OFFSET;
  const int64_t offset = std::clamp<int64_t>(apart, 0, 2 * MAX_OFFSET);
  return &net.offsets[size_t(given.chain_encoding[i] == given.chain_encoding[j] ? offset : OTHER_CHAIN) * net.C];
}

// Edge vector = W_e·LayerNorm(positional + radial) + b_e, by two identities.
//
// Only radial functions within reach are multiplied: exp(-((D - µ) / σ)²) is below 8e-9 beyond. Edges
// come closest first, so the twelve of a block need few of the centers. Weights are center-major, so
// that the centers in reach are one range of the depth.
//
// LayerNorm centers, scales and multiplies by a gain; W_e multiplies. With P the centering matrix and
// (W_e·diag(gain)·P)ᵀ = Q·R, W_e·(gain ∘ P·x / s) = Rᵀ·(Qᵀ·P·x) / s: the embedding's weights are
// multiplied by Qᵀ·P beforehand, s is the root mean square of the rotated row, Q being orthogonal, and
// Rᵀ is lower triangular.
void Features::operator()(int i, float* out, Scratch& scratch) const {
  const int C = net.C, K = graph.slots[static_cast<size_t>(i)];
  const int32_t* idx = graph.neighbors(i);
  const float spacing = (net.centers[CENTERS - 1] - net.centers[0]) / (CENTERS - 1);
  for (int at = 0; at < K; at += EDGES) {
    const int m = std::min(EDGES, K - at);
    float least, most;
    distances(i, at, at + m, scratch, least, most);
    // In float, and clamped before the cast: far pairs have no center in reach.
    const float lowest = std::ceil((least - REACH - net.centers[0]) / spacing);
    const float highest = std::floor((most + REACH - net.centers[0]) / spacing) + 1;
    const int from = static_cast<int>(std::clamp(lowest, 0.f, float(CENTERS)));
    const int to = std::max(from, static_cast<int>(std::clamp(highest, 0.f, float(CENTERS))));
    const float* offsets[EDGES];
    for (int r = 0; r < m; ++r) {
      offsets[r] = offset(i, idx[at + r]);
      const float* D = scratch.distances + size_t(r) * PADDED;
      for (int k = from; k < to; ++k)
        for (int c = 0; c < PAIRS; c += LANES) {  // writes beyond, into what comes next
          const Vector z = (load(D + c) - splat(net.centers[k])) * splat(1 / SIGMA);
          store(scratch.radial + size_t(r) * RADIAL + k * PAIRS + c, exponential(-(z * z)));
        }
    }
    float* rows = scratch.x + size_t(at) * C;
    auto start = [&](int r, int c) MPNN_LAMBDA { return load(offsets[r] + c); };
    auto write = [=](int r, int c, Vector y) MPNN_LAMBDA { store(rows + size_t(r) * C + c, y); };
    const Depth reached{from * PAIRS, to * PAIRS, false};
    if (from < to) {
      matmul(scratch.ahead, m, scratch.radial.data(), RADIAL, net.radial, start, write, reached);
    } else {
      for (int r = 0; r < m; ++r) std::copy_n(offsets[r], C, rows + size_t(r) * C);
    }
  }
  unit_norm(scratch.x.data(), K, C);
  const float* b = net.b_e.data();
  matmul(
      scratch.ahead, K, scratch.x.data(), C, net.W_e, [=](int, int c) MPNN_LAMBDA { return load(b + c); },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(out + size_t(r) * C + c, y); }, Depth{0, 0, true});
}

}  // namespace mpnn
