// Weights of edges, [out][in][functions] as other codebases store them, times a scale of each edge, laid out as
// kan_linear takes them, [in][functions][out]: one pass in each direction.
#pragma once

#include "cpu/linear/blocking.h"

namespace kan {
namespace KAN_ISA {

template <class T>
class EdgeScale {
 public:
  explicit EdgeScale(const cpu::EdgeScaleArgs& args)
      : a_(args), columns_(args.in_features * args.functions), width_(max64(1, kColumns / max64(1, args.functions))) {}

  void run(const cpu::Executor& executor) {
    execute(
        executor, columns_ * a_.out_features > kSerialNumbers, ceil_div(a_.out_features, L),
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const EdgeScale*>(self)->task(t * L);
        },
        this);
  }

 private:
  static constexpr int64_t L = Simd<T>::lanes, kColumns = 512, kSerialNumbers = int64_t(1) << 15;

  // Outputs [o, o + L): a lane each. Blocks of `width_` features are transposed, so that lanes lie together.
  void task(int64_t o) const {
    const int64_t n = min64(L, a_.out_features - o), block = width_ * a_.functions;
    Arena arena(3 * Arena::bytes_for<T>(block * L) + 2 * Arena::bytes_for<T>(width_ * L));
    T* weight = arena.take<T>(block * L);
    T* product = arena.take<T>(block * L);
    T* g = arena.take<T>(block * L);
    T* scale = arena.take<T>(width_ * L);
    T* d_scale = arena.take<T>(width_ * L);
    for (int64_t j = 0; j < block * L; ++j) weight[j] = g[j] = T(0);  // lanes past the last output stay so
    for (int64_t j = 0; j < width_ * L; ++j) scale[j] = T(0);
    for (int64_t i = 0; i < a_.in_features; i += width_) {
      const int64_t features = min64(width_, a_.in_features - i), columns = features * a_.functions;
      const int64_t first = i * a_.functions;
      read_transposed_rows(scale, a_.scale, a_.in_features, o, n, i, features);
      if (a_.product || a_.d_scale) read_transposed_rows(weight, a_.weight, columns_, o, n, first, columns);
      if (a_.product) {
        times(product, weight, scale, features);
        for (int64_t c = 0; c < columns; ++c)
          copy_row(numbers(a_.product, (first + c) * a_.out_features + o), product + c * L, n);
        continue;
      }
      for (int64_t c = 0; c < columns; ++c) copy_row(g + c * L, numbers(a_.g, (first + c) * a_.out_features + o), n);
      if (a_.d_weight) {
        times(product, g, scale, features);
        write_transposed_rows(a_.d_weight, columns_, product, o, n, first, columns);
      }
      if (a_.d_scale) {
        for (int64_t f = 0; f < features; ++f) {
          Vec<T> sum = Vec<T>{};
          for (int64_t c = f * a_.functions; c < (f + 1) * a_.functions; ++c)
            sum += load(weight + c * L) * load(g + c * L);
          store(d_scale + f * L, sum);
        }
        write_transposed_rows(a_.d_scale, a_.in_features, d_scale, o, n, i, features);
      }
    }
  }

  void times(T* to, const T* from, const T* scale, int64_t features) const {
    for (int64_t f = 0; f < features; ++f) {
      const Vec<T> factor = load(scale + f * L);
      for (int64_t c = f * a_.functions; c < (f + 1) * a_.functions; ++c)
        store(to + c * L, load(from + c * L) * factor);
    }
  }

  static T* numbers(void* data, int64_t at) { return static_cast<T*>(data) + at; }
  static const T* numbers(const void* data, int64_t at) { return static_cast<const T*>(data) + at; }

  // to[c][L] = from[row + l][column + c], l < n.
  void read_transposed_rows(T* to, const void* from, int64_t ld, int64_t row, int64_t n, int64_t column,
                            int64_t columns) const {
    read_transposed(to, L, MatrixView{from, a_.dtype, ld, 1}, row, n, column, columns);
  }

  // to[row + l][column + c] = from[c][L], l < n.
  void write_transposed_rows(void* to, int64_t ld, const T* from, int64_t row, int64_t n, int64_t column,
                             int64_t columns) const {
    read_transposed(numbers(to, row * ld + column), ld, MatrixView{from, a_.dtype, L, 1}, 0, columns, 0, n);
  }

  const cpu::EdgeScaleArgs& a_;
  const int64_t columns_, width_;
};

}  // namespace KAN_ISA
}  // namespace kan
