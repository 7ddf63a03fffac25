#include <algorithm>
#include <cmath>

#include "activations.h"
#include "encoding.h"

namespace mpnn {
namespace {

constexpr float DISTANCE_EPS = 1e-6f, SIGMA = 1.25f;
constexpr float REACH = 5.4f;  // Å: exp(-(5.4 / 1.25)²) = 8e-9, below float32's rounding of what it is added to
constexpr int MAX_OFFSET = 32;

// N CA C O CB = 0 … 4; first atom on residue i, second on its neighbor j: the mixed pairs, the same
// the other way around, and the pairs of one atom, of which the second is CA–CA.
constexpr int FIRST[] = {0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 1, 2, 3, 4, 2, 3, 4, 3, 4, 4, 0, 1, 2, 3, 4};
constexpr int SECOND[] = {1, 2, 3, 4, 2, 3, 4, 3, 4, 4, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 0, 1, 2, 3, 4};
constexpr int ORDERED = 2 * MIXED + 5, CA_CA = 2 * MIXED + 1;

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
        first[(size_t(i) * 3 + d) * PADDED + p] = atom[FIRST[p < ORDERED ? p : 0]][d];
        second[(size_t(i) * 3 + d) * PADDED + p] = atom[SECOND[p < ORDERED ? p : 0]][d];
      }
  }
}

const float* Features::offset(int i, int j) const {
  const int64_t apart = given.residue_idx[i] - given.residue_idx[j] + MAX_OFFSET;
  const int64_t offset = std::clamp<int64_t>(apart, 0, 2 * MAX_OFFSET);
  return &net.offsets[size_t(given.chain_encoding[i] == given.chain_encoding[j] ? offset : OTHER_CHAIN) * net.C];
}

// One edge that a residue computes: its slot among the residue's, and the slot of the edge back, or -1
// where there is none to compute with it.
struct Features::Pair {
  int slot, back;
};

// The edges that residue i computes. Of an edge and the one back, one residue computes both: the
// first where the sum of their numbers is even, so that the work is spread evenly over the chain.
int Features::pairs_of(int i, Pair* pairs) const {
  auto slot_of = [&](int residue, int neighbor) {  // a loop without an exit, for vectors
    const int32_t* idx = graph.neighbors(residue);
    int found = -1;
    for (int k = graph.slots[size_t(residue)] - 1; k >= 0; --k) found = idx[k] == neighbor ? k : found;
    return found;
  };
  const int32_t* idx = graph.neighbors(i);
  int count = 0;
  for (int k = 0; k < graph.slots[size_t(i)]; ++k) {
    const int j = idx[k];
    const bool once = j != i && graph.mask[size_t(j)] && (!given.given || slot_of(i, j) == k);  // those may repeat
    const int back = once ? slot_of(j, i) : -1;
    if (back < 0 || (i < j) == ((i + j) % 2 == 0)) pairs[count++] = {k, back};
  }
  return count;
}

// Radial functions of up to EDGE_BLOCK edges to scratch.radial, only those within reach of one of them.
// Writes which rows of the weights those are; returns how many, `odd` of them of mixed pairs.
int Features::radial(int i, const Pair* pairs, int count, int32_t* rows, int& odd, Scratch& scratch) const {
  const float* f = first + size_t(i) * 3 * PADDED;
  alignas(64) float least[PADDED], most[PADDED];
  std::fill_n(least, PADDED, 1e9f), std::fill_n(most, PADDED, 0.f);
  for (int r = 0; r < count; ++r) {
    const size_t edge = size_t(i) * graph.K + size_t(pairs[r].slot);
    const float* s = second + size_t(graph.E_idx[edge]) * 3 * PADDED;
    float* D = scratch.distances + size_t(r) * PADDED;
    for (int c = 0; c < PADDED; c += LANES) {
      const Vector x = load(f + c) - load(s + c), y = load(f + PADDED + c) - load(s + PADDED + c);
      const Vector z = load(f + 2 * PADDED + c) - load(s + 2 * PADDED + c);
      store(D + c, square_root(multiply_add(x, x, multiply_add(y, y, multiply_add(z, z, splat(DISTANCE_EPS))))));
    }
    D[CA_CA] = graph.D[edge];  // as the search left it: a masked pair's is the largest
    for (int c = 0; c < PADDED; c += LANES)
      store(least + c, minimum(load(least + c), load(D + c))), store(most + c, maximum(load(most + c), load(D + c)));
  }
  const float start = net.centers[0], spacing = (net.centers[CENTERS - 1] - start) / (CENTERS - 1);
  int depth = 0;
  for (int p = 0; p < KINDS; ++p) {
    const bool mixed = p < MIXED;
    const int one = mixed ? p : p + MIXED, other = mixed ? p + MIXED : one;
    // In float, and clamped before the cast: far pairs have no center in reach.
    const float lowest = std::ceil((std::min(least[one], least[other]) - REACH - start) / spacing);
    const float highest = std::floor((std::max(most[one], most[other]) + REACH - start) / spacing) + 1;
    const int from = static_cast<int>(std::clamp(lowest, 0.f, float(CENTERS)));
    const int to = std::max(from, static_cast<int>(std::clamp(highest, 0.f, float(CENTERS))));
    for (int r = 0; r < count; ++r) {
      const float* D = scratch.distances + size_t(r) * PADDED;
      float* sums = scratch.radial + size_t(r) * RADIAL + depth;
      for (int c = from; c < to; c += LANES, sums += LANES) {  // writes beyond, into what comes next
        auto function = [&](float d) MPNN_LAMBDA {
          const Vector z = (splat(d) - load(&net.centers[size_t(c)])) * splat(1 / SIGMA);
          return exponential(-(z * z));
        };
        const Vector a = function(D[one]), b = mixed ? function(D[other]) : Vector{};
        store(sums, a + b);
        if (mixed) store(sums + ODD, a - b);
      }
    }
    for (int c = from; c < to; ++c) rows[depth++] = p * CENTERS + c;
    if (p == MIXED - 1) odd = depth;
  }
  return depth;
}

