// Lines of four neighbouring numbers in memory, one for each lane of a vector: read into four vectors, or added to.
#pragma once

#include "cpu/simd.h"

namespace kan {
namespace KAN_ISA {

constexpr int kLine = 4;

template <class T>
struct LineOf {
  typedef T type __attribute__((vector_size(kLine * sizeof(T)), may_alias));
};
template <class T>
using Line = typename LineOf<T>::type;

// As many 32-bit integers as a vector has lanes.
template <class T>
struct OffsetsOf {
  typedef int32_t type __attribute__((vector_size(Simd<T>::lanes * sizeof(int32_t)), aligned(4), may_alias));
};
template <class T>
using Offsets = typename OffsetsOf<T>::type;

template <class T>
KAN_HD Offsets<T> load_offsets(const int32_t* p) {
  return *reinterpret_cast<const Offsets<T>*>(p);
}
template <class T>
KAN_HD void store_offsets(int32_t* p, Offsets<T> offsets) {
  *reinterpret_cast<Offsets<T>*>(p) = offsets;
}

#ifdef KAN_HAS_SHUFFLE
// Of each four lanes: the lower (or upper) two of a and of b, one by one.
template <bool Upper, int... I>
KAN_HD Vec<float> interleave(Vec<float> a, Vec<float> b, std::integer_sequence<int, I...>) {
  constexpr int L = Simd<float>::lanes;
  return __builtin_shufflevector(a, b, (I % 2 * L + I / 4 * 4 + I % 4 / 2 + (Upper ? 2 : 0))...);
}
// The same, both of a before both of b.
template <bool Upper, int... I>
KAN_HD Vec<float> concatenate(Vec<float> a, Vec<float> b, std::integer_sequence<int, I...>) {
  constexpr int L = Simd<float>::lanes;
  return __builtin_shufflevector(a, b, (I % 4 / 2 * L + I / 4 * 4 + I % 2 + (Upper ? 2 : 0))...);
}
// Transposes the four by four numbers in each four lanes of four vectors.
KAN_HD void transpose_fours(const Vec<float>* in, Vec<float>* out) {
  const std::make_integer_sequence<int, Simd<float>::lanes> lanes;
  const Vec<float> low = interleave<false>(in[0], in[1], lanes), next_low = interleave<false>(in[2], in[3], lanes);
  const Vec<float> high = interleave<true>(in[0], in[1], lanes), next_high = interleave<true>(in[2], in[3], lanes);
  out[0] = concatenate<false>(low, next_low, lanes), out[1] = concatenate<true>(low, next_low, lanes);
  out[2] = concatenate<false>(high, next_high, lanes), out[3] = concatenate<true>(high, next_high, lanes);
}
KAN_HD void transpose_fours(const Vec<double>* in, Vec<double>* out) {
  const std::make_integer_sequence<int, Simd<double>::lanes> lanes;
  KAN_UNROLL
  for (int i = 0; i < kLine; ++i) out[i] = in[i];
  exchange<double, 2>(out[0], out[2], lanes), exchange<double, 2>(out[1], out[3], lanes);
  exchange<double, 1>(out[0], out[1], lanes), exchange<double, 1>(out[2], out[3], lanes);
}

template <class Half, int... I>
KAN_HD auto join_halves(Half low, Half high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, I...);
}
// The lines part(0), part(1), ... one after another, as many as fill a vector.
template <int Lanes, class Part>
KAN_HD auto join(const Part& part, int first = 0) {
  if constexpr (Lanes == kLine) {
    return part(first);
  } else {
    const auto low = join<Lanes / 2>(part, first), high = join<Lanes / 2>(part, first + Lanes / 2 / kLine);
    return join_halves(low, high, std::make_integer_sequence<int, Lanes>());
  }
}
template <class T, int At, int... I>
KAN_HD Line<T> part_of(Vec<T> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (At * kLine + I)...);
}
template <class T, int Part = 0>
KAN_HD void split(const Vec<T>* rows, Line<T>* lines) {
  if constexpr (Part * kLine < Simd<T>::lanes) {
    KAN_UNROLL
    for (int i = 0; i < kLine; ++i) {
      lines[Part * kLine + i] = part_of<T, Part>(rows[i], std::make_integer_sequence<int, kLine>());
    }
    split<T, Part + 1>(rows, lines);
  }
}
#endif

template <class T, int... Lane>
KAN_HD Vec<T> gathered(const T* from, const int32_t* offsets, std::integer_sequence<int, Lane...>) {
  return Vec<T>{from[offsets[Lane]]...};
}

// columns[i][lane] = lines[offsets[lane] + i], of all numbers of a line or of its first ones.
template <class T, int Columns = kLine>
KAN_HD void read_lines(const T* lines, const int32_t* offsets, Vec<T>* columns) {
#ifdef KAN_HAS_SHUFFLE
  if constexpr (Simd<T>::lanes >= kLine) {
    Vec<T> rows[kLine], all[kLine];
    KAN_UNROLL
    for (int i = 0; i < kLine; ++i) {
      rows[i] = join<Simd<T>::lanes>(
          [&](int part) { return *reinterpret_cast<const Line<T>*>(lines + offsets[part * kLine + i]); });
    }
    transpose_fours(rows, all);  // what is not asked for is not computed
    KAN_UNROLL
    for (int i = 0; i < Columns; ++i) columns[i] = all[i];
    return;
  }
#endif
  const std::make_integer_sequence<int, Simd<T>::lanes> lanes;
  KAN_UNROLL
  for (int i = 0; i < Columns; ++i) columns[i] = gathered<T>(lines + i, offsets, lanes);
}

// lines[lane][i] = columns[i][lane]
template <class T>
KAN_HD void lines_of(const Vec<T>* columns, Line<T>* lines) {
#ifdef KAN_HAS_SHUFFLE
  if constexpr (Simd<T>::lanes >= kLine) {
    Vec<T> rows[kLine];
    transpose_fours(columns, rows);
    return split<T>(rows, lines);
  }
#endif
  KAN_UNROLL
  for (int l = 0; l < Simd<T>::lanes; ++l)
    lines[l] = Line<T>{columns[0][l], columns[1][l], columns[2][l], columns[3][l]};
}

// lines[offsets[lane] + i] += columns[i][lane], lane after lane.
template <class T>
KAN_HD void add_lines(T* lines, const int32_t* offsets, const Vec<T>* columns) {
  Line<T> rows[Simd<T>::lanes];
  lines_of<T>(columns, rows);
  KAN_UNROLL
  for (int l = 0; l < Simd<T>::lanes; ++l) *reinterpret_cast<Line<T>*>(lines + offsets[l]) += rows[l];
}

// Whether a lane of a mask is set.
template <class IVec>
KAN_HD bool any_lane(IVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  auto any = mask[0];
  for (int l = 1; l < int(sizeof(mask) / sizeof(mask[0])); ++l) any |= mask[l];
  return any != 0;
#endif
}

}  // namespace KAN_ISA
}  // namespace kan
