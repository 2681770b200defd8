// Layers with few outputs and short grids (the scientist's KAN): lanes are rows, in their own order.
//
// Here a row's arithmetic is less than the cost of sorting it, so each lane looks its knots and coefficients up in
// tables that fit in two registers. The basis is the same triangle as everywhere, with vectors for knots.
#pragma once

#include <memory>

#include "blocking.h"
#include "lookup.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallOrder = 3, kSmallOutputs = 8;
constexpr int kSmallFeatures = 64;  // of one task of the gradients
constexpr int kLine = 16;           // a row of outputs, padded to the widest vector
constexpr int kSmallRows = 256;     // rows of one block: its columns stay in the first-level cache
constexpr int64_t kSmallSerialCycles =
    4 * kSerialCycles;  // a second thread would gain little, and wait where others run

// Rows of the coefficient table: lane c reads entries c .. c+k, zero where an extension cell has no such function.
inline int padded_splines(const Shape& s) { return s.cells + 3 * s.order; }

template <class T>
bool is_small(const Shape& s) {
  return s.local && s.order <= kSmallOrder && s.out <= kSmallOutputs && s.n_knots <= Lookup<T>::entries &&
         padded_splines(s) <= Lookup<T>::entries;
}

// One feature's tables.
template <class T, int K>
class SmallTables {
 public:
  using IVec = typename Simd<T>::IVec;
  static constexpr int N = Lookup<T>::entries > 0 ? Lookup<T>::entries : 1;

  explicit SmallTables(const Shape& s) : shape_(s), short_(padded_splines(s) <= Simd<T>::lanes) {}

  void load_knots(const T* knots) {
    bool same = knots_ != nullptr;  // features often share their knots
    for (int t = 0; same && t < shape_.n_knots; ++t) same = knots[t] == knots_[t];
    knots_ = knots;
    if (same) return;
    for (int c = 0; c < shape_.n_knots - 1; ++c) {
      CellKnots<K, T> cell;
      cell.load(knots, shape_.n_knots, c);
      for (int j = 1; j <= K; ++j) left_[j][c] = cell.left[j], right_[j][c] = cell.right[j];
      for (int e = 0; e < K * (K + 1) / 2; ++e) inverse_[e][c] = cell.inverse[e];
    }
  }

  void load_coefficients(const Layer& layer, int64_t feature) {
    const int64_t out = shape_.out;
    T row[kLine];
    for (int r = 0; r < shape_.functions; ++r) {
      read_row(row, layer.spline_weight, layer.weight_dtype, (feature * shape_.functions + r) * out, out, 1);
      for (int64_t o = 0; o < out; ++o) spline_[o][K + r] = row[o];
    }
    if (layer.base_weight) read_row(base_, layer.base_weight, layer.weight_dtype, feature * out, out, 1);
  }

  // The cell of each lane (0 where it has none), and unit: 1 in a cell, 0 outside, NaN for NaN.
  KAN_HD IVec locate(Vec<T> x, Vec<T>& unit) const {
    IVec count = IVec{};
    for (int t = 0; t < shape_.n_knots; ++t) count += x >= knots_[t];
    using Int = typename Simd<T>::Int;
    const IVec cell = -count - Int(1);
    const IVec inside = (cell >= Int(0)) & (cell < Int(shape_.n_knots - 1));
    unit = inside ? broadcast(T(1)) : (x == x ? Vec<T>{} : x);
    return inside ? cell : IVec{};
  }

  // values[j] = B^{(m)} of the j-th function of each lane's cell.
  KAN_HD void values(Vec<T> x, IVec cell, Vec<T> unit, const int* orders, int n_orders, Vec<T> (*out)[K + 1]) const {
    CellKnots<K, Vec<T>> knots;
    KAN_UNROLL
    for (int j = 1; j <= K; ++j) {
      knots.left[j] = Lookup<T>::read(left_[j], cell, short_);
      knots.right[j] = Lookup<T>::read(right_[j], cell, short_);
    }
    KAN_UNROLL
    for (int e = 0; e < K * (K + 1) / 2; ++e) knots.inverse[e] = Lookup<T>::read(inverse_[e], cell, short_);
    const Vec<T> safe = unit == T(1) ? x : broadcast(knots_[0]);  // infinities stay out of the arithmetic
    for (int n = 0; n < n_orders; ++n) {
      if (orders[n] > K) {
        for (int j = 0; j <= K; ++j) out[n][j] = unit * T(0);
      } else {
        bspline_values<K, Vec<T>, T>(knots, safe, unit, orders[n], out[n]);
      }
    }
  }

