// The k+1 B-splines that are non-zero on one knot cell, and their m-th derivatives, for scalars and SIMD vectors.
//
// Values: the triangular Cox-de Boor scheme of Piegl & Tiller, The NURBS Book, algorithm A2.2: every step is a
// convex combination, so nothing cancels. Derivatives: the same triangle, whose last m steps are replaced by
// B'_{j,p} = p (B_{j,p-1} / (t_{j+p} - t_j) - B_{j+1,p-1} / (t_{j+p+1} - t_{j+1})).
#pragma once

#include "config.h"

namespace kan {
namespace KAN_ISA {

// Index of the half-open cell [t_c, t_{c+1}) that holds x, or -1 where there is none (outside, or NaN).
// Zero-length cells hold nothing. knots: n_knots non-decreasing values.
template <class T>
KAN_HD int locate_cell(const T* knots, int n_knots, T x) {
  if (!(x >= knots[0]) || !(x < knots[n_knots - 1])) return -1;
  int low = 0, length = n_knots - 1;
  while (length > 1) {  // invariant: knots[low] <= x < knots[low + length]
    const int half = length / 2;
    const bool right = x >= knots[low + half];
    low = right ? low + half : low;
    length = right ? length - half : half;
  }
  return low;
}

// The 2k knots around one cell and the reciprocals of the knot differences of the triangle.
template <int K, class T>
struct CellKnots {
  T left[K + 1];   // left[j] = t_{c+1-j}, j = 1..K
  T right[K + 1];  // right[j] = t_{c+j}
  T inverse[K * (K + 1) / 2 + 1];

  // Knots beyond the ends are repeated: the functions they would shape are dropped by the caller.
  KAN_HD void load(const T* knots, int n_knots, int cell) {
    KAN_UNROLL
    for (int j = 1; j <= K; ++j) {
      const int l = cell + 1 - j, r = cell + j;
      left[j] = knots[l < 0 ? 0 : l];
      right[j] = knots[r > n_knots - 1 ? n_knots - 1 : r];
    }
    KAN_UNROLL
    for (int p = 1; p <= K; ++p) {
      KAN_UNROLL
      for (int r = 0; r < p; ++r) {
        const T width = right[r + 1] - left[p - r];  // spans the located cell, so it is positive
        inverse[p * (p - 1) / 2 + r] = width > T(0) ? T(1) / width : T(0);
      }
    }
  }
};

// out[j] = unit * B_{c-K+j}^{(derivative)}(x), j = 0..K, for x in the cell.
// V: a scalar or a vector of T; the knots are scalars where all lanes share a cell (S = T), else vectors (S = V).
template <int K, class V, class T, class S>
KAN_HD void bspline_values(const CellKnots<K, S>& cell, V x, V unit, int derivative, V* out) {
  const V zero = V{};
  V value[K + 1];
  value[0] = derivative > K ? zero : unit;
  KAN_UNROLL
  for (int p = 1; p <= K; ++p) {
    V saved = zero;
    if (p <= K - derivative) {
      KAN_UNROLL
      for (int r = 0; r < p; ++r) {
        const V scaled = value[r] * cell.inverse[p * (p - 1) / 2 + r];
        value[r] = saved + (cell.right[r + 1] - x) * scaled;
        saved = (x - cell.left[p - r]) * scaled;
      }
    } else {
      KAN_UNROLL
      for (int r = 0; r < p; ++r) {
        const V scaled = value[r] * (T(p) * cell.inverse[p * (p - 1) / 2 + r]);
        value[r] = saved - scaled;
        saved = scaled;
      }
    }
    value[p] = saved;
  }
  KAN_UNROLL
  for (int j = 0; j <= K; ++j) out[j] = value[j];
}

// First of the K+1 consecutive basis rows that a cell reads: always inside [0, cells - 1].
KAN_HD int window_of_cell(int cell, int order, int cells) {
  const int first = cell - order;
  return first < 0 ? 0 : (first > cells - 1 ? cells - 1 : first);
}

}  // namespace KAN_ISA
}  // namespace kan
