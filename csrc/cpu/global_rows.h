// Bases whose functions reach everywhere: all rows of a block lie in one cell and stay in their order.
#pragma once

#include <limits>

#include "../basis/chebyshev.h"
#include "../basis/rbf.h"
#include "rows.h"

namespace kan {
namespace KAN_ISA {

// `sorted` as sort_rows leaves it, with cells 0 (finite), 1 (infinite: outside) and 2 (NaN). In the usual case
// there is only the first, and no row moves.
template <class T>
void keep_rows(SortedRows<T>& sorted, const T* x, const T* side, int rows) {
  constexpr int L = Simd<T>::lanes;
  Vec<T> none = Vec<T>{};  // stays 0, or becomes NaN
  int first = 0;
  for (; first + L <= rows; first += L) none += load(x + first) - load(x + first);
  T zero = sum_lanes<T>(none);
  for (; first < rows; ++first) zero += x[first] - x[first];
  if (zero != T(0)) {
    const T whole_line[2] = {-std::numeric_limits<T>::max(), std::numeric_limits<T>::infinity()};
    return sort_rows(sorted, x, side, rows, whole_line, 2, 0, 1);
  }
  sorted.rows = rows;
  sorted.n_runs = rows > 0;
  sorted.runs[0] = {0, rows, 0, 0};
  for (int b = 0; b < rows; b += L) {  // the buffers are padded: surplus lanes are never read
    store(sorted.x + b, load(x + b));
    if (side) store(sorted.side + b, load(side + b));
  }
  for (int b = 0; b < rows; ++b) sorted.row[b] = b;
}

// values[n][r * kRowStride + q] = B_r^{(orders[n])}(x[q]). grid: the centres and their width.
template <class T>
void rbf_rows(T* const* values, const int* orders, int n, const SortedRows<T>& in, const T* grid, int functions) {
  constexpr int L = Simd<T>::lanes;
  const T inverse = T(1) / grid[functions];
  for (int r = 0; r < functions; ++r) {
    for (int q = 0; q < in.rows; q += L) {  // surplus lanes are padding
      const Vec<T> t = (load(in.x + q) - grid[r]) * inverse;
      Gaussian<Vec<T>, T> bell(t, exp_nonpositive(-t * t), inverse);
      for (int v = 0; v < n; ++v) store(values[v] + r * kRowStride + q, bell.at(orders[v]));
    }
  }
}

// values[n][r * kRowStride + q] = T_r^{(orders[n])}(x[q]); NaN where x is not finite.
template <class T>
void chebyshev_rows(T* const* values, const int* orders, int n, const SortedRows<T>& in, int functions) {
  constexpr int L = Simd<T>::lanes;
  ChebyshevStep<T> steps[kMaxFunctions];
  for (int v = 0; v < n; ++v) {
    for (int r = 0; r < functions; ++r) steps[r] = chebyshev_step<T>(r, orders[v]);
    for (int q = 0; q < in.rows; q += L) {  // surplus lanes are padding
      const Vec<T> x = load(in.x + q), zero = x - x;
      Vec<T> last = zero, before = zero;
      for (int r = 0; r < functions; ++r) {
        const Vec<T> next = last * (x * steps[r].slope) - (before * steps[r].drop - (zero + steps[r].start));
        store(values[v] + r * kRowStride + q, next);
        before = last;
        last = next;
      }
    }
  }
}

}  // namespace KAN_ISA
}  // namespace kan
