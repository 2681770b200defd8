// The functions of bases of full support, one after another, for one thread; the mathematics is csrc/basis. The only
// place on CUDA where they are told apart.
//
// A policy of the tile kernels: Functions<T, Orders> walks along the functions of one input at one x and gives `Orders`
// derivatives of each. It starts at function `first`; next() gives one function and goes on. What depends on no x is
// computed once a block: kTable numbers a function, in shared memory, for each order.
#pragma once

#include <stdexcept>
#include <string>

#include "basis/chebyshev.h"
#include "basis/orthogonal.h"
#include "basis/rbf.h"
#include "cuda/evaluate.h"
#include "full_support.h"

namespace kan {
namespace cuda {

template <class T, int Orders>
struct GaussianFunctions {
  static constexpr int kTable = 0;
  static KAN_DEVICE void fill(T*, int, int) {}

  const T* centre;
  int derivative[Orders];
  T x, inverse_width;

  // grid: the row of this input. tables: those of the orders, of `functions` entries each.
  KAN_DEVICE GaussianFunctions(const T* grid, const T*, int functions, const int (&orders)[Orders], T x, int first)
      : centre(grid + first), x(x), inverse_width(T(1) / grid[functions]) {
    KAN_UNROLL
    for (int n = 0; n < Orders; ++n) derivative[n] = orders[n];
  }

  KAN_DEVICE void next(T (&value)[Orders]) {
    const T t = (x - *centre++) * inverse_width;
    scalar::Gaussian<T, T> bell(t, std::exp(-t * t), inverse_width);
    KAN_UNROLL
    for (int n = 0; n < Orders; ++n) value[n] = bell.at(derivative[n]);
  }
};

template <class T, int Orders>
struct ChebyshevFunctions {
  struct alignas(2 * sizeof(T)) Factors {
    T slope, drop;  // of scalar::ChebyshevStep; its start is not 0 for one function alone
  };
  static constexpr int kTable = 2;
  static KAN_DEVICE void fill(T* table, int r, int derivative) {
    const scalar::ChebyshevStep<T> step = scalar::chebyshev_step<T>(r, derivative);
    reinterpret_cast<Factors*>(table)[r] = {step.slope, step.drop};
  }

  const Factors* factors;
  int functions, at = 0;
  T x, zero;  // zero: NaN where x is not finite
  int starts_at[Orders];
  T start[Orders], last[Orders], before[Orders];

  KAN_DEVICE ChebyshevFunctions(const T*, const T* tables, int functions, const int (&orders)[Orders], T x, int first)
      : factors(reinterpret_cast<const Factors*>(tables)), functions(functions), x(x), zero(x - x) {
    KAN_UNROLL
    for (int n = 0; n < Orders; ++n) {
      starts_at[n] = orders[n];
      start[n] = scalar::chebyshev_step<T>(orders[n], orders[n]).start;
      last[n] = before[n] = zero;
    }
    T skipped[Orders];
    KAN_ROLLED
    while (at < first) next(skipped);
  }

  KAN_DEVICE void next(T (&value)[Orders]) {
    KAN_UNROLL
    for (int n = 0; n < Orders; ++n) {
      const Factors f = factors[n * functions + at];
      const T constant = zero + (at == starts_at[n] ? start[n] : T(0));
      value[n] = last[n] * (x * f.slope) - (before[n] * f.drop - constant);
      before[n] = last[n];
      last[n] = value[n];
    }
    ++at;
  }
};

// P_r^(m)(x) from the start, for orders that the registers have no room for.
template <class T>
KAN_DEVICE_CALL T high_orthogonal(const T* grid, int functions, T x, int r, int m) {
  scalar::Orthogonal<T, T, kMaxDerivative + 1> p(x - x);
  KAN_ROLLED
  for (int n = 0; n <= r; ++n) p.step(x, grid[n], grid[functions + n], grid[2 * functions + n], m);
  return p.last[m];
}

template <class T, int Orders>
struct OrthogonalFunctions {
  static constexpr int kLow = 2;  // up to this order they go along in registers
  static constexpr int kTable = 0;
  static KAN_DEVICE void fill(T*, int, int) {}

  const T* grid;
  int functions, at = 0, highest = 0, derivative[Orders];
  T x;
  scalar::Orthogonal<T, T, kLow> p;

  KAN_DEVICE OrthogonalFunctions(const T* grid, const T*, int functions, const int (&orders)[Orders], T x, int first)
      : grid(grid), functions(functions), x(x), p(x - x) {
    KAN_UNROLL
    for (int n = 0; n < Orders; ++n) {
      derivative[n] = orders[n];
      highest = highest > orders[n] ? highest : orders[n];
    }
    KAN_ROLLED
    while (at < first) step();
  }
  KAN_DEVICE void step() {
    if (highest <= kLow) p.step(x, grid[at], grid[functions + at], grid[2 * functions + at], highest);
    ++at;
  }

  KAN_DEVICE void next(T (&value)[Orders]) {
    step();
    KAN_UNROLL
    for (int n = 0; n < Orders; ++n) {
      value[n] = highest <= kLow ? p.at(derivative[n]) : high_orthogonal(grid, functions, x, at - 1, derivative[n]);
    }
  }
};

// Runs Kernel<Product, Functions>::run(arguments...) for a call's basis.
template <template <class, template <class, int> class> class Kernel, class Product, class... Arguments>
auto run_basis(const FullSupportArgs& a, Arguments... arguments) {
  switch (a.layer.basis) {
    case kRbf: return Kernel<Product, GaussianFunctions>::run(a, arguments...);
    case kChebyshev: return Kernel<Product, ChebyshevFunctions>::run(a, arguments...);
    case kOrthogonal: return Kernel<Product, OrthogonalFunctions>::run(a, arguments...);
    default: throw std::runtime_error("kan_kernels: no CUDA kernels for basis " + std::to_string(a.layer.basis));
  }
}
}  // namespace cuda
}  // namespace kan
