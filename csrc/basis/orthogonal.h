// Polynomials by their three-term recurrence, whose coefficients are data: a row of the grid holds a_0 .. a_{R-1}, then
// b and c. Legendre's, Jacobi's, Gegenbauer's, Hermite's and Laguerre's are such rows. For scalars and SIMD vectors.
//
//     P_r^(j) = (a_r x + b_r) P_{r-1}^(j) + j a_r P_{r-1}^(j-1) - c_r P_{r-2}^(j),    P_{-1} = 1, P_{-2} = 0:
// all orders j = 0 .. m go along together.
#pragma once

#include "config.h"

namespace kan {
namespace KAN_ISA {

// P_r^(0) .. P_r^(m) for one r after the other; m <= Most. Up to an order of kFew they stay in registers.
template <class V, class T, int Most>
struct Orthogonal {
  static constexpr int kFew = 2;
  V last[Most + 1], before[Most + 1];

  // zero: 0, or NaN where x is not finite.
  KAN_HD explicit Orthogonal(V zero) {
    KAN_UNROLL
    for (int j = 0; j <= Most; ++j) last[j] = before[j] = zero;
    last[0] = zero + T(1);
  }

  // From P_{r-1} to P_r.
  KAN_HD void step(V x, T a, T b, T c, int m) {
    const V factor = x * a + b;
    KAN_UNROLL
    for (int j = Most > kFew ? m : Most; j > 0; --j) {  // falling: P_{r-1}^(j-1) is read before it is replaced
      if (j > m) continue;
      const V next = factor * last[j] + (last[j - 1] * (T(j) * a) - before[j] * c);
      before[j] = last[j];
      last[j] = next;
    }
    const V next = factor * last[0] - before[0] * c;
    before[0] = last[0];
    last[0] = next;
  }

  KAN_HD V at(int order) const {
    if constexpr (Most > kFew) {
      return last[order];
    } else {
      V value = last[0];
      KAN_UNROLL
      for (int j = 1; j <= Most; ++j) value = order == j ? last[j] : value;
      return value;
    }
  }
};

}  // namespace KAN_ISA
}  // namespace kan
