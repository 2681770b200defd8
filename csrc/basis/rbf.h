// Gaussians around centres, B_r(x) = exp(-t^2) with t = (x - c_r) / h, and their derivatives, for scalars and SIMD
// vectors.
//
// B^(n) = (-1/h)^n H_n(t) exp(-t^2) with the Hermite polynomials of the physicists, so that
// B^(n+1) = -2/h (t B^(n) + n/h B^(n-1)).
#pragma once

#include "config.h"

namespace kan {
namespace KAN_ISA {

template <class V, class T>
struct Gaussian {
  V t, bell, value, previous;  // value = B^(order), previous = B^(order-1)
  T inverse_width;
  int order = 0;

  // t = (x - c) / h and bell = exp(-t^2), as the caller's arithmetic computes it. Where the bell is 0 so is every
  // derivative: an infinite t must not meet it.
  KAN_HD Gaussian(V t, V bell, T inverse_width)
      : t(bell == T(0) ? V{} : t), bell(bell), value(bell), previous(V{}), inverse_width(inverse_width) {}

  // B^(derivative); cheapest in ascending order.
  KAN_HD V at(int derivative) {
    if (derivative < order) value = bell, previous = V{}, order = 0;
    for (; order < derivative; ++order) {
      const V next = (t * value + previous * (T(order) * inverse_width)) * (T(-2) * inverse_width);
      previous = value;
      value = next;
    }
    return value;
  }
};

}  // namespace KAN_ISA
}  // namespace kan
