// y = sum over features and basis rows: tasks are blocks of rows times groups of output columns.
#pragma once

#include "blocking.h"

namespace kan {
namespace KAN_ISA {

template <class T>
class Forward {
 public:
  Forward(const ForwardArgs& args, const cpu::Executor& executor)
      : a_(args), s_(args.layer), blocks_(s_.n_values, s_.local), panels_(s_.out, blocks_.widest()) {
    parallel_ = estimated_cycles<T>(s_, 1) > serial_cycles(s_);
    const int64_t threads = parallel_ ? executor.threads : 1;
    const int64_t columns_fitting = kTileBytes / int64_t(128 * sizeof(T)) / panels_.width * panels_.width;
    columns_ = min64(panels_.padded, max64(panels_.width, columns_fitting));
    if (s_.batch < 128 * threads && panels_.padded >= 2 * threads * panels_.width) {
      // Few rows: splitting them would shrink the runs, so the outputs are split instead.
      columns_ = min64(columns_, ceil_div(ceil_div(panels_.padded, panels_.width), threads) * panels_.width);
    }
    groups_ = ceil_div(panels_.padded, columns_);
    rows_ = rows_per_block<T>(s_, columns_);
    if (groups_ < threads) rows_ = min64(rows_, max64(64, ceil_div(ceil_div(s_.batch, threads), 16) * 16));
    strip_ = max64(1, strip_rows<T>(s_, min64(rows_, s_.batch), panels_.width));
    together_ = strip_ < min64(rows_, s_.batch) ? min64(kInputBlock, kMaxRows / strip_) : 1;
  }

  void run(const cpu::Executor& executor) {
    const int64_t tasks = ceil_div(s_.batch, rows_) * groups_;
    execute(
        executor, parallel_, tasks,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const Forward*>(self)->task(t);
        },
        this);
  }

 private:
  void task(int64_t t) const {
    const int64_t row0 = t / groups_ * rows_, rows = min64(rows_, s_.batch - row0);
    const int64_t column0 = t % groups_ * columns_, column1 = min64(panels_.padded, column0 + columns_);
    const bool scaled = a_.row_scale.data != nullptr, packs = a_.layer.out_stride != 0;
    const int64_t pack_block = Coefficients<T>::features_packed(s_, column1 - column0);
    const int64_t packed_size = packs ? pack_block * s_.functions * (column1 - column0) : 0;

    const int64_t columns_size = int64_t(kInputBlock) * kRowStride, copy_size = s_.coefficient_rows() * panels_.width;
    const int64_t parts_size = s_.in > kSumInputs ? rows * (column1 - column0) : 0;
    Arena arena(SortedRows<T>::bytes(s_.n_knots) + Arena::bytes_for<T>(s_.n_values * kRowStride) +
                Arena::bytes_for<T>(columns_size) * (1 + scaled) + Arena::bytes_for<T>(rows * (column1 - column0)) +
                Arena::bytes_for<T>(parts_size) + Arena::bytes_for<T>(copy_size) + Arena::bytes_for<T>(packed_size));
    SortedRows<T> sorted;
    sorted.take(arena, s_.n_knots);
    T* values = arena.take<T>(s_.n_values * kRowStride);
    T* x = arena.take<T>(columns_size);
    T* row_scale = scaled ? arena.take<T>(columns_size) : nullptr;
    T* tile = arena.take<T>(rows * (column1 - column0));
    T* parts = parts_size > 0 ? arena.take<T>(parts_size) : nullptr;
    Coefficients<T> coefficients{a_.layer.spline_weight,   a_.layer.base_weight,
                                 a_.layer.weight_dtype,    &s_,
                                 arena.take<T>(copy_size), packs ? arena.take<T>(packed_size) : nullptr};
    start_tile(tile, rows, column0, column1);
    for (int64_t i0 = 0; i0 < s_.in; i0 += kInputBlock) {
      const int64_t features = min64(kInputBlock, s_.in - i0);
      read_transposed(x, kRowStride, a_.x, row0, rows, i0, features);
      if (scaled) read_transposed(row_scale, kRowStride, a_.row_scale, row0, rows, i0, features);
      for (int64_t strip = 0; strip < rows; strip += strip_) {
        const int64_t n = min64(strip_, rows - strip);
        for (int64_t f0 = 0; f0 < features; f0 += together_) {
          const int64_t f1 = min64(features, f0 + together_);
          if (packs && (i0 + f0) % pack_block == 0) {
            coefficients.pack(a_.layer, i0 + f0, min64(pack_block, s_.in - i0 - f0), column0, column1);
          }
          SortedRows<T> of[kInputBlock];
          for (int64_t f = f0; f < f1; ++f) {
            const int64_t first = f * kRowStride + strip;
            of[f - f0] = sorted.from((f - f0) * strip_);
            const T* grid = static_cast<const T*>(a_.layer.grid) + (i0 + f) * s_.grid_columns;
            sort_feature(of[f - f0], s_, x + first, scaled ? row_scale + first : nullptr, n, grid);
            evaluate_rows(values + (f - f0) * strip_, of[f - f0], s_, grid, a_.derivative, scaled);
          }
          for (int64_t c = column0; c < column1;) {
            const int64_t at = rows * (c - column0) + strip * panel_width(c);
            contract(tile + at, parts ? parts + at : nullptr, of, values, coefficients, i0 + f0, i0 + f1, c);
            c += panel_width(c);
          }
        }
      }
    }
    finish_tile(tile, row0, rows, column0, column1);
  }

