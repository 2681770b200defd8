// |phi| of one input feature's edges and its derivatives, for many outputs: lanes are outputs, and the coefficients of
// a panel of P vectors stay in registers for all rows of a run, as in micro.h.
#pragma once

#include "rows.h"

namespace kan {
namespace KAN_ISA {

// out[o] += v[o], o < n <= P * lanes
template <class T, int P>
KAN_HD void add_lanes(double* out, const Vec<T>* v, int n) {
  alignas(64) T lane[P * Simd<T>::lanes];
  KAN_UNROLL
  for (int p = 0; p < P; ++p) store(lane + p * Simd<T>::lanes, v[p]);
  for (int o = 0; o < n; ++o) out[o] += double(lane[o]);
}

template <class T, int N, int P>
KAN_HD void phi_of_row(Vec<T>* phi, const T* values, const Vec<T> (*coef)[P]) {
  const Vec<T> first = broadcast(values[0]);
  KAN_UNROLL
  for (int p = 0; p < P; ++p) phi[p] = first * coef[0][p];
  KAN_UNROLL
  for (int j = 1; j < N; ++j) {
    const Vec<T> value = broadcast(values[j * kRowStride]);
    KAN_UNROLL
    for (int p = 0; p < P; ++p) phi[p] += value * coef[j][p];
  }
}

// total[o] += sum of |phi_o| over the rows of all runs, for the n outputs of a panel.
template <class T, int N, int P>
void panel_absolute(double* total, int n, const Panel<T>& panel, const SortedRows<T>& sorted, const T* values) {
  constexpr int L = Simd<T>::lanes;
  for (int u = 0; u < sorted.n_runs; ++u) {
    const Run run = sorted.runs[u];
    Vec<T> coef[N][P], sum[P] = {};
    KAN_UNROLL
    for (int j = 0; j < N; ++j) {
      KAN_UNROLL
      for (int p = 0; p < P; ++p) coef[j][p] = load(panel.row(run.window, j) + p * L);
    }
    for (int q = run.begin; q < run.end; ++q) {
      Vec<T> phi[P];
      phi_of_row<T, N, P>(phi, values + q, coef);
      KAN_UNROLL
      for (int p = 0; p < P; ++p) sum[p] += absolute<T>(phi[p]);
    }
    add_lanes<T, P>(total, sum, n);
  }
}

// With s[q,o] = g[o] sign(phi_o(x[q])): sums[row * sums_ld + o] += sum_q s B(x[q]), the base's row first where there is
// one; and partial[q] (+)= s phi'(x[q]), lane by lane. sums or slopes may be null. g: P vectors.
template <class T, int N, int P>
void panel_signed(double* sums, int64_t sums_ld, T* partial, bool start, int n, bool base, const Panel<T>& panel,
                  const SortedRows<T>& sorted, const T* values, const T* slopes, const T* g) {
  constexpr int L = Simd<T>::lanes;
  for (int u = 0; u < sorted.n_runs; ++u) {
    const Run run = sorted.runs[u];
    Vec<T> coef[N][P], sum[N][P] = {}, size[P];
    KAN_UNROLL
    for (int p = 0; p < P; ++p) size[p] = load(g + p * L);
    KAN_UNROLL
    for (int j = 0; j < N; ++j) {
      KAN_UNROLL
      for (int p = 0; p < P; ++p) coef[j][p] = load(panel.row(run.window, j) + p * L);
    }
    for (int q = run.begin; q < run.end; ++q) {
      Vec<T> phi[P], slope[P];
      phi_of_row<T, N, P>(phi, values + q, coef);
      KAN_UNROLL
      for (int p = 0; p < P; ++p) phi[p] = signed_as<T>(phi[p], size[p]);
      KAN_UNROLL
      for (int j = 0; j < N; ++j) {
        const Vec<T> value = broadcast(values[j * kRowStride + q]);
        KAN_UNROLL
        for (int p = 0; p < P; ++p) sum[j][p] += value * phi[p];
      }
      if (!slopes) continue;
      phi_of_row<T, N, P>(slope, slopes + q, coef);
      Vec<T> product = slope[0] * phi[0];
      KAN_UNROLL
      for (int p = 1; p < P; ++p) product += slope[p] * phi[p];
      T* out = partial + int64_t(q) * L;
      store(out, start ? product : product + load(out));
    }
    if (!sums) continue;
    for (int j = 0; j < N; ++j) add_lanes<T, P>(sums + (base && j == 0 ? 0 : run.window + j) * sums_ld, sum[j], n);
  }
}

}  // namespace KAN_ISA
}  // namespace kan