  // sum_j values[j] * spline_weight[cell - K + j, o]
  KAN_HD Vec<T> spline(int64_t o, IVec cell, const Vec<T>* values) const {
    using Int = typename Simd<T>::Int;
    Vec<T> sum = values[0] * Lookup<T>::read(spline_[o], cell, short_);
    KAN_UNROLL
    for (int j = 1; j <= K; ++j) sum += values[j] * Lookup<T>::read(spline_[o], cell + Int(j), short_);
    return sum;
  }

  T base_weight(int64_t o) const { return base_[o]; }  // 0 where there is no base

  // out[n] = base^{(orders[n])}(x)
  KAN_HD void base(Vec<T> x, const int* orders, int n_orders, Vec<T>* out) const {
    if (shape_.base == kSilu) {
      const Logistic<Vec<T>> f = logistic<T>(x);
      for (int n = 0; n < n_orders; ++n) out[n] = silu_derivative<Vec<T>, T>(x, f, orders[n]);
    } else {
      for (int n = 0; n < n_orders; ++n) out[n] = identity_derivative<Vec<T>, T>(x, orders[n]);
    }
  }

 private:
  const Shape& shape_;
  const bool short_;  // every table fits in one register
  const T* knots_ = nullptr;
  alignas(64) T left_[K + 1][N] = {}, right_[K + 1][N] = {}, inverse_[K * (K + 1) / 2 + 1][N] = {};
  alignas(64) T spline_[kSmallOutputs][N] = {};
  T base_[kLine] = {};
};

// Columns of one block of rows, padded to whole vectors with zeros.
template <class T>
struct SmallBlock {
  int64_t row0, rows;
  static constexpr int64_t kLd = kSmallRows;

  SmallBlock(int64_t first, int64_t last) : row0(first), rows(min64(kSmallRows, last - first)) {}
  void read(T* columns, const MatrixView& in, int64_t column, int64_t n) const {
    read_columns(columns, kLd, in, row0, rows, column, n);
  }
  void write(void* out, DType dtype, int64_t columns_total, const T* columns, int64_t column, int64_t n) const {
    T line[kLine];
    if (columns_total == 1) return write_row(out, dtype, row0, columns, rows);
    for (int64_t b = 0; b < rows; ++b) {
      for (int64_t c = 0; c < n; ++c) line[c] = columns[c * kLd + b];
      write_row(out, dtype, (row0 + b) * columns_total + column, line, n);
    }
  }
};

template <class T, int K>
void small_forward_rows(const ForwardArgs& a, const Shape& s, int64_t first, int64_t last) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  SmallTables<T, K> tables(s);
  alignas(64) T x[kSmallOutputs * ld], row_scale[kSmallOutputs * ld], y[kSmallOutputs * ld], sums[kSmallOutputs * ld];
  T* const part = s.in > kSumInputs ? sums : y;
  T bias[kLine] = {};
  if (a.bias) read_row(bias, a.bias, a.layer.weight_dtype, 0, s.out, 1);
  for (int64_t row0 = first; row0 < last; row0 += kSmallRows) {
    const SmallBlock<T> block(row0, last);
    for (int64_t o = 0; o < s.out; ++o) {
      for (int64_t b = 0; b < block.rows; b += L) store(y + o * ld + b, broadcast(bias[o]));
    }
    for (int64_t i = 0; i < s.in; ++i) {
      if (part != y && i % kSumInputs == 0) std::memset(sums, 0, sizeof(sums));
      const int64_t f = i % kSmallOutputs;
      if (f == 0) {
        const int64_t n = min64(kSmallOutputs, s.in - i);
        block.read(x, a.x, i, n);
        if (a.row_scale.data) block.read(row_scale, a.row_scale, i, n);
      }
      tables.load_knots(static_cast<const T*>(a.layer.grid) + i * s.n_knots);
      tables.load_coefficients(a.layer, i);
      for (int64_t b = 0; b < block.rows; b += L) {
        const Vec<T> v = load(x + f * ld + b);
        Vec<T> unit, values[1][K + 1], base[1];
        const auto cell = tables.locate(v, unit);
        tables.values(v, cell, unit, &a.derivative, 1, values);
        tables.base(v, &a.derivative, 1, base);
        if (a.row_scale.data) {
          const Vec<T> scale = load(row_scale + f * ld + b);
          base[0] *= scale;
          for (int j = 0; j <= K; ++j) values[0][j] *= scale;
        }
        for (int64_t o = 0; o < s.out; ++o) {
          T* out = part + o * ld + b;
          const Vec<T> sum = load(out) + tables.spline(o, cell, values[0]);
          store(out, s.base != kNoBase ? sum + base[0] * tables.base_weight(o) : sum);
        }
      }
      if (part == y || ((i + 1) % kSumInputs != 0 && i + 1 != s.in)) continue;
      for (int64_t o = 0; o < s.out; ++o) {
        for (int64_t b = 0; b < block.rows; b += L)
          store(y + o * ld + b, load(y + o * ld + b) + load(part + o * ld + b));
      }
    }
    block.write(a.y, a.layer.weight_dtype, s.out, y, 0, s.out);
  }
}

