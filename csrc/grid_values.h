// What the values of a grid must be, looked at by every call on the CPU that reads them: without branches where all is
// well.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "layer.h"

namespace kan {

// Whether the numbers of a row are finite and do not decrease, or increase if `strictly`.
template <class T>
bool rises(const T* row, int64_t n, bool strictly = false) {
  bool good = (row[0] - row[0] == T(0)) & (row[n - 1] - row[n - 1] == T(0));  // what lies between finite ends is finite
  for (int64_t j = 1; j < n; ++j) good &= strictly ? row[j] > row[j - 1] : row[j] >= row[j - 1];
  return good;
}

template <class T>
bool is_good(GridRow kind, const T* row, int64_t n) {
  if (kind == GridRow::knots) return rises(row, n);
  bool good = kind != GridRow::centres || row[n - 1] > T(0);
  for (int64_t j = 0; j < n; ++j) good &= row[j] - row[j] == T(0);
  return good;
}

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

// What is wrong with the first bad number of a grid (in, columns), in the words of kan_kernels/_core/bases.py.
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
  bool good = true;
  for (int64_t i = 0; i < in; ++i) good &= is_good(kind, grid + i * columns, columns);
  return good ? "" : "grid: " + grid_fault(kind, grid, in, columns);
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
