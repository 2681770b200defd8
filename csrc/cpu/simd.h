// The little SIMD that the kernels need, on the compilers' own vector types: any width, any machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "basis/activation.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifndef KAN_VECTOR_BYTES
#define KAN_VECTOR_BYTES 16
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define KAN_HAS_SHUFFLE 1
#endif
#endif

namespace kan {
namespace KAN_ISA {

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
  using bits = uint32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
  using bits = uint64_t;
};

template <class T>
struct Simd {
  using Int = typename IntOf<T>::type;
  static constexpr int lanes = KAN_VECTOR_BYTES / int(sizeof(T));
  typedef T Vec __attribute__((vector_size(KAN_VECTOR_BYTES)));
  typedef Int IVec __attribute__((vector_size(KAN_VECTOR_BYTES)));
  typedef typename IntOf<T>::bits Bits __attribute__((vector_size(KAN_VECTOR_BYTES)));  // wraps around
  typedef T Unaligned __attribute__((vector_size(KAN_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vec = typename Simd<T>::Vec;

template <class T>
KAN_HD Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}
template <class T>
KAN_HD void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}
template <class T>
KAN_HD Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // exact, and folds to one broadcast: 0 + value would have to turn -0 into +0
}

template <class T>
KAN_HD Vec<T> absolute(Vec<T> v) {
  return v < T(0) ? -v : v;
}

// size * sign(v), 0 at 0 and, as in torch, at NaN: a NaN of the row itself comes back through its values.
template <class T>
KAN_HD Vec<T> signed_as(Vec<T> v, Vec<T> size) {
  return v > T(0) ? size : (v < T(0) ? -size : Vec<T>{});
}

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float high = 0.693359375f, low = -2.12194440e-4f, lowest = -87.0f;  // high + low: log 2
  static constexpr uint32_t magic_bits = 0x4B400000u, bias = 127u, mantissa = 23u;
  static constexpr int terms = 8;
  static constexpr float taylor[terms] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
};
template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10, lowest = -708.0;
  static constexpr uint64_t magic_bits = UINT64_C(0x4338000000000000), bias = 1023u, mantissa = 52u;
  static constexpr int terms = 14;
  static constexpr double taylor[terms] = {
      1.0 / 6227020800.0, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,          1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
};

// y[n] <- exp(y[n]) of N vectors with y <= 0 or NaN, relative error below 2 ulp; flushes to 0 where the result would be
// subnormal. Each step of all vectors before the next step: one vector is one long chain of them.
template <class T, int N>
KAN_HD void exp_nonpositive(Vec<T>* y) {
  using C = ExpConstants<T>;
  using Bits = typename Simd<T>::Bits;
  Vec<T> r[N], power[N], p[N];
  KAN_UNROLL
  for (int n = 0; n < N; ++n) {
    const auto vanishes = y[n] < C::lowest;  // -inf has no whole part
    const Vec<T> shifted = y[n] * T(1.4426950408889634074) + C::magic, whole = shifted - C::magic;
    const Vec<T> part = y[n] - whole * C::high;
    const Bits exponent = ((Bits)shifted - C::magic_bits + C::bias) << C::mantissa;
    r[n] = vanishes ? Vec<T>{} : part - whole * C::low;
    power[n] = vanishes ? Vec<T>{} : (Vec<T>)exponent;
    p[n] = broadcast(C::taylor[0]);
  }
  KAN_UNROLL
  for (int i = 1; i < C::terms; ++i) {
    KAN_UNROLL
    for (int n = 0; n < N; ++n) p[n] = p[n] * r[n] + C::taylor[i];
  }
  KAN_UNROLL
  for (int n = 0; n < N; ++n) y[n] = p[n] * power[n];
}
template <class T>
KAN_HD Vec<T> exp_nonpositive(Vec<T> y) {
  exp_nonpositive<T, 1>(&y);
  return y;
}

// 1 / x for x from 1 to 2, or NaN, to about one ulp. A division takes as long as a dozen multiplications.
#ifdef __AVX512F__
KAN_HD Vec<float> reciprocal_1_to_2(Vec<float> x) {
  const Vec<float> guess = (Vec<float>)_mm512_rcp14_ps((__m512)x);
  return guess + guess * (1.0f - x * guess);
}
KAN_HD Vec<double> reciprocal_1_to_2(Vec<double> x) {
  Vec<double> guess = (Vec<double>)_mm512_rcp14_pd((__m512d)x);
  guess = guess + guess * (1.0 - x * guess);
  return guess + guess * (1.0 - x * guess);
}
#else
template <class V>
KAN_HD V reciprocal_1_to_2(V x) {
  return 1.0f / x;
}
#endif

// logistic(x) and 1 - logistic(x) of N vectors, neither by a subtraction.
template <class T, int N>
KAN_HD void logistic(const Vec<T>* x, Logistic<Vec<T>>* out) {
  using Bits = typename Simd<T>::Bits;
  const Bits sign = Bits{} + (typename IntOf<T>::bits(1) << (8 * sizeof(T) - 1));
  Vec<T> e[N], large[N];
  KAN_UNROLL
  for (int n = 0; n < N; ++n) e[n] = (Vec<T>)((Bits)x[n] | sign);
  exp_nonpositive<T, N>(e);
  KAN_UNROLL
  for (int n = 0; n < N; ++n) large[n] = reciprocal_1_to_2(e[n] + T(1));
  KAN_UNROLL
  for (int n = 0; n < N; ++n) {
    const auto negative = (typename Simd<T>::IVec)x[n] < 0;  // by the sign's bit: -0 and NaN may go either way
    const Vec<T> small = e[n] * large[n];
    out[n] = {negative ? small : large[n], negative ? large[n] : small};
  }
}

// One step of the reduction below: of two vectors, blocks of `Block` lanes are halved; the sums of a's halves go to
// the lower half of each block and the sums of b's to the upper.
#ifdef KAN_HAS_SHUFFLE
template <int Block, int Lanes, bool Upper>
constexpr int fold_index(int lane) {
  const int half = Block / 2, block = lane / Block * Block, within = lane % Block;
  return (within < half ? 0 : Lanes) + block + within % half + (Upper ? half : 0);
}
template <class T, int Block, int... I>
KAN_HD Vec<T> fold(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int L = Simd<T>::lanes;
  return __builtin_shufflevector(a, b, fold_index<Block, L, false>(I)...) +
         __builtin_shufflevector(a, b, fold_index<Block, L, true>(I)...);
}
template <class T, int Block>
KAN_HD void fold_all(Vec<T>* rows) {  // rows[0 .. Block) hold Lanes/Block finished foldings each
  KAN_UNROLL
  for (int i = 0; i < Block / 2; ++i) {
    rows[i] = fold<T, Block>(rows[i], rows[i + Block / 2], std::make_integer_sequence<int, Simd<T>::lanes>());
  }
  if constexpr (Block > 2) fold_all<T, Block / 2>(rows);
}
#endif

// out[c * out_ld + r] = in[r * in_ld + c] for one square of `lanes` rows and columns.
#ifdef KAN_HAS_SHUFFLE
template <int Step, int Lanes, bool Upper>
constexpr int exchange_index(int lane) {  // of a pair of rows `Step` apart, the half that belongs to one of them
  const bool second = (lane & Step) != 0;
  return (second ? Lanes : 0) + (Upper ? (second ? lane : lane + Step) : (second ? lane - Step : lane));
}
template <class T, int Step, int... I>
KAN_HD void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, I...>) {
  constexpr int L = Simd<T>::lanes;
  const Vec<T> low = __builtin_shufflevector(a, b, exchange_index<Step, L, false>(I)...);
  b = __builtin_shufflevector(a, b, exchange_index<Step, L, true>(I)...);
  a = low;
}
template <class T, int Step>
KAN_HD void exchange_all(Vec<T>* rows) {
  KAN_UNROLL
  for (int r = 0; r < Simd<T>::lanes; ++r) {
    if ((r & Step) == 0) {
      exchange<T, Step>(rows[r], rows[r + Step], std::make_integer_sequence<int, Simd<T>::lanes>());
    }
  }
  if constexpr (Step > 1) exchange_all<T, Step / 2>(rows);
}
#endif

