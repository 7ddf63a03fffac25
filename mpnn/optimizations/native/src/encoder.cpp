// The encoder in passes over tiles of residues: each pass updates a residue's edges and sends the next
// messages from them, so that an edge vector is loaded once per layer and everything between two
// layers stays in the core's own caches. Passes meet where a layer needs all nodes of the one before.
#include <algorithm>

#include "activations.h"
#include "encoding.h"

namespace mpnn {
namespace {

// What nodes add to the edges of the next pass: A·h_i + b1 and V·h_j of the edge update, and of the
// message that follows it, the first decoder layer's at the end. [R, C] each.
struct NodeTerms {
  NodeTerms(size_t size) : edge_i(size), edge_j(size), next_i(size), next_j(size) {}
  Buffer edge_i, edge_j, next_i, next_j;
};

class Encoder {
 public:
  Encoder(Encoding& encoding, const Structures& given)
      : net(encoding.net), e(encoding), graph(encoding.graph), C(net.C), features(net, given, graph),
        terms(size_t(graph.R) * C), following(size_t(graph.R) * C) {}

  void run(Pool& pool) {
    const int R = graph.R, layers = static_cast<int>(net.encoder.size());
    const int tiles = tiles_of(R, pool.size());
    auto first = [=](int t) { return int(int64_t(R) * t / tiles); };
    pool.share(tiles, [&](int t, Scratch& scratch) {
      for (int i = first(t); i < first(t + 1); ++i)
        if (graph.mask[size_t(i)]) features.embed(i, e.edges[0].data(), scratch);
    });
    for (int pass = 0; pass <= layers; ++pass) {
      pool.share(tiles, [&](int t, Scratch& scratch) { run_tile(pass, first(t), first(t + 1), scratch); });
      if (pass < layers) std::swap(terms, following);
    }
    e.own = std::move(terms.next_i), e.neighbor = std::move(terms.next_j);
  }

 private:
  // Equally large tiles of at most TILE residues, and an equal number for every thread.
  static int tiles_of(int R, int threads) {
    const int least = (R + TILE - 1) / TILE;
    return std::min(R, (least + threads - 1) / threads * threads);
  }

  float* edges(int i) const { return e.edges[0] + size_t(i) * graph.K * C; }

  void run_tile(int pass, int from, int to, Scratch& scratch) {
    const bool last = pass == static_cast<int>(net.encoder.size());
    int32_t messages[TILE];
    for (int i = from; i < to; ++i) {
      if (!graph.mask[size_t(i)]) {  // its nodes are 0, and nobody reads its edges
        messages[i - from] = 0;
        std::fill_n(scratch.sums + size_t(i - from) * C, C, 0.f);
        continue;
      }
      scratch.ahead.begin(C, 1);
      if (i + 1 < to) scratch.ahead.add(edges(i + 1), graph.slots[size_t(i) + 1]);
      if (pass == 0) features.finish(i, edges(i), scratch);
      else update_edges(net.encoder[size_t(pass) - 1], i, scratch);
      if (!last) messages[i - from] = send_messages(pass, i, scratch.sums + size_t(i - from) * C, scratch);
    }
    if (!last) finish_nodes(pass, from, to, messages, scratch);
  }

  // at_i + at_j + E·h_E of the edges of residue i, to scratch.x
  void edge_input(const Buffer& at_i, const Buffer& at_j, const Matrix& E, int i, Scratch& scratch) {
    const float *own = at_i + size_t(i) * C, *others = at_j.data();
    const int32_t* idx = graph.neighbors(i);
    float* x = scratch.x.data();
    const int width = C;
    matmul(
        scratch.ahead, graph.slots[size_t(i)], edges(i), C, E,
        [=](int r, int c) MPNN_LAMBDA { return load(own + c) + load(others + size_t(idx[r]) * width + c); },
        [=](int r, int c, Vector y) MPNN_LAMBDA { store(x + size_t(r) * width + c, y); });
  }

  // h_E = norm3(h_E + W13·gelu(W12·gelu(W11·[h_i | h_E | h_j])))
  void update_edges(const EncoderLayer& layer, int i, Scratch& scratch) {
    const int rows = graph.slots[size_t(i)], width = C;
    float *x = scratch.x.data(), *y = scratch.y.data(), *h = edges(i);
    edge_input(terms.edge_i, terms.edge_j, layer.edge.E, i, scratch);
    gelu_rows(x, rows * C);
    multiply(layer.edge.W2, layer.edge.b2.data(), rows, x, y, C, scratch.ahead);
    gelu_rows(y, rows * C);
    const float* b = layer.b13.data();
    matmul(
        scratch.ahead, rows, y, C, layer.W13,
        [=](int r, int c) MPNN_LAMBDA { return load(b + c) + load(h + size_t(r) * width + c); },
        [=](int r, int c, Vector sum) MPNN_LAMBDA { store(h + size_t(r) * width + c, sum); });
    layer_norm(h, rows, C, layer.gain3.data(), layer.bias3.data());
  }

