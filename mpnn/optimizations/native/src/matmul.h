// x·W + something for a few rows at a time, with what comes before and after kept in registers.
#pragma once
#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "simd.h"

#if defined(__APPLE__) || defined(MPNN_BLAS)
#define MPNN_WITH_BLAS 1
#include <vector>
#endif

namespace mpnn {

// The micro-kernel holds ROWS × COLUMNS sums in registers.
#if defined(MPNN_AVX512)
constexpr int ROWS = 12, VECTORS = 2;  // 24 of 32 registers
#elif defined(MPNN_AVX2)
constexpr int ROWS = 6, VECTORS = 2;  // 12 of 16 registers
#else
constexpr int ROWS = 6, VECTORS = 4;  // 24 of 32 registers
#endif
constexpr int COLUMNS = LANES * VECTORS;

// W [depth, columns] of x·W, packed in panels of COLUMNS columns, each panel [depth, COLUMNS].
class Matrix {
 public:
  Matrix() = default;
  // From a weight [out, in] of nn.Linear, whose rows are `stride` apart.
  Matrix(const float* weight, int out, int in, int stride)
      : used(out), depth(in), panels((out + COLUMNS - 1) / COLUMNS), packed(size_t(panels) * COLUMNS * in) {
    std::fill(packed.data(), packed + size_t(panels) * COLUMNS * in, 0.f);
    for (int n = 0; n < out; ++n)
      for (int k = 0; k < in; ++k)
        packed[(size_t(n / COLUMNS) * in + k) * COLUMNS + n % COLUMNS] = weight[size_t(n) * stride + k];
#if defined(MPNN_WITH_BLAS)
    plain.assign(size_t(in) * panels * COLUMNS, 0.f);
    for (int n = 0; n < out; ++n)
      for (int k = 0; k < in; ++k) plain[size_t(k) * columns() + n] = weight[size_t(n) * stride + k];
#endif
  }
  int columns() const { return panels * COLUMNS; }
  const float* panel(int p) const { return packed + size_t(p) * depth * COLUMNS; }

  int used = 0, depth = 0, panels = 0;  // used: columns that are not padding
#if defined(MPNN_WITH_BLAS)
  std::vector<float> plain;  // [depth, columns]
#endif

 private:
  Buffer packed;
};

// Which part of the depth to sum over.
struct Depth {
  bool lower_triangular = false;  // column c has no entry beyond depth c
  const int32_t* rows = nullptr;  // the rows of W that X's columns stand for, or null: all in order
  int count = 0;                  // of `rows`
};

// What one thread has multiplied. Padding is not counted, so every instruction set counts the same.
struct Work {
  int64_t multiply_adds = 0, matmuls = 0;

  void count(int rows, const Matrix& W, Depth part) {
    const int64_t n = W.used;
    const int64_t entries = part.lower_triangular ? n * (n + 1) / 2 : n * (part.rows ? part.count : W.depth);
    multiply_adds += rows * entries, ++matmuls;
  }
};

// Rows that the next matmuls will read: a few are fetched at every call of the micro-kernel, so that
// they come from the outer caches while this core multiplies.
class Ahead {
 public:
  void begin(int row_floats, int rows_each) { at = count = 0, floats = row_floats, each = rows_each; }
  void add(const float* row) {
    if (count < MOST) rows[count++] = row;
  }
  void add(const float* first, int n) {
    for (int r = 0; r < n; ++r) add(first + size_t(r) * floats);
  }
  void fetch_some() {
    for (const int end = std::min(count, at + each); at < end; ++at)
      for (int c = 0; c < floats; c += 16) __builtin_prefetch(rows[at] + c, 0, 2);
  }

  Work work;  // of the matmuls that this thread ran

