// Activations of B-splines with short grids: lanes are rows, in their own order, and each reads the polynomial of its
// own cell from tables that fit in two registers (linear/small_tables.h).
#pragma once

#include "activation.h"
#include "cpu/linear/small.h"
#include "tiles.h"

namespace kan {
namespace KAN_ISA {

// out[n * ld + b] = base^{(orders[n])}(x[b]). A loop of its own: what a lane computes is one long chain, and only the
// chains of several vectors together keep a core busy.
template <class T>
KAN_HD void base_rows(int base, const T* x, int64_t rows, const int* orders, int n_orders, T* out, int64_t ld) {
  for (int64_t b = 0; b < rows; b += Simd<T>::lanes) {
    Vec<T> value[2];
    small_base<T>(base, load(x + b), orders, n_orders, value);
    for (int n = 0; n < n_orders; ++n) store(out + n * ld + b, value[n]);
  }
}
template <class T>
inline void base_column(int base, const T* x, int64_t rows, const int* orders, int n_orders, T* out, int64_t ld) {
  const int first[2] = {0, 1};  // the usual orders are constants, for which no vector asks
  if (orders[0] != 0 || (n_orders == 2 && orders[1] != 1)) return base_rows(base, x, rows, orders, n_orders, out, ld);
  if (base != kSilu) return base_rows(base, x, rows, first, n_orders, out, ld);
  if (n_orders == 1) return base_rows(kSilu, x, rows, first, 1, out, ld);
  base_rows(kSilu, x, rows, first, 2, out, ld);
}

// The tables of all features, made once a call.
template <class T, int K, bool Short>
class ActivationTables {
 public:
  using Knots = SmallKnots<T, K, Short>;
  using Polynomials = typename Knots::Polynomials;
  using Table = T[K + 1][Knots::N];

  // derivative: of the splines; -1: none.
  ActivationTables(const Layer& layer, const Shape& s, int derivative, const cpu::Executor& executor)
      : layer_(layer),
        s_(s),
        derivative_(derivative),
        knots_(s.in),
        splines_(derivative < 0 ? 0 : s.in * s.out),
        base_(s.in * s.out) {
    const Tasks all(s, 1);
    run_tasks(executor, s.in * s.out * 200 > kSerialCycles, s, all, [&](const Task& task) { load(task.i0, task.i1); });
  }
  const Knots& knots(int64_t i) const { return knots_.data()[i]; }
  const Table* splines(int64_t i) const { return splines_.data() + i * s_.out; }  // of the heads
  const T* base_weights(int64_t i) const { return base_.data() + i * s_.out; }    // 0 where there is no base

  // Whether a feature of a block has the knots of the one before.
  bool repeats(int64_t i, int64_t first) const {
    const T* const own = static_cast<const T*>(layer_.grid) + i * s_.n_knots;
    return i > first && std::equal(own, own + s_.n_knots, own - s_.n_knots);
  }

 private:
  void load(int64_t i0, int64_t i1) {
    alignas(64) Polynomials polynomials;
    Arena arena(Arena::bytes_for<T>(s_.functions * s_.out));
    T* const rows = arena.take<T>(s_.functions * s_.out);
    for (int64_t i = i0; i < i1; ++i) {
      if (repeats(i, i0)) {
        std::memcpy(knots_.data() + i, knots_.data() + i - 1, sizeof(Knots));
      } else {
        knots_.data()[i].load(static_cast<const T*>(layer_.grid) + i * s_.n_knots, s_.n_knots);
        if (derivative_ >= 0) knots_.data()[i].polynomials(derivative_, K, polynomials);
      }
      T* const base = base_.data() + i * s_.out;
      for (int64_t h = 0; h < s_.out; ++h) base[h] = T(0);
      if (layer_.base_weight) read_row(base, layer_.base_weight, layer_.weight_dtype, i * s_.out, s_.out, 1);
      if (derivative_ < 0) continue;
      const int64_t coefficients = s_.functions * s_.out;
      read_row(rows, layer_.spline_weight, layer_.weight_dtype, i * coefficients, coefficients, 1);
      for (int64_t h = 0; h < s_.out; ++h) {
        spline_table<T, K, Knots::N>(splines_.data()[i * s_.out + h], rows + h, s_.out, s_.functions, polynomials, K);
      }
    }
  }