  // The sum over the messages to residue i, before W3; returns how many there are.
  int send_messages(int pass, int i, float* total, Scratch& scratch) {
    const int rows = graph.slots[size_t(i)];
    const Message& m = net.encoder[size_t(pass)].node;
    if (pass == 0) multiply(m.E, m.b1.data(), rows, edges(i), scratch.x.data(), C, scratch.ahead);  // h_V = 0
    else edge_input(terms.next_i, terms.next_j, m.E, i, scratch);
    const int32_t* idx = graph.neighbors(i);
    std::vector<uint8_t>& counted = scratch.counted;
    int count = 0;
    for (int r = 0; r < rows; ++r) count += counted[size_t(r)] = graph.mask[size_t(idx[r])];
    sum_messages(m, rows, count == rows ? nullptr : counted.data(), total, scratch);
    return count;
  }

  void finish_nodes(int pass, int from, int to, const int32_t* messages, Scratch& scratch) {
    const int rows = to - from;
    const size_t at = size_t(from) * C;
    float* h = e.h_V + at;
    update_nodes(net.encoder[size_t(pass)].update, rows, messages, h, scratch);
    for (int i = from; i < to; ++i)
      if (!graph.mask[size_t(i)]) std::fill_n(e.h_V + size_t(i) * C, C, 0.f);
    const Message& edge = net.encoder[size_t(pass)].edge;
    const bool last = size_t(pass) + 1 == net.encoder.size();
    const Message& next = last ? net.decoder[0].message : net.encoder[size_t(pass) + 1].node;
    multiply(edge.A, edge.b1.data(), rows, h, following.edge_i + at, C, scratch.ahead);
    multiply(edge.V, nullptr, rows, h, following.edge_j + at, C, scratch.ahead);
    multiply(next.A, next.b1.data(), rows, h, following.next_i + at, C, scratch.ahead);
    multiply(next.V, nullptr, rows, h, following.next_j + at, C, scratch.ahead);
    for (size_t l = 1; last && l < net.decoder.size(); ++l)
      multiply(net.decoder[l].message.V, nullptr, rows, h, e.unseen[l] + at, C, scratch.ahead);
  }

  const Network& net;
  Encoding& e;
  const Graph& graph;
  const int C;
  Features features;
  NodeTerms terms, following;
};

}  // namespace

void encode(Encoding& e, const Structures& given, Pool& pool) {
  e.graph = find_neighbors(given, pool);
  const size_t nodes = size_t(given.R) * e.net.C;
  e.h_V = Buffer(nodes);
  std::fill_n(e.h_V.data(), nodes, 0.f);
  e.unseen.resize(e.net.decoder.size());
  for (size_t l = 1; l < e.unseen.size(); ++l) e.unseen[l] = Buffer(nodes);
  e.edges.emplace_back(nodes * size_t(given.K));
  Encoder(e, given).run(pool);
}

void multiply_edges(Encoding& e, Pool& pool) {
  if (e.multiplied) return;
  const Graph& graph = e.graph;
  const int C = e.net.C, width = C;
  while (e.edges.size() < e.net.decoder.size()) e.edges.emplace_back(size_t(graph.R) * graph.K * C);
  const int chunks = (graph.R + TILE - 1) / TILE;
  auto multiply_chunk = [&](int chunk, Scratch& scratch) {
    for (int i = chunk * TILE; i < std::min(graph.R, (chunk + 1) * TILE); ++i) {
      if (!graph.mask[size_t(i)]) continue;
      const int rows = graph.slots[size_t(i)];
      const size_t at = size_t(i) * graph.K * C;
      scratch.ahead.begin(C, 2);
      if (i + 1 < graph.R) scratch.ahead.add(e.edges[0] + at + size_t(graph.K) * C, rows);
      const float* h = std::copy_n(e.edges[0] + at, size_t(rows) * C, scratch.y.data()) - size_t(rows) * C;
      for (size_t l = 1; l < e.net.decoder.size(); ++l)
        multiply(e.net.decoder[l].message.E, nullptr, rows, h, e.edges[l] + at, C, scratch.ahead);
      const float *own = e.own + size_t(i) * C, *others = e.neighbor.data();
      const int32_t* idx = graph.neighbors(i);
      float* out = e.edges[0] + at;  // takes the place of h_E, which nobody needs any more
      matmul(
          scratch.ahead, rows, h, C, e.net.decoder[0].message.E,
          [=](int r, int c) MPNN_LAMBDA { return load(own + c) + load(others + size_t(idx[r]) * width + c); },
          [=](int r, int c, Vector y) MPNN_LAMBDA { store(out + size_t(r) * width + c, y); });
    }
  };
  pool.share(chunks, multiply_chunk, false);  // edges half in one form and half in the other are lost
  e.multiplied = true;
}

}  // namespace mpnn