// Embedding = positional + radial, by three identities.
//
// Only radial functions within reach are multiplied: exp(-((D - µ) / σ)²) is below 8e-9 beyond. Edges
// come closest first, so the twelve of a block need few of the centers.
//
// The edge from j to i has the distances of the edge from i to j, with the atoms of a mixed pair
// exchanged. With r and r' the radial functions of such a pair and w and w' their weights,
// w·r + w'·r' = (w + w')/2·(r + r') + (w - w')/2·(r - r'), and the edge back has the same first term,
// and the second with the other sign: one product for two edges, of which 83 % are so paired.
//
// LayerNorm centers, scales and multiplies by a gain; W_e multiplies. With P the centering matrix and
// (W_e·diag(gain)·P)ᵀ = Q·R, W_e·(gain ∘ P·x / s) = Rᵀ·(Qᵀ·P·x) / s: the embedding's weights are
// multiplied by Qᵀ·P beforehand, s is the root mean square of the rotated row, Q being orthogonal, and
// Rᵀ is lower triangular.
void Features::embed(int i, float* edges, Scratch& scratch) const {
  Pair pairs[MOST_NEIGHBORS];
  const int C = net.C, count = pairs_of(i, pairs);
  scratch.ahead.begin(C, 0);
  for (int at = 0; at < count; at += EDGE_BLOCK) {
    const int m = std::min(EDGE_BLOCK, count - at);
    const Pair* block = pairs + at;
    int32_t rows[KINDS * CENTERS];
    int odd = 0;
    const int depth = radial(i, block, m, rows, odd, scratch);
    const float *there[EDGE_BLOCK], *back[EDGE_BLOCK];
    float *out[EDGE_BLOCK], *out_back[EDGE_BLOCK];
    for (int r = 0; r < m; ++r) {
      const int j = graph.neighbors(i)[block[r].slot], k = block[r].back;
      there[r] = offset(i, j), out[r] = edges + (size_t(i) * graph.K + size_t(block[r].slot)) * C;
      back[r] = offset(j, i), out_back[r] = k < 0 ? nullptr : edges + (size_t(j) * graph.K + size_t(k)) * C;
    }
    float* even = scratch.y.data();
    auto zero = [](int, int) MPNN_LAMBDA { return Vector{}; };
    matmul<true>(
        scratch.ahead, m, scratch.radial.data(), RADIAL, net.even, zero,
        [=](int r, int c, Vector y) MPNN_LAMBDA { store(even + r * C + c, y); }, Depth{false, rows, depth});
    matmul<true>(
        scratch.ahead, m, scratch.radial + ODD, RADIAL, net.odd, zero,
        [&](int r, int c, Vector y) MPNN_LAMBDA {
          const Vector same = load(even + r * C + c);
          store(out[r] + c, same + y + load(there[r] + c));
          if (out_back[r]) store(out_back[r] + c, same - y + load(back[r] + c));
        },
        Depth{false, rows, odd});
  }
}

void Features::finish(int i, float* rows, Scratch& scratch) const {
  const int C = net.C, K = graph.slots[static_cast<size_t>(i)];
  std::copy_n(rows, size_t(K) * C, scratch.x.data());
  unit_norm(scratch.x.data(), K, C);
  const float* b = net.b_e.data();
  matmul(
      scratch.ahead, K, scratch.x.data(), C, net.W_e, [=](int, int c) MPNN_LAMBDA { return load(b + c); },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(rows + size_t(r) * C + c, y); }, Depth{true});
}

}  // namespace mpnn
