#include "network.h"

#include <stdexcept>
#include <string>

namespace mpnn {
namespace {

// Takes one tensor after another.
struct Reader {
  int count;
  const float* const* tensors;
  const int64_t* sizes;
  int at = 0;

  const float* next(int64_t size) {
    if (at >= count || sizes[at] != size)
      throw std::invalid_argument("tensor " + std::to_string(at) + " should have " + std::to_string(size) +
                                  " elements");
    return tensors[at++];
  }
  Floats floats(int n, float scale = 1.f) {
    const float* p = next(n);
    Floats v(p, p + n);
    for (float& x : v) x *= scale;
    return v;
  }
  Matrix matrix(int out, int in) { return Matrix(next(int64_t(out) * in), out, in, in); }
};

// W1 has `parts` blocks of C columns: the first reads h_i, the second h_E, the last h_j.
Message read_message(Reader& read, int C, int parts) {
  const int in = parts * C;
  const float* W1 = read.next(int64_t(C) * in);
  Message m;
  m.A = Matrix(W1, C, C, in), m.E = Matrix(W1 + C, C, C, in), m.V = Matrix(W1 + in - C, C, C, in);
  m.b1 = read.floats(C);
  m.W2 = read.matrix(C, C), m.b2 = read.floats(C);
  return m;
}

NodeUpdate read_update(Reader& read, int C) {
  NodeUpdate u;
  u.W3 = Matrix(read.floats(C * C, 1 / MESSAGE_SCALE).data(), C, C, C);
  u.b3 = read.floats(C, 1 / MESSAGE_SCALE);
  u.gain1 = read.floats(C), u.bias1 = read.floats(C), u.gain2 = read.floats(C), u.bias2 = read.floats(C);
  u.W_in = read.matrix(FEED_FORWARD * C, C), u.b_in = read.floats(FEED_FORWARD * C);
  u.W_out = read.matrix(C, FEED_FORWARD * C), u.b_out = read.floats(C);
  return u;
}

}  // namespace

Network::Network(int width, int encoders, int decoders, int count, const float* const* tensors, const int64_t* sizes)
    : C(width) {
  Reader read{count, tensors, sizes};
  offsets = read.floats(OFFSETS * C);
  even = read.matrix(C, KINDS * CENTERS), odd = read.matrix(C, MIXED * CENTERS);
  W_e = read.matrix(C, C), b_e = read.floats(C), centers = read.floats(CENTERS);
  centers.resize(2 * CENTERS, 1e9f);  // whole vectors can be read from any center on
  for (int l = 0; l < encoders; ++l) {
    EncoderLayer& layer = encoder.emplace_back();
    layer.node = read_message(read, C, 3), layer.update = read_update(read, C);
    layer.edge = read_message(read, C, 3);
    layer.W13 = read.matrix(C, C), layer.b13 = read.floats(C);
    layer.gain3 = read.floats(C), layer.bias3 = read.floats(C);
  }
  for (int l = 0; l < decoders; ++l) {
    DecoderLayer& layer = decoder.emplace_back();
    layer.message = read_message(read, C, 4), layer.update = read_update(read, C);
    layer.residues = read.floats((RESIDUE_TYPES + 1) * C);
  }
  W_out = read.matrix(RESIDUE_TYPES, C), b_out = read.floats(RESIDUE_TYPES);
  b_out.resize(static_cast<size_t>(W_out.columns()));
  if (read.at != count) throw std::invalid_argument("more tensors than the network has");
}

}  // namespace mpnn
