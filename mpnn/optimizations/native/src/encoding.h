// Structures end to end, R residues in all, and what the encoder makes of them.
#pragma once
#include <cstdint>
#include <vector>

#include "network.h"
#include "threads.h"

namespace mpnn {

constexpr int MOST_NEIGHBORS = 128;  // K may be as large

// What the caller gives; all arrays are checked before they come here.
struct Structures {
  int R, B, K;                    // residues, structures, neighbor slots of each residue
  const float* X;                 // [R, 4, 3] N, CA, C, O in Å; 0 where masked
  const uint8_t* mask;            // [R], 1 where all atoms are known
  const int64_t* residue_idx;     // [R]
  const int64_t* chain_encoding;  // [R]
  const int64_t* starts;          // [B + 1], first row of each structure, and R
  const int64_t* given;           // [R, K] rows of neighbors found elsewhere, or null
};

struct Graph {
  int R, K;
  std::vector<int32_t> starts;     // [B + 1]
  std::vector<int32_t> structure;  // [R], structure of each residue
  std::vector<int32_t> E_idx;      // [R, K] rows, closest first; a residue's own row fills spare slots
  Floats D;                        // [R, K] Å, of the pair CA–CA
  std::vector<int32_t> slots;      // [R], neighbor slots in use: less than K in shorter structures
  std::vector<uint8_t> mask;       // [R]

  const int32_t* neighbors(int i) const { return &E_idx[size_t(i) * K]; }
};

struct Encoding {
  explicit Encoding(const Network& network) : net(network) {}

  const Network& net;
  Graph graph;
  Buffer h_V;                  // [R, C], 0 where masked
  Buffer own, neighbor;        // [R, C] each: A·h_i + b1 and V·h_j of the first decoder layer
  std::vector<Buffer> unseen;  // [R, C] for each layer: V·h_j of the encoder's nodes, none for the first
  // [R, K, C]: h_E alone, or once `multiplied` for each decoder layer E·h_E; the first layer's with
  // own + neighbor, for its nodes are the encoder's.
  std::vector<Buffer> edges;
  bool multiplied = false;

  const float* edge(size_t layer, int i) const { return edges[layer] + size_t(i) * graph.K * net.C; }
};

// Finds or measures the neighbors of every residue.
Graph find_neighbors(const Structures& given, Pool& pool);

// Edge vectors from coordinates.
class Features {
 public:
  Features(const Network& network, const Structures& structures, const Graph& found);
  // Writes embeddings to `edges` [R, K, C]: those of the edges that residue i computes, and of the
  // edges back. Called for all residues, it writes each edge once.
  void embed(int i, float* edges, Scratch& scratch) const;
  // Makes edge vectors of the embeddings of residue i [slots, C] in place.
  void finish(int i, float* rows, Scratch& scratch) const;

 private:
  struct Pair;
  int pairs_of(int i, Pair* pairs) const;
  int radial(int i, const Pair* pairs, int count, int32_t* rows, int& odd, Scratch& scratch) const;
  const float* offset(int i, int j) const;

  const Network& net;
  const Structures& given;
  const Graph& graph;
  Buffer first, second;  // atoms of the 25 ordered pairs: [R, 3, 32] Å each
};

void encode(Encoding& encoding, const Structures& given, Pool& pool);

// Multiplies the edges for all decoder layers once, which several samples share.
void multiply_edges(Encoding& encoding, Pool& pool);

// Writes W·h + bias of rows [rows, C] to `out`; no bias where it is null.
void multiply(const Matrix& W, const float* bias, int rows, const float* h, float* out, int C, Ahead& ahead);

// One round of node updates: rows of h [rows, C] in place, from the sums over their messages in
// scratch.sums and the number of messages in each.
void update_nodes(const NodeUpdate& update, int rows, const int32_t* messages, float* h, Scratch& scratch);

// Sum over rows of gelu(W2·gelu(x)) for x [rows, C] in scratch.x, which is overwritten; only rows
// whose `counted` is not 0, or all if it is null.
void sum_messages(const Message& message, int rows, const uint8_t* counted, float* total, Scratch& scratch);

}  // namespace mpnn
