// What the values of a grid must be, looked at by every call on the CPU that reads them: without branches where all is
// well.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cpu/simd.h"
#include "layer.h"

namespace kan {

// Whether all rows of a grid are good.
template <class T>
class GridVerdict {
 public:
  // The numbers do not decrease: between finite ones none is NaN or infinite then.
  void rising(const T* row, int64_t n) {
    pairs(row, row + 1, n - 1, [](auto a, auto b) { return a <= b; });
    all_ &= (row[0] - row[0] == T(0)) & (row[n - 1] - row[n - 1] == T(0));
  }
  void finite(const T* row, int64_t n) {
    pairs(row, row, n, [](auto a, auto b) { return a - b == T(0); });
  }
  void positive(T number) { all_ &= number > T(0); }
  bool good() const {
    bool all = all_;
    for (int l = 0; l < L; ++l) all &= lanes_[l] != 0;
    return all;
  }

 private:
  static constexpr int L = scalar::Simd<T>::lanes;

  // ok(a[j], b[j]) for j < n; the last vector overlaps the one before.
  template <class Ok>
  void pairs(const T* a, const T* b, int64_t n, Ok ok) {
    for (int64_t j = 0; n < L && j < n; ++j) all_ &= ok(a[j], b[j]);
    for (int64_t j = 0; j + L <= n; j += L) lanes_ &= ok(scalar::load(a + j), scalar::load(b + j));
    if (n >= L) lanes_ &= ok(scalar::load(a + n - L), scalar::load(b + n - L));
  }

  typename scalar::Simd<T>::IVec lanes_ = ~typename scalar::Simd<T>::IVec{};
  bool all_ = true;
};

// A number as Python writes it: the fewest digits that give it back.
inline std::string number_text(double v) {
  if (v - v != 0) return v != v ? "nan" : v > 0 ? "inf" : "-inf";
  char text[40];
  int digits = 0;
  do std::snprintf(text, sizeof text, "%.*e", digits, v);
  while (std::strtod(text, nullptr) != v && ++digits < 17);
  const int exponent = std::atoi(std::strchr(text, 'e') + 1);
  if (exponent >= -4 && exponent < 16) {
    std::snprintf(text, sizeof text, "%.*f", digits - exponent > 1 ? digits - exponent : 1, v);
  }
  return text;
}

// What is wrong with the first bad number of a grid (in, columns), in the words of kan_kernels/_core/checks.py.
template <class T>
std::string grid_fault(GridRow kind, const T* grid, int64_t in, int64_t columns) {
  for (int64_t i = 0; i < in; ++i, grid += columns) {
    const std::string feature = " of feature " + std::to_string(i) + " is ";
    for (int64_t j = 0; j < columns; ++j) {
      const T v = grid[j];
      const bool finite = v - v == T(0), last = j + 1 == columns;
      const std::string value = feature + number_text(double(v));
      if (kind == GridRow::knots && !(finite && (j == 0 || v >= grid[j - 1]))) {
        return "knot " + std::to_string(j) + value + (j ? " after " + number_text(double(grid[j - 1])) : "") +
               ", expected finite, non-decreasing knots";
      }
      if (kind == GridRow::numbers && !finite) {
        return "column " + std::to_string(j) + value + ", expected finite numbers";
      }
      if (kind == GridRow::centres && !(finite && (!last || v > T(0)))) {
        return "the " + (last ? "width" : "centre " + std::to_string(j)) + value +
               ", expected finite centres and a finite width > 0";
      }
    }
  }
  return "";
}

// "", or what is wrong with the values of a grid, whose rows hold this.
template <class T>
std::string grid_complaint(GridRow kind, const T* grid, int64_t in, int64_t columns) {
  if (columns == 0) return "";
  GridVerdict<T> verdict;
  for (int64_t i = 0; i < in; ++i) {
    const T* row = grid + i * columns;
    if (kind == GridRow::knots) {
      verdict.rising(row, columns);
    } else {
      verdict.finite(row, columns);
      if (kind == GridRow::centres) verdict.positive(row[columns - 1]);
    }
  }
  return verdict.good() ? "" : "grid: " + grid_fault(kind, grid, in, columns);
}

// The same of a layer on the CPU, whose grid has the type that it computes in.
inline std::string grid_complaint(const Layer& l) {
  const BasisRecord& record = kBases[l.basis];
  const int64_t columns = record.columns(l.functions, l.order);
  if (l.weight_dtype == DType::f64) {
    return grid_complaint(record.row, static_cast<const double*>(l.grid), l.in_features, columns);
  }
  return grid_complaint(record.row, static_cast<const float*>(l.grid), l.in_features, columns);
}

}  // namespace kan
