// Contractions of value rows with few outputs: lanes are rows of the batch, where vectors of outputs would be mostly
// padding. Value rows as `evaluate_orders` writes them; y and g are columns, [out][kFewRows].
#pragma once

#include "blocking.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kFewRows = 256;  // of a block: its columns stay in the first-level cache

// y[o] += sum_r values[r] weights[r, o]. weights: [n][Out].
template <class T, int Out>
void few_forward(T* y, const T* values, int64_t n, const T* weights, int64_t rows) {
  for (int64_t q = 0; q < rows; q += Simd<T>::lanes) {  // surplus lanes are padding
    Vec<T> sum[Out];
    KAN_UNROLL
    for (int o = 0; o < Out; ++o) sum[o] = load(y + o * kFewRows + q);
    for (int64_t r = 0; r < n; ++r) {
      const Vec<T> value = load(values + r * kRowStride + q);
      KAN_UNROLL
      for (int o = 0; o < Out; ++o) sum[o] += value * weights[r * Out + o];
    }
    KAN_UNROLL
    for (int o = 0; o < Out; ++o) store(y + o * kFewRows + q, sum[o]);
  }
}

// sums[r, o] += sum_q values[r][q] g[o][q]. sums: [n][Out]. g is 0 in surplus lanes, and so must be the values'.
template <class T, int Out>
void few_weights(T* sums, const T* values, int64_t n, const T* g, int64_t rows) {
  for (int64_t r = 0; r < n; ++r) {
    Vec<T> sum[Out] = {};
    for (int64_t q = 0; q < rows; q += Simd<T>::lanes) {
      const Vec<T> value = load(values + r * kRowStride + q);
      KAN_UNROLL
      for (int o = 0; o < Out; ++o) sum[o] += value * load(g + o * kFewRows + q);
    }
    KAN_UNROLL
    for (int o = 0; o < Out; ++o) sums[r * Out + o] += sum_lanes<T>(sum[o]);
  }
}

// result += sum_r values[r] sum_o weights[r, o] g[o]
template <class T, int Out>
void few_input(T* result, const T* values, int64_t n, const T* weights, const T* g, int64_t rows) {
  for (int64_t q = 0; q < rows; q += Simd<T>::lanes) {
    Vec<T> cotangent[Out], sum = load(result + q);
    KAN_UNROLL
    for (int o = 0; o < Out; ++o) cotangent[o] = load(g + o * kFewRows + q);
    for (int64_t r = 0; r < n; ++r) {
      Vec<T> slope = cotangent[0] * weights[r * Out];
      KAN_UNROLL
      for (int o = 1; o < Out; ++o) slope += cotangent[o] * weights[r * Out + o];
      sum += load(values + r * kRowStride + q) * slope;
    }
    store(result + q, sum);
  }
}

template <class T>
struct FewKernels {
  void (*forward)(T*, const T*, int64_t, const T*, int64_t);
  void (*weights)(T*, const T*, int64_t, const T*, int64_t);
  void (*input)(T*, const T*, int64_t, const T*, const T*, int64_t);
};

template <class T>
const FewKernels<T>& few_kernels(int64_t out) {
  static constexpr FewKernels<T> table[] = {
      {few_forward<T, 1>, few_weights<T, 1>, few_input<T, 1>}, {few_forward<T, 2>, few_weights<T, 2>, few_input<T, 2>},
      {few_forward<T, 3>, few_weights<T, 3>, few_input<T, 3>}, {few_forward<T, 4>, few_weights<T, 4>, few_input<T, 4>},
      {few_forward<T, 5>, few_weights<T, 5>, few_input<T, 5>}, {few_forward<T, 6>, few_weights<T, 6>, few_input<T, 6>},
      {few_forward<T, 7>, few_weights<T, 7>, few_input<T, 7>}, {few_forward<T, 8>, few_weights<T, 8>, few_input<T, 8>}};
  return table[out - 1];
}

}  // namespace KAN_ISA
}  // namespace kan
