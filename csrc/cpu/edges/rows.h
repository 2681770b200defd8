// |phi| of one input feature's edges and its derivatives, for few outputs: lanes are the rows of one run, which share
// their coefficients.
#pragma once

#include "edges.h"

namespace kan {
namespace KAN_ISA {

// The N coefficients of one edge on one window.
template <class T, int N>
KAN_HD void load_coefficients(Vec<T>* out, const Layer& layer, const Shape& s, int64_t feature, int window, int64_t o) {
  const bool base = s.base != kNoBase;
  const T* spline = static_cast<const T*>(layer.spline_weight) + (feature * s.functions + window) * s.out + o;
  if (base) out[0] = broadcast(static_cast<const T*>(layer.base_weight)[feature * s.out + o]);
  KAN_UNROLL
  for (int j = 0; j < N; ++j) {
    if (j >= base) out[j] = broadcast(spline[(j - base) * s.out]);
  }
}

// total[o] += sum of |phi_o| over the rows of all runs.
template <class T, int N>
void sum_absolute(double* total, const Layer& layer, const Shape& s, int64_t feature, const SortedRows<T>& sorted,
                  const T* values) {
  constexpr int L = Simd<T>::lanes, P = 2;  // P outputs at a time share the loads of the values
  for (int u = 0; u < sorted.n_runs; ++u) {
    const Run run = sorted.runs[u];
    for (int64_t o = 0; o < s.out; o += P) {
      const int n = o + P <= s.out ? P : int(s.out - o);
      Vec<T> coef[P][N], sum[P] = {};
      KAN_UNROLL
      for (int p = 0; p < P; ++p) load_coefficients<T, N>(coef[p], layer, s, feature, run.window, o + (p < n ? p : 0));
      const auto add = [&](const Vec<T>* value) {
        KAN_UNROLL
        for (int p = 0; p < P; ++p) {
          Vec<T> phi = value[0] * coef[p][0];
          KAN_UNROLL
          for (int j = 1; j < N; ++j) phi += value[j] * coef[p][j];
          sum[p] += absolute<T>(phi);
        }
      };
      Vec<T> value[N];
      int q = run.begin;
      for (; q + L <= run.end; q += L) {
        KAN_UNROLL
        for (int j = 0; j < N; ++j) value[j] = load(values + j * kRowStride + q);
        add(value);
      }
      if (q < run.end) {
        KAN_UNROLL
        for (int j = 0; j < N; ++j) value[j] = load_first(values + j * kRowStride + q, run.end - q);
        add(value);
      }
      for (int p = 0; p < n; ++p) total[o + p] += double(sum_lanes<T>(sum[p]));
    }
  }
}

// With s[q,o] = g[o] sign(phi_o(x[q])): sums[r][o] += sum_q s B_r(x[q]) (base row first), if sums is given;
// result[q] = sum_o s phi'_o(x[q]), if slopes are given.
template <class T, int N>
void sum_signed(double* sums, T* result, const Layer& layer, const Shape& s, int64_t feature,
                const SortedRows<T>& sorted, const T* values, const T* slopes, const T* g) {
  constexpr int L = Simd<T>::lanes;
  const bool base = s.base != kNoBase;
  for (int u = 0; u < sorted.n_runs; ++u) {
    const Run run = sorted.runs[u];
    for (int64_t o = 0; o < s.out; ++o) {
      Vec<T> coef[N], sum[N] = {};
      load_coefficients<T, N>(coef, layer, s, feature, run.window, o);
      const Vec<T> size = broadcast(g[o]);
      const auto sign = [&](const Vec<T>* value) {
        Vec<T> phi = value[0] * coef[0];
        KAN_UNROLL
        for (int j = 1; j < N; ++j) phi += value[j] * coef[j];
        const Vec<T> signed_size = signed_as<T>(phi, size);
        KAN_UNROLL
        for (int j = 0; j < N; ++j) sum[j] += value[j] * signed_size;
        return signed_size;
      };
      const auto slope = [&](int q) {
        Vec<T> slope = load(slopes + q) * coef[0];
        KAN_UNROLL
        for (int j = 1; j < N; ++j) slope += load(slopes + j * kRowStride + q) * coef[j];
        return slope;
      };
      Vec<T> value[N];
      int q = run.begin;
      for (; q + L <= run.end; q += L) {
        KAN_UNROLL
        for (int j = 0; j < N; ++j) value[j] = load(values + j * kRowStride + q);
        const Vec<T> signed_size = sign(value);
        if (!slopes) continue;
        const Vec<T> product = signed_size * slope(q);
        store(result + q, o == 0 ? product : load(result + q) + product);
      }
      if (q < run.end) {
        KAN_UNROLL
        for (int j = 0; j < N; ++j) value[j] = load_first(values + j * kRowStride + q, run.end - q);
        const Vec<T> signed_size = sign(value);
        if (slopes) {
          alignas(64) T product[L];
          store(product, signed_size * slope(q));
          for (int l = 0; l < run.end - q; ++l) result[q + l] = o == 0 ? product[l] : result[q + l] + product[l];
        }
      }
      if (!sums) continue;
      KAN_UNROLL
      for (int j = 0; j < N; ++j) {
        const int row = base && j == 0 ? 0 : run.window + j;
        sums[row * s.out + o] += double(sum_lanes<T>(sum[j]));
      }
    }
  }
}

}  // namespace KAN_ISA
}  // namespace kan
