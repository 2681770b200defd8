// Sums over the rows of products of basis functions. On rows sorted by cell they are dot products of the value rows
// of one run; beside a second grid, cells are those of both grids' knots together.
#pragma once

#include "edges.h"

namespace kan {
namespace KAN_ISA {

// sums[j] = sum of left[q] * right[j * kRowStride + q] over q in [begin, end), j < n; sums has room for n + 3.
inline void dot_rows(double* sums, const double* left, const double* right, int n, int begin, int end) {
  constexpr int L = Simd<double>::lanes, W = 4;
  for (int j0 = 0; j0 < n; j0 += W) {
    const double* row[W];
    KAN_UNROLL
    for (int j = 0; j < W; ++j) row[j] = right + (j0 + j < n ? j0 + j : n - 1) * int64_t(kRowStride);
    Vec<double> sum[W] = {};
    int q = begin;
    for (; q + L <= end; q += L) {
      const Vec<double> value = load(left + q);
      KAN_UNROLL
      for (int j = 0; j < W; ++j) sum[j] += value * load(row[j] + q);
    }
    if (q < end) {
      const Vec<double> value = load_first(left + q, end - q);
      KAN_UNROLL
      for (int j = 0; j < W; ++j) sum[j] += value * load_first(row[j] + q, end - q);
    }
    KAN_UNROLL
    for (int j = 0; j < W; ++j) sums[j0 + j] = sum_lanes<double>(sum[j]);
  }
}

class Gram {
 public:
  explicit Gram(const cpu::GramArgs& args)
      : a_(args),
        s_(args.layer),
        has_base_(s_.base != kNoBase),
        band_size_(int64_t(s_.functions) * (s_.order + 1)),
        border_size_(int64_t(1 + has_base_) * (s_.functions + 1 + has_base_)),
        other_knots_(a_.other_grid ? a_.other_functions + a_.other_order + 1 : 0),
        cross_size_(int64_t(s_.functions) * a_.other_functions),
        size_(a_.other_grid ? cross_size_ : band_size_ + border_size_),
        sweep_(s_, size_) {}

  void run(const cpu::Executor& executor) {
    const bool parallel = estimated_cycles<double>(s_, 1) > kSmallSerialCycles;
    const std::unique_ptr<double[]> sums(new double[size_t(sweep_.splits * s_.in * size_)]());
    sums_ = sums.get();
    execute(
        executor, parallel, sweep_.tasks(),
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const Gram*>(self)->task(t);
        },
        this);
    for (int64_t i = 0; i < s_.in; ++i) write(i);
  }

 private:
  void task(int64_t t) const {
    const int n_knots = s_.n_knots + other_knots_;  // of the cells that rows are sorted by
    const int n_right = (a_.other_grid ? a_.other_order + 1 : s_.n_values);
    const int64_t left_size = int64_t(s_.n_values + 1) * kRowStride, right_size = int64_t(n_right) * kRowStride;
    Arena arena(SweepRows<double>::bytes(sweep_, n_knots) + Arena::bytes_for<double>(left_size) +
                Arena::bytes_for<double>(right_size) + Arena::bytes_for<double>(n_knots) +
                2 * Arena::bytes_for<Run>(kMaxRows));
    SweepRows<double> rows(arena, sweep_, n_knots);
    double* left = arena.take<double>(left_size);
    double* right = arena.take<double>(right_size);
    double* merged = arena.take<double>(n_knots);
    Run* own_runs = arena.take<Run>(kMaxRows);
    Run* other_runs = arena.take<Run>(kMaxRows);
    const bool weighted = a_.w.data != nullptr;
    for_row_blocks(sweep_, s_, t, [&](int64_t i0, int64_t features, int64_t split, int64_t row0, int64_t n_rows) {
      read_transposed(rows.x, kRowStride, a_.x, row0, n_rows, i0, features);
      if (weighted) read_transposed(rows.row_scale, kRowStride, a_.w, row0, n_rows, i0, features);
      for (int64_t f = 0; f < features; ++f) {
        const double* knots = static_cast<const double*>(a_.layer.grid) + (i0 + f) * s_.n_knots;
        const double* x = rows.x + f * kRowStride;
        const double* row_scale = weighted ? rows.row_scale + f * kRowStride : nullptr;
        double* sums = sums_ + (split * s_.in + i0 + f) * size_;
        if (a_.other_grid) {
          const double* other = a_.other_grid + (i0 + f) * other_knots_;
          merge(merged, knots, other);
          sort_rows(rows.sorted, x, row_scale, int(n_rows), merged, n_knots, 0, n_knots - 1);
          add_cross(sums, rows.sorted, knots, other, merged, left, right, own_runs, other_runs);
        } else {
          sort_rows(rows.sorted, x, row_scale, int(n_rows), knots, s_.n_knots, s_.order, s_.cells);
          evaluate_rows(right, rows.sorted, s_, knots, 0, false);
          add_own(sums, rows.sorted, left, right);
        }
      }
    });
  }

