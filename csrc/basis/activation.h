// The base activation's m-th derivative, for scalars and SIMD vectors.
//
// silu(x) = x s(x), so silu^(m) = x s^(m) + m s^(m-1) (Leibniz), with the logistic function's derivatives from
// s' = s (1 - s):  s^(n+1) = s^(n) - sum_i C(n, i) s^(i) s^(n-i).
#pragma once

#include "config.h"

namespace kan {
namespace KAN_ISA {

// s = logistic(x) and c = 1 - s, both to full relative accuracy, as the caller's arithmetic computes them.
template <class V>
struct Logistic {
  V s, c;
};

template <class V, class T>
KAN_HD V silu_derivative(V x, Logistic<V> f, int derivative) {
  if (derivative == 0) return x * f.s;
  if (derivative == 1) return f.s + x * (f.s * f.c);
  V sigma[kMaxDerivative + 2];  // orders 0 to kMaxDerivative + 1, which backward asks for
  sigma[0] = f.s;
  sigma[1] = f.s * f.c;
  for (int n = 1; n < derivative; ++n) {
    // s^(n+1) = s^(n) (1 - 2 s) - (middle terms): the two end terms are taken together, as c - s.
    V next = sigma[n] * (f.c - f.s);
    T binomial = T(1);
    for (int i = 1; i < n; ++i) {
      binomial = binomial * T(n - i + 1) / T(i);
      next = next - (sigma[i] * sigma[n - i]) * binomial;
    }
    sigma[n + 1] = next;
  }
  return x * sigma[derivative] + sigma[derivative - 1] * T(derivative);
}

template <class V, class T>
KAN_HD V identity_derivative(V x, int derivative) {
  if (derivative == 0) return x;
  const V zero = x == x ? V{} : x;  // 0, and NaN for NaN
  return derivative == 1 ? zero + T(1) : zero;
}

}  // namespace KAN_ISA
}  // namespace kan
