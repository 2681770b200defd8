// Chebyshev polynomials of the first kind, T_0 .. T_n, and their derivatives, for scalars and SIMD vectors.
//
// T_n^(m) = 2^(m-1) (m-1)! n C_{n-m}^(m) with the Gegenbauer polynomials C (DLMF 18.7.4, 18.9.19), whose recurrence
// (DLMF 18.9.1) becomes
//     (n - m) T_n^(m) = 2 n x T_{n-1}^(m) - n (n + m - 2) / (n - 2) T_{n-2}^(m),   n > max(m, 1).
// It needs no lower derivative, divides by nothing that depends on x, and is stable on [-1, 1], ends included.
#pragma once

#include "config.h"

namespace kan {
namespace KAN_ISA {

// T_n^(m) = start + slope x T_{n-1}^(m) - drop T_{n-2}^(m)
template <class T>
struct ChebyshevStep {
  T start, slope, drop;
};

template <class T>
KAN_HD ChebyshevStep<T> chebyshev_step(int n, int m) {
  if (n < m) return {T(0), T(0), T(0)};
  if (n == m) {
    T start = T(1);  // T_0, and 2^(m-1) m!
    for (int j = 2; j <= m; ++j) start *= T(2 * j);
    return {start, T(0), T(0)};
  }
  const T slope = n == 1 ? T(1) : T(2 * n) / T(n - m);
  if (n - 2 < m) return {T(0), slope, T(0)};
  return {T(0), slope, m == 0 ? T(1) : T(n) * T(n + m - 2) / (T(n - 2) * T(n - m))};
}

}  // namespace KAN_ISA
}  // namespace kan