  const Layer& layer_;
  const Shape& s_;
  const int derivative_;
  Shared<Knots> knots_;
  Shared<Table> splines_;
  Shared<T> base_;
};

template <class T, int K, bool Short>
void table_activation(const cpu::ActivationArgs& a, const Shape& s, const cpu::Executor& executor) {
  using Knots = SmallKnots<T, K, Short>;
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = kTileStride, kPlane = kTileColumns * ld;
  const ActivationTables<T, K, Short> tables(a.layer, s, a.derivative, executor);
  const bool base = s.base != kNoBase, scaled = a.row_scale.data != nullptr;
  run_tasks(executor, s.batch * s.in * (3 + s.out) > kSerialCycles, s, Tasks::of_rows(s), [&](const Task& task) {
    const int64_t i = task.i0, n = task.i1 - i;
    Arena arena(Arena::bytes_for<T>((2 + s.out) * kPlane + ld));
    T* const x = arena.take<T>((2 + s.out) * kPlane + ld);
    T *const row_scale = x + kPlane, *const out = row_scale + kPlane, *const activation = out + s.out * kPlane;
    task.for_tiles([&](int64_t row0, int64_t rows) {
      read_columns(x, ld, a.x, row0, rows, i, n);
      if (scaled) read_columns(row_scale, ld, a.row_scale, row0, rows, i, n);
      for (int64_t f = 0; f < n; ++f) {
        const T *const column = x + f * ld, *const scale = row_scale + f * ld;
        if (base) base_column(s.base, column, rows, &a.derivative, 1, activation, ld);
        const Knots& knots = tables.knots(i + f);
        const auto* const splines = tables.splines(i + f);
        const T* const base_weights = tables.base_weights(i + f);
        const int64_t heads = s.out;
        for (int64_t b = 0; b < rows; b += L) {
          const Place<T> place = knots.locate(load(column + b));
          Vec<T> terms[K + 1];
          monomials<T, K>(place, terms);
          for (int64_t h = 0; h < heads; ++h) {
            Vec<T> value = Knots::template sum<K>(splines[h], place, terms);
            if (base) value += load(activation + b) * base_weights[h];
            if (scaled) value *= load(scale + b);
            store(out + h * kPlane + f * ld + b, value);
          }
        }
      }
      for (int64_t h = 0; h < s.out; ++h) {
        const T* const columns = out + h * kPlane;
        write_columns(a.v, a.layer.weight_dtype, s.out * s.in, s.batch, columns, ld, row0, rows, h * s.in + i, n);
      }
    });
  });
}

// The sums over the rows of g u^i w^(K-i), cell by cell: as many numbers as a cell has, whatever the basis' size.
// Their products with the basis' polynomials are the weights' gradients.
template <class T, int K, bool Short>
class Moments {
 public:
  using Knots = SmallKnots<T, K, Short>;
  static constexpr int N = Knots::N;
  using OfSpline = double[K + 1][N];

  // Adds those of a column: powers[i * ld + b], entries[b]; used: the entries that there are, a bit each.
  static void add(OfSpline& moments, const T* g, const T* powers, const typename Simd<T>::Int* entries, int64_t ld,
                  int64_t rows, uint32_t used) {
    constexpr int L = Simd<T>::lanes, kCells = 4;  // whose sums are held in registers together
    using Int = typename Simd<T>::Int;
    using IVec = typename Simd<T>::IVec;
    while (used != 0) {
      Int cell[kCells];
      for (int c = 0; c < kCells; ++c) {
        cell[c] = used != 0 ? Int(__builtin_ctz(used)) : Int(-1);
        used &= used - (used != 0);
      }
      Vec<T> sum[kCells][K + 1] = {};
      for (int64_t b = 0; b < rows; b += L) {
        const IVec entry = *reinterpret_cast<const IVec*>(entries + b);
        const Vec<T> cotangent = load(g + b);
        Vec<T> term[K + 1];
        KAN_UNROLL
        for (int i = 0; i <= K; ++i) term[i] = cotangent * load(powers + i * ld + b);
        KAN_UNROLL
        for (int c = 0; c < kCells; ++c) {
          const IVec here = entry == cell[c];
          KAN_UNROLL
          for (int i = 0; i <= K; ++i) sum[c][i] = here ? sum[c][i] + term[i] : sum[c][i];
        }
      }
      constexpr int kVectors = kCells * (K + 1), kPadded = (kVectors + L - 1) / L * L;
      alignas(64) T lanes[kPadded * L] = {}, total[kPadded];
      for (int v = 0; v < kVectors; ++v) store(lanes + v * L, sum[v / (K + 1)][v % (K + 1)]);
      for (int v = 0; v < kVectors; v += L) sum_rows(total + v, lanes + v * L);
      for (int v = 0; v < kVectors; ++v) {
        if (cell[v / (K + 1)] >= 0) moments[v % (K + 1)][cell[v / (K + 1)]] += double(total[v]);
      }
    }
  }

