// What one feature of a small layer is evaluated with: tables that fit in two registers, from which each lane reads
// the numbers of its own cell.
//
// Entry e of a table belongs to rows with e knots at or below x, that is to the cell between knots e-1 and e. The first
// entry and those from n_knots on belong to no cell. In a cell a spline is a polynomial in Bernstein's form, a sum over
// u^i w^(n-i) with u = (x - left) / width and w = (right - x) / width: B-splines have positive coefficients there, so
// nothing cancels that does not cancel between B-splines.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "blocking.h"
#include "lookup.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallOrder = 3;
constexpr int kSmallColumns = 8;  // features whose columns and tables are made together

// Where lanes lie among the knots. In no cell u = w = 0; both are NaN for NaN.
template <class T>
struct Place {
  typename Simd<T>::IVec entry;
  Vec<T> u, w;
};

// out[i] = u^i w^(Degree - i)
template <class T, int Degree>
KAN_HD void monomials(const Place<T>& p, Vec<T>* out) {
  out[0] = p.u * T(0) + T(1);  // keeps NaN
  KAN_UNROLL
  for (int n = 1; n <= Degree; ++n) {
    out[n] = n == 1 ? p.u : out[n - 1] * p.u;
    KAN_UNROLL
    for (int i = 0; i < n; ++i) out[i] = n == 1 ? p.w : out[i] * p.w;
  }
}

// Tables are computed in double, whatever they are stored as.
template <class T>
struct Rounded {
  typedef T Vector __attribute__((vector_size(Simd<double>::lanes * sizeof(T)), may_alias));
  static KAN_HD void put(T* to, Vec<double> value) {
    *reinterpret_cast<Vector*>(to) = __builtin_convertvector(value, Vector);
  }
};

// The knots of one feature, in tables of N entries.
template <class T, int K, bool Short, int Entries = Short ? Simd<T>::lanes : Lookup<T>::entries>
class SmallKnots {
 public:
  static constexpr int N = Entries;
  using IVec = typename Simd<T>::IVec;
  // [j][i][e]: coefficient i of the j-th function of entry e's cell
  using Polynomials = double[K + 1][K + 1][N];

  void load(const T* knots, int n_knots) {
    first_ = knots[0], last_ = knots[n_knots - 1];
    for (int t = -kPadding; t < N + kPadding; ++t) {
      padded_[kPadding + t] = double(knots[t < 0 ? 0 : (t < n_knots ? t : n_knots - 1)]);
    }
    for (int t = 0; t < N; ++t) knots_[t] = t < n_knots ? knots[t] : std::numeric_limits<T>::infinity();
    for (int e = 0; e < N; e += kDoubles) {
      KAN_UNROLL
      for (int p = 1; p <= K; ++p) {
        KAN_UNROLL
        for (int r = 0; r < p; ++r) store(inverses_[p * (p - 1) / 2 + r] + e, inverse(knot(e + r) - knot(e - p + r)));
      }
      Rounded<T>::put(left_ + e, knot(e - 1)), Rounded<T>::put(right_ + e, knot(e));
      Rounded<T>::put(inverse_ + e, inverse(knot(e) - knot(e - 1)));
    }
  }

  KAN_HD Place<T> locate(Vec<T> x) const {
    Place<T> p;
    p.entry = count_at_or_below<T, Short>(knots_, x);
    Vec<T> inside = x < first_ ? broadcast(first_) : x;  // infinities stay out of the arithmetic
    inside = inside > last_ ? broadcast(last_) : inside;
    const Vec<T> inverse = read(inverse_, p.entry);
    p.u = (inside - read(left_, p.entry)) * inverse;
    p.w = (read(right_, p.entry) - inside) * inverse;
    return p;
  }

  T left(int entry) const { return left_[entry]; }
  T right(int entry) const { return right_[entry]; }
  T inverse_width(int entry) const { return inverse_[entry]; }

