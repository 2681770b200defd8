// Layers with few outputs and short grids (the scientist's KAN): lanes are rows, in their own order.
//
// Here a row's arithmetic is less than the cost of sorting it, so each lane looks its own cell's polynomials up, and
// the weights' gradients are made of sums over the rows of each cell (cell_polynomials.h).
#pragma once

#include <memory>
#include <type_traits>

#include "small_moments.h"

namespace kan {
namespace KAN_ISA {

constexpr int kSmallFeatures = 64;  // of one task of the gradients
constexpr int kKeptOrders[2] = {0, 1};
constexpr int64_t kSmallRowsOfOutput = 16;  // rows for each output: of fewer, the tables cost more than sorting

// Whether sorting costs more: not where the outputs nearly fill a vector, or of few rows.
template <class T>
bool is_small(const Shape& s) {
  const bool has_tables = s.local && s.order <= kSmallOrder && s.n_knots <= kMostKnots;
  const int most = Simd<T>::lanes < kSmallOutputs ? kSmallOutputs : kSmallOutputs - 2;
  return has_tables && s.out <= most && s.batch >= kSmallRowsOfOutput * s.out;
}

// y[o][b] += row_scale[b] phi_o(x[b]) of one feature. base, row_scale: may be null. If Sizes, sizes[o] += sum_b
// |phi_o(x[b])|.
template <int Degree, bool Sizes, class T, int K, int N>
void small_values(const SmallSplines<T, K, N>& splines, const SmallPlaces<T>& places, int64_t rows, int64_t out,
                  const T* base, const T* row_scale, T* y, double* sizes) {
  Vec<T> absolutes[kSmallOutputs] = {};
  for (int64_t b = 0; b < rows; b += Simd<T>::lanes) {
    Vec<T> terms[Degree + 1], activation = Vec<T>{};
    monomials<T, Degree>(places.at(b), terms);
    if (base) activation = load(base + b);
    if (row_scale) {
      const Vec<T> scale = load(row_scale + b);
      activation *= scale;
      for (int n = 0; n <= Degree; ++n) terms[n] *= scale;
    }
    for (int64_t o = 0; o < out; ++o) {
      T* const to = y + o * kSmallRows + b;
      const Vec<T> spline = splines.template value<Degree>(o, places.lines + b, terms), sum = load(to) + spline;
      store(to, base ? sum + activation * splines.base_weight(o) : sum);
      if (!Sizes) continue;
      const Vec<T> phi = base ? spline + activation * splines.base_weight(o) : spline;
      absolutes[o] += of_rows<T>(absolute<T>(phi), b, rows);
    }
  }
  for (int64_t o = 0; Sizes && o < out; ++o) sizes[o] += double(sum_lanes<T>(absolutes[o]));
}

// sizes: (in, out) of each block of kSmallRows rows, added to; null: not asked for.
template <class T, int K, int N, int Degree>
void small_forward_rows(const ForwardArgs& a, const Shape& s, int64_t first, int64_t last, double* sizes) {
  constexpr int L = Simd<T>::lanes;
  constexpr int64_t ld = SmallBlock<T>::kLd;
  SmallColumns<T> columns;
  Arena arena(SmallTables<T, K, N>::bytes() + columns.bytes());
  SmallTables<T, K, N>& tables = SmallTables<T, K, N>::make(arena, a.layer, s, a.derivative, Degree);
  columns.take(arena);
  T *const x = columns.x, *const row_scale = columns.row_scale, *const y = columns.outputs, *const base = columns.base;
  SmallPlaces<T> places;
  T* const part = s.in > kSumInputs ? columns.results : y;
  T bias[kSmallOutputs] = {};
  if (a.bias) read_row(bias, a.bias, a.layer.weight_dtype, 0, s.out, 1);
  for (int64_t row0 = first; row0 < last; row0 += kSmallRows) {
    const SmallBlock<T> block(row0, last);
    for (int64_t o = 0; o < s.out; ++o) {
      for (int64_t b = 0; b < block.rows; b += L) store(y + o * ld + b, broadcast(bias[o]));
    }
    for (int64_t i = 0; i < s.in; ++i) {
      if (part != y && i % kSumInputs == 0) std::fill(part, part + kSmallOutputs * ld, T(0));
      const int64_t f = i % kSmallColumns;
      if (f == 0) {
        const int64_t n = min64(kSmallColumns, s.in - i);
        block.read(x, a.x, i, n);
        if (a.row_scale.data) block.read(row_scale, a.row_scale, i, n);
        tables.load(i, n);
      }
      tables.finder(f).find(x + f * ld, block.rows, places);
      const T* activation = s.base != kNoBase ? base : nullptr;
      if (a.kept_base) {
        T* const kept = kept_base(static_cast<T*>(a.kept_base), s, i, row0);
        if (!a.base_is_kept) base_rows(s.base, x + f * ld, block.rows, kKeptOrders, 2, kept, small_kept_rows(s));
        activation = kept;
      } else if (activation) {
        base_rows(s.base, x + f * ld, block.rows, &a.derivative, 1, base, ld);
      }
      const T* const scale = a.row_scale.data ? row_scale + f * ld : nullptr;
      if (sizes) {
        small_values<Degree, true>(tables.splines(f), places, block.rows, s.out, activation, scale, part,
                                   sizes + (row0 / kSmallRows * s.in + i) * s.out);
      } else {
        small_values<Degree, false>(tables.splines(f), places, block.rows, s.out, activation, scale, part, sizes);
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

// result[b] = sum_o g[o][b] phi_o'(x[b]) of one feature. slope: the base's, may be null.
template <int Degree, class T, int K, int N>
void small_slopes(const SmallSplines<T, K, N>& splines, const SmallPlaces<T>& places, int64_t rows, int64_t out,
                  const T* slope, const T* g, T* result) {
  for (int64_t b = 0; b < rows; b += Simd<T>::lanes) {
    // The base multiplies a sum over the outputs: it can be infinite, and inf - inf would be NaN.
    Vec<T> terms[Degree + 1], sum = Vec<T>{}, base_sum = Vec<T>{};
    monomials<T, Degree>(places.at(b), terms);
    for (int64_t o = 0; o < out; ++o) {
      const Vec<T> cotangent = load(g + o * kSmallRows + b);
      sum += cotangent * splines.template value<Degree>(o, places.lines + b, terms);
      base_sum += cotangent * splines.base_weight(o);
    }
    store(result + b, slope ? sum + load(slope + b) * base_sum : sum);
  }
}

// cotangents[o][b] = g[o][b] + slopes[o] sign(phi_o(x[b])) of one feature. base: may be null.
template <int Degree, class T, int K, int N>
void small_cotangents(const SmallSplines<T, K, N>& splines, const SmallPlaces<T>& places, int64_t rows, int64_t out,
                      const T* base, const T* slopes, const T* g, T* cotangents) {
  for (int64_t b = 0; b < rows; b += Simd<T>::lanes) {
    Vec<T> terms[Degree + 1], activation = Vec<T>{};
    monomials<T, Degree>(places.at(b), terms);
    if (base) activation = load(base + b);
    for (int64_t o = 0; o < out; ++o) {
      Vec<T> phi = splines.template value<Degree>(o, places.lines + b, terms);
      if (base) phi += activation * splines.base_weight(o);
      const Vec<T> slope = of_rows<T>(signed_as<T>(phi, broadcast(slopes[o])), b, rows);
      store(cotangents + o * kSmallRows + b, load(g + o * kSmallRows + b) + slope);
    }
  }
}

// Features [i0, i1) on rows [first, last). sums: [in][coefficient_rows][out], the base row first; may be null.
template <class T, int K, int N, int Degree>
void small_backward_rows(const BackwardArgs& a, const Shape& s, int64_t i0, int64_t i1, int64_t first, int64_t last,
                         double* sums) {
  constexpr int64_t ld = SmallBlock<T>::kLd;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr, base = s.base != kNoBase;
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input);
  const int64_t features = weight ? min64(kSmallColumns, i1 - i0) : 0;
  SmallColumns<T> columns;
  const int n_tables = 1 + (a.size_slopes != nullptr);
  Arena arena(n_tables * SmallTables<T, K, N>::bytes() + columns.bytes() + SmallMoments<T, K>::bytes(s, features));
  SmallTables<T, K, N>& tables = SmallTables<T, K, N>::make(arena, a.layer, s, input ? a.input_derivative : -1, Degree);
  SmallTables<T, K, N>* const values = a.size_slopes ? &SmallTables<T, K, N>::make(arena, a.layer, s, 0, K) : nullptr;
  columns.take(arena);
  T *const x = columns.x, *const row_scale = columns.row_scale, *const g = columns.outputs;
  T* const result = columns.results;
  SmallPlaces<T> places;
  SmallMoments<T, K> moments(s, features, arena);
  for (int64_t i = i0; i < i1; i += kSmallColumns) {
    const int64_t n = min64(kSmallColumns, i1 - i);
    tables.load(i, n);
    if (values) values->load(i, n);
    moments.clear();
    for (int64_t row0 = first; row0 < last; row0 += kSmallRows) {
      const SmallBlock<T> block(row0, last);
      block.read(g, a.g, 0, s.out);
      block.read(x, a.x, i, n);
      if (a.row_scale.data) block.read(row_scale, a.row_scale, i, n);
      for (int64_t f = 0; f < n; ++f) {
        tables.finder(f).find(x + f * ld, block.rows, places);
        const T *activation = base ? columns.base : nullptr, *slope = base ? activation + (n_orders - 1) * ld : nullptr;
        if (a.kept_base) {
          activation = kept_base(static_cast<const T*>(a.kept_base), s, i + f, row0);
          slope = activation + small_kept_rows(s);
        } else if (base) {
          base_rows(s.base, x + f * ld, block.rows, orders, n_orders, columns.base, ld);
        }
        const T* cotangents = g;
        if (values) {
          const T* const slopes = static_cast<const T*>(a.size_slopes) + (i + f) * s.out;
          small_cotangents<K>(values->splines(f), places, block.rows, s.out, activation, slopes, g, columns.edges);
          cotangents = columns.edges;
        }
        if (input) {
          small_slopes<Degree>(tables.splines(f), places, block.rows, s.out, slope, cotangents, result + f * ld);
        }
        if (weight) {
          moments.add(f, places, block.rows, activation, a.row_scale.data ? row_scale + f * ld : nullptr, cotangents);
        }
      }
      if (input) block.write(a.input, a.x.dtype, s.in, result, i, n);
      if (weight) moments.end_block();
    }
    if (!weight) continue;
    Line<double> lines[N];
    tables.each_basis(i, n, a.weight_derivative, [&](int64_t f, const BasisLines<K, N>& basis) {
      double* d = sums + (i + f) * s.coefficient_rows() * s.out;
      for (int64_t o = 0; base && o < s.out; ++o) *d++ = moments.base_of(f, o);
      std::fill(d, d + s.functions * s.out, 0.0);
      for (int64_t o = 0; o < s.out; ++o) {
        moments.of(f, o, lines);
        basis.add_gradient(d + o, s.out, s.functions, lines);
      }
    });
  }
}

// call(order, entries of a table, degree of the splines' derivatives), all as constants. The shorter tables are
// compiled for what is common: cubic splines.
template <class T, int K = kSmallOrder, class Call>
void with_tables(const Shape& s, int derivative, const Call& call) {
  if constexpr (K > 0) {
    if (s.order != K) return with_tables<T, K - 1>(s, derivative, call);
  }
  const std::integral_constant<int, K> order;
  const std::integral_constant<int, (K > 0 ? K - 1 : 0)> lower;
  const std::integral_constant<int, kMostKnots + 1> longest;
  if constexpr (K == kSmallOrder) {
    const std::integral_constant<int, (kMostKnots + 1) / 2> shorter;
    if (s.n_knots < shorter()) return derivative == 0 ? call(order, shorter, order) : call(order, shorter, lower);
  }
  derivative == 0 ? call(order, longest, order) : call(order, longest, lower);
}

template <class T>
void small_forward(const ForwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  const bool parallel = s.batch * s.in * (8 + s.out) > kSmallSerialCycles;
  const int64_t share = ceil_div(ceil_div(s.batch, parallel ? executor.threads : 1), 32) * 32;
  // sums over the rows are of the same blocks on any number of threads
  const int64_t rows = a.sizes ? kSmallRows : min64(kSmallRows, max64(32, share)), tasks = ceil_div(s.batch, rows);
  const int64_t edges = a.sizes ? s.in * s.out : 0;
  const std::unique_ptr<double[]> sizes(new double[size_t(tasks * edges)]());
  struct Context {
    const ForwardArgs& a;
    const Shape& s;
    int64_t rows;
    double* sizes;
  } context{a, s, rows, a.sizes ? sizes.get() : nullptr};
  execute(
      executor, parallel, tasks,
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& c = *static_cast<const Context*>(pointer);
        with_tables<T>(c.s, c.a.derivative, [&](auto order, auto entries, auto degree) {
          small_forward_rows<T, order(), entries(), degree()>(c.a, c.s, begin * c.rows, min64(c.s.batch, end * c.rows),
                                                              c.sizes);
        });
      },
      &context);
  for (int64_t e = 0; e < edges; ++e) a.sizes[e] = 0.0;
  for (int64_t task = 0; task < tasks; ++task) add_row(a.sizes, sizes.get() + task * edges, edges);
}

template <class T>
void small_backward(const BackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  const int64_t size = a.d_spline ? s.in * s.coefficient_rows() * s.out : 0;
  const int64_t splits = row_splits<double>(s, 64, 8 * kSmallRows, size);
  const std::unique_ptr<double[]> sums(new double[size_t(splits * size)]);
  struct Context {
    const BackwardArgs& a;
    const Shape& s;
    double* sums;
    int64_t size, splits, rows;
  } context{a, s, sums.get(), size, splits, ceil_div(ceil_div(s.batch, splits), kSmallRows) * kSmallRows};
  execute(
      executor, s.batch * s.in * (24 + 4 * s.out) > kSmallSerialCycles, ceil_div(s.in, kSmallFeatures) * splits,
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& c = *static_cast<const Context*>(pointer);
        for (int64_t t = begin; t < end; ++t) {
          const int64_t i0 = t / c.splits * kSmallFeatures, split = t % c.splits;
          with_tables<T>(c.s, c.a.input_derivative, [&](auto order, auto entries, auto degree) {
            small_backward_rows<T, order(), entries(), degree()>(
                c.a, c.s, i0, min64(c.s.in, i0 + kSmallFeatures), min64(c.s.batch, split * c.rows),
                min64(c.s.batch, (split + 1) * c.rows), c.sums + split * c.size);
          });
        }
      },
      &context);
  if (!a.d_spline) return;
  for (int64_t split = 1; split < splits; ++split) add_row(sums.get(), sums.get() + split * size, size);
  const double* row = sums.get();
  for (int64_t i = 0; i < s.in; ++i) {
    if (s.base != kNoBase) write_row(a.d_base, a.layer.weight_dtype, i * s.out, row, s.out), row += s.out;
    write_row(a.d_spline, a.layer.weight_dtype, i * s.functions * s.out, row, s.functions * s.out);
    row += s.functions * s.out;
  }
}

}  // namespace KAN_ISA
}  // namespace kan
