// Bases of full support: all rows of a block lie in one cell and stay in their order. The only place on the CPU where
// they are told apart.
#pragma once

#include <limits>

#include "basis/chebyshev.h"
#include "basis/fourier.h"
#include "basis/orthogonal.h"
#include "basis/rbf.h"
#include "basis/registry.h"
#include "rows.h"

namespace kan {
namespace KAN_ISA {

// `sorted` as sort_rows leaves it, with cells 0 (finite), 1 (infinite: outside) and 2 (NaN). In the usual case
// there is only the first, and no row moves.
template <class T>
void keep_rows(SortedRows<T>& sorted, const T* x, const T* row_scale, int rows) {
  constexpr int L = Simd<T>::lanes;
  Vec<T> none = Vec<T>{};  // stays 0, or becomes NaN
  int first = 0;
  for (; first + L <= rows; first += L) none += load(x + first) - load(x + first);
  T zero = sum_lanes<T>(none);
  for (; first < rows; ++first) zero += x[first] - x[first];
  if (zero != T(0)) {
    const T whole_line[2] = {-std::numeric_limits<T>::max(), std::numeric_limits<T>::infinity()};
    return sort_rows(sorted, x, row_scale, rows, whole_line, 2, 0, 1);
  }
  sorted.rows = rows;
  sorted.n_runs = rows > 0;
  sorted.runs[0] = {0, rows, 0, 0};
  for (int b = 0; b < rows; b += L) {  // the buffers are padded: surplus lanes are never read
    store(sorted.x + b, load(x + b));
    if (row_scale) store(sorted.row_scale + b, load(row_scale + b));
    for (int j = 0; j < L; ++j) sorted.row[b + j] = b + j;
  }
}

// values[n][r * kRowStride + q] = B_r^{(orders[n])}(x[q]). grid: the centres and their width.
template <class T>
void rbf_rows(T* const* values, const int* orders, int n, const SortedRows<T>& in, const T* grid, int functions) {
  constexpr int L = Simd<T>::lanes;
  const T inverse = T(1) / grid[functions];
  for (int r = 0; r < functions; ++r) {
    for (int q = 0; q < in.rows; q += L) {  // surplus lanes are padding
      const Vec<T> t = (load(in.x + q) - grid[r]) * inverse;
      Gaussian<Vec<T>, T> bell(t, exp_nonpositive<T>(-t * t), inverse);
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

// The angles of whole vectors of rows.
template <class T>
void fourier_angles(T* coarse, T* fine, const SortedRows<T>& in) {
  constexpr int L = Simd<T>::lanes;
  const int padded = (in.rows + L - 1) / L * L;
  const auto is_near = [&](int q) { return in.x[q] >= -kNearAngle<T> && in.x[q] <= kNearAngle<T>; };
  int near_rows = 0, q0 = 0;
  for (; q0 + L <= in.rows; q0 += L) {
    for (int j = 0; j < L; ++j) near_rows += is_near(q0 + j);
  }
  for (; q0 < in.rows; ++q0) near_rows += is_near(q0);
  const bool near = near_rows == in.rows;
  for (int q = 0; near && q < padded; q += L) {
    for (int j = 0; j < L; ++j) {
      const Angle<T> angle = near_angle(in.x[q + j]);
      coarse[q + j] = angle.coarse, fine[q + j] = angle.fine;
    }
  }
  for (int q = 0; !near && q < padded; ++q) {
    const Angle<T> angle = is_near(q) ? near_angle(in.x[q]) : far_angle(in.x[q]);
    coarse[q] = angle.coarse, fine[q] = angle.fine;
  }
}

// values[n][r * kRowStride + q]: first cos(g x[q]) for g = 1 .. functions / 2, then sin, at derivative orders[n].
template <class T>
void fourier_rows(T* const* values, const int* orders, int n, const SortedRows<T>& in, int functions) {
  const int frequencies = functions / 2;
  constexpr int L = Simd<T>::lanes, reach = 4;  // points on either side of one that is evaluated by itself
  T coarse[kRowStride], fine[kRowStride], scale[2][kMaxFrequencies + 1];
  fourier_angles(coarse, fine, in);
  for (int v = 0; v < n; ++v) {
    for (int g = 1; g <= frequencies; ++g) {
      scale[v][g] = T(1);
      for (int j = 0; j < orders[v]; ++j) scale[v][g] *= T(g);
    }
  }
  for (int q = 0; q < in.rows; q += L) {
    const Vec<T> a = load(coarse + q), b = load(fine + q);
    const auto put = [&](int g, Point<Vec<T>> z) {
      for (int v = 0; v < n; ++v) {
        const QuarterTurns<T> turns(orders[v]);
        T* row = values[v] + int64_t(g - 1) * kRowStride + q;
        store(row, (turns.swapped ? z.s : z.c) * (scale[v][g] * turns.cos_sign));
        store(row + int64_t(frequencies) * kRowStride, (turns.swapped ? z.c : z.s) * (scale[v][g] * turns.sin_sign));
      }
    };
    Point<Vec<T>> power[reach + 1];
    power[1] = point_at(a, b, T(1));
    power[2] = power[1] * power[1];
    power[3] = power[2] * power[1];
    power[4] = power[2] * power[2];
    for (int g = 1; g <= reach && g <= frequencies; ++g) put(g, power[g]);
    for (int g = 2 * reach + 1; g - reach <= frequencies; g += 2 * reach + 1) {
      const Point<Vec<T>> centre = point_at(a, b, T(g));
      for (int j = reach; j > 0 && g - j <= frequencies; --j) put(g - j, centre / power[j]);
      if (g <= frequencies) put(g, centre);
      for (int j = 1; j <= reach && g + j <= frequencies; ++j) put(g + j, centre * power[j]);
    }
  }
}

// values[n][r * kRowStride + q] = P_r^{(orders[n])}(x[q]); NaN where x is not finite. M: the highest order, or any up
// to it if M is the most that there can be.
template <class T, int M>
void orthogonal_rows_to(T* const* values, const int* orders, int n, const SortedRows<T>& in, const T* grid,
                        int functions, int highest) {
  constexpr int L = Simd<T>::lanes;
  const T *a = grid, *b = a + functions, *c = b + functions;
  for (int q = 0; q < in.rows; q += L) {  // surplus lanes are padding
    const Vec<T> x = load(in.x + q);
    Orthogonal<Vec<T>, T, M> p(x - x);
    for (int r = 0; r < functions; ++r) {
      p.step(x, a[r], b[r], c[r], M <= p.kFew ? M : highest);
      for (int v = 0; v < n; ++v) store(values[v] + r * kRowStride + q, p.at(orders[v]));
    }
  }
}

// All orders come out of one run. grid: a, b, c of every function.
template <class T>
void orthogonal_rows(T* const* values, const int* orders, int n, const SortedRows<T>& in, const T* grid,
                     int functions) {
  int m = orders[0];
  for (int v = 1; v < n; ++v) m = m > orders[v] ? m : orders[v];
  const auto to = m == 0   ? orthogonal_rows_to<T, 0>
                  : m == 1 ? orthogonal_rows_to<T, 1>
                  : m == 2 ? orthogonal_rows_to<T, 2>
                           : orthogonal_rows_to<T, kMaxDerivative + 1>;
  to(values, orders, n, in, grid, functions, m);
}

// values[n][r * kRowStride + q] = B_r^{(orders[n])}(x[q]), r < functions. grid: the feature's row.
template <class T>
void full_support_rows(int basis, T* const* values, const int* orders, int n, const SortedRows<T>& in, const T* grid,
                       int functions) {
  switch (basis) {
    case kRbf: return rbf_rows(values, orders, n, in, grid, functions);
    case kChebyshev: return chebyshev_rows(values, orders, n, in, functions);
    case kFourier: return fourier_rows(values, orders, n, in, functions);
    case kOrthogonal: return orthogonal_rows(values, orders, n, in, grid, functions);
    default: __builtin_unreachable();  // the ops ask the records
  }
}

}  // namespace KAN_ISA
}  // namespace kan
