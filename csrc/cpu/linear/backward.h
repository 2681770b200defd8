// The gradients of one layer in one pass over x and g: tasks are blocks of input features (times splits of the rows
// where features are few), so that every task owns its results and no sum depends on the number of threads.
#pragma once

#include <memory>

#include "blocking.h"

namespace kan {
namespace KAN_ISA {

template <class T>
class Backward {
 public:
  Backward(const BackwardArgs& args, const cpu::Executor& executor)
      : a_(args), s_(args.layer), value_blocks_(s_.n_values, s_.local), panels_(s_.out, value_blocks_.widest()) {
    rows_ = rows_per_block<T>(s_, panels_.padded);
    coefficient_size_ = s_.coefficient_rows() * s_.out;
    const int64_t tile_bytes = s_.coefficient_rows() * panels_.padded * int64_t(sizeof(T));
    block_ = a_.d_spline ? max64(1, min64(kBlock, (int64_t(2) << 20) / tile_bytes)) : kBlock;
    splits_ =
        row_splits<T>(s_, ceil_div(kTasks, ceil_div(s_.in, block_)), 512, a_.d_spline ? s_.in * coefficient_size_ : 0);
    // No sum depends on the blocks: wider ones pack g less often, while there are enough for the threads.
    if (block_ == kBlock && s_.in * splits_ >= kWidestBlock * 4 * executor.threads) block_ = kWidestBlock;
    blocks_ = ceil_div(s_.in, block_);
    rows_per_split_ = ceil_div(ceil_div(s_.batch, splits_), 16) * 16;
  }