 private:
  static constexpr int MOST = 160;
  const float* rows[MOST];
  int at = 0, count = 0, floats = 0, each = 0;
};

#if defined(MPNN_WITH_BLAS)
typedef void (*Sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a,
                      int lda, const float* b, int ldb, float beta, float* c, int ldc);
Sgemm find_sgemm();  // Accelerate's on macOS; nullptr where it is missing

template <class Init, class Done>
void matmul_by_blas(Sgemm sgemm, int rows, const float* X, int stride, const Matrix& W, Init init, Done done,
                    Depth part) {
  static thread_local std::vector<float> y, picked;
  const int n = W.columns(), depth = part.rows ? part.count : W.depth;
  if (y.size() < size_t(rows) * n) y.resize(size_t(rows) * n);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < n; c += LANES) store(&y[size_t(r) * n + c], init(r, c));
  const float* w = W.plain.data();
  if (part.rows) {
    picked.resize(size_t(depth) * n);
    for (int k = 0; k < depth; ++k) std::copy_n(w + size_t(part.rows[k]) * n, n, &picked[size_t(k) * n]);
    w = picked.data();
  }
  if (depth) sgemm(101, 111, 111, rows, n, depth, 1.f, X, stride, w, n, 1.f, y.data(), n);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < n; c += LANES) done(r, c, load(&y[size_t(r) * n + c]));
}
#endif

// M rows times one panel, whose rows are all in order or those of `picked`. Rows beyond `last` repeat
// it and are not passed on. What `init` returns is added at the end: sums that began with it would
// round all their products to its last bit.
template <int M, bool FULL, bool PICKED, class Init, class Done>
MPNN_INLINE void micro_kernel(const float* X, int stride, int last, const float* W, int depth, const int32_t* picked,
                              Init init, Done done) {
  Vector sums[M][VECTORS];
  const float* x[M];
  repeat<M>([&](auto r) MPNN_LAMBDA {
    const int row = FULL ? int(r) : std::min(int(r), last);
    x[r] = X + size_t(row) * stride;
    repeat<VECTORS>([&](auto v) MPNN_LAMBDA { sums[r][v] = Vector{}; });
  });
  for (int k = 0; k < depth; ++k) {
    const float* of_k = W + size_t(PICKED ? picked[k] : k) * COLUMNS;
    Vector w[VECTORS];
    repeat<VECTORS>([&](auto v) MPNN_LAMBDA { w[v] = load(of_k + v * LANES); });
    repeat<M>([&](auto r) MPNN_LAMBDA {
      const Vector a = splat(FULL ? X[size_t(r) * stride + k] : x[r][k]);
      repeat<VECTORS>([&](auto v) MPNN_LAMBDA { sums[r][v] = multiply_add(a, w[v], sums[r][v]); });
    });
  }
  repeat<M>([&](auto r) MPNN_LAMBDA {
    if (FULL || int(r) <= last)
      repeat<VECTORS>([&](auto v)
                          MPNN_LAMBDA { done(int(r), int(v) * LANES, sums[r][v] + init(int(r), int(v) * LANES)); });
  });
}

// Calls done(row, column, x·W + init(row, column)) for all rows of X [rows, depth] and all columns.
// A row's bits do not depend on the rows beside it: each sum adds one product after another.
template <bool PICKED = false, class Init, class Done>
void matmul(Ahead& ahead, int rows, const float* X, int stride, const Matrix& W, Init init, Done done,
            Depth part = {}) {
  ahead.work.count(rows, W, part);
#if defined(MPNN_WITH_BLAS)
  static const Sgemm sgemm = find_sgemm();
  if (sgemm) return matmul_by_blas(sgemm, rows, X, stride, W, init, done, part);
#endif
  for (int p = 0; p < W.panels; ++p) {
    const int whole = PICKED ? part.count : W.depth;
    const int depth = part.lower_triangular ? std::min(whole, (p + 1) * COLUMNS) : whole;
    int at = 0;
    auto some = [&]<int M, bool FULL>(std::integral_constant<int, M>, std::bool_constant<FULL>) MPNN_LAMBDA {
      ahead.fetch_some();
      micro_kernel<M, FULL, PICKED>(
          X + size_t(at) * stride, stride, rows - 1 - at, W.panel(p), depth, part.rows,
          [&](int r, int c) MPNN_LAMBDA { return init(at + r, p * COLUMNS + c); },
          [&](int r, int c, Vector y) MPNN_LAMBDA { done(at + r, p * COLUMNS + c, y); });
      at += M;
    };
    while (at + ROWS <= rows) some(std::integral_constant<int, ROWS>{}, std::true_type{});
    if constexpr (ROWS == 12)
      if (rows - at > 8) some(std::integral_constant<int, 12>{}, std::false_type{});
    if (rows - at > 4) some(std::integral_constant<int, std::min(ROWS, 8)>{}, std::false_type{});
    if (rows > at) some(std::integral_constant<int, 4>{}, std::false_type{});
  }
}

}  // namespace mpnn
