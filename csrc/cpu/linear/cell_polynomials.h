// The polynomials of B-splines cell by cell, for short grids.
//
// Entry e of a table belongs to rows with e knots at or below x, that is to the cell between knots e-1 and e. The first
// entry and those from n_knots on belong to no cell. In a cell a spline is a polynomial in Bernstein's form, a sum over
// u^i w^(n-i) with u = (x - left) / width and w = (right - x) / width: B-splines have positive coefficients there, so
// nothing cancels that does not cancel between B-splines.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/lines.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallOrder = 3;
constexpr int kMostKnots = 31;  // of a feature; tables have one more entry

// Where lanes lie in their cells. In no cell u = w = 0; both are NaN for NaN.
template <class T>
struct Place {
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

// out[i] = g u^i w^(Degree - i)
template <class T, int Degree>
KAN_HD void moments(const Place<T>& p, Vec<T> g, Vec<T>* out) {
  static_assert(Degree >= 1 && Degree <= kSmallOrder);
  const Vec<T> gw = g * p.w, gu = g * p.u;
  if constexpr (Degree == 1) out[0] = gw, out[1] = gu;
  if constexpr (Degree == 2) out[0] = gw * p.w, out[1] = gu * p.w, out[2] = gu * p.u;
  if constexpr (Degree == 3) {
    const Vec<T> ww = p.w * p.w, uu = p.u * p.u;
    out[0] = gw * ww, out[1] = gu * ww, out[2] = gw * uu, out[3] = gu * uu;
  }
}

// sum_i c[i] u^i w^(Degree - i)
template <class T, int Degree>
KAN_HD Vec<T> polynomial(const Place<T>& p, const Vec<T>* c) {
  static_assert(Degree <= kSmallOrder);
  if constexpr (Degree == 0) {
    return c[0] * (p.u * T(0) + T(1));  // keeps NaN
  } else {
    const Vec<T> low = c[0] * p.w + c[1] * p.u;
    if constexpr (Degree == 1) return low;
    if constexpr (Degree == 2) return low * p.w + c[2] * (p.u * p.u);
    if constexpr (Degree == 3) return low * (p.w * p.w) + (c[2] * p.w + c[3] * p.u) * (p.u * p.u);
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

// Where knots lie evenly: the whole part of scale x + shift, from 0 to n_knots; 0 for NaN.
template <class T>
KAN_HD Offsets<T> computed_entry(Vec<T> x, Vec<T> scale, Vec<T> shift, int n_knots) {
  Vec<T> s = x * scale + shift;
  s = s > T(0) ? s : Vec<T>{};
  s = s < T(n_knots) ? s : broadcast(T(n_knots));
  return __builtin_convertvector(s, Offsets<T>);
}

// The knots of one feature, with room for N - 1.
template <class T, int K, int N>
class CellPolynomials {
 public:
  // [j][i][e]: coefficient i of the j-th function of entry e's cell
  using Polynomials = double[K + 1][K + 1][N];

  void load(const T* knots, int n_knots) {
    n_knots_ = n_knots;
    for (int t = -kPadding; t < N + kPadding; ++t) {
      padded_[kPadding + t] = double(knots[t < 0 ? 0 : (t < n_knots ? t : n_knots - 1)]);
    }
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

  int n_knots() const { return n_knots_; }
  T left(int entry) const { return left_[entry]; }
  T right(int entry) const { return right_[entry]; }
  T inverse_width(int entry) const { return inverse_[entry]; }

  // Finds what an entry is computed with. True where that is right at both ends of the grid, and in all cells except
  // near their ends, where a look at the bounds shows it.
  bool find_scale(T& scale, T& shift) const {
    constexpr T kLargest = std::numeric_limits<T>::max() / T(1e8);
    const int n = n_knots_;
    const T first = left_[0], last = right_[n];
    if (!(first > -kLargest && first < last && last < kLargest)) return false;
    // All knots come out a little above their entries, but for the last, a little below n.
    const double above = n / 65536.0, loss = above * (1 + 0.5 / (n - 1));
    const double slope = (n - 1 - loss) / (double(last) - double(first));
    scale = T(slope), shift = T(1 + above - slope * double(first));
    const auto at = [&](T x) { return computed_entry<T>(broadcast(x), broadcast(scale), broadcast(shift), n)[0]; };
    if (at(first) != 1 || at(std::nextafter(last, -kLargest)) != n - 1) return false;
    for (int e = 1; e < n; ++e) {
      const T edge = (right_[e] - left_[e]) / 16;
      if (!(left_[e] < right_[e]) || at(left_[e] + edge) != e || at(right_[e] - edge) != e) return false;
    }
    return true;
  }

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

 private:
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

  int n_knots_ = 0;
  alignas(64) T left_[N], right_[N], inverse_[N];
  alignas(64) double padded_[kPadding + N + kPadding];
  alignas(64) double inverses_[K * (K + 1) / 2 + 1][N];  // of the knot differences in the triangle
};

// Bounds that hold every finite x of an entry outside of the cells; with an inverse of 0 they give u = w = 0.
template <class T>
constexpr T kFar = std::numeric_limits<T>::max() / 2;

// The polynomials of the basis functions that are not zero in an entry's cell, as lines: splines and the gradients of
// their coefficients are made of them.
template <int K, int N>
class BasisLines {
 public:
  // derivative: of the functions, as polynomials of a degree.
  template <class T>
  void load(const CellPolynomials<T, K, N>& knots, int derivative, int degree) {
    alignas(64) typename CellPolynomials<T, K, N>::Polynomials polynomials;
    knots.polynomials(derivative, degree, polynomials);
    n_knots_ = knots.n_knots();
    for (int j = 0; j <= K; ++j) {
      for (int e = 0; e <= n_knots_; ++e) {
        lines_[j][e] = Line<double>{};
        for (int i = 0; i <= K && i <= degree; ++i) lines_[j][e][i] = polynomials[j][i][e];
      }
    }
  }

  // Calls call(e, its polynomial) for all entries of a spline, whose coefficients lie `stride` apart.
  template <class T, class Call>
  void each_of_spline(const T* coefficients, int64_t stride, int functions, const Call& call) const {
    double padded[K + 1 + N + K + 1] = {};  // the j-th function of entry e lies at e + j
    for (int r = 0; r < functions; ++r) padded[K + 1 + r] = double(coefficients[r * stride]);
    for (int e = 0; e <= n_knots_; ++e) {
      Line<double> sum = Line<double>{};
      KAN_UNROLL
      for (int j = 0; j <= K; ++j) sum += product(lines_[j][e], Line<double>{} + padded[e + j]);
      call(e, __builtin_convertvector(sum, Line<T>));
    }
  }

  // d[r * stride] += the gradient of coefficient r from the moments of each entry: the sums over its rows of
  // g u^i w^(K-i), which are as many numbers as a spline's polynomials have.
  void add_gradient(double* d, int64_t stride, int functions, const Line<double>* moments) const {
    const Line<double> nowhere = (moments[0] + moments[n_knots_]) * 0.0;  // rows in no cell: 0, or NaN as x or g is
    for (int r = 0; r < functions; ++r) {
      Line<double> sum = nowhere;
      KAN_UNROLL
      for (int j = 0; j <= K; ++j) {
        const int e = r + 1 + K - j;  // whose j-th function is r
        sum += product(lines_[j][e], moments[e]);
      }
      d[r * stride] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
  }

 private:
  // Where a polynomial has no part, an infinite number has none.
  static KAN_HD Line<double> product(Line<double> polynomial, Line<double> numbers) {
    const Line<double> product = polynomial * numbers;
    return polynomial == 0.0 ? Line<double>{} : product;
  }

  int n_knots_ = 0;
  Line<double> lines_[K + 1][N];
};

}  // namespace KAN_ISA
}  // namespace kan