  void run(const cpu::Executor& executor) {
    const int64_t contractions = (a_.input != nullptr) + (a_.d_spline != nullptr);
    const bool parallel = estimated_cycles<T>(s_, contractions) > serial_cycles(s_);
    const bool partial = a_.d_spline && splits_ > 1;
    const std::unique_ptr<T[]> partials(partial ? new T[size_t(splits_ * s_.in * coefficient_size_)] : nullptr);
    partials_ = partials.get();
    execute(
        executor, parallel, blocks_ * splits_,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const Backward*>(self)->task(t);
        },
        this);
    if (!partial) return;
    execute(
        executor, parallel, s_.in,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t i = begin; i < end; ++i) static_cast<const Backward*>(self)->reduce(i);
        },
        this);
  }

 private:
  static constexpr int64_t kBlock = 16, kWidestBlock = 32;  // features that share one packed block of g
  static constexpr int64_t kTasks = 16;  // features alone make so many tasks, or the rows are split too

  void task(int64_t t) const {
    const int64_t i0 = t / splits_ * block_, features = min64(block_, s_.in - i0);
    const int64_t split = t % splits_, first_row = min64(s_.batch, split * rows_per_split_);
    const int64_t last_row = min64(s_.batch, first_row + rows_per_split_);
    const bool scaled = a_.row_scale.data != nullptr, weight = a_.d_spline != nullptr, input = a_.input != nullptr;
    constexpr int L = Simd<T>::lanes;

    const int64_t columns_size = block_ * kRowStride, copy_size = s_.coefficient_rows() * panels_.width;
    const int64_t values_size = int64_t(s_.n_values) * kRowStride;
    const bool packs = input && a_.layer.out_stride != 0;
    const int64_t packed_size = packs ? features * s_.functions * panels_.padded : 0;
    const int64_t sums_size = features * s_.coefficient_rows() * panels_.padded;
    Arena arena(SortedRows<T>::bytes(s_.n_knots) + Arena::bytes_for<T>(values_size) * 2 +
                Arena::bytes_for<T>(columns_size) * 3 + Arena::bytes_for<T>(rows_ * panels_.padded) +
                Arena::bytes_for<T>(copy_size) + Arena::bytes_for<T>(kRowStride * L) + Arena::bytes_for<T>(kRowStride) +
                Arena::bytes_for<T>(weight ? sums_size : 0) + Arena::bytes_for<T>(packed_size));
    SortedRows<T> sorted;
    sorted.take(arena, s_.n_knots);
    T* input_values = arena.take<T>(values_size);
    T* weight_values = arena.take<T>(values_size);
    T* const values[2] = {weight_values, input_values};
    const int orders[2] = {a_.weight_derivative, a_.input_derivative};
    T* x = arena.take<T>(columns_size);
    T* row_scale = arena.take<T>(columns_size);
    T* result = arena.take<T>(columns_size);
    T* g = arena.take<T>(rows_ * panels_.padded);
    T* partial = arena.take<T>(kRowStride * L);
    T* result_scale = arena.take<T>(kRowStride);
    Coefficients<T> coefficients{a_.layer.spline_weight,   a_.layer.base_weight,
                                 a_.layer.weight_dtype,    &s_,
                                 arena.take<T>(copy_size), packs ? arena.take<T>(packed_size) : nullptr};
    if (packs) coefficients.pack(a_.layer, i0, features, 0, panels_.padded);
    T* sums = weight ? arena.take<T>(sums_size) : nullptr;
    for (int64_t j = 0; weight && j < sums_size; ++j) sums[j] = T(0);

    MicroArgs<T> args;
    args.row = sorted.row;
    args.runs = sorted.runs;
    args.partial = partial;

    for (int64_t row0 = first_row; row0 < last_row; row0 += rows_) {
      const int64_t rows = min64(rows_, last_row - row0);
      pack_cotangents(g, row0, rows);
      read_transposed(x, kRowStride, a_.x, row0, rows, i0, features);
      if (scaled) read_transposed(row_scale, kRowStride, a_.row_scale, row0, rows, i0, features);
      for (int64_t f = 0; f < features; ++f) {
        const T* grid = static_cast<const T*>(a_.layer.grid) + (i0 + f) * s_.grid_columns;
        sort_feature(sorted, s_, x + f * kRowStride, scaled ? row_scale + f * kRowStride : nullptr, rows, grid);
        args.n_runs = sorted.n_runs;
        evaluate_orders(values + !weight, orders + !weight, weight + input, sorted, s_, grid, sums_up());
        if (weight && scaled) scale_rows(weight_values, s_.n_values, sorted);
        if (input) take_out_base(input_values, result_scale, sorted);
        for (int64_t c = 0; c < panels_.padded;) {
          const int vectors = panels_.vectors_at(c);
          args.tile = g + rows * c;
          args.start = c == 0;
          if (weight) {
            const Panel<T> whole = sums_panel(sums + f * s_.coefficient_rows() * panels_.padded, c);
            value_blocks_.each(weight_values, whole, [&](const auto& micro, const T* v, const auto& panel) {
              args.values = v;
              args.panel = panel;
              micro.weight[Panels<T>::index(vectors)](args);
            });
          }
          if (input) {
            const Panel<T> whole = coefficients.panel(i0 + f, c, vectors);
            value_blocks_.each(input_values, whole, [&](const auto& micro, const T* v, const auto& panel) {
              args.values = v;
              args.panel = panel;
              dot_runs(args, micro, Panels<T>::index(vectors), sorted);
              args.start = false;
            });
          }
          c += int64_t(vectors) * L;
        }
        if (weight && sorted.find_special(nan_cell(s_.n_knots))) {
          // A NaN row has no window: every function of this feature is NaN there.
          T* splines = sums + f * s_.coefficient_rows() * panels_.padded + (s_.base != kNoBase ? panels_.padded : 0);
          fill_row(splines, T(__builtin_nan("")), s_.functions * panels_.padded);
        }
        if (input) unsort_sums(result + f * kRowStride, partial, result_scale, sorted);
      }
      if (input) {
        write_rows<kWidestBlock>(a_.input, a_.x.dtype, s_.in, result, kRowStride, row0, rows, i0, features);
      }
    }
    if (weight && splits_ == 1 && s_.base == kNoBase && adjoin()) return transpose(sums, panels_.padded, i0, features);
    for (int64_t f = 0; weight && f < features; ++f) {
      write_sums(sums + f * s_.coefficient_rows() * panels_.padded, i0 + f, split);
    }
  }

  // Whether the input's gradient is made of sums of derivatives where all splines of a cell exist.
  bool sums_up() const {
    return a_.input && s_.local && s_.order > 0 && a_.input_derivative > 0 && a_.input_derivative <= s_.order;
  }

  // The rows' sums over the outputs of a panel: runs in the middle of the knots the shorter way.
  void dot_runs(MicroArgs<T> args, const MicroKernels<T>& micro, int panel, const SortedRows<T>& sorted) const {
    if (!sums_up()) return micro.input[panel](args);
    for (int begin = 0, end = 0; begin < sorted.n_runs; begin = end) {
      const bool whole = is_whole(sorted.runs[begin], s_.order, s_.n_knots);
      for (end = begin; end < sorted.n_runs && is_whole(sorted.runs[end], s_.order, s_.n_knots) == whole;) ++end;
      args.runs = sorted.runs + begin, args.n_runs = end - begin;
      (whole ? micro.slopes : micro.input)[panel](args);
    }
  }

  // One panel after the other, [rows][panel width] each, zero where a panel reaches past the last output.
  void pack_cotangents(T* g, int64_t row0, int64_t rows) const {
    for (int64_t c = 0; c < panels_.padded;) {
      const int64_t width = int64_t(panels_.vectors_at(c)) * Simd<T>::lanes, n = min64(width, s_.out - c);
      for (int64_t b = 0; b < rows; ++b) {
        T* out = g + rows * c + b * width;
        read_row(out, a_.g.data, a_.g.dtype, (row0 + b) * a_.g.row_stride + c * a_.g.col_stride, n, a_.g.col_stride);
        for (int64_t o = n; o < width; ++o) out[o] = T(0);
      }
      c += width;
    }
  }

  // Outside the knots only the base is left, and it can be infinite: it multiplies the sum over the outputs, since
  // infinity times the zeros that pad a panel would be NaN.
  void take_out_base(T* values, T* scale, const SortedRows<T>& sorted) const {
    const Run* outside = s_.base != kNoBase ? sorted.find_special(outside_cell(s_.n_knots)) : nullptr;
    for (int q = outside ? outside->begin : 0; outside && q < outside->end; ++q) scale[q] = values[q], values[q] = T(1);
  }

  // Lane sums of the sorted rows, in the rows' own order.
  void unsort_sums(T* result, const T* partial, const T* scale, const SortedRows<T>& sorted) const {
    constexpr int L = Simd<T>::lanes;
    T sums[L];
    for (int q = 0; q < sorted.rows; q += L) {  // partial is padded: surplus sums are not used
      sum_rows<T>(sums, partial + int64_t(q) * L);
      const int n = sorted.rows - q < L ? sorted.rows - q : L;
      for (int r = 0; r < n; ++r) result[sorted.row[q + r]] = sums[r];
    }
    const Run* outside = s_.base != kNoBase ? sorted.find_special(outside_cell(s_.n_knots)) : nullptr;
    for (int q = outside ? outside->begin : 0; outside && q < outside->end; ++q) result[sorted.row[q]] *= scale[q];
  }

  Panel<T> sums_panel(T* sums, int64_t column) const {
    const int64_t ld = panels_.padded;
    T* rows = sums + column;
    return {rows, rows + ld, ld, s_.base != kNoBase ? 0 : ld};
  }

  // sums: [coefficient_rows][padded], the base row first.
  void write_sums(const T* sums, int64_t feature, int64_t split) const {
    if (splits_ > 1) {
      T* out = partials_ + (split * s_.in + feature) * coefficient_size_;
      for (int64_t r = 0; r < s_.coefficient_rows(); ++r) {
        copy_row(out + r * s_.out, sums + r * panels_.padded, s_.out);
      }
    } else {
      write_weights(sums, panels_.padded, feature);
    }
  }

  void write_weights(const T* sums, int64_t ld, int64_t feature) const {
    const DType dtype = a_.layer.weight_dtype;
    if (s_.base != kNoBase) {
      write_row(a_.d_base, dtype, feature * s_.out, sums, s_.out);
      sums += ld;
    }
    if (a_.layer.out_stride != 0) return transpose(sums, ld, feature, 1);
    for (int64_t r = 0; r < s_.functions; ++r) {
      write_row(a_.d_spline, dtype, (feature * s_.functions + r) * s_.out, sums + r * ld, s_.out);
    }
  }

  // Whether the features of d_spline are one matrix (out, in * functions).
  bool adjoin() const { return a_.layer.out_stride != 0 && a_.layer.feature_stride == s_.functions; }

  // Writes sums [features][functions][ld] where the functions of an edge lie together.
  void transpose(const T* sums, int64_t ld, int64_t feature, int64_t features) const {
    const MatrixView matrix{sums, a_.layer.weight_dtype, ld, 1};
    T* out = static_cast<T*>(a_.d_spline) + feature * a_.layer.feature_stride;
    read_transposed(out, a_.layer.out_stride, matrix, 0, features * s_.functions, 0, s_.out);
  }

  // Adds the splits of one feature in their order.
  void reduce(int64_t feature) const {
    T* total = partials_ + feature * coefficient_size_;
    for (int64_t split = 1; split < splits_; ++split) {
      add_row(total, partials_ + (split * s_.in + feature) * coefficient_size_, coefficient_size_);
    }
    write_weights(total, s_.out, feature);
  }

  const BackwardArgs& a_;
  const Shape s_;
  const ValueBlocks<T> value_blocks_;
  const Panels<T> panels_;
  int64_t rows_, coefficient_size_, block_, blocks_, splits_, rows_per_split_;
  T* partials_ = nullptr;
};

}  // namespace KAN_ISA
}  // namespace kan