template <class T>
KAN_HD void transpose_square(T* out, int64_t out_ld, const T* in, int64_t in_ld) {
  constexpr int L = Simd<T>::lanes;
#ifdef KAN_HAS_SHUFFLE
  Vec<T> row[L];
  KAN_UNROLL
  for (int r = 0; r < L; ++r) row[r] = load(in + r * in_ld);
  exchange_all<T, L / 2>(row);
  KAN_UNROLL
  for (int r = 0; r < L; ++r) store(out + r * out_ld, row[r]);
#else
  for (int c = 0; c < L; ++c) {
    for (int r = 0; r < L; ++r) out[c * out_ld + r] = in[r * in_ld + c];
  }
#endif
}

// The sum of all lanes, in one fixed order: 16-byte parts first, then within one part.
template <class T>
KAN_HD T sum_lanes(Vec<T> v) {
  typedef T Part __attribute__((vector_size(16), aligned(16), may_alias));
  constexpr int parts = KAN_VECTOR_BYTES / 16, lanes = 16 / int(sizeof(T));
  alignas(64) T lane[Simd<T>::lanes];
  store(lane, v);
  Part sum = *reinterpret_cast<const Part*>(lane);
  KAN_UNROLL
  for (int p = 1; p < parts; ++p) sum += *reinterpret_cast<const Part*>(lane + p * lanes);
  T total = sum[0];
  KAN_UNROLL
  for (int l = 1; l < lanes; ++l) total += sum[l];
  return total;
}

// sums[r] = sum of the lanes of row r, for `lanes` consecutive rows of `lanes` elements, in one fixed order.
template <class T>
KAN_HD void sum_rows(T* sums, const T* rows) {
  constexpr int L = Simd<T>::lanes;
#ifdef KAN_HAS_SHUFFLE
  Vec<T> row[L];
  KAN_UNROLL
  for (int r = 0; r < L; ++r) row[r] = load(rows + r * L);
  fold_all<T, L>(row);
  store(sums, row[0]);
#else
  for (int r = 0; r < L; ++r) sums[r] = sum_lanes<T>(load(rows + r * L));
#endif
}

}  // namespace KAN_ISA
}  // namespace kan