  // sums[r * stride] = the gradient of coefficient r.
  static void contract(double* sums, int64_t stride, int functions, const OfSpline& moments,
                       const typename Knots::Polynomials& polynomials) {
    const double nan = moments[0][0];  // of rows in no cell: 0, or NaN if one of them is
    for (int r = 0; r < functions; ++r) {
      double sum = nan;
      for (int j = 0; j <= K; ++j) {
        const int e = r + 1 + K - j;  // whose j-th function is r
        for (int i = 0; i <= K; ++i) sum += polynomials[j][i][e] * moments[i][e];
      }
      sums[r * stride] = sum;
    }
  }
};

// One feature's column of a tile, as its gradients need it.
template <class T, int K, bool Short>
struct BackwardColumn {
  using Knots = SmallKnots<T, K, Short>;
  using Int = typename Simd<T>::Int;
  using IVec = typename Simd<T>::IVec;
  static constexpr int L = Simd<T>::lanes;
  static constexpr int64_t ld = kTileStride;
  static constexpr int64_t kNumbers = (K + 3) * ld;

  T *powers, *activation;  // [K + 1][ld], [2][ld]
  Int* entries;            // [ld]

  // The entries that there are, a bit each.
  uint32_t locate(const Knots& knots, const T* x, int64_t rows) const {
    typename Simd<T>::Bits seen = {};
    const typename Simd<T>::Bits one = seen + 1u;
    for (int64_t b = 0; b < rows; b += L) {
      const Place<T> place = knots.locate(load(x + b));
      Vec<T> power[K + 1];
      monomials<T, K>(place, power);
      KAN_UNROLL
      for (int i = 0; i <= K; ++i) store(powers + i * ld + b, power[i]);
      *reinterpret_cast<IVec*>(entries + b) = place.entry;
      seen |= one << (typename Simd<T>::Bits)place.entry;
    }
    uint32_t used = 0;
    for (int l = 0; l < L; ++l) used |= uint32_t(seen[l]);
    return used;
  }

  // The gradient by x; slope: the base's derivative, or null. g of the heads lie `plane` apart.
  void input(T* result, const T (*splines)[K + 1][Knots::N], const T* base_weights, const T* slope, const T* g,
             int64_t plane, int64_t heads, int64_t rows) const {
    for (int64_t b = 0; b < rows; b += L) {
      Place<T> place;
      place.entry = *reinterpret_cast<const IVec*>(entries + b);
      Vec<T> power[K + 1], spline_sum = Vec<T>{}, base_sum = Vec<T>{};
      KAN_UNROLL
      for (int i = 0; i <= K; ++i) power[i] = load(powers + i * ld + b);
      // The base multiplies a sum over the heads: it can be infinite, and inf - inf would be NaN.
      for (int64_t h = 0; h < heads; ++h) {
        const Vec<T> cotangent = load(g + h * plane + b);
        spline_sum += cotangent * Knots::template sum<K>(splines[h], place, power);
        base_sum += cotangent * base_weights[h];
      }
      store(result + b, slope ? spline_sum + load(slope + b) * base_sum : spline_sum);
    }
  }
};

// The sum over the rows of a product, in one fixed order.
template <class T>
inline double sum_of_products(const T* a, const T* b, int64_t rows) {
  constexpr int L = Simd<T>::lanes, kChains = 4;
  Vec<T> sum[kChains] = {};
  int64_t r = 0;
  for (; r + kChains * L <= rows; r += kChains * L) {
    KAN_UNROLL
    for (int c = 0; c < kChains; ++c) sum[c] += load(a + r + c * L) * load(b + r + c * L);
  }
  for (; r < rows; r += L) sum[0] += load(a + r) * load(b + r);
  return double(sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3])));
}

