// Nodes that multiply neighbouring outputs of a layer (KAN 2.0, arXiv 2408.10205), behind the layers of a network.
#pragma once

#include <algorithm>
#include <vector>

#include "checks.h"

namespace kan {
namespace ops {

// Of a layer's outputs the first `sums` are nodes as they are; groups of the others are multiplied, first to last.
struct Products {
  int64_t sums = 0;
  std::vector<int64_t> arities;

  bool any() const { return !arities.empty(); }
  int64_t nodes() const { return sums + int64_t(arities.size()); }
  int64_t outputs() const {
    int64_t outputs = sums;
    for (int64_t arity : arities) outputs += arity;
    return outputs;
  }
};

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

// nodes (rows, p.nodes()) of outputs (rows, p.outputs()), both contiguous. A group is multiplied from its first factor
// on, as torch would: every bit is that of the layers one by one.
template <class T>
void multiply(const Products& p, int64_t rows, const T* outputs, T* nodes) {
  for (int64_t row = 0; row < rows; ++row) {
    nodes = std::copy(outputs, outputs + p.sums, nodes), outputs += p.sums;
    for (int64_t arity : p.arities) {
      T product = outputs[0];
      for (int64_t n = 1; n < arity; ++n) product *= outputs[n];
      *nodes++ = product, outputs += arity;
    }
  }
}

// The cotangent (rows, p.outputs()), contiguous, from that of the nodes, g.
template <class T>
void multiply_backward(const Products& p, int64_t rows, const T* outputs, const MatrixView& g, T* cotangent) {
  std::vector<T> before;  // products of a group's factors before the n-th
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = static_cast<const T*>(g.data) + row * g.row_stride;
    for (int64_t n = 0; n < p.sums; ++n, from += g.col_stride) *cotangent++ = *from;
    outputs += p.sums;
    for (int64_t arity : p.arities) {
      before.assign(1, outputs[0]);
      for (int64_t n = 1; n + 1 < arity; ++n) before.push_back(before.back() * outputs[n]);
      T left = *from;
      for (int64_t n = arity - 1; n > 0; --n) cotangent[n] = left * before[n - 1], left *= outputs[n];
      cotangent[0] = left;
      from += g.col_stride, outputs += arity, cotangent += arity;
    }
  }
}

}  // namespace ops
}  // namespace kan