// Adds sum_b dense[r][b] g[o][b] to sums[r * out + o].
template <class T, int Outputs>
void small_product(T* sums, int64_t out, const T* dense, int64_t n_rows, const T* g, int64_t rows) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  for (int64_t r = 0; r < n_rows; ++r) {
    Vec<T> sum[Outputs] = {};
    for (int64_t b = 0; b < rows; b += L) {
      const Vec<T> value = load(dense + r * ld + b);
      KAN_UNROLL
      for (int o = 0; o < Outputs; ++o) sum[o] += value * load(g + o * ld + b);
    }
    KAN_UNROLL
    for (int o = 0; o < Outputs; ++o) sums[r * out + o] += sum_lanes<T>(sum[o]);
  }
}

// Features [i0, i1) on rows [first, last). sums: [in][coefficient_rows][out], the base row first; may be null.
template <class T, int K>
void small_backward_rows(const BackwardArgs& a, const Shape& s, int64_t i0, int64_t i1, int64_t first, int64_t last,
                         T* sums) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  using Int = typename Simd<T>::Int;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr;
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input), input_at = weight ? 1 : 0;
  const int64_t n_rows = s.coefficient_rows();
  SmallTables<T, K> tables(s);
  alignas(64) T x[kSmallOutputs * ld], row_scale[kSmallOutputs * ld], g[kSmallOutputs * ld], result[kSmallOutputs * ld];
  alignas(64) T dense[(SmallTables<T, K>::N + 1) * ld];
  for (int64_t row0 = first; row0 < last; row0 += kSmallRows) {
    const SmallBlock<T> block(row0, last);
    block.read(g, a.g, 0, s.out);
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t f = (i - i0) % kSmallOutputs, n = min64(kSmallOutputs, i1 - (i - f));
      if (f == 0) {
        block.read(x, a.x, i, n);
        if (a.row_scale.data) block.read(row_scale, a.row_scale, i, n);
      }
      tables.load_knots(static_cast<const T*>(a.layer.grid) + i * s.n_knots);
      if (input) tables.load_coefficients(a.layer, i);
      for (int64_t b = 0; b < block.rows; b += L) {
        const Vec<T> v = load(x + f * ld + b);
        Vec<T> unit, values[2][K + 1], base[2];
        const auto cell = tables.locate(v, unit);
        tables.values(v, cell, unit, orders, n_orders, values);
        tables.base(v, orders, n_orders, base);
        if (input) {
          // The base multiplies a sum over the outputs: it can be infinite, and inf - inf would be NaN.
          Vec<T> sum = Vec<T>{}, base_sum = Vec<T>{};
          for (int64_t o = 0; o < s.out; ++o) {
            const Vec<T> cotangent = load(g + o * ld + b);
            sum += cotangent * tables.spline(o, cell, values[input_at]);
            base_sum += cotangent * tables.base_weight(o);
          }
          store(result + f * ld + b, s.base != kNoBase ? sum + base[input_at] * base_sum : sum);
        }
        if (weight) {
          Vec<T> none = unit == T(1) ? Vec<T>{} : unit;  // keeps NaN
          if (a.row_scale.data) {
            const Vec<T> scale = load(row_scale + f * ld + b);
            base[0] *= scale, none *= scale;
            for (int j = 0; j <= K; ++j) values[0][j] *= scale;
          }
          T* out = dense + b;
          if (s.base != kNoBase) store(out, base[0]), out += ld;
          for (int r = 0; r < s.functions; ++r, out += ld) {
            Vec<T> value = none;
            KAN_UNROLL
            for (int j = 0; j <= K; ++j) value = cell == Int(r + K - j) ? values[0][j] : value;
            store(out, value);
          }
        }
      }
      if (weight) {
        const int64_t padded = ceil_div(block.rows, L) * L;
        for (int64_t o = 0; o < s.out;) {
          T* to = sums + i * n_rows * s.out + o;
          const int64_t left = s.out - o;
          if (left >= 4)
            small_product<T, 4>(to, s.out, dense, n_rows, g + o * ld, padded), o += 4;
          else if (left >= 2)
            small_product<T, 2>(to, s.out, dense, n_rows, g + o * ld, padded), o += 2;
          else
            small_product<T, 1>(to, s.out, dense, n_rows, g + o * ld, padded), o += 1;
        }
      }
      if (input && f == n - 1) block.write(a.input, a.x.dtype, s.in, result, i - f, n);
    }
  }
}

