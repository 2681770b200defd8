// The base activation of rows of numbers.
#pragma once

#include "cpu/simd.h"

namespace kan {
namespace KAN_ISA {

constexpr int kChains = 4;  // vectors whose steps are done side by side

// out[b] = silu(x[b]), and where Slope out[stride + b] = silu'(x[b]), of N vectors.
template <class T, int N, bool Slope>
KAN_HD void silu_vectors(const T* x, T* out, int64_t stride) {
  constexpr int L = Simd<T>::lanes;
  Vec<T> v[N];
  Logistic<Vec<T>> f[N];
  KAN_UNROLL
  for (int n = 0; n < N; ++n) v[n] = load(x + n * L);
  logistic<T, N>(v, f);
  KAN_UNROLL
  for (int n = 0; n < N; ++n) {
    store(out + n * L, silu_derivative<Vec<T>, T>(v[n], f[n], 0));
    if (Slope) store(out + stride + n * L, silu_derivative<Vec<T>, T>(v[n], f[n], 1));
  }
}
template <bool Slope, class T>
void silu_rows(const T* x, int64_t n, T* out, int64_t stride) {
  constexpr int L = Simd<T>::lanes;
  int64_t b = 0;
  for (; b + kChains * L <= n; b += kChains * L) silu_vectors<T, kChains, Slope>(x + b, out + b, stride);
  for (; b < n; b += L) silu_vectors<T, 1, Slope>(x + b, out + b, stride);
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
      Logistic<Vec<T>> f;
      logistic<T, 1>(&v, &f);
      for (int m = 0; m < n_orders; ++m) store(out + m * stride + b, silu_derivative<Vec<T>, T>(v, f, orders[m]));
    } else {
      for (int m = 0; m < n_orders; ++m) store(out + m * stride + b, identity_derivative<Vec<T>, T>(v, orders[m]));
    }
  }
}

}  // namespace KAN_ISA
}  // namespace kan