  // sums: band, then border. right: values of the base, if there is one, and of the splines.
  void add_own(double* sums, const SortedRows<double>& sorted, double* left, const double* right) const {
    const bool weighted = a_.w.data != nullptr;
    const int n = s_.functions, k = s_.order, columns = n + 1 + has_base_;
    double *band = sums, *border = sums + band_size_;
    for (int q = 0; q < sorted.rows; ++q) left[q] = weighted ? sorted.row_scale[q] : 1.0;
    for (int j = 0; j < s_.n_values; ++j) {
      const double* value = right + j * int64_t(kRowStride);
      double* product = left + (j + 1) * int64_t(kRowStride);
      for (int q = 0; q < sorted.rows; ++q) product[q] = left[q] * value[q];
    }
    const double* splines = right + int64_t(has_base_) * kRowStride;
    double dots[kMaxValues + 3];
    for (int u = 0; u < sorted.n_runs; ++u) {
      const Run run = sorted.runs[u];
      double count = 0;
      for (int q = run.begin; q < run.end; ++q) count += left[q];
      border[n] += count;
      if (has_base_) {
        dot_rows(dots, left, right, 1, run.begin, run.end);
        border[n + 1] += dots[0];
        border[columns + n] += dots[0];
        dot_rows(dots, left + kRowStride, right, 1, run.begin, run.end);
        border[columns + n + 1] += dots[0];
      }
      if (run.cell == outside_cell(s_.n_knots)) continue;
      if (run.cell == nan_cell(s_.n_knots)) {  // every function is NaN there
        for (int r = 0; r < n; ++r) {
          for (int d = 0; d <= k && r + d < n; ++d) band[int64_t(r) * (k + 1) + d] = __builtin_nan("");
        }
        for (int j = 0; j < (1 + has_base_) * n; ++j) border[j / n * columns + j % n] = __builtin_nan("");
        continue;
      }
      for (int row = 0; row <= has_base_; ++row) {
        dot_rows(dots, left + row * int64_t(kRowStride), splines, k + 1, run.begin, run.end);
        for (int j = 0; j <= k; ++j) border[row * columns + run.window + j] += dots[j];
      }
      for (int r = 0; r <= k; ++r) {
        dot_rows(dots, left + int64_t(1 + has_base_ + r) * kRowStride, splines + int64_t(r) * kRowStride, k + 1 - r,
                 run.begin, run.end);
        for (int d = 0; d <= k - r; ++d) band[int64_t(run.window + r) * (k + 1) + d] += dots[d];
      }
    }
  }

  // sums: (n, n'). The runs lie in one cell of either grid.
  void add_cross(double* sums, SortedRows<double>& sorted, const double* knots, const double* other,
                 const double* merged, double* left, double* right, Run* own_runs, Run* other_runs) const {
    const int n_other = a_.other_functions;
    const int n_merged = s_.n_knots + other_knots_;
    for (int u = 0; u < sorted.n_runs; ++u) {
      own_runs[u] = place(sorted.runs[u], merged, n_merged, knots, s_.n_knots, s_.order, s_.cells);
      other_runs[u] = place(sorted.runs[u], merged, n_merged, other, other_knots_, a_.other_order,
                            a_.other_functions - a_.other_order);
    }
    SortedRows<double> view = sorted;
    view.runs = own_runs;
    spline_rows_of<double>(s_.order)(left, view, knots, s_.n_knots, 0, false);
    if (a_.w.data) scale_rows(left, s_.order + 1, sorted);
    view.runs = other_runs;
    spline_rows_of<double>(a_.other_order)(right, view, other, other_knots_, 0, false);
    double dots[kMaxValues + 3];
    for (int u = 0; u < sorted.n_runs; ++u) {
      const Run own = own_runs[u], beside = other_runs[u];
      if (own.cell == nan_cell(s_.n_knots)) {
        for (int64_t j = 0; j < cross_size_; ++j) sums[j] = __builtin_nan("");
        continue;
      }
      if (own.cell == outside_cell(s_.n_knots) || beside.cell == outside_cell(other_knots_)) continue;
      for (int r = 0; r <= s_.order; ++r) {
        dot_rows(dots, left + int64_t(r) * kRowStride, right, a_.other_order + 1, own.begin, own.end);
        double* line = sums + int64_t(own.window + r) * n_other + beside.window;
        for (int q = 0; q <= a_.other_order; ++q) line[q] += dots[q];
      }
    }
  }

  // A run of the merged cells as a run of one grid's cells.
  static Run place(Run run, const double* merged, int n_merged, const double* knots, int n_knots, int order,
                   int cells) {
    if (run.cell == nan_cell(n_merged)) return {run.begin, run.end, nan_cell(n_knots), 0};
    const int cell = run.cell == outside_cell(n_merged) ? -1 : locate_cell(knots, n_knots, merged[run.cell]);
    if (cell < 0) return {run.begin, run.end, outside_cell(n_knots), 0};
    return {run.begin, run.end, cell, window_of_cell(cell, order, cells)};
  }

  void merge(double* out, const double* a, const double* b) const {
    const int n = s_.n_knots + other_knots_;
    for (int i = 0, j = 0; i + j < n;) {
      const bool first = j == other_knots_ || (i < s_.n_knots && a[i] <= b[j]);
      out[i + j] = first ? a[i] : b[j];
      first ? ++i : ++j;
    }
  }

