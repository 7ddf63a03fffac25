// Single functions, for the tests of each identity alone.
#include "activations.h"
#include "matmul.h"

using namespace mpnn;

#define MPNN_EXPORT extern "C" __attribute__((visibility("default")))

// n is a multiple of 64 in all of them.
MPNN_EXPORT void mpnn_probe_gelu(float* x, int32_t n) { gelu_rows(x, n); }

MPNN_EXPORT void mpnn_probe_exponential(float* x, int32_t n) {
  for (int32_t i = 0; i < n; i += LANES) store(x + i, exponential(load(x + i)));
}

MPNN_EXPORT void mpnn_probe_layer_norm(float* x, int32_t rows, int32_t n, const float* gain, const float* bias) {
  layer_norm(x, rows, n, gain, bias);
}

MPNN_EXPORT void mpnn_probe_unit_norm(float* x, int32_t rows, int32_t n) { unit_norm(x, rows, n); }

MPNN_EXPORT void mpnn_probe_log_softmax(float* x, int32_t n) { log_softmax(x, n); }

// y [rows, out] = x [rows, depth]·weightᵀ for weight [out, in], whose columns are all in order (depth =
// in), or those of `picked` [depth]; out is a multiple of 32.
MPNN_EXPORT void mpnn_probe_matmul(const float* x, const float* weight, float* y, const int32_t* picked, int32_t rows,
                                   int32_t depth, int32_t in, int32_t out) {
  const Matrix W(weight, out, in, in);
  Ahead ahead;
  auto zero = [](int, int) MPNN_LAMBDA { return Vector{}; };
  auto write = [=](int r, int c, Vector v) MPNN_LAMBDA { store(y + size_t(r) * out + c, v); };
  if (picked) matmul<true>(ahead, rows, x, depth, W, zero, write, Depth{false, picked, depth});
  else matmul(ahead, rows, x, depth, W, zero, write);
}

// The width of this build's vectors in floats: 16 with AVX-512, 8 with AVX2, 4 elsewhere.
MPNN_EXPORT int32_t mpnn_probe_lanes() { return LANES; }