  // Adds features [i0, i1) to a panel y of rows. Sums of kSumInputs inputs are made in `part`, if given, and added
  // then: in one sum of all, rounding errors would grow with the number of inputs.
  void contract(T* y, T* part, const SortedRows<T>* sorted, const T* values, const Coefficients<T>& coefficients,
                int64_t i0, int64_t i1, int64_t column) const {
    const int vectors = panels_.vectors_at(column);
    MicroArgs<T> args;
    args.tile = part ? part : y;
    for (int64_t i = i0; i < i1; ++i, ++sorted, values += strip_) {
      const bool first = part && i % kSumInputs == 0, last = part && ((i + 1) % kSumInputs == 0 || i + 1 == s_.in);
      args.row = sorted->row, args.runs = sorted->runs, args.n_runs = sorted->n_runs;
      int block = 0;
      blocks_.each(values, coefficients.panel(i, column, vectors),
                   [&](const auto& micro, const T* v, const auto& panel) {
                     args.values = v;
                     args.panel = panel;
                     ++block;
                     args.start = first && block == 1;
                     args.total = last && block == blocks_.count() ? y : nullptr;
                     micro.forward[Panels<T>::index(vectors)](args);
                   });
    }
  }

  int64_t panel_width(int64_t column) const { return int64_t(panels_.vectors_at(column)) * Simd<T>::lanes; }

  // The tile holds one panel after the other, [rows][panel width] each; it starts as the bias.
  void start_tile(T* tile, int64_t rows, int64_t column0, int64_t column1) const {
    T bias[4 * Simd<T>::lanes];
    for (int64_t c = column0; c < column1;) {
      const int64_t width = int64_t(panels_.vectors_at(c)) * Simd<T>::lanes;
      for (int64_t o = 0; o < width; ++o) bias[o] = T(0);
      if (a_.bias) read_row(bias, a_.bias, a_.layer.weight_dtype, c, min64(width, s_.out - c), 1);
      T* out = tile + rows * (c - column0);
      for (int64_t b = 0; b < rows; ++b) {
        for (int64_t o = 0; o < width; ++o) out[b * width + o] = bias[o];
      }
      c += width;
    }
  }

  void finish_tile(const T* tile, int64_t row0, int64_t rows, int64_t column0, int64_t column1) const {
    for (int64_t c = column0; c < column1;) {
      const int64_t width = int64_t(panels_.vectors_at(c)) * Simd<T>::lanes, n = min64(width, s_.out - c);
      const T* in = tile + rows * (c - column0);
      for (int64_t b = 0; b < rows; ++b) {
        write_row(a_.y, a_.layer.weight_dtype, (row0 + b) * s_.out + c, in + b * width, n);
      }
      c += width;
    }
  }

  const ForwardArgs& a_;
  const Shape s_;
  const ValueBlocks<T> blocks_;
  const Panels<T> panels_;
  bool parallel_;
  int64_t columns_, groups_, rows_, strip_, together_;
};

}  // namespace KAN_ISA
}  // namespace kan
