// Layers with few outputs and short grids (the scientist's KAN): lanes are rows, in their own order.
//
// Here a row's arithmetic is less than the cost of sorting it, so each lane looks its own cell up in tables that fit in
// two registers: polynomials of its spline and of the basis functions (small_tables.h).
#pragma once

#include <memory>
#include <type_traits>

#include "small_tables.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallFeatures = 64;  // of one task of the gradients
constexpr int kSmallRows = 256;     // rows of one block: its columns stay in the first-level cache

template <class T>
bool is_small(const Shape& s) {
  return s.local && s.order <= kSmallOrder && s.out <= kSmallOutputs && s.n_knots < Lookup<T>::entries;
}

// out[n] = base^{(orders[n])}(x)
template <class T>
KAN_HD void small_base(int base, Vec<T> x, const int* orders, int n_orders, Vec<T>* out) {
  if (base == kSilu) {
    const Logistic<Vec<T>> f = logistic<T>(x);
    for (int n = 0; n < n_orders; ++n) out[n] = silu_derivative<Vec<T>, T>(x, f, orders[n]);
  } else {
    for (int n = 0; n < n_orders; ++n) out[n] = identity_derivative<Vec<T>, T>(x, orders[n]);
  }
}

// Columns of one block of rows, padded to whole vectors with zeros.
template <class T>
struct SmallBlock {
  int64_t row0, rows;
  static constexpr int64_t kLd = kSmallRows;

  SmallBlock(int64_t first, int64_t last) : row0(first), rows(min64(kSmallRows, last - first)) {}
  void read(T* columns, const MatrixView& in, int64_t column, int64_t n) const {
    read_columns(columns, kLd, in, row0, rows, column, n);
  }
  // out: the first column of the first row of a matrix of `total` columns.
  void write(void* out, DType dtype, int64_t total, const T* columns, int64_t column, int64_t n) const {
    if (total == 1) return write_row(out, dtype, row0, columns, rows);
    if (dtype == kDTypeOf<T>) {
      T* const to = static_cast<T*>(out) + row0 * total + column;
      return with_outputs(int(n), [&](auto count) {
        for (int64_t b = 0; b < rows; ++b) {
          for (int c = 0; c < count(); ++c) to[b * total + c] = columns[c * kLd + b];
        }
      });
    }
    T line[kSmallOutputs];
    for (int64_t b = 0; b < rows; ++b) {
      for (int64_t c = 0; c < n; ++c) line[c] = columns[c * kLd + b];
      write_row(out, dtype, (row0 + b) * total + column, line, n);
    }
  }

 private:
  // call(n) with the number as a constant.
  template <int N = kSmallOutputs, class Call>
  static void with_outputs(int n, const Call& call) {
    if constexpr (N > 1) {
      if (n != N) return with_outputs<N - 1>(n, call);
    }
    call(std::integral_constant<int, N>());
  }
};

