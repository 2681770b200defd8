// Nodes that multiply neighbouring outputs of a layer (KAN 2.0, arXiv 2408.10205), for every device.
#pragma once

#include <cstdint>
#include <vector>

#include "basis/config.h"

namespace kan {

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
  // call(first node, its first output, how many nodes, their arity) for neighbours that are alike; a sum has one
  // factor.
  template <class Call>
  void of_runs(const Call& call) const {
    if (sums > 0) call(int64_t(0), int64_t(0), sums, int64_t(1));
    int64_t node = sums, output = sums;
    for (auto from = arities.begin(), to = from; from != arities.end(); from = to) {
      while (to != arities.end() && *to == *from) ++to;
      const int64_t count = to - from;
      call(node, output, count, *from);
      node += count, output += count * *from;
    }
  }
};

// One node: its factors are multiplied from the first on, as torch would, so every bit is that of the layers one by
// one. round: makes of a number what is stored of it.
template <class T, class Factor, class Round>
KAN_HD T product_of(int64_t arity, const Factor& factor, const Round& round) {
  T product = factor(0);
  for (int64_t n = 1; n < arity; ++n) product = round(product * factor(n));
  return product;
}

// store(n, the cotangent of the n-th factor), from that of the node, g.
template <class T, class Factor, class Round, class Store>
KAN_HD void product_gradients(int64_t arity, T g, const Factor& factor, const Round& round, const Store& store) {
  for (int64_t n = arity - 1; n > 0; --n) {
    store(n, round(g * product_of<T>(n, factor, round)));
    g = round(g * factor(n));
  }
  store(0, g);
}

}  // namespace kan
