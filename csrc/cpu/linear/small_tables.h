// What neighbouring features of a small layer are evaluated with: tables (cell_polynomials.h) from which each lane, a
// row, reads the numbers of its own cell.
#pragma once

#include <new>

#include "blocking.h"
#include "cell_polynomials.h"
#include "lookup.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallColumns = 8;  // features whose columns and tables are made together
constexpr int kSmallRows = 256;   // rows of one block: its columns stay in the first-level cache

// Where the rows of a block lie among the knots of one feature: the offsets of their entries' lines, and where in
// cells.
template <class T>
struct SmallPlaces {
  alignas(64) int32_t lines[kSmallRows];
  alignas(64) T u[kSmallRows], w[kSmallRows];

  KAN_HD Place<T> at(int64_t b) const { return {load(u + b), load(w + b)}; }
};

// Finds the places of rows among the knots of one feature.
template <class T, int N>
class SmallFinder {
 public:
  template <int K>
  void load(const T* knots, const CellPolynomials<T, K, N>& tables) {
    n_knots_ = tables.n_knots();
    std::copy(knots, knots + n_knots_, knots_);
    even_ = tables.find_scale(scale_, shift_);
    for (int e = 0; e <= n_knots_; ++e) {
      bounds_.put(e, 0, tables.left(e)), bounds_.put(e, 1, tables.right(e)), bounds_.put(e, 2, tables.inverse_width(e));
    }
    for (int e : {0, n_knots_}) {
      if (even_) bounds_.put(e, 0, -kFar<T>), bounds_.put(e, 1, kFar<T>);
    }
  }

  // rows: filled up to whole vectors.
  void find(const T* x, int64_t rows, SmallPlaces<T>& places) const {
    if (even_) {
      find_lines<true>(x, rows, places.lines);
      if (find_places<true>(x, rows, places)) return;
    }
    find_lines<false>(x, rows, places.lines);
    find_places<false>(x, rows, places);
  }

 private:
  static constexpr int L = Simd<T>::lanes;

  // A loop of its own: the offsets are read one by one, and a load waits where its store is still underway.
  template <bool Even>
  KAN_HD void find_lines(const T* x, int64_t rows, int32_t* lines) const {
    using IVec = typename Simd<T>::IVec;
    const int n_knots = n_knots_;
    const Vec<T> scale = broadcast(scale_), shift = broadcast(shift_);
    for (int64_t b = 0; b < rows; b += L) {
      const Vec<T> v = KAN_ISA::load(x + b);
      if constexpr (Even) {
        store_offsets<T>(lines + b, computed_entry<T>(v, scale, shift, n_knots) * kLine);
      } else {  // how many knots are at or below x; 0 for NaN
        IVec count = IVec{};
        for (int t = 0; t < n_knots; ++t) count -= (IVec)(v >= broadcast(knots_[t]));
        store_offsets<T>(lines + b, __builtin_convertvector(count, Offsets<T>) * kLine);
      }
    }
  }
  // False if Even and a row lies elsewhere than in the cell of its line, at infinity or nowhere.
  template <bool Even>
  KAN_HD bool find_places(const T* x, int64_t rows, SmallPlaces<T>& places) const {
    using IVec = typename Simd<T>::IVec;
    IVec elsewhere = IVec{};
    const Vec<T> first = broadcast(knots_[0]), last = broadcast(knots_[n_knots_ - 1]);
    for (int64_t b = 0; b < rows; b += L) {
      Vec<T> v = KAN_ISA::load(x + b), cell[3];
      bounds_.template read<3>(places.lines + b, cell);
      if constexpr (Even) {
        elsewhere |= (IVec)(v < cell[0]) | ~(IVec)(v < cell[1]);
      } else {  // infinities stay out of the arithmetic
        v = v < first ? first : v;
        v = v > last ? last : v;
      }
      store(places.u + b, (v - cell[0]) * cell[2]);
      store(places.w + b, (cell[1] - v) * cell[2]);
    }
    return !Even || !any_lane(elsewhere);
  }

  int n_knots_ = 0;
  bool even_ = false;
  T scale_ = 0, shift_ = 0, knots_[N];
  LineTable<T, N> bounds_;
};

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
  const SmallFinder<T, N>& finder(int64_t f) const { return finders_[first_with_[f]]; }
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
  SmallFinder<T, N> finders_[kSmallColumns];
  SmallSplines<T, K, N> splines_[kSmallColumns];
  Knots knots_;
  BasisLines<K, N> basis_;
};

}  // namespace KAN_ISA
}  // namespace kan
