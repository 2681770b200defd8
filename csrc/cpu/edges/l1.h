// The mean of |phi| of every edge, and its gradients.
#pragma once

#include "panels.h"

namespace kan {
namespace KAN_ISA {

template <class T>
struct EdgeKernels {
  decltype(&sum_absolute<T, 1>) rows_absolute;  // lanes are rows
  decltype(&sum_signed<T, 1>) rows_signed;
  decltype(&panel_absolute<T, 1, 1>) absolute[2];  // lanes are outputs, in panels of one and two vectors
  decltype(&panel_signed<T, 1, 1>) with_sign[2];
  int widest;
};

template <class T, int N>
constexpr EdgeKernels<T> edge_kernels() {
  constexpr int W = N <= kWidestSplit ? 2 : 1;  // three sets of N * W vectors live in registers
  return {sum_absolute<T, N>,
          sum_signed<T, N>,
          {panel_absolute<T, N, 1>, panel_absolute<T, N, W>},
          {panel_signed<T, N, 1>, panel_signed<T, N, W>},
          W};
}

template <class T>
const EdgeKernels<T>& edge_kernels_for(int n_values) {
  static constexpr EdgeKernels<T> table[kMaxValues] = {
      edge_kernels<T, 1>(), edge_kernels<T, 2>(),  edge_kernels<T, 3>(),  edge_kernels<T, 4>(),
      edge_kernels<T, 5>(), edge_kernels<T, 6>(),  edge_kernels<T, 7>(),  edge_kernels<T, 8>(),
      edge_kernels<T, 9>(), edge_kernels<T, 10>(), edge_kernels<T, 11>(), edge_kernels<T, 12>()};
  return table[n_values - 1];
}

// Both directions: with g the gradients, without it the means.
template <class T>
class EdgeL1 {
 public:
  explicit EdgeL1(const cpu::EdgeL1BackwardArgs& args, void* mean)
      : a_(args),
        mean_(static_cast<T*>(mean)),
        s_(args.layer),
        kernels_(edge_kernels_for<T>(s_.n_values)),
        panels_(s_.out, kernels_.widest),
        by_rows_(2 * s_.out <= Simd<T>::lanes),
        size_(mean ? s_.out : (a_.d_spline ? s_.coefficient_rows() * s_.out : 0)),
        sweep_(s_, size_) {}

  void run(const cpu::Executor& executor) {
    const std::unique_ptr<double[]> sums(new double[size_t(sweep_.splits * s_.in * size_)]());
    sums_ = sums.get();
    execute(
        executor, estimated_cycles<T>(s_, mean_ ? 1 : 3) > kSmallSerialCycles, sweep_.tasks(),
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const EdgeL1*>(self)->task(t);
        },
        this);
    for (int64_t i = 0; size_ && i < s_.in; ++i) write(i);
  }