template <class T, int K, bool Short>
void table_activation_backward(const cpu::ActivationBackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  using Tables = ActivationTables<T, K, Short>;
  using Sums = Moments<T, K, Short>;
  using Column = BackwardColumn<T, K, Short>;
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = kTileStride, kPlane = kTileColumns * ld;
  const bool base = s.base != kNoBase, scaled = a.row_scale.data != nullptr;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr;
  const Tables tables(a.layer, s, input ? a.input_derivative : -1, executor);
  const int64_t of_feature = int64_t(s.coefficient_rows()) * s.out, size = weight ? s.in * of_feature : 0;
  const Tasks tasks = weight ? Tasks::of_sums(s, size) : Tasks::of_rows(s);
  const std::unique_ptr<double[]> sums(new double[size_t(weight ? tasks.splits * size : 0)]());
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input);
  const uint32_t cells = uint32_t((uint64_t(1) << s.n_knots) - 1);  // entries that are one, and the first, for NaN
  run_tasks(executor, s.batch * s.in * (6 + 3 * s.out) > kSerialCycles, s, tasks, [&](const Task& task) {
    const int64_t i = task.i0, n = task.i1 - i, n_moments = weight ? n * s.out : 0;
    const int64_t numbers = (3 + s.out) * kPlane + Column::kNumbers;
    Arena arena(Arena::bytes_for<T>(numbers) + Arena::bytes_for<typename Column::Int>(ld) +
                Arena::bytes_for<typename Sums::OfSpline>(n_moments));
    T* const x = arena.take<T>(numbers);
    T *const row_scale = x + kPlane, *const result = row_scale + kPlane, *const g = result + kPlane;
    T* const powers = g + s.out * kPlane;
    const Column column{powers, powers + (K + 1) * ld, arena.take<typename Column::Int>(ld)};
    const T* const slope = base ? column.activation + (n_orders - 1) * ld : nullptr;
    auto* const moments = arena.take<typename Sums::OfSpline>(n_moments);
    if (weight) std::memset(moments, 0, size_t(n_moments) * sizeof(typename Sums::OfSpline));
    double* const d_all = sums.get() + task.split * size;
    task.for_tiles([&](int64_t row0, int64_t rows) {
      read_columns(x, ld, a.x, row0, rows, i, n);
      if (scaled) read_columns(row_scale, ld, a.row_scale, row0, rows, i, n);
      for (int64_t h = 0; h < s.out; ++h) read_columns(g + h * kPlane, ld, head(a, h), row0, rows, i, n);
      for (int64_t f = 0; f < n; ++f) {
        if (base) base_column(s.base, x + f * ld, rows, orders, n_orders, column.activation, ld);
        const uint32_t used = column.locate(tables.knots(i + f), x + f * ld, rows) & cells;
        if (input) {
          column.input(result + f * ld, tables.splines(i + f), tables.base_weights(i + f), slope, g + f * ld, kPlane,
                       s.out, rows);
        }
        if (!weight) continue;
        for (int64_t h = 0; h < s.out; ++h) {
          T* const cotangent = g + h * kPlane + f * ld;
          for (int64_t b = 0; scaled && b < rows; b += L) {
            store(cotangent + b, load(cotangent + b) * load(row_scale + f * ld + b));
          }
          Sums::add(moments[f * s.out + h], cotangent, powers, column.entries, ld, rows, used);
          if (base) d_all[(i + f) * of_feature + h] += sum_of_products(cotangent, column.activation, rows);
        }
      }
      if (input) write_columns(a.input, a.x.dtype, s.in, s.batch, result, ld, row0, rows, i, n);
    });
    if (!weight) return;
    alignas(64) typename Tables::Polynomials polynomials;
    for (int64_t f = 0; f < n; ++f) {
      if (!tables.repeats(i + f, i)) tables.knots(i + f).polynomials(a.weight_derivative, K, polynomials);
      for (int64_t h = 0; h < s.out; ++h) {
        double* const d_spline = d_all + (i + f) * of_feature + (base ? s.out : 0) + h;
        Sums::contract(d_spline, s.out, s.functions, moments[f * s.out + h], polynomials);
      }
    }
  });
  if (weight) write_sums(a, s, sums.get(), tasks.splits);
}

// Whether the tables have a layer's splines.
template <class T>
bool takes_tables(const Shape& s) {
  return sizeof(T) == 4 && s.local && s.order >= 1 && s.order <= kSmallOrder && s.n_knots < Lookup<T>::entries;
}

// call(order, whether one register holds a table), as constants.
template <class T, class Call>
void with_activation_tables(const Shape& s, const Call& call) {
  if (s.order == 1) return call(std::integral_constant<int, 1>(), std::false_type());
  if (s.order == 2) return call(std::integral_constant<int, 2>(), std::false_type());
  if (s.n_knots < Simd<T>::lanes) return call(std::integral_constant<int, 3>(), std::true_type());
  call(std::integral_constant<int, 3>(), std::false_type());
}

}  // namespace KAN_ISA
}  // namespace kan