template <class T, int K, bool Short, int Degree>
void small_forward_rows(const ForwardArgs& a, const Shape& s, int64_t first, int64_t last) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  SmallTables<T, K, Short> tables(a.layer, s, -1, a.derivative, Degree);
  alignas(64) T x[kSmallColumns * ld], row_scale[kSmallColumns * ld], y[kSmallOutputs * ld], sums[kSmallOutputs * ld];
  T* const part = s.in > kSumInputs ? sums : y;
  T bias[kSmallOutputs] = {};
  if (a.bias) read_row(bias, a.bias, a.layer.weight_dtype, 0, s.out, 1);
  for (int64_t row0 = first; row0 < last; row0 += kSmallRows) {
    const SmallBlock<T> block(row0, last);
    for (int64_t o = 0; o < s.out; ++o) {
      for (int64_t b = 0; b < block.rows; b += L) store(y + o * ld + b, broadcast(bias[o]));
    }
    for (int64_t i = 0; i < s.in; ++i) {
      if (part != y && i % kSumInputs == 0) std::memset(sums, 0, sizeof(sums));
      const int64_t f = i % kSmallColumns;
      if (f == 0) {
        const int64_t n = min64(kSmallColumns, s.in - i);
        block.read(x, a.x, i, n);
        if (a.row_scale.data) block.read(row_scale, a.row_scale, i, n);
        tables.load(i, n);
      }
      const auto& splines = tables.splines(f);
      for (int64_t b = 0; b < block.rows; b += L) {
        const Vec<T> v = load(x + f * ld + b);
        const Place<T> place = tables.knots(f).locate(v);
        Vec<T> terms[Degree + 1], base = Vec<T>{};
        monomials<T, Degree>(place, terms);
        if (s.base != kNoBase) small_base<T>(s.base, v, &a.derivative, 1, &base);
        if (a.row_scale.data) {
          const Vec<T> scale = load(row_scale + f * ld + b);
          base *= scale;
          for (int n = 0; n <= Degree; ++n) terms[n] *= scale;
        }
        for (int64_t o = 0; o < s.out; ++o) {
          T* out = part + o * ld + b;
          const Vec<T> sum = load(out) + splines.template value<Degree>(o, place, terms);
          store(out, s.base != kNoBase ? sum + base * splines.base_weight(o) : sum);
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

// Adds dense[r][b] g[o][b] of every lane to sums[r * out + o][lane].
template <class T, int Rows, int Outputs>
void small_product_tile(T* sums, int64_t out, const T* dense, const T* g, int64_t rows) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  Vec<T> sum[Rows][Outputs];
  KAN_UNROLL
  for (int r = 0; r < Rows; ++r) {
    KAN_UNROLL
    for (int o = 0; o < Outputs; ++o) sum[r][o] = load(sums + (r * out + o) * L);
  }
  for (int64_t b = 0; b < rows; b += L) {
    Vec<T> value[Rows];
    KAN_UNROLL
    for (int r = 0; r < Rows; ++r) value[r] = load(dense + r * ld + b);
    KAN_UNROLL
    for (int o = 0; o < Outputs; ++o) {
      const Vec<T> cotangent = load(g + o * ld + b);
      KAN_UNROLL
      for (int r = 0; r < Rows; ++r) sum[r][o] += value[r] * cotangent;
    }
  }
  KAN_UNROLL
  for (int r = 0; r < Rows; ++r) {
    KAN_UNROLL
    for (int o = 0; o < Outputs; ++o) store(sums + (r * out + o) * L, sum[r][o]);
  }
}

template <class T, int Rows>
void small_product_rows(T* sums, int64_t out, const T* dense, const T* g, int64_t rows) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  int64_t o = 0;
  for (; o + 4 <= out; o += 4) small_product_tile<T, Rows, 4>(sums + o * L, out, dense, g + o * ld, rows);
  if (out - o >= 2) small_product_tile<T, Rows, 2>(sums + o * L, out, dense, g + o * ld, rows), o += 2;
  if (out - o >= 1) small_product_tile<T, Rows, 1>(sums + o * L, out, dense, g + o * ld, rows);
}

template <class T>
void small_product(T* sums, int64_t out, const T* dense, int64_t n_rows, const T* g, int64_t rows) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  int64_t r = 0;
  const auto at = [&](auto call, int64_t n) { call(sums + r * out * L, out, dense + r * ld, g, rows), r += n; };
  while (n_rows - r >= 4) at(small_product_rows<T, 4>, 4);
  if (n_rows - r >= 2) at(small_product_rows<T, 2>, 2);
  if (n_rows - r >= 1) at(small_product_rows<T, 1>, 1);
}

// Features [i0, i1) on rows [first, last). sums: [in][coefficient_rows][out], the base row first; may be null.
template <class T, int K, bool Short, int Degree>
void small_backward_rows(const BackwardArgs& a, const Shape& s, int64_t i0, int64_t i1, int64_t first, int64_t last,
                         T* sums) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr;
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input), input_at = weight ? 1 : 0;
  SmallTables<T, K, Short> tables(a.layer, s, weight ? a.weight_derivative : -1, input ? a.input_derivative : -1,
                                  Degree);
  alignas(64) T x[kSmallColumns * ld], row_scale[kSmallColumns * ld], g[kSmallOutputs * ld], result[kSmallColumns * ld];
  alignas(64) T dense[(Lookup<T>::entries + 1) * ld];
  const int64_t n_rows = s.coefficient_rows(), lanes_of = n_rows * s.out * L;  // sums of each lane, of one feature
  Arena arena(Arena::bytes_for<T>(weight ? kSmallColumns * lanes_of : 0));
  T* const lane_sums = arena.take<T>(weight ? kSmallColumns * lanes_of : 0);
  for (int64_t i = i0; i < i1; i += kSmallColumns) {
    const int64_t n = min64(kSmallColumns, i1 - i);
    tables.load(i, n);
    if (weight) std::memset(lane_sums, 0, size_t(n * lanes_of) * sizeof(T));
    for (int64_t row0 = first; row0 < last; row0 += kSmallRows) {
      const SmallBlock<T> block(row0, last);
      block.read(g, a.g, 0, s.out);
      block.read(x, a.x, i, n);
      if (a.row_scale.data) block.read(row_scale, a.row_scale, i, n);
      for (int64_t f = 0; f < n; ++f) {
        for (int64_t b = 0; b < block.rows; b += L) {
          const Vec<T> v = load(x + f * ld + b);
          Vec<T> base[2];
          const Place<T> place = tables.knots(f).locate(v);
          if (s.base != kNoBase) small_base<T>(s.base, v, orders, n_orders, base);
          if (input) {
            // The base multiplies a sum over the outputs: it can be infinite, and inf - inf would be NaN.
            const auto& splines = tables.splines(f);
            Vec<T> terms[Degree + 1], sum = Vec<T>{}, base_sum = Vec<T>{};
            monomials<T, Degree>(place, terms);
            for (int64_t o = 0; o < s.out; ++o) {
              const Vec<T> cotangent = load(g + o * ld + b);
              sum += cotangent * splines.template value<Degree>(o, place, terms);
              base_sum += cotangent * splines.base_weight(o);
            }
            store(result + f * ld + b, s.base != kNoBase ? sum + base[input_at] * base_sum : sum);
          }
          if (weight) {
            Vec<T> terms[K + 1];
            monomials<T, K>(place, terms);
            if (a.row_scale.data) {
              const Vec<T> scale = load(row_scale + f * ld + b);
              base[0] *= scale;
              for (int j = 0; j <= K; ++j) terms[j] *= scale;
            }
            T* out = dense + b;
            if (s.base != kNoBase) store(out, base[0]), out += ld;
            const auto& functions = tables.functions(f);
            for (int r = 0; r < s.functions; ++r, out += ld) store(out, functions.value(r, place, terms));
          }
        }
        if (weight) {
          small_product(lane_sums + f * lanes_of, s.out, dense, n_rows, g, ceil_div(block.rows, L) * L);
        }
      }
      if (input) block.write(a.input, a.x.dtype, s.in, result, i, n);
    }
    if (!weight) continue;
    for (int64_t j = 0; j < n * n_rows * s.out; ++j) {
      sums[i * n_rows * s.out + j] = sum_lanes<T>(load(lane_sums + j * L));
    }
  }
}