 private:
  void task(int64_t t) const {
    const int64_t values_size = int64_t(s_.n_values) * kRowStride;
    const int64_t partial_size = int64_t(kRowStride) * Simd<T>::lanes;
    const int64_t copy_size = s_.coefficient_rows() * panels_.width;
    Arena arena(SweepRows<T>::bytes(sweep_, s_.n_knots) + 2 * Arena::bytes_for<T>(values_size) +
                Arena::bytes_for<T>(kRowStride) + Arena::bytes_for<T>(partial_size) + Arena::bytes_for<T>(copy_size) +
                Arena::bytes_for<T>(panels_.padded));
    SweepRows<T> rows(arena, sweep_, s_.n_knots);
    T* values = arena.take<T>(values_size);
    T* slopes = a_.dx ? arena.take<T>(values_size) : nullptr;
    T* result = arena.take<T>(kRowStride);
    T* partial = arena.take<T>(partial_size);
    const Coefficients<T> coefficients{a_.layer.spline_weight, a_.layer.base_weight, a_.layer.weight_dtype, &s_,
                                       arena.take<T>(copy_size)};
    T* g = arena.take<T>(panels_.padded);
    for_row_blocks(sweep_, s_, t, [&](int64_t i0, int64_t features, int64_t split, int64_t row0, int64_t n_rows) {
      read_transposed(rows.x, kRowStride, a_.x, row0, n_rows, i0, features);
      for (int64_t f = 0; f < features; ++f) {
        const int64_t i = i0 + f;
        const T* knots = static_cast<const T*>(a_.layer.grid) + i * s_.n_knots;
        double* sums = size_ ? sums_ + (split * s_.in + i) * size_ : nullptr;
        sort_rows(rows.sorted, rows.x + f * kRowStride, static_cast<const T*>(nullptr), int(n_rows), knots, s_.n_knots,
                  s_.order, s_.cells);
        evaluate_rows(values, rows.sorted, s_, knots, 0, false);
        if (slopes) evaluate_rows(slopes, rows.sorted, s_, knots, 1, false);
        if (by_rows_) {
          if (mean_) {
            kernels_.rows_absolute(sums, a_.layer, s_, i, rows.sorted, values);
          } else {
            kernels_.rows_signed(sums, result, a_.layer, s_, i, rows.sorted, values, slopes, gradient_scales(g, i));
          }
        } else {
          const T* scales = mean_ ? nullptr : gradient_scales(g, i);
          for (int64_t c = 0; c < panels_.padded;) {
            const int vectors = panels_.vectors_at(c), wide = vectors - 1;
            const int n = int(min64(int64_t(vectors) * Simd<T>::lanes, s_.out - c));
            const Panel<T> panel = coefficients.panel(i, c, vectors);
            if (mean_) {
              kernels_.absolute[wide](sums + c, n, panel, rows.sorted, values);
            } else {
              kernels_.with_sign[wide](sums ? sums + c : nullptr, s_.out, partial, c == 0, n, s_.base != kNoBase, panel,
                                       rows.sorted, values, slopes, scales + c);
            }
            c += int64_t(vectors) * Simd<T>::lanes;
          }
          if (slopes) add_up_lanes(result, partial, rows.sorted.rows);
        }
        if (mean_) continue;
        // A NaN row has no window: every function of this feature is NaN there.
        if (sums && rows.sorted.find_special(nan_cell(s_.n_knots))) {
          for (int64_t j = s_.base != kNoBase ? s_.out : 0; j < size_; ++j) sums[j] = __builtin_nan("");
        }
        T* dx = static_cast<T*>(a_.dx);
        for (int q = 0; dx && q < n_rows; ++q) {
          dx[(row0 + rows.sorted.row[q]) * s_.in + i] = s_.out ? result[q] : T(0);
        }
      }
    });
  }

  // g[i, :] / batch, zero where the last panel reaches past the last output.
  const T* gradient_scales(T* out, int64_t i) const {
    const T* g = static_cast<const T*>(a_.g) + i * s_.out;
    for (int64_t o = 0; o < panels_.padded; ++o) out[o] = o < s_.out ? g[o] / T(s_.batch) : T(0);
    return out;
  }

  static void add_up_lanes(T* result, const T* partial, int rows) {  // both are padded: surplus sums are not used
    constexpr int L = Simd<T>::lanes;
    for (int q = 0; q < rows; q += L) sum_rows<T>(result + q, partial + int64_t(q) * L);
  }

  // Adds the splits of one feature in their order.
  void write(int64_t i) const {
    const auto total = [&](int64_t j) {
      double sum = 0;
      for (int64_t split = 0; split < sweep_.splits; ++split) sum += sums_[(split * s_.in + i) * size_ + j];
      return sum;
    };
    if (mean_) {
      for (int64_t o = 0; o < s_.out; ++o) mean_[i * s_.out + o] = T(total(o) / double(s_.batch));
      return;
    }
    const int64_t base = s_.base != kNoBase ? s_.out : 0, splines = s_.functions * s_.out;
    for (int64_t o = 0; o < base; ++o) static_cast<T*>(a_.d_base)[i * s_.out + o] = T(total(o));
    for (int64_t j = 0; j < splines; ++j) static_cast<T*>(a_.d_spline)[i * splines + j] = T(total(base + j));
  }

  const cpu::EdgeL1BackwardArgs& a_;
  T* const mean_;
  const Shape s_;
  const EdgeKernels<T>& kernels_;
  const Panels<T> panels_;
  const bool by_rows_;
  const int64_t size_;
  const Sweep sweep_;
  double* sums_ = nullptr;
};

}  // namespace KAN_ISA
}  // namespace kan
