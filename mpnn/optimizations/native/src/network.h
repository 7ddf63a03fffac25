// The weights as the passes read them: split by blocks, packed, constants folded in.
#pragma once
#include <cstdint>
#include <vector>

#include "matmul.h"

namespace mpnn {

constexpr int RESIDUE_TYPES = 21, UNSEEN = RESIDUE_TYPES;  // UNSEEN: neighbor not decoded yet
constexpr int MIXED = 10, KINDS = MIXED + 5;               // unordered pairs of N, CA, C, O, CB: of two atoms, and all
constexpr int CENTERS = 16;                                // radial basis functions
constexpr int PADDED = 32;                                 // 25 ordered pairs, filled up to whole vectors
constexpr int EDGE_BLOCK = 12;                             // edges whose radial functions are one matmul
// Radial functions of one edge: sums of the pairs, and from ODD on differences of the mixed ones.
constexpr int ODD = (KINDS + 1) * CENTERS, RADIAL = ODD + (MIXED + 2) * CENTERS;
constexpr int OFFSETS = 66, OTHER_CHAIN = 65;  // classes of residue offsets
constexpr int FEED_FORWARD = 4;
constexpr float MESSAGE_SCALE = 30.f;

typedef std::vector<float> Floats;

// W1·[h_i | h_E | s_j | h_j] = A·h_i + E·h_E + S·s_j + V·h_j: A and V act on nodes instead of edges,
// and S·s_j is one of 21 rows.
struct Message {
  Matrix A, E, V, W2;
  Floats b1, b2;
};

// Σ_j (W3·m_j + b3) / 30 = (W3 / 30)·Σ_j m_j + K (b3 / 30): one matmul row per node.
struct NodeUpdate {
  Matrix W3, W_in, W_out;
  Floats b3, gain1, bias1, gain2, bias2, b_in, b_out;
};

struct EncoderLayer {
  Message node, edge;
  NodeUpdate update;
  Matrix W13;
  Floats b13, gain3, bias3;
};

struct DecoderLayer {
  Message message;
  NodeUpdate update;
  Floats residues;  // S·s for the 21 residue types, and zeros for UNSEEN: [22, C]
};

struct Network {
  // Tensors in the order of mpnn/optimizations/native/engine.py; sizes[i] is the count of tensors[i].
  // Throws std::invalid_argument if one has another size than its place needs.
  Network(int C, int encoders, int decoders, int count, const float* const* tensors, const int64_t* sizes);

  int C;
  Floats offsets;  // positional part of the edge embedding, centered and rotated: [66, C]
  Floats centers;  // of the radial basis functions, Å
  Matrix even;     // [15·16, C] radial weights, centered and rotated, all centers of the first pair first
  Matrix odd;      // [10·16, C] the part that changes sign from an edge to the one back: see features.cpp
  Matrix W_e;      // lower triangular in the rotated basis
  Floats b_e;
  std::vector<EncoderLayer> encoder;
  std::vector<DecoderLayer> decoder;
  Matrix W_out;
  Floats b_out;  // zeros beyond the 21 residue types
};

}  // namespace mpnn
