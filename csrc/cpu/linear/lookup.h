// Small tables read by a vector of indices: from registers, where the machine can, or from memory.
#pragma once

#include "cpu/lines.h"

namespace kan {
namespace KAN_ISA {

// Lookup<T>::entries: the longest table (0: none). A table has that length or, if Short, that of one register.
template <class T>
struct Lookup {
  static constexpr int entries = 0;
  template <bool Short>
  static KAN_HD Vec<T> read(const T*, typename Simd<T>::IVec) {
    return {};
  }
};

#if defined(__AVX512F__)
template <>
struct Lookup<float> {
  static constexpr int entries = 32;
  template <bool Short>
  static KAN_HD Vec<float> read(const float* table, Simd<float>::IVec index) {
    const __m512 low = _mm512_load_ps(table);
    if constexpr (Short) return (Vec<float>)_mm512_permutexvar_ps((__m512i)index, low);
    return (Vec<float>)_mm512_permutex2var_ps(low, (__m512i)index, _mm512_load_ps(table + 16));
  }
};
template <>
struct Lookup<double> {
  static constexpr int entries = 16;
  template <bool Short>
  static KAN_HD Vec<double> read(const double* table, Simd<double>::IVec index) {
    const __m512d low = _mm512_load_pd(table);
    if constexpr (Short) return (Vec<double>)_mm512_permutexvar_pd((__m512i)index, low);
    return (Vec<double>)_mm512_permutex2var_pd(low, (__m512i)index, _mm512_load_pd(table + 8));
  }
};
#elif defined(__AVX2__)
template <>
struct Lookup<float> {
  static constexpr int entries = 16;
  template <bool Short>
  static KAN_HD Vec<float> read(const float* table, Simd<float>::IVec index) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)index);
    if constexpr (Short) return (Vec<float>)low;
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), (__m256i)index);
    const __m256i upper = _mm256_slli_epi32((__m256i)index, 28);  // the sign chooses
    return (Vec<float>)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(upper));
  }
};
#endif

// How many numbers of a rising table, which infinities or NaN fill, are at or below each lane of x; 0 for NaN.
template <class T, bool Short>
KAN_HD typename Simd<T>::IVec count_at_or_below(const T* table, Vec<T> x) {
  using IVec = typename Simd<T>::IVec;
  using Int = typename Simd<T>::Int;
  constexpr int N = Short ? Simd<T>::lanes : Lookup<T>::entries;
  IVec count = x >= broadcast(table[N / 2 - 1]) ? IVec{} + Int(N / 2) : IVec{};
  KAN_UNROLL
  for (int step = N / 4; step > 0; step /= 2) {
    const Vec<T> number = Lookup<T>::template read<Short>(table, count + Int(step - 1));
    count += x >= number ? IVec{} + Int(step) : IVec{};
  }
  return count;
}

// Four columns of N numbers, of which each lane reads its own entry's: where registers hold a column, columns lie
// together, else the numbers of an entry, as a line.
template <class T, int N>
class LineTable {
 public:
  static constexpr bool kInRegisters = N <= Lookup<T>::entries;

  void put(int entry, int column, T number) {
    numbers_[kInRegisters ? column * N + entry : entry * kLine + column] = number;
  }
  void put(int entry, Line<T> line) {
    KAN_UNROLL
    for (int c = 0; c < kLine; ++c) put(entry, c, line[c]);
  }
  // In registers.
  template <int Columns = kLine>
  KAN_HD void read(Offsets<T> entries, Vec<T>* columns) const {
    const auto index = __builtin_convertvector(entries, typename Simd<T>::IVec);
    KAN_UNROLL
    for (int c = 0; c < Columns; ++c) {
      columns[c] = Lookup<T>::template read<N == Simd<T>::lanes>(numbers_ + c * N, index);
    }
  }
  // offsets: of the lanes' entries, times kLine.
  template <int Columns = kLine>
  KAN_HD void read(const int32_t* offsets, Vec<T>* columns) const {
    if constexpr (kInRegisters) {
      static_assert(kLine == 4, "a shift divides by it");
      read<Columns>(load_offsets<T>(offsets) >> 2, columns);
    } else {
      read_lines<T, Columns>(numbers_, offsets, columns);
    }
  }

 private:
  alignas(64) T numbers_[kLine * N];
};

}  // namespace KAN_ISA
}  // namespace kan