  // The triangle of bspline.h with polynomials for numbers, raised to a degree.
  void polynomials(int derivative, int out_degree, Polynomials& out) const {
    for (int e = 0; e < N; e += kDoubles) {
      const D left = knot(e - 1), right = knot(e);
      D value[K + 1][K + 2] = {};
      value[0][0] = right > left && derivative <= K ? broadcast(1.0) : D{};
      KAN_UNROLL
      for (int p = 1; p <= K; ++p) {
        const bool rising = p <= K - derivative;
        D saved[K + 2] = {};
        KAN_UNROLL
        for (int r = 0; r < p; ++r) {
          const D above = knot(e + r), below = knot(e - p + r);
          const D scale = KAN_ISA::load<double>(inverses_[p * (p - 1) / 2 + r] + e);
          D scaled[K + 1], growing[K + 2] = {};
          KAN_UNROLL
          for (int i = 0; i < p; ++i) scaled[i] = value[r][i] * (rising ? scale : scale * double(p));
          KAN_UNROLL
          for (int i = 0; i <= p; ++i) value[r][i] = saved[i];
          if (rising) {
            add_product<K>(value[r], scaled, p, above - left, above - right);
            add_product<K>(growing, scaled, p, left - below, right - below);
          } else {
            KAN_UNROLL
            for (int i = 0; i < p; ++i) value[r][i] -= scaled[i], growing[i] = scaled[i];
          }
          KAN_UNROLL
          for (int i = 0; i <= p; ++i) saved[i] = growing[i];
        }
        KAN_UNROLL
        for (int i = 0; i <= p; ++i) value[p][i] = saved[i];
      }
      for (int j = 0; j <= K; ++j) {
        for (int n = derivative < K ? K - derivative : 0; n < out_degree; ++n) {  // times u + w
          D raised[K + 2] = {};
          add_product<K>(raised, value[j], K, broadcast(1.0), broadcast(1.0));
          std::copy(raised, raised + K + 1, value[j]);
        }
        for (int i = 0; i <= K && i <= out_degree; ++i) store(out[j][i] + e, value[j][i]);
      }
    }
  }

  // The polynomials of a table at the lanes' places.
  template <int Degree>
  static KAN_HD Vec<T> sum(const T (*table)[N], const Place<T>& p, const Vec<T>* monomials) {
    Vec<T> sum = read(table[0], p.entry) * monomials[0];
    KAN_UNROLL
    for (int i = 1; i <= Degree; ++i) sum += read(table[i], p.entry) * monomials[i];
    return sum;
  }

 private:
  static KAN_HD Vec<T> read(const T* table, IVec entry) { return Lookup<T>::template read<Short>(table, entry); }
  using D = Vec<double>;
  static constexpr int kPadding = kSmallOrder + 1;  // knots beyond the ends are repeated
  static constexpr int kDoubles = Simd<double>::lanes;

  D knot(int t) const { return KAN_ISA::load<double>(padded_ + kPadding + t); }
  static D inverse(D width) { return width > 0.0 ? 1.0 / width : D{}; }

  // Adds the product of n coefficients and the linear function that is at0 on the left and at1 on the right.
  template <int Most>
  static KAN_HD void add_product(D* to, const D* from, int n, D at0, D at1) {
    KAN_UNROLL
    for (int i = 0; i < Most; ++i) {
      if (i < n) to[i] += from[i] * at0, to[i + 1] += from[i] * at1;
    }
  }

  T first_, last_;
  alignas(64) T knots_[N], left_[N], right_[N], inverse_[N];
  alignas(64) double padded_[kPadding + N + kPadding];
  alignas(64) double inverses_[K * (K + 1) / 2 + 1][N];  // of the knot differences in the triangle
};

// One feature's basis functions, of degree K: all of them for each lane, most of them zero.
template <class T, int K, bool Short>
class SmallFunctions {
 public:
  using Knots = SmallKnots<T, K, Short>;
  static constexpr int N = Knots::N;

  void load(const typename Knots::Polynomials& polynomials, int functions) {
    std::memset(table_, 0, sizeof(table_[0]) * functions);
    for (int r = 0; r < functions; ++r) {
      for (int j = 0; j <= K; ++j) {
        for (int i = 0; i <= K; ++i) table_[r][i][r + 1 + K - j] = T(polynomials[j][i][r + 1 + K - j]);
      }
    }
  }
  KAN_HD Vec<T> value(int r, const Place<T>& p, const Vec<T>* monomials) const {
    return Knots::template sum<K>(table_[r], p, monomials);
  }

 private:
  alignas(64) T table_[N][K + 1][N];
};