  // Adds the splits of one feature in their order.
  void write(int64_t i) const {
    const auto write = [&](double* out, int64_t offset, int64_t size) {
      for (int64_t j = 0; j < size; ++j) {
        double sum = 0;
        for (int64_t split = 0; split < sweep_.splits; ++split) sum += sums_[(split * s_.in + i) * size_ + offset + j];
        out[i * size + j] = sum;
      }
    };
    if (a_.other_grid) return write(a_.cross, 0, cross_size_);
    write(a_.band, 0, band_size_);
    write(a_.border, band_size_, border_size_);
  }

  const cpu::GramArgs& a_;
  const Shape s_;
  const int has_base_;
  const int64_t band_size_, border_size_;
  const int other_knots_;
  const int64_t cross_size_, size_;
  const Sweep sweep_;
  double* sums_ = nullptr;
};

// With f the m = k + 1 (+ 1) functions of a cell, dx = w sum_a f'_a (linear_a + sum_b square_ab f_b).
class GramInput {
 public:
  explicit GramInput(const cpu::GramInputArgs& args)
      : a_(args), s_(args.layer), has_base_(s_.base != kNoBase), sweep_(s_, 0) {}

  void run(const cpu::Executor& executor) {
    execute(
        executor, estimated_cycles<double>(s_, 2) > kSmallSerialCycles, sweep_.tasks(),
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const GramInput*>(self)->task(t);
        },
        this);
  }

 private:
  void task(int64_t t) const {
    const int64_t values_size = int64_t(s_.n_values) * kRowStride;
    Arena arena(SweepRows<double>::bytes(sweep_, s_.n_knots) + 2 * Arena::bytes_for<double>(values_size) +
                Arena::bytes_for<double>(kRowStride));
    SweepRows<double> rows(arena, sweep_, s_.n_knots);
    double* values = arena.take<double>(values_size);
    double* slopes = arena.take<double>(values_size);
    double* result = arena.take<double>(kRowStride);
    const bool weighted = a_.w.data != nullptr;
    for_row_blocks(sweep_, s_, t, [&](int64_t i0, int64_t features, int64_t, int64_t row0, int64_t n_rows) {
      read_transposed(rows.x, kRowStride, a_.x, row0, n_rows, i0, features);
      if (weighted) read_transposed(rows.row_scale, kRowStride, a_.w, row0, n_rows, i0, features);
      for (int64_t f = 0; f < features; ++f) {
        const double* knots = static_cast<const double*>(a_.layer.grid) + (i0 + f) * s_.n_knots;
        sort_rows(rows.sorted, rows.x + f * kRowStride, weighted ? rows.row_scale + f * kRowStride : nullptr,
                  int(n_rows), knots, s_.n_knots, s_.order, s_.cells);
        evaluate_rows(values, rows.sorted, s_, knots, 0, false);
        evaluate_rows(slopes, rows.sorted, s_, knots, 1, weighted);
        for (int u = 0; u < rows.sorted.n_runs; ++u) contract(result, rows.sorted.runs[u], i0 + f, values, slopes);
        for (int q = 0; q < n_rows; ++q) a_.dx[(row0 + rows.sorted.row[q]) * s_.in + i0 + f] = result[q];
      }
    });
  }

  void contract(double* result, Run run, int64_t feature, const double* values, const double* slopes) const {
    constexpr int L = Simd<double>::lanes;
    const int n = s_.functions, k = s_.order, columns = n + 1 + has_base_;
    const double* band = a_.d_band + feature * n * (k + 1) + int64_t(run.window) * (k + 1);
    const double* border = a_.d_border + feature * (1 + has_base_) * columns;
    double linear[kMaxValues], square[kMaxValues][kMaxValues];
    if (has_base_) {
      linear[0] = border[n + 1] + border[columns + n];
      square[0][0] = 2 * border[columns + n + 1];
    }
    for (int r = 0; r <= k; ++r) {
      const int row = r + has_base_;
      linear[row] = border[run.window + r];
      if (has_base_) square[0][row] = square[row][0] = border[columns + run.window + r];
      for (int d = 0; d <= k - r; ++d) {
        square[row][row + d] = square[row + d][row] = (d == 0 ? 2 : 1) * band[int64_t(r) * (k + 1) + d];
      }
    }
    for (int q = run.begin; q < run.end; q += L) {  // surplus lanes are overwritten by the next run
      Vec<double> sum = {};
      for (int a = 0; a < s_.n_values; ++a) {
        Vec<double> factor = broadcast(linear[a]);
        for (int b = 0; b < s_.n_values; ++b) factor += load(values + int64_t(b) * kRowStride + q) * square[a][b];
        sum += load(slopes + int64_t(a) * kRowStride + q) * factor;
      }
      store(result + q, sum);
    }
  }

  const cpu::GramInputArgs& a_;
  const Shape s_;
  const int has_base_;
  const Sweep sweep_;
};

}  // namespace KAN_ISA
}  // namespace kan
