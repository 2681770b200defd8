// Activations of any basis, order and dtype: the rows of a feature sorted by cell, lanes are sorted rows.
#pragma once

#include "activation.h"
#include "tiles.h"

namespace kan {
namespace KAN_ISA {

// What one thread holds of a tile and of one of its features.
template <class T>
struct SortedTile {
  Arena arena;
  SortedRows<T> sorted;
  T *x, *row_scale;  // [kTileColumns][kTileStride]
  T* values[2];      // [n_values][kRowStride], the base first
  T* coefficients;   // [coefficient_rows][heads], likewise
  T* columns;        // [heads][kTileColumns][kTileStride]: v or g
  T* result;         // [kTileColumns][kTileStride]
  T* line;           // [kRowStride]

  explicit SortedTile(const Shape& s)
      : arena(SortedRows<T>::bytes(s.n_knots) + 3 * Arena::bytes_for<T>(kTileColumns * kTileStride) +
              2 * Arena::bytes_for<T>(s.n_values * kRowStride) + Arena::bytes_for<T>(s.coefficient_rows() * s.out) +
              Arena::bytes_for<T>(s.out * kTileColumns * kTileStride) + Arena::bytes_for<T>(kRowStride)) {
    sorted.take(arena, s.n_knots);
    x = arena.take<T>(kTileColumns * kTileStride);
    row_scale = arena.take<T>(kTileColumns * kTileStride);
    values[0] = arena.take<T>(s.n_values * kRowStride);
    values[1] = arena.take<T>(s.n_values * kRowStride);
    coefficients = arena.take<T>(s.coefficient_rows() * s.out);
    columns = arena.take<T>(s.out * kTileColumns * kTileStride);
    result = arena.take<T>(kTileColumns * kTileStride);
    line = arena.take<T>(kRowStride);
  }
  T* column(int64_t h, int64_t f) const { return columns + (h * kTileColumns + f) * kTileStride; }