// The table of one spline, whose coefficients lie `stride` apart.
template <class T, int K, int N>
void spline_table(T (*table)[N], const T* coefficients, int64_t stride, int functions,
                  const double (*polynomials)[K + 1][N], int degree) {
  alignas(64) double padded[K + 1 + N + K + 1] = {};  // the j-th function of entry e lies at e + j
  for (int r = 0; r < functions; ++r) padded[K + 1 + r] = double(coefficients[r * stride]);
  for (int e = 0; e < N; e += Simd<double>::lanes) {
    for (int i = 0; i <= K && i <= degree; ++i) {
      Vec<double> sum = Vec<double>{};
      KAN_UNROLL
      for (int j = 0; j <= K; ++j) {
        const Vec<double> share = load<double>(polynomials[j][i] + e);
        const Vec<double> term = share * load<double>(padded + e + j);
        sum += share == 0.0 ? Vec<double>{} : term;  // an infinite coefficient is no part of it
      }
      Rounded<T>::put(table[i] + e, sum);
    }
  }
}

// One feature's functions of all outputs.
template <class T, int K, bool Short>
class SmallSplines {
 public:
  using Knots = SmallKnots<T, K, Short>;
  static constexpr int N = Knots::N;

  void load(const Layer& layer, int64_t feature, const typename Knots::Polynomials& polynomials, int degree) {
    const int64_t out = layer.out_features;
    const int functions = layer.functions;
    T rows[N * kSmallOutputs];
    read_row(rows, layer.spline_weight, layer.weight_dtype, feature * functions * out, functions * out, 1);
    for (int64_t o = 0; o < out; ++o) spline_table<T, K, N>(table_[o], rows + o, out, functions, polynomials, degree);
    for (int64_t o = 0; o < out; ++o) base_[o] = T(0);
    if (layer.base_weight) read_row(base_, layer.base_weight, layer.weight_dtype, feature * out, out, 1);
  }

  template <int Degree>
  KAN_HD Vec<T> value(int64_t o, const Place<T>& p, const Vec<T>* monomials) const {
    return Knots::template sum<Degree>(table_[o], p, monomials);
  }

  T base_weight(int64_t o) const { return base_[o]; }  // 0 where there is no base

 private:
  alignas(64) T table_[kSmallOutputs][K + 1][N];
  T base_[kSmallOutputs];
};

// The tables of neighbouring features, of which many have the same knots.
template <class T, int K, bool Short>
class SmallTables {
 public:
  using Knots = SmallKnots<T, K, Short>;
  using Functions = SmallFunctions<T, K, Short>;
  using Splines = SmallSplines<T, K, Short>;

  // Orders of derivatives; -1: no such tables. degree: of the splines.
  SmallTables(const Layer& layer, const Shape& s, int functions, int splines, int degree)
      : layer_(layer), shape_(s), functions_derivative_(functions), splines_derivative_(splines), degree_(degree) {}

  void load(int64_t feature, int64_t n) {
    if (feature == loaded_) return;
    loaded_ = feature;
    const T* const all = static_cast<const T*>(layer_.grid);
    for (int64_t f = 0; f < n; ++f) {
      const T* const own = all + (feature + f) * shape_.n_knots;
      first_with_[f] = f > 0 && std::equal(own, own + shape_.n_knots, own - shape_.n_knots) ? first_with_[f - 1] : f;
      if (first_with_[f] == f) {
        knots_[f].load(own, shape_.n_knots);
        if (functions_derivative_ >= 0) {
          knots_[f].polynomials(functions_derivative_, K, polynomials_);
          functions_[f].load(polynomials_, shape_.functions);
        }
        if (splines_derivative_ >= 0) knots_[f].polynomials(splines_derivative_, degree_, polynomials_);
      }
      if (splines_derivative_ >= 0) splines_[f].load(layer_, feature + f, polynomials_, degree_);
    }
  }
  const Knots& knots(int64_t f) const { return knots_[first_with_[f]]; }
  const Functions& functions(int64_t f) const { return functions_[first_with_[f]]; }
  const Splines& splines(int64_t f) const { return splines_[f]; }

 private:
  const Layer& layer_;
  const Shape& shape_;
  const int functions_derivative_, splines_derivative_, degree_;
  int64_t loaded_ = -1, first_with_[kSmallColumns];
  Knots knots_[kSmallColumns];
  Functions functions_[kSmallColumns];
  Splines splines_[kSmallColumns];
  alignas(64) typename Knots::Polynomials polynomials_;
};

}  // namespace KAN_ISA
}  // namespace kan
