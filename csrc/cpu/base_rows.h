// The base activation of rows of numbers.
#pragma once

#include "cpu/simd.h"

namespace kan {
namespace KAN_ISA {

// out[b] = silu(x[b]), and where Slope out[stride + b] = silu'(x[b]).
template <bool Slope, class T>
KAN_HD void silu_rows(const T* x, int64_t n, T* out, int64_t stride) {
  for (int64_t b = 0; b < n; b += Simd<T>::lanes) {
    const Vec<T> v = load(x + b);
    const Logistic<Vec<T>> f = logistic<T>(v);
    store(out + b, silu_derivative<Vec<T>, T>(v, f, 0));
    if (Slope) store(out + stride + b, silu_derivative<Vec<T>, T>(v, f, 1));
  }
}

// out[m * stride + b] = base^{(orders[m])}(x[b]) of one order or two, for whole vectors. A loop of its own: what a lane
// computes is one long chain, and only the chains of several vectors together keep a core busy.
template <class T>
void base_rows(int base, const T* x, int64_t n, const int* orders, int n_orders, T* out, int64_t stride) {
  if (base == kSilu && orders[0] == 0) {
    if (n_orders == 1) return silu_rows<false>(x, n, out, stride);
    if (orders[1] == 1) return silu_rows<true>(x, n, out, stride);
  }
  for (int64_t b = 0; b < n; b += Simd<T>::lanes) {
    const Vec<T> v = load(x + b);
    if (base == kSilu) {
      const Logistic<Vec<T>> f = logistic<T>(v);
      for (int m = 0; m < n_orders; ++m) store(out + m * stride + b, silu_derivative<Vec<T>, T>(v, f, orders[m]));
    } else {
      for (int m = 0; m < n_orders; ++m) store(out + m * stride + b, identity_derivative<Vec<T>, T>(v, orders[m]));
    }
  }
}

}  // namespace KAN_ISA
}  // namespace kan
