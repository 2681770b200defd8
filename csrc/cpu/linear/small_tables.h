// What neighbouring features of a small layer are evaluated with: tables (cell_polynomials.h) from which each lane, a
// row, reads the numbers of its own cell.
#pragma once

#include <new>

#include "blocking.h"
#include "cell_finder.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallColumns = 8;  // features whose columns and tables are made together
constexpr int kSmallRows = 256;   // rows of one block: its columns stay in the first-level cache

// Where the rows of a block lie among the knots of one feature.
template <class T>
using SmallPlaces = CellPlaces<T, kSmallRows>;

// The splines of one feature and all outputs.
template <class T, int K, int N>
class SmallSplines {
 public:
  void load(const Layer& layer, int64_t feature, const BasisLines<K, N>& basis) {
    const int64_t out = layer.out_features;
    const int functions = layer.functions;
    T rows[N * kSmallOutputs];
    read_row(rows, layer.spline_weight, layer.weight_dtype, feature * functions * out, functions * out, 1);
    for (int64_t o = 0; o < out; ++o) {
      basis.each_of_spline(rows + o, out, functions, [&](int e, Line<T> line) { table_[o].put(e, line); });
    }
    for (int64_t o = 0; o < out; ++o) base_[o] = T(0);
    if (layer.base_weight) read_row(base_, layer.base_weight, layer.weight_dtype, feature * out, out, 1);
  }

  // At the places of a vector of rows, whose lines these are.
  template <int Degree>
  KAN_HD Vec<T> value(int64_t o, const int32_t* lines, const Vec<T>* monomials) const {
    Vec<T> c[kLine];
    table_[o].template read<Degree + 1>(lines, c);
    Vec<T> value = c[0] * monomials[0];
    KAN_UNROLL
    for (int i = 1; i <= Degree; ++i) value += c[i] * monomials[i];
    return value;
  }

  T base_weight(int64_t o) const { return base_[o]; }  // 0 where there is no base

 private:
  LineTable<T, N> table_[kSmallOutputs];
  T base_[kSmallOutputs];
};

// The tables of neighbouring features, of which many have the same knots.
template <class T, int K, int N>
class SmallTables {
 public:
  using Knots = CellPolynomials<T, K, N>;

  // Some are too large for the stacks of threads. derivative: of the splines, as polynomials of a degree; -1: none.
  static SmallTables& make(Arena& arena, const Layer& layer, const Shape& s, int derivative, int degree) {
    return *new (arena.take<SmallTables>(1)) SmallTables(layer, s, derivative, degree);
  }
  static size_t bytes() { return Arena::bytes_for<SmallTables>(1); }

  void load(int64_t feature, int64_t n) {
    if (feature == loaded_) return;
    loaded_ = feature;
    for (int64_t f = 0; f < n; ++f) {
      const bool repeated = repeats(feature, f);
      first_with_[f] = repeated ? first_with_[f - 1] : f;
      if (!repeated) {
        knots_.load(grid(feature + f), shape_.n_knots);
        finders_[f].load(grid(feature + f), knots_);
        if (derivative_ >= 0) basis_.load(knots_, derivative_, degree_);
      }
      if (derivative_ >= 0) splines_[f].load(layer_, feature + f, basis_);
    }
  }
  const CellFinder<T, N>& finder(int64_t f) const { return finders_[first_with_[f]]; }
  const SmallSplines<T, K, N>& splines(int64_t f) const { return splines_[f]; }

  // Calls call(f, its basis functions) for the features that were loaded.
  template <class Call>
  void each_basis(int64_t feature, int64_t n, int derivative, const Call& call) {
    for (int64_t f = 0; f < n; ++f) {
      if (!repeats(feature, f)) {
        knots_.load(grid(feature + f), shape_.n_knots);
        basis_.load(knots_, derivative, K);
      }
      call(f, basis_);
    }
  }

 private:
  SmallTables(const Layer& layer, const Shape& s, int derivative, int degree)
      : layer_(layer), shape_(s), derivative_(derivative), degree_(degree) {}

  const T* grid(int64_t i) const { return static_cast<const T*>(layer_.grid) + i * shape_.n_knots; }
  // Whether feature + f has the knots of the one before.
  bool repeats(int64_t feature, int64_t f) const {
    const T* const own = grid(feature + f);
    return f > 0 && std::equal(own, own + shape_.n_knots, own - shape_.n_knots);
  }

  const Layer& layer_;
  const Shape& shape_;
  const int derivative_, degree_;
  int64_t loaded_ = -1, first_with_[kSmallColumns];
  CellFinder<T, N> finders_[kSmallColumns];
  SmallSplines<T, K, N> splines_[kSmallColumns];
  Knots knots_;
  BasisLines<K, N> basis_;
};

}  // namespace KAN_ISA
}  // namespace kan
