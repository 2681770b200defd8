// Lines of four neighbouring numbers in memory, one for each lane of a vector: read into four vectors, or added to.
#pragma once

#include "cpu/simd.h"

namespace kan {
namespace KAN_ISA {

constexpr int kLine = 4;

#ifdef KAN_HAS_SHUFFLE
typedef float Line __attribute__((vector_size(kLine * sizeof(float)), may_alias));

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
template <int At, int... I>
KAN_HD Line part_of(Vec<float> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (At * kLine + I)...);
}

template <int Part = 0>
KAN_HD void add_parts(float* lines, const int32_t* offsets, const Vec<float>* rows) {
  if constexpr (Part * kLine < Simd<float>::lanes) {
    KAN_UNROLL
    for (int i = 0; i < kLine; ++i) {
      Line* const line = reinterpret_cast<Line*>(lines + offsets[Part * kLine + i]);
      *line += part_of<Part>(rows[i], std::make_integer_sequence<int, kLine>());
    }
    add_parts<Part + 1>(lines, offsets, rows);
  }
}
#endif

// columns[i][lane] = lines[offsets[lane] + i], of all numbers of a line or of its first ones.
template <int Columns = kLine>
KAN_HD void read_lines(const float* lines, const int32_t* offsets, Vec<float>* columns) {
#ifdef KAN_HAS_SHUFFLE
  Vec<float> rows[kLine], all[kLine];
  KAN_UNROLL
  for (int i = 0; i < kLine; ++i) {
    rows[i] = join<Simd<float>::lanes>(
        [&](int part) { return *reinterpret_cast<const Line*>(lines + offsets[part * kLine + i]); });
  }
  transpose_fours(rows, all);  // what is not asked for is not computed
  KAN_UNROLL
  for (int i = 0; i < Columns; ++i) columns[i] = all[i];
#else
  for (int i = 0; i < Columns; ++i) {
    for (int l = 0; l < Simd<float>::lanes; ++l) columns[i][l] = lines[offsets[l] + i];
  }
#endif
}

// lines[offsets[lane] + i] += columns[i][lane], lane after lane.
KAN_HD void add_lines(float* lines, const int32_t* offsets, const Vec<float>* columns) {
#ifdef KAN_HAS_SHUFFLE
  Vec<float> rows[kLine];
  transpose_fours(columns, rows);
  add_parts(lines, offsets, rows);
#else
  for (int l = 0; l < Simd<float>::lanes; ++l) {
    for (int i = 0; i < kLine; ++i) lines[offsets[l] + i] += columns[i][l];
  }
#endif
}

// Whether a lane of a mask is set.
KAN_HD bool any_lane(Simd<float>::IVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  Simd<float>::Int any = 0;
  for (int l = 0; l < Simd<float>::lanes; ++l) any |= mask[l];
  return any != 0;
#endif
}

}  // namespace KAN_ISA
}  // namespace kan
