#include <algorithm>
#include <cmath>
#include <limits>

#include "encoding.h"

namespace mpnn {
namespace {

constexpr float DISTANCE_EPS = 1e-6f;  // Å², inside every square root
constexpr int CHUNK = 64;              // residues searched for by one task

// The residues of one structure with coordinates, CA atoms by axis and filled up to whole vectors.
struct Atoms {
  int32_t start, length;        // of the structure
  std::vector<int32_t> rows;    // [U] residues with coordinates
  std::vector<int32_t> masked;  // the others
  Floats x, y, z;               // [U]

  Atoms(const Structures& s, int b)
      : start(static_cast<int32_t>(s.starts[b])), length(static_cast<int32_t>(s.starts[b + 1]) - start) {
    for (int32_t i = start; i < start + length; ++i) (s.mask[i] ? rows : masked).push_back(i);
    for (int axis = 0; axis < 3; ++axis) {
      Floats& values = axis == 0 ? x : axis == 1 ? y : z;
      for (int32_t i : rows) values.push_back(s.X[size_t(i) * 12 + 3 + axis]);
      values.resize((rows.size() + LANES - 1) / LANES * LANES, 0.f);
    }
  }

  // Squared distances + 1e-6 from one residue's CA to all [U]; no fused multiply-add, so that they
  // are the reference's to the last bit.
  void squared(const float* ca, float* out) const {
    for (size_t j = 0; j < x.size(); j += LANES) {
      Vector a = splat(ca[0]) - load(&x[j]), b = splat(ca[1]) - load(&y[j]), c = splat(ca[2]) - load(&z[j]);
      a *= a, b *= b, c *= c;
      round_here(a), round_here(b), round_here(c);
      store(out + j, a + b + c + splat(DISTANCE_EPS));
    }
  }
};

// Searches and measures for one residue after another, in memory that it keeps.
class Search {
 public:
  Search(const Structures& structures, const Atoms& candidates, Graph& found)
      : s(structures), atoms(candidates), graph(found), d(atoms.x.size()), near(atoms.x.size() + 1) {}

  void operator()(int32_t i) {
    int32_t* idx = &graph.E_idx[size_t(i) * graph.K];
    float* D = &graph.D[size_t(i) * graph.K];
    const int K = graph.slots[static_cast<size_t>(i)];
    if (s.given) {
      std::copy_n(s.given + size_t(i) * graph.K, K, idx);
      if (s.mask[i]) measure(i, K, idx, D);
    } else if (s.mask[i]) {
      nearest(i, K, idx, D);
    } else {
      for (int k = 0; k < K; ++k) idx[k] = atoms.start + k;  // all its pairs are masked: by position
    }
  }

 private:
  const float* ca(int32_t i) const { return s.X + size_t(i) * 12 + 3; }

  // The K nearest, ties by position; then masked residues by position, at the largest distance.
  void nearest(int32_t i, int K, int32_t* idx, float* D) {
    atoms.squared(ca(i), d.data());
    const int U = static_cast<int>(atoms.rows.size()), wanted = std::min(K, U);
    const int found = candidates(U, wanted);
    std::nth_element(near.begin(), near.begin() + (wanted - 1), near.begin() + found);
    std::sort(near.begin(), near.begin() + wanted);
    for (int k = 0; k < wanted; ++k) {
      idx[k] = atoms.rows[static_cast<size_t>(near[k] & 0xffffffff)];
      D[k] = std::sqrt(d[static_cast<size_t>(near[k] & 0xffffffff)]);
    }
    limit = D[wanted - 1] * D[wanted - 1] * 1.3f;  // the next residue's neighbors are about as far
    for (int k = wanted; k < K; ++k) idx[k] = atoms.masked[static_cast<size_t>(k - wanted)], D[k] = largest();
  }

  // Puts all within a limit that at least `wanted` reach into `near`, as distance << 32 | number:
  // positive floats are in the order of their bits.
  int candidates(int U, int wanted) {
    for (;; limit = limit * 1.5f + 1) {
      int found = 0;
      for (int j = 0; j < U; ++j) {
        uint32_t bits;
        std::memcpy(&bits, &d[static_cast<size_t>(j)], 4);
        near[static_cast<size_t>(found)] = uint64_t(bits) << 32 | uint32_t(j);
        found += d[static_cast<size_t>(j)] <= limit;
      }
      if (found >= wanted) return found;
    }
  }

  void measure(int32_t i, int K, const int32_t* idx, float* D) {
    bool whole = true;
    for (int k = 0; k < K; ++k) whole = whole && s.mask[idx[k]];
    if (!whole) atoms.squared(ca(i), d.data());
    for (int k = 0; k < K; ++k) {
      Vector e[3];  // vectors, to round as `squared` does
      for (int axis = 0; axis < 3; ++axis) {
        e[axis] = splat(ca(i)[axis] - ca(idx[k])[axis]);
        e[axis] *= e[axis], round_here(e[axis]);
      }
      D[k] = s.mask[idx[k]] ? std::sqrt((e[0] + e[1] + e[2] + splat(DISTANCE_EPS))[0]) : largest();
    }
  }

  float largest() const {
    return std::sqrt(*std::max_element(d.begin(), d.begin() + static_cast<std::ptrdiff_t>(atoms.rows.size())));
  }

  const Structures& s;
  const Atoms& atoms;
  Graph& graph;
  Floats d;
  std::vector<uint64_t> near;
  float limit = std::numeric_limits<float>::infinity();
};

}  // namespace

Graph find_neighbors(const Structures& s, Pool& pool) {
  Graph graph{s.R, s.K, {s.starts, s.starts + s.B + 1}, {}, {}, {}, {}, {s.mask, s.mask + s.R}};
  const size_t R = static_cast<size_t>(s.R), edges = R * static_cast<size_t>(s.K);
  graph.structure.resize(R), graph.slots.resize(R), graph.E_idx.resize(edges), graph.D.resize(edges);
  struct Chunk {
    int b;
    int32_t from, to;
  };
  std::vector<Chunk> chunks;
  std::vector<Atoms> atoms;
  for (int b = 0; b < s.B; ++b) {
    atoms.emplace_back(s, b);
    const int32_t start = graph.starts[b], end = graph.starts[b + 1];
    for (int32_t i = start; i < end; ++i) {
      graph.structure[i] = b, graph.slots[i] = std::min(s.K, end - start);
      std::fill_n(&graph.E_idx[size_t(i) * s.K], s.K, i);
    }
    for (int32_t i = start; i < end; i += CHUNK) chunks.push_back({b, i, std::min(end, i + CHUNK)});
  }
  pool.share(static_cast<int>(chunks.size()), [&](int c, Scratch&) {
    Search search(s, atoms[static_cast<size_t>(chunks[c].b)], graph);
    for (int32_t i = chunks[c].from; i < chunks[c].to; ++i) search(i);
  });
  return graph;
}

}  // namespace mpnn
