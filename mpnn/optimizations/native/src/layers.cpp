// What encoder and decoder share: the sum over messages, and the node update.
#include "activations.h"
#include "encoding.h"

namespace mpnn {

void multiply(const Matrix& W, const float* bias, int rows, const float* h, float* out, int C, Ahead& ahead) {
  matmul(
      ahead, rows, h, C, W, [=](int, int c) MPNN_LAMBDA { return bias ? load(bias + c) : Vector{}; },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(out + size_t(r) * C + c, y); });
}

void sum_messages(const Message& message, int rows, const uint8_t* counted, float* total, Scratch& scratch) {
  const int C = scratch.C;
  float *x = scratch.x.data(), *y = scratch.y.data();
  gelu_rows(x, rows * C);
  multiply(message.W2, message.b2.data(), rows, x, y, C, scratch.ahead);
  for (int c = 0; c < C; c += GELU_BLOCK) {
    Vector sums[GELU_AT_ONCE] = {};
    for (int r = 0; r < rows; ++r) {
      if (counted && !counted[r]) continue;
      Vector v[GELU_AT_ONCE];
      repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { v[u] = load(y + size_t(r) * C + c + u * LANES); });
      gelu(v);
      repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { sums[u] += v[u]; });
    }
    repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { store(total + c + u * LANES, sums[u]); });
  }
}

void update_nodes(const NodeUpdate& u, int rows, const int32_t* messages, float* h, Scratch& scratch) {
  const int C = scratch.C, inner = FEED_FORWARD * C;
  float *nodes = scratch.nodes.data(), *wide = scratch.inner.data();
  matmul(
      scratch.ahead, rows, scratch.sums.data(), C, u.W3,
      [&](int r, int c) MPNN_LAMBDA {
        return multiply_add(load(&u.b3[size_t(c)]), splat(float(messages[r])), load(h + size_t(r) * C + c));
      },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(nodes + size_t(r) * C + c, y); });
  layer_norm(nodes, rows, C, u.gain1.data(), u.bias1.data());
  matmul(
      scratch.ahead, rows, nodes, C, u.W_in, [&](int, int c) MPNN_LAMBDA { return load(&u.b_in[size_t(c)]); },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(wide + size_t(r) * inner + c, y); });
  gelu_rows(wide, rows * inner);
  matmul(
      scratch.ahead, rows, wide, inner, u.W_out,
      [&](int r, int c) MPNN_LAMBDA { return load(&u.b_out[size_t(c)]) + load(nodes + size_t(r) * C + c); },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(h + size_t(r) * C + c, y); });
  layer_norm(h, rows, C, u.gain2.data(), u.bias2.data());
}

}  // namespace mpnn
