// One input's k+1 basis values and base activation, for one thread; the mathematics is csrc/basis.
#pragma once

#include <cmath>

#include "basis/activation.h"
#include "basis/bspline.h"
#include "storage.h"

namespace kan {
namespace cuda {

// logistic(x) and 1 - logistic(x), neither by a subtraction, both without overflow.
template <class T>
KAN_DEVICE scalar::Logistic<T> logistic(T x) {
  const T e = std::exp(x < T(0) ? x : -x);
  const T large = T(1) / (T(1) + e), small = e * large;
  return {x < T(0) ? small : large, x < T(0) ? large : small};
}

template <class T>
KAN_DEVICE_CALL T high_silu_derivative(T x, scalar::Logistic<T> f, int derivative) {
  return scalar::silu_derivative<T, T>(x, f, derivative);
}

template <class T>
KAN_DEVICE T base_value(T x, int base, int derivative) {
  if (base != kSilu) return scalar::identity_derivative<T, T>(x, derivative);
  const scalar::Logistic<T> f = logistic(x);
  if (derivative == 0) return scalar::silu_derivative<T, T>(x, f, 0);
  if (derivative == 1) return scalar::silu_derivative<T, T>(x, f, 1);
  return high_silu_derivative(x, f, derivative);
}

// base_value for derivatives up to 3, without a table: sigma' = s c, and so on.
template <bool Quick>
KAN_DEVICE float low_base_value(float x, int base, int derivative) {
  if (base != kSilu) return scalar::identity_derivative<float, float>(x, derivative);
  const float e = Quick ? quick_exp(x < 0.0f ? x : -x) : std::exp(x < 0.0f ? x : -x);
  const float large = Quick ? quick_reciprocal(1.0f + e) : 1.0f / (1.0f + e), small = e * large;
  const float s = x < 0.0f ? small : large, c = x < 0.0f ? large : small;
  if (derivative == 0) return x * s;
  const float first = s * c, tilt = c - s, second = first * tilt;
  if (derivative == 1) return s + x * first;
  if (derivative == 2) return 2.0f * first + x * second;
  return 3.0f * second + x * (second * tilt - 2.0f * (first * first));
}

// silu, by the same formula in fewer instructions if quick: exact to its rounding, and 0 below -88.
template <bool Quick>
KAN_DEVICE float silu(float x) {
  return Quick ? x * quick_reciprocal(1.0f + quick_exp(-x)) : low_base_value<false>(x, kSilu, 0);
}

// Where x lies: its cell (0 if there is none) and unit: 1 in a cell, 0 outside the knots, NaN for NaN.
template <class T>
struct Place {
  int cell;
  T unit;
};

template <class T>
KAN_DEVICE Place<T> locate(const T* knots, int n_knots, T x) {
  const int cell = scalar::locate_cell(knots, n_knots, x);
  if (cell >= 0) return {cell, T(1)};
  return {0, x == x ? T(0) : x};
}

// out[j] = scale B^{(derivative)} of function cell - K + j at x, j = 0..K.
template <class T, int K>
KAN_DEVICE void spline_values(const T* knots, int n_knots, T x, Place<T> place, T scale, int derivative, T* out) {
  if (place.unit == T(1) && derivative <= K) {
    scalar::CellKnots<K, T> cell;
    cell.load(knots, n_knots, place.cell);
    scalar::bspline_values<K, T, T>(cell, x, scale, derivative, out);
    return;
  }
  // Nothing here, or only what keeps NaN alive.
  const T nothing = place.unit == place.unit ? T(0) : place.unit * scale;
  KAN_UNROLL
  for (int j = 0; j <= K; ++j) out[j] = nothing;
}

// The same at out[j * stride], shifted where the cell's functions begin before the first or end behind the last, so
// that all k+1 rows from scalar::window_of_cell on exist.
template <class T, int K>
KAN_DEVICE void write_values(const T* knots, int n_knots, T x, Place<T> place, T scale, int derivative, T* out,
                             int stride) {
  T value[K + 1];
  spline_values<T, K>(knots, n_knots, x, place, scale, derivative, value);
  const int shift =
      place.unit == T(1) ? place.cell - K - scalar::window_of_cell(place.cell, K, n_knots - 2 * K - 1) : 0;
  if (shift == 0) {
    KAN_UNROLL
    for (int j = 0; j <= K; ++j) out[j * stride] = value[j];
    return;
  }
  for (int j = 0; j <= K; ++j) out[j * stride] = T(0);
  KAN_UNROLL
  for (int j = 0; j <= K; ++j) {
    if (j + shift >= 0 && j + shift <= K) out[(j + shift) * stride] = value[j];
  }
}

// write_values for an order known at run time.
template <class T>
KAN_DEVICE_CALL void write_values_of_order(int order, const T* knots, int n_knots, T x, Place<T> place, T scale,
                                           int derivative, T* out, int stride) {
  switch (order) {
    case 0: return write_values<T, 0>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 1: return write_values<T, 1>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 2: return write_values<T, 2>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 3: return write_values<T, 3>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 4: return write_values<T, 4>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 5: return write_values<T, 5>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 6: return write_values<T, 6>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 7: return write_values<T, 7>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 8: return write_values<T, 8>(knots, n_knots, x, place, scale, derivative, out, stride);
    case 9: return write_values<T, 9>(knots, n_knots, x, place, scale, derivative, out, stride);
    default: return write_values<T, 10>(knots, n_knots, x, place, scale, derivative, out, stride);
  }
}

template <class T, int K>
KAN_DEVICE void write_values_any(int order, const T* knots, int n_knots, T x, Place<T> place, T scale, int derivative,
                                 T* out, int stride) {
  if constexpr (K >= 0) {
    write_values<T, K>(knots, n_knots, x, place, scale, derivative, out, stride);
  } else {
    write_values_of_order<T>(order, knots, n_knots, x, place, scale, derivative, out, stride);
  }
}

}  // namespace cuda
}  // namespace kan