template <class T>
void small_forward(const ForwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  const bool parallel = s.batch * s.in * (8 + s.out) > kSmallSerialCycles;
  const int64_t share = ceil_div(ceil_div(s.batch, parallel ? executor.threads : 1), 32) * 32;
  struct Context {
    const ForwardArgs& a;
    const Shape& s;
    int64_t rows;
  } context{a, s, min64(kSmallRows, max64(32, share))};
  execute(
      executor, parallel, ceil_div(s.batch, context.rows),
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& c = *static_cast<const Context*>(pointer);
        static constexpr void (*rows[])(const ForwardArgs&, const Shape&, int64_t, int64_t) = {
            small_forward_rows<T, 0>, small_forward_rows<T, 1>, small_forward_rows<T, 2>, small_forward_rows<T, 3>};
        rows[c.s.order](c.a, c.s, begin * c.rows, min64(c.s.batch, end * c.rows));
      },
      &context);
}

template <class T>
void small_backward(const BackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  const int64_t size = a.d_spline ? s.in * s.coefficient_rows() * s.out : 0;
  const int64_t splits = row_splits<T>(s, 64, 8 * kSmallRows, size);
  const std::unique_ptr<T[]> sums(new T[size_t(splits * size)]());
  struct Context {
    const BackwardArgs& a;
    const Shape& s;
    T* sums;
    int64_t size, splits, rows;
  } context{a, s, sums.get(), size, splits, ceil_div(ceil_div(s.batch, splits), kSmallRows) * kSmallRows};
  execute(
      executor, s.batch * s.in * (24 + 4 * s.out) > kSmallSerialCycles, ceil_div(s.in, kSmallFeatures) * splits,
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& c = *static_cast<const Context*>(pointer);
        static constexpr void (*rows[])(const BackwardArgs&, const Shape&, int64_t, int64_t, int64_t, int64_t, T*) = {
            small_backward_rows<T, 0>, small_backward_rows<T, 1>, small_backward_rows<T, 2>, small_backward_rows<T, 3>};
        for (int64_t t = begin; t < end; ++t) {
          const int64_t i0 = t / c.splits * kSmallFeatures, split = t % c.splits;
          rows[c.s.order](c.a, c.s, i0, min64(c.s.in, i0 + kSmallFeatures), min64(c.s.batch, split * c.rows),
                          min64(c.s.batch, (split + 1) * c.rows), c.sums + split * c.size);
        }
      },
      &context);
  if (!a.d_spline) return;
  for (int64_t split = 1; split < splits; ++split) {
    for (int64_t j = 0; j < size; ++j) sums[j] += sums[split * size + j];
  }
  const T* row = sums.get();
  for (int64_t i = 0; i < s.in; ++i) {
    if (s.base != kNoBase) write_row(a.d_base, a.layer.weight_dtype, i * s.out, row, s.out), row += s.out;
    write_row(a.d_spline, a.layer.weight_dtype, i * s.functions * s.out, row, s.functions * s.out);
    row += s.functions * s.out;
  }
}

}  // namespace KAN_ISA
}  // namespace kan