  void read(const MatrixView& x_in, const MatrixView& scale_in, int64_t row0, int64_t rows, int64_t i, int64_t n) {
    read_columns(x, kTileStride, x_in, row0, rows, i, n);
    if (scale_in.data) read_columns(row_scale, kTileStride, scale_in, row0, rows, i, n);
  }
  void read_coefficients(const Layer& l, const Shape& s, int64_t feature) {
    T* row = coefficients;
    if (l.base_weight) read_row(row, l.base_weight, l.weight_dtype, feature * s.out, s.out, 1), row += s.out;
    read_row(row, l.spline_weight, l.weight_dtype, feature * s.functions * s.out, s.functions * s.out, 1);
  }
  // line[q] <- the splines of a head at the sorted rows, from values[v].
  void splines(const Shape& s, int64_t h, int v) {
    constexpr int L = Simd<T>::lanes;
    const int base = s.base != kNoBase, functions = s.n_values - base;
    for (int u = 0; u < sorted.n_runs; ++u) {
      const Run run = sorted.runs[u];
      const int count = s.local && run.cell == outside_cell(s.n_knots) ? 0 : functions;  // none, were it infinite
      const T* coefficient = coefficients + (base + run.window) * s.out + h;
      for (int q = run.begin; q < run.end; q += L) {  // surplus lanes are overwritten by the next run
        Vec<T> sum = Vec<T>{};
        const T* value = values[v] + base * kRowStride + q;
        for (int j = 0; j < count; ++j) sum += load(value + j * kRowStride) * coefficient[j * s.out];
        store(line + q, sum);
      }
    }
  }
  // sums[r][h] += the sum over the rows of values[0] g, where g lies sorted in line.
  void add_sums(double* sums, const Shape& s, int64_t h) const {
    constexpr int L = Simd<T>::lanes;
    const int base = s.base != kNoBase;
    const Run* const nan = sorted.find_special(nan_cell(s.n_knots));
    for (int u = 0; u < sorted.n_runs; ++u) {
      const Run run = sorted.runs[u];
      for (int n = 0; n < s.n_values; ++n) {
        const T* value = values[0] + n * kRowStride;
        Vec<T> lanes = Vec<T>{};
        int q = run.begin;
        for (; q + L <= run.end; q += L) lanes += load(value + q) * load(line + q);
        double sum = double(sum_lanes<T>(lanes));
        for (; q < run.end; ++q) sum += double(value[q] * line[q]);
        sums[(n < base ? 0 : n + run.window) * s.out + h] += sum;
      }
    }
    if (!nan) return;
    for (int r = 0; r < s.coefficient_rows(); ++r) sums[r * s.out + h] += double(sorted.x[nan->begin]);
  }
};

template <class T>
void sorted_activation(const cpu::ActivationArgs& a, const Shape& s, const cpu::Executor& executor) {
  const T* const grid = static_cast<const T*>(a.layer.grid);
  const bool base = s.base != kNoBase;
  run_tasks(executor, s.batch * s.in * (24 + s.out) > kSerialCycles, s, Tasks::of_rows(s), [&](const TaskRange& range) {
    SortedTile<T> tile(s);
    range.for_tiles([&](const Block& block, int64_t row0, int64_t rows) {
      const int64_t i = block.i, n = block.features;
      tile.read(a.x, a.row_scale, row0, rows, i, n);
      for (int64_t f = 0; f < n; ++f) {
        const T* const knots = grid + (i + f) * s.grid_columns;
        const T* const scale = a.row_scale.data ? tile.row_scale + f * kTileStride : nullptr;
        sort_feature(tile.sorted, s, tile.x + f * kTileStride, scale, rows, knots);
        evaluate_rows(tile.values[0], tile.sorted, s, knots, a.derivative, scale != nullptr);
        tile.read_coefficients(a.layer, s, i + f);
        for (int64_t h = 0; h < s.out; ++h) {
          tile.splines(s, h, 0);
          T* const out = tile.column(h, f);
          for (int64_t q = 0; q < rows; ++q) {
            out[tile.sorted.row[q]] = base ? tile.line[q] + tile.values[0][q] * tile.coefficients[h] : tile.line[q];
          }
        }
      }
      for (int64_t h = 0; h < s.out; ++h) {
        T* const columns = tile.column(h, 0);
        write_columns(a.v, a.layer.weight_dtype, s.out * s.in, s.batch, columns, kTileStride, row0, rows, h * s.in + i,
                      n);
      }
    });
  });
}

template <class T>
void sorted_activation_backward(const cpu::ActivationBackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  const T* const grid = static_cast<const T*>(a.layer.grid);
  const bool base = s.base != kNoBase, weight = a.d_spline != nullptr, input = a.input != nullptr;
  const int64_t of_feature = int64_t(s.coefficient_rows()) * s.out, size = weight ? s.in * of_feature : 0;
  const Tasks tasks = weight ? Tasks::of_sums(s, size) : Tasks::of_rows(s);
  const std::unique_ptr<double[]> sums(new double[size_t(weight ? tasks.splits * size : 0)]());
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input), input_at = n_orders - 1;
  run_tasks(executor, s.batch * s.in * (48 + 2 * s.out) > kSerialCycles, s, tasks, [&](const TaskRange& range) {
    SortedTile<T> tile(s);
    range.for_tiles([&](const Block& block, int64_t row0, int64_t rows) {
      const int64_t i = block.i, n = block.features;
      tile.read(a.x, a.row_scale, row0, rows, i, n);
      for (int64_t h = 0; h < s.out; ++h) read_columns(tile.column(h, 0), kTileStride, head(a, h), row0, rows, i, n);
      for (int64_t f = 0; f < n; ++f) {
        const T* const knots = grid + (i + f) * s.grid_columns;
        const bool scaled = a.row_scale.data != nullptr;
        const T* const scale = scaled ? tile.row_scale + f * kTileStride : nullptr;
        sort_feature(tile.sorted, s, tile.x + f * kTileStride, scale, rows, knots);
        evaluate_orders(tile.values, orders, n_orders, tile.sorted, s, knots);
        T* const result = tile.result + f * kTileStride;
        const int32_t* const row = tile.sorted.row;
        if (input) {
          tile.read_coefficients(a.layer, s, i + f);
          // The base multiplies a sum over the heads: it can be infinite, and inf - inf would be NaN.
          for (int64_t q = 0; q < rows; ++q) result[q] = T(0);
          for (int64_t h = 0; h < s.out; ++h) {
            tile.splines(s, h, input_at);
            const T* const g = tile.column(h, f);
            for (int64_t q = 0; q < rows; ++q) result[row[q]] += g[row[q]] * tile.line[q];
          }
          for (int64_t q = 0; base && q < rows; ++q) {
            T sum = T(0);
            for (int64_t h = 0; h < s.out; ++h) sum += tile.column(h, f)[row[q]] * tile.coefficients[h];
            result[row[q]] += sum * tile.values[input_at][q];
          }
        }
        if (weight) {
          if (scaled) scale_rows(tile.values[0], s.n_values, tile.sorted);
          for (int64_t h = 0; h < s.out; ++h) {
            const T* const g = tile.column(h, f);
            for (int64_t q = 0; q < rows; ++q) tile.line[q] = g[row[q]];
            tile.add_sums(sums.get() + range.split * size + (i + f) * of_feature, s, h);
          }
        }
      }
      if (input) write_columns(a.input, a.x.dtype, s.in, s.batch, tile.result, kTileStride, row0, rows, i, n);
    });
  });
  if (weight) write_sums(a, s, sums.get(), tasks.splits);
}

}  // namespace KAN_ISA
}  // namespace kan