// call(order, whether one register holds a table, degree of the splines' derivatives), all as constants. Short tables
// are compiled for what is common: cubic splines in float.
template <class T, int K = kSmallOrder, class Call>
void with_tables(const Shape& s, int derivative, const Call& call) {
  if constexpr (K > 0) {
    if (s.order != K) return with_tables<T, K - 1>(s, derivative, call);
  }
  const std::integral_constant<int, K> order;
  const std::integral_constant<int, (K > 0 ? K - 1 : 0)> lower;
  if constexpr (K == kSmallOrder && sizeof(T) == 4) {
    if (s.n_knots < Simd<T>::lanes) {
      return derivative == 0 ? call(order, std::true_type(), order) : call(order, std::true_type(), lower);
    }
  }
  derivative == 0 ? call(order, std::false_type(), order) : call(order, std::false_type(), lower);
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
        with_tables<T>(c.s, c.a.derivative, [&](auto order, auto is_short, auto degree) {
          small_forward_rows<T, order(), is_short(), degree()>(c.a, c.s, begin * c.rows,
                                                               min64(c.s.batch, end * c.rows));
        });
      },
      &context);
}

template <class T>
void small_backward(const BackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  const int64_t size = a.d_spline ? s.in * s.coefficient_rows() * s.out : 0;
  const int64_t splits = row_splits<T>(s, 64, 8 * kSmallRows, size);
  const std::unique_ptr<T[]> sums(new T[size_t(splits * size)]);
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
        for (int64_t t = begin; t < end; ++t) {
          const int64_t i0 = t / c.splits * kSmallFeatures, split = t % c.splits;
          with_tables<T>(c.s, c.a.input_derivative, [&](auto order, auto is_short, auto degree) {
            small_backward_rows<T, order(), is_short(), degree()>(
                c.a, c.s, i0, min64(c.s.in, i0 + kSmallFeatures), min64(c.s.batch, split * c.rows),
                min64(c.s.batch, (split + 1) * c.rows), c.sums + split * c.size);
          });
        }
      },
      &context);
  if (!a.d_spline) return;
  for (int64_t split = 1; split < splits; ++split) add_row(sums.get(), sums.get() + split * size, size);
  const T* row = sums.get();
  for (int64_t i = 0; i < s.in; ++i) {
    if (s.base != kNoBase) write_row(a.d_base, a.layer.weight_dtype, i * s.out, row, s.out), row += s.out;
    write_row(a.d_spline, a.layer.weight_dtype, i * s.functions * s.out, row, s.functions * s.out);
    row += s.functions * s.out;
  }
}

}  // namespace KAN_ISA
}  // namespace kan
