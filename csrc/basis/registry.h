// The bases: a record each, which everybody asks. kan_kernels/_core/bases.py holds their twins.
//
// A new basis is a record here, a header beside this one, and its evaluation in cpu/linear/full_support_rows.h and in
// cuda/full_support/functions.h.
#pragma once

#include <cstdint>

#include "config.h"

namespace kan {

enum Basis : int { kBSpline, kRbf, kChebyshev, kFourier, kOrthogonal };

// What a row of the grid holds: non-decreasing knots; centres and, last, their width > 0; some finite numbers a
// function.
enum class GridRow { knots, centres, numbers };

struct BasisRecord {
  const char* name;
  Basis code;
  bool local;  // k + 1 functions at each x, on cells between knots; else of full support, and of order 0
  GridRow row;
  int numbers;  // of a row, for each function
  int most_functions;
  bool even;  // the number of functions is
  // Instructions for one value on CUDA, for the cost model; 0: no kernels there. B-splines: for all at one x on the
  // gather path, with divisions and a search in global memory.
  double cuda_work;

  // Of a row of the grid.
  constexpr int64_t columns(int64_t functions, int64_t order) const {
    return numbers * functions + (row == GridRow::knots ? order + 1 : row == GridRow::centres ? 1 : 0);
  }
};

constexpr BasisRecord kBases[] = {
    {"bspline", kBSpline, true, GridRow::knots, 1, 1 << 24, false, 220.0},
    {"rbf", kRbf, false, GridRow::centres, 1, kMaxFunctions, false, 38.0},
    {"chebyshev", kChebyshev, false, GridRow::numbers, 0, kMaxFunctions, false, 25.0},
    {"fourier", kFourier, false, GridRow::numbers, 0, 2 * kMaxFrequencies, true, 0.0},
    {"orthogonal", kOrthogonal, false, GridRow::numbers, 3, kMaxFunctions, false, 30.0},
};
constexpr int kBasisCount = int(sizeof(kBases) / sizeof(kBases[0]));

constexpr bool codes_are_places() {
  for (int n = 0; n < kBasisCount; ++n) {
    if (kBases[n].code != n) return false;
  }
  return true;
}
static_assert(codes_are_places(), "a basis is found by its code");

}  // namespace kan
