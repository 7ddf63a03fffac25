// One vector of floats for every instruction set: 16 lanes in AVX-512, 8 in AVX2, 4 elsewhere.
// GCC's and Clang's vector extensions supply the arithmetic; a handful of operations need intrinsics.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns of its own intrinsics
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MPNN_INLINE inline __attribute__((always_inline))
#define MPNN_LAMBDA __attribute__((always_inline))

namespace mpnn {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define MPNN_AVX512 1
constexpr int LANES = 16;
#elif defined(__AVX2__)
#define MPNN_AVX2 1
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Bits __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

MPNN_INLINE Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
MPNN_INLINE void store(float* p, Vector x) { *reinterpret_cast<Unaligned*>(p) = x; }
MPNN_INLINE Vector splat(float x) { return x - Vector{}; }
// One rounding: -ffp-contract=fast makes it a fused multiply-add.
MPNN_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
MPNN_INLINE Vector absolute(Vector a) { return (Vector)((Bits)a & 0x7fffffff); }

#if defined(MPNN_AVX512)
MPNN_INLINE Vector maximum(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
MPNN_INLINE Vector minimum(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
MPNN_INLINE Vector square_root(Vector a) { return (Vector)_mm512_sqrt_ps((__m512)a); }
MPNN_INLINE float sum(Vector a) { return _mm512_reduce_add_ps((__m512)a); }
#elif defined(MPNN_AVX2)
MPNN_INLINE Vector maximum(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
MPNN_INLINE Vector minimum(Vector a, Vector b) { return (Vector)_mm256_min_ps((__m256)a, (__m256)b); }
MPNN_INLINE Vector square_root(Vector a) { return (Vector)_mm256_sqrt_ps((__m256)a); }
MPNN_INLINE float sum(Vector a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#elif defined(__aarch64__)
MPNN_INLINE Vector maximum(Vector a, Vector b) { return (Vector)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
MPNN_INLINE Vector minimum(Vector a, Vector b) { return (Vector)vminq_f32((float32x4_t)a, (float32x4_t)b); }
MPNN_INLINE Vector square_root(Vector a) { return (Vector)vsqrtq_f32((float32x4_t)a); }
MPNN_INLINE float sum(Vector a) { return vaddvq_f32((float32x4_t)a); }
#else
MPNN_INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
MPNN_INLINE Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
MPNN_INLINE Vector square_root(Vector a) {
  for (int i = 0; i < LANES; ++i) a[i] = std::sqrt(a[i]);
  return a;
}
MPNN_INLINE float sum(Vector a) { return (a[0] + a[1]) + (a[2] + a[3]); }
#endif

// Rounds x here: a product behind this point cannot become part of a fused multiply-add.
MPNN_INLINE void round_here(Vector& x) {
#if defined(__aarch64__)
  asm("" : "+w"(x));
#elif defined(MPNN_AVX512)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#else
  volatile Vector rounded = x;
  x = rounded;
#endif
}

// Calls f(0), …, f(N - 1) with constants, so that what they index stays in registers.
template <int N, class F>
MPNN_INLINE void repeat(F f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      MPNN_LAMBDA { (f(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

// Calls f with n, as a compile-time constant for the two published widths: loops over it unroll.
template <class F>
MPNN_INLINE void with_width(int n, F f) {
  if (n == 128) f(std::integral_constant<int, 128>{});
  else if (n == 64) f(std::integral_constant<int, 64>{});
  else f(n);
}

// Counts denormals as zero in this thread while it lives: exp(-z²) makes them in plenty, and they
// slow a matmul twentyfold.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | uint64_t(1) << 24));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#else
  FlushDenormals() : before(0) {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  unsigned before;
#else
  uint64_t before;
#endif
};

}  // namespace mpnn
