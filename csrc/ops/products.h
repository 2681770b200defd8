// Which outputs of a network's layers are multiplied, as the ops are told, and the products on the CPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "multiply.h"

namespace kan {
namespace ops {

// Those of each layer, from its sums, how many groups it has, and their sizes; from nothing: none anywhere.
inline std::vector<Products> products_of(const std::vector<int64_t>& numbers, size_t layers) {
  std::vector<Products> products(layers);
  if (numbers.empty()) return products;
  size_t at = 0;
  const auto next = [&](int64_t least) {
    check(at < numbers.size() && numbers[at] >= least && numbers[at] <= (int64_t(1) << 40),
          "products must hold for each of ", layers, " layers its sums, the number of its groups and their sizes");
    return numbers[at++];
  };
  for (Products& p : products) {
    p.sums = next(0);
    for (int64_t left = next(0); left > 0; --left) p.arities.push_back(next(2));
  }
  check(at == numbers.size(), "products holds more than its ", layers, " layers have");
  return products;
}

template <class Call>
void with_type(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::f32: return call(float());
    case DType::f64: return call(double());
    case DType::bf16: return call(torch::headeronly::BFloat16());
    case DType::f16: return call(torch::headeronly::Half());
  }
}

// nodes (rows, p.nodes()) of outputs (rows, p.outputs()), both contiguous.
inline void multiply(const Products& p, DType dtype, int64_t rows, const void* outputs, void* nodes) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(outputs);
    T* to = static_cast<T*>(nodes);
    const auto stored = [](T value) { return value; };
    for (int64_t row = 0; row < rows; ++row) {
      to = std::copy(from, from + p.sums, to), from += p.sums;
      for (int64_t arity : p.arities) {
        *to++ = product_of<T>(arity, [&](int64_t n) { return from[n]; }, stored);
        from += arity;
      }
    }
  });
}

// The cotangent (rows, p.outputs()), contiguous, from that of the nodes, g, of the same dtype.
inline void multiply_backward(const Products& p, int64_t rows, const void* outputs, const MatrixView& g,
                              void* cotangent) {
  with_type(g.dtype, [&](auto type) {
    using T = decltype(type);
    const T* factors = static_cast<const T*>(outputs);
    T* to = static_cast<T*>(cotangent);
    const auto stored = [](T value) { return value; };
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = static_cast<const T*>(g.data) + row * g.row_stride;
      for (int64_t n = 0; n < p.sums; ++n, from += g.col_stride) *to++ = *from;
      factors += p.sums;
      for (int64_t arity : p.arities) {
        product_gradients<T>(
            arity, *from, [&](int64_t n) { return factors[n]; }, stored, [&](int64_t n, T value) { to[n] = value; });
        from += g.col_stride, factors += arity, to += arity;
      }
    }
  });
}

}  // namespace ops
}  // namespace kan
