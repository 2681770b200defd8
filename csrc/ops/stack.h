// Networks side by side, as torch.vmap asks for them: a tensor has one dimension more, in front, or is shared. The one
// that the stack is made of, the weights or the cotangent, is not.
#pragma once

#include <type_traits>
#include <vector>

#include "checks.h"

namespace kan {
namespace ops {

// Bytes from the data of one network to those of the next, 0 for what is shared.
struct Steps {
  int64_t x = 0, row_scale = 0, g = 0, grid = 0, spline_weight = 0, base_weight = 0, bias = 0;
  int64_t y = 0, input = 0, d_spline = 0, d_base = 0;
};

template <class T>
void step(T*& p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  if (p) p = static_cast<T*>(static_cast<Byte*>(p) + bytes);
}
inline void step(Layer& l, const Steps& s, int64_t n) {
  step(l.grid, n * s.grid), step(l.spline_weight, n * s.spline_weight), step(l.base_weight, n * s.base_weight);
}
inline ForwardArgs of_network(ForwardArgs a, const Steps& s, int64_t n) {
  step(a.layer, s, n), step(a.x.data, n * s.x), step(a.row_scale.data, n * s.row_scale);
  step(a.bias, n * s.bias), step(a.y, n * s.y);
  return a;
}
inline BackwardArgs of_network(BackwardArgs a, const Steps& s, int64_t n) {
  step(a.layer, s, n), step(a.x.data, n * s.x), step(a.row_scale.data, n * s.row_scale), step(a.g.data, n * s.g);
  step(a.input, n * s.input), step(a.d_spline, n * s.d_spline), step(a.d_base, n * s.d_base);
  return a;
}

// Either one network (count == 0), whose tensors it hands through, or a stack of them.
class Stack {
 public:
  Steps steps;

  // of: a tensor that has `rank` dimensions for one network, and is not shared.
  Stack(const Tensor& of, int64_t rank) : stacked_(of.dim() == rank + 1), count_(stacked_ ? of.size(0) : 0) {
    check(!stacked_ || count_ > 0, "got a stack of no networks, expected one or more");
  }
  bool is_stacked() const { return stacked_; }
  int64_t count() const { return count_; }

  // The first network's part of a tensor, which has `rank` dimensions for each; densely stored, if asked for.
  Tensor first(const Tensor& t, const char* name, int64_t rank, int64_t Steps::* place, bool packed = false) {
    if (!stacked_) return t;
    if (t.dim() == rank) return packed ? dense(t) : t;
    check(t.dim() == rank + 1 && t.size(0) == count_, name, " must be stacked like the weights, ", count_,
          " networks in front, got ", t.dim(), " dimensions");
    const Tensor whole = packed ? dense(t) : t;
    if (packed) kept_.push_back(whole);
    steps.*place = whole.stride(0) * int64_t(whole.element_size());
    return torch::stable::select(whole, 0, 0);
  }
  OptionalTensor first(const OptionalTensor& t, const char* name, int64_t rank, int64_t Steps::* place,
                       bool packed = false) {
    if (!t) return {};
    return first(*t, name, rank, place, packed);
  }
  // A fresh tensor for all networks.
  Tensor made(const Tensor& like, std::initializer_list<int64_t> sizes, int64_t Steps::* place) {
    if (!stacked_) return empty(like, sizes);
    int64_t all[4] = {count_}, numbers = 1, n = 1;
    for (int64_t size : sizes) numbers *= size, all[n++] = size;
    steps.*place = numbers * int64_t(like.element_size());
    return empty(like, all, n);
  }

 private:
  bool stacked_;
  int64_t count_;
  std::vector<Tensor> kept_;
};

}  // namespace ops
}  // namespace kan
