// Blocks of rows of layers with few outputs as columns in cache, and where their base is kept.
#pragma once

#include <type_traits>

#include "small_tables.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kKeptBase = 1 << 16;  // values of a base that are kept: more would leave the caches

// The rows of whole blocks that a base is kept of; 0 where there is none, or it would be read from memory.
inline int64_t small_kept_rows(const Shape& s) {
  const int64_t rows = ceil_div(s.batch, kSmallRows) * kSmallRows;
  return s.base != kNoBase && rows * s.in <= kKeptBase ? rows : 0;
}

// Columns of one block of rows, padded to whole vectors with zeros.
template <class T>
struct SmallBlock {
  int64_t row0, rows;
  static constexpr int64_t kLd = kSmallRows;

  SmallBlock(int64_t first, int64_t last) : row0(first), rows(min64(kSmallRows, last - first)) {}
  void read(T* columns, const MatrixView& in, int64_t column, int64_t n) const {
    read_columns(columns, kLd, in, row0, rows, column, n);
  }
  // out: the first column of the first row of a matrix of `total` columns.
  void write(void* out, DType dtype, int64_t total, const T* columns, int64_t column, int64_t n) const {
    if (total == 1) return write_row(out, dtype, row0, columns, rows);
    if (dtype == kDTypeOf<T>) {
      T* const to = static_cast<T*>(out) + row0 * total + column;
      return with_outputs(int(n), [&](auto count) {
        for (int64_t b = 0; b < rows; ++b) {
          for (int c = 0; c < count(); ++c) to[b * total + c] = columns[c * kLd + b];
        }
      });
    }
    T line[kSmallOutputs];
    for (int64_t b = 0; b < rows; ++b) {
      for (int64_t c = 0; c < n; ++c) line[c] = columns[c * kLd + b];
      write_row(out, dtype, (row0 + b) * total + column, line, n);
    }
  }

 private:
  // call(n) with the number as a constant.
  template <int N = kSmallOutputs, class Call>
  static void with_outputs(int n, const Call& call) {
    if constexpr (N > 1) {
      if (n != N) return with_outputs<N - 1>(n, call);
    }
    call(std::integral_constant<int, N>());
  }
};

// The columns of one block: of several features or of all outputs.
template <class T>
struct SmallColumns {
  T *x, *row_scale, *outputs, *results, *edges, *base;  // edges and base: of one feature; base: its value and slope

  static constexpr int64_t kSize = std::max(kSmallColumns, kSmallOutputs) * int64_t(kSmallRows);
  static size_t bytes() { return 5 * Arena::bytes_for<T>(kSize) + Arena::bytes_for<T>(2 * kSmallRows); }
  void take(Arena& arena) {
    for (T** columns : {&x, &row_scale, &outputs, &results, &edges}) *columns = arena.take<T>(kSize);
    base = arena.take<T>(2 * kSmallRows);
  }
};

// Where the base of rows from row0 on is kept for the backward pass: its values, and so many rows further its slopes.
template <class T>
T* kept_base(T* all, const Shape& s, int64_t i, int64_t row0) {
  return all + i * 2 * small_kept_rows(s) + row0;
}

// v in the lanes of rows from b on; 0 past the last one, where columns are padded.
template <class T>
KAN_HD Vec<T> of_rows(Vec<T> v, int64_t b, int64_t rows) {
  for (int64_t l = rows - b; l < Simd<T>::lanes; ++l) v[l] = T(0);
  return v;
}

}  // namespace KAN_ISA
}  // namespace kan
