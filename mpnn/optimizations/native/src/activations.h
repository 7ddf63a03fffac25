// GELU, exp, LayerNorm and log-softmax of float32 rows.
#pragma once
#include "coefficients.h"
#include "simd.h"

namespace mpnn {

// GELU(x) = x Φ(x) = max(x, 0) - δ(|x|) with δ(t) = t Φ(-t).
// δ is small and smooth, so a polynomial of it is exact to float32's rounding of GELU.
#if defined(MPNN_AVX512)
constexpr int GELU_AT_ONCE = 4;  // vectors side by side: as many chains hide the latency
MPNN_INLINE void gelu(Vector (&x)[GELU_AT_ONCE]) {
  const Vector magic = splat(1.5f * (1 << 21));                // the last bit of a float of this size is a quarter
  auto entry = [](const float* table, Vector k) MPNN_LAMBDA {  // table[low five bits of k]
    return (Vector)_mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)k, _mm512_load_ps(table + 16));
  };
  Vector k[GELU_AT_ONCE], d[GELU_AT_ONCE], p[GELU_AT_ONCE];
  repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA {
    const __m512 end = _mm512_set1_ps((PIECES - 0.51f) / 4);
    const __m512 t = _mm512_range_ps((__m512)x[u], end, 0b1010);  // the smaller absolute value
    k[u] = (Vector)t + magic;
    d[u] = (Vector)_mm512_reduce_ps(t, 2 << 4);  // distance to the nearest quarter
    x[u] = maximum(x[u], Vector{});
    p[u] = entry(GELU_PIECES[PIECE_DEGREE], k[u]);
  });
  repeat<PIECE_DEGREE>([&](auto j) MPNN_LAMBDA {
    repeat<GELU_AT_ONCE>(
        [&](auto u) MPNN_LAMBDA { p[u] = multiply_add(p[u], d[u], entry(GELU_PIECES[PIECE_DEGREE - 1 - j], k[u])); });
  });
  repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { x[u] -= p[u]; });
}
#else
constexpr int GELU_AT_ONCE = LANES == 8 ? 4 : 8;
MPNN_INLINE void gelu(Vector (&x)[GELU_AT_ONCE]) {
  Vector v[GELU_AT_ONCE], p[GELU_AT_ONCE];
  repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA {
    const Vector t = minimum(absolute(x[u]), splat(GELU_END));
    v[u] = multiply_add(t, splat(2 / GELU_END), splat(-1.f));
    x[u] = maximum(x[u], Vector{});
    p[u] = splat(GELU_POLYNOMIAL[GELU_DEGREE]);
  });
  repeat<GELU_DEGREE>([&](auto j) MPNN_LAMBDA {
    repeat<GELU_AT_ONCE>(
        [&](auto u) MPNN_LAMBDA { p[u] = multiply_add(p[u], v[u], splat(GELU_POLYNOMIAL[GELU_DEGREE - 1 - j])); });
  });
  repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { x[u] -= p[u]; });
}
#endif
constexpr int GELU_BLOCK = GELU_AT_ONCE * LANES;  // 64 floats with AVX-512, 32 elsewhere

// GELU of n floats in place; n is rounded up to whole blocks, which the buffer must have room for.
inline void gelu_rows(float* x, int n) {
  for (int i = 0; i < n; i += GELU_BLOCK) {
    Vector v[GELU_AT_ONCE];
    repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { v[u] = load(x + i + u * LANES); });
    gelu(v);
    repeat<GELU_AT_ONCE>([&](auto u) MPNN_LAMBDA { store(x + i + u * LANES, v[u]); });
  }
}

// e^x for x <= 0, to 1e-7 of itself; e^-80 = 2e-35 stands for everything smaller.
MPNN_INLINE Vector exponential(Vector x) {
  const Vector magic = splat(12582912.f);  // 1.5 * 2^23: rounds what is added to a whole number
  x = maximum(x, splat(-80.f));
  const Vector k = multiply_add(x, splat(1.44269504f), magic);
  const Vector f = multiply_add(x, splat(1.44269504f), -(k - magic));
  Vector p = splat(EXP2_POLYNOMIAL[EXP2_DEGREE]);
  repeat<EXP2_DEGREE>([&](auto j) MPNN_LAMBDA { p = multiply_add(p, f, splat(EXP2_POLYNOMIAL[EXP2_DEGREE - 1 - j])); });
  return (Vector)((Bits)p + ((Bits)k << 23));  // times 2^k
}

constexpr float NORM_EPS = 1e-5f;

// Rows [rows, n] in place: LayerNorm(x) = (x - mean) / sqrt(variance + eps) * gain + bias.
inline void layer_norm(float* x, int rows, int n, const float* gain, const float* bias) {
  with_width(n, [&](auto width) MPNN_LAMBDA {
    for (float* end = x + static_cast<size_t>(rows) * n; x != end; x += width) {
      Vector s[2] = {}, q[2] = {};
      for (int c = 0; c < width; c += 2 * LANES) s[0] += load(x + c), s[1] += load(x + c + LANES);
      const Vector mean = splat(sum(s[0] + s[1]) / width);
      for (int c = 0; c < width; c += 2 * LANES) {
        const Vector a = load(x + c) - mean, b = load(x + c + LANES) - mean;
        q[0] = multiply_add(a, a, q[0]), q[1] = multiply_add(b, b, q[1]);
      }
      const Vector scale = splat(1.f / std::sqrt(sum(q[0] + q[1]) / width + NORM_EPS));
      for (int c = 0; c < width; c += LANES)
        store(x + c, multiply_add((load(x + c) - mean) * scale, load(gain + c), load(bias + c)));
    }
  });
}

// Rows [rows, n] in place: x / sqrt(mean(x²) + eps), which is what LayerNorm does to centered rows.
inline void unit_norm(float* x, int rows, int n) {
  with_width(n, [&](auto width) MPNN_LAMBDA {
    for (float* end = x + static_cast<size_t>(rows) * n; x != end; x += width) {
      Vector q[2] = {};
      for (int c = 0; c < width; c += 2 * LANES) {
        const Vector a = load(x + c), b = load(x + c + LANES);
        q[0] = multiply_add(a, a, q[0]), q[1] = multiply_add(b, b, q[1]);
      }
      const Vector scale = splat(1.f / std::sqrt(sum(q[0] + q[1]) / width + NORM_EPS));
      for (int c = 0; c < width; c += LANES) store(x + c, load(x + c) * scale);
    }
  });
}

// x - log Σ exp(x) of n <= 32 floats in place.
inline void log_softmax(float* x, int n) {
  alignas(64) float e[32];
  float most = x[0];
  for (int v = 1; v < n; ++v) most = x[v] > most ? x[v] : most;
  for (int v = 0; v < 32; ++v) e[v] = v < n ? x[v] - most : 0.f;
  for (int v = 0; v < 32; v += LANES) store(e + v, exponential(load(e + v)));
  double total = 0;
  for (int v = 0; v < n; ++v) total += e[v];
  const float log_total = static_cast<float>(std::log(total)) + most;
  for (int v = 0; v < n; ++v) x[v] -= log_total;
}

}  // namespace mpnn
