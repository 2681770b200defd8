#include "uniform.h"

namespace kan {
namespace cuda {

// On a cell, function j is the cardinal spline N at u + k - j: N(v) = sum_i (-1)^i C(k+1, i) max(v - i, 0)^k / k!
// (Schoenberg). N(v) = N(k+1 - v), so where 2 j < k it is N at 1 - u + j: fewer terms, and none that cancel.
Polynomials uniform_polynomials(int order, int derivative) {
  Polynomials all = {};
  for (int j = 0; j <= order; ++j) {
    const bool mirrored = 2 * j < order;
    const int shift = mirrored ? j : order - j;
    double c[kUniformOrder + 1] = {};  // of powers of p
    double sign_binomial = 1.0;        // (-1)^i C(k+1, i)
    for (int i = 0; i <= shift; ++i) {
      // (p + shift - i)^k / k!, power by power
      double term = 1.0;
      for (int n = 1; n <= order; ++n) term /= n;
      double power = 1.0;  // (shift - i)^(k-n) C(k, n), from n = k down
      for (int n = order; n >= 0; --n) {
        c[n] += sign_binomial * term * power;
        power = power * double(shift - i) * n / double(order - n + 1);
      }
      sign_binomial *= -double(order + 1 - i) / double(i + 1);
    }
    for (int m = 0; m < derivative; ++m) {
      for (int n = 0; n <= order; ++n) c[n] = n < order ? (n + 1) * c[n + 1] * (mirrored ? -1.0 : 1.0) : 0.0;
    }
    for (int n = 0; n <= order; ++n) all.c[j][n] = float(c[n]);
  }
  return all;
}

}  // namespace cuda
}  // namespace kan
