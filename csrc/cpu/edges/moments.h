// Mean and deviation of every edge over the rows: a linear and a quadratic form of the sums of products of functions.
// A spline meets k others on either side, so both forms run along the band.
#pragma once

#include <cmath>
#include <memory>

#include "gram.h"

namespace kan {
namespace KAN_ISA {

// y[0..n) += a x[0..n)
inline void add_scaled(double* y, double a, const double* x, int64_t n) {
  constexpr int L = Simd<double>::lanes;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, load(y + i) + load(x + i) * a);
  for (; i < n; ++i) y[i] += a * x[i];
}

// sum of a[0..n) b[0..n)
inline double dot(const double* a, const double* b, int64_t n) {
  constexpr int L = Simd<double>::lanes;
  Vec<double> sums = {};
  int64_t i = 0;
  for (; i + L <= n; i += L) sums += load(a + i) * load(b + i);
  double sum = sum_lanes<double>(sums);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// What both directions know of a feature: its functions are rows of `out` coefficients, the base the last one.
class Edges {
 public:
  explicit Edges(const cpu::MomentsArgs& args)
      : of_(args),
        in_(args.layer.in_features),
        out_(args.layer.out_features),
        n_(args.layer.functions),
        k_(args.layer.order),
        has_base_(args.layer.base != kNoBase),
        rows_(n_ + has_base_),
        columns_(n_ + 1 + has_base_) {}

 protected:
  bool parallel() const { return double(in_) * double(rows_) * double(out_) * (2 * k_ + 1) > 4 * kSmallSerialCycles; }

  void read(double* c, int64_t i) const {
    read_row(c, of_.spline_weight, of_.weights, i * n_ * out_, n_ * out_, 1);
    if (has_base_) read_row(c + n_ * out_, of_.base_weight, of_.weights, i * out_, out_, 1);
  }
  // The mean of phi from those of the functions.
  void mean(double* mean, const double* first, const double* c) const {
    fill_row(mean, 0.0, out_);
    for (int64_t r = 0; r < rows_; ++r) add_scaled(mean, first[r], c + r * out_, out_);
  }

  // Whether all rows lie in the cells. At their upper end splines still sum to 1, but slopes of order 1 jump.
  bool inside(int64_t i) const {
    const double* knots = static_cast<const double*>(of_.layer.grid) + i * (n_ + k_ + 1);
    double x[kMaxRows];
    for (int64_t row0 = 0; row0 < of_.layer.batch; row0 += kMaxRows) {
      const int64_t rows = min64(kMaxRows, of_.layer.batch - row0);
      read_transposed(x, kMaxRows, of_.x, row0, rows, i, 1);
      for (int64_t b = 0; b < rows; ++b) {
        if (!(x[b] >= knots[k_] && x[b] < knots[n_])) return false;
      }
    }
    return true;
  }

  // Takes the mean of the splines' part from all their coefficients, if no row lies outside of the cells: splines sum
  // to 1 there, so neither slopes nor deviations change, and a curve that is almost flat keeps its digits. Returns the
  // mean of what is left in `mean`; `shift` has room for a row.
  void centre(int64_t i, double* c, double* mean, const double* first, double* shift) const {
    if (!inside(i)) return;
    for (int64_t o = 0; o < out_; ++o) shift[o] = mean[o] - (has_base_ ? first[n_] * c[n_ * out_ + o] : 0);
    for (int64_t r = 0; r < n_; ++r) add_scaled(c + r * out_, -1, shift, out_);
    this->mean(mean, first, c);
  }

  // Band and border of a Gram matrix, or of its cotangent, zeros at first.
  void take() {
    band_.reset(new double[size_t(in_ * n_ * (k_ + 1))]());
    border_.reset(new double[size_t(in_ * (1 + has_base_) * columns_)]());
  }
  double* band(int64_t i) const { return band_.get() + i * n_ * (k_ + 1); }
  double* border(int64_t i) const { return border_.get() + i * (1 + has_base_) * columns_; }

  const cpu::MomentsArgs& of_;
  const int64_t in_, out_, n_, k_;
  const int has_base_;
  const int64_t rows_, columns_;
  std::unique_ptr<double[]> band_, border_;
};

class Moments : Edges {
 public:
  explicit Moments(const cpu::MomentsArgs& args) : Edges(args) {}

  void run(const cpu::Executor& executor) {
    take();
    cpu::GramArgs sums;
    sums.layer = of_.layer, sums.x = of_.x, sums.band = band_.get(), sums.border = border_.get();
    Gram(sums).run(executor);
    execute(
        executor, parallel(), in_,
        [](int64_t begin, int64_t end, void* self) { static_cast<const Moments*>(self)->features(begin, end); }, this);
  }

 private:
  // A variance this small beside the terms that it came from is rounding.
  static constexpr double kRounding = 64 * 2.220446049250313e-16;

  void features(int64_t begin, int64_t end) const {
    const std::unique_ptr<double[]> room(new double[size_t((rows_ + 4) * out_)]);
    double *c = room.get(), *variance = c + rows_ * out_, *size = variance + out_, *mean = size + out_,
           *shift = mean + out_;
    const double count = double(of_.layer.batch), unbiased = std::sqrt(count / (count - double(of_.correction)));
    for (int64_t i = begin; i < end; ++i) {
      const double *band = this->band(i), *border = this->border(i);
      double *first = of_.first + i * rows_, *std_i = of_.std + i * out_;
      read(c, i);
      for (int64_t r = 0; r < rows_; ++r) first[r] = border[r < n_ ? r : n_ + 1] / count;
      this->mean(mean, first, c), copy_row(of_.mean + i * out_, mean, out_);
      fill_row(variance, 0.0, out_), fill_row(size, 0.0, out_);
      for (int64_t r = 0; r < n_; ++r) {
        for (int64_t o = 0; o < out_; ++o) size[o] += first[r] * std::fabs(c[r * out_ + o]);
      }
      centre(i, c, mean, first, shift);
      for (int64_t r = 0; r < rows_; ++r) {
        const double* own = c + r * out_;
        double* spread = of_.spread + (i * rows_ + r) * out_;
        for (int64_t o = 0; o < out_; ++o) spread[o] = -first[r] * mean[o];
        if (r < n_) {
          for (int64_t q = max64(0, r - k_); q <= min64(n_ - 1, r + k_); ++q) {
            const double sum = q < r ? band[q * (k_ + 1) + r - q] : band[r * (k_ + 1) + q - r];
            add_scaled(spread, sum / count, c + q * out_, out_);
          }
        } else {
          for (int64_t q = 0; q < n_; ++q) add_scaled(spread, border[columns_ + q] / count, c + q * out_, out_);
        }
        if (has_base_) {
          add_scaled(spread, border[columns_ + (r < n_ ? r : n_ + 1)] / count, c + n_ * out_, out_);
        }
        for (int64_t o = 0; o < out_; ++o) variance[o] += own[o] * spread[o];
      }
      const double base = has_base_ ? border[columns_ + n_ + 1] / count : 0;
      for (int64_t o = 0; o < out_; ++o) {
        const double of_base = has_base_ ? base * c[n_ * out_ + o] * c[n_ * out_ + o] : 0;
        const bool constant = variance[o] <= kRounding * (size[o] * size[o] + of_base);
        std_i[o] = constant ? 0 : std::sqrt(variance[o]) * unbiased;
      }
    }
  }
};

class MomentsBackward : Edges {
 public:
  explicit MomentsBackward(const cpu::MomentsBackwardArgs& args) : Edges(args.of), a_(args) {}

  void run(const cpu::Executor& executor) {
    if (a_.dx != nullptr) take();
    execute(
        executor, parallel(), in_,
        [](int64_t begin, int64_t end, void* self) { static_cast<MomentsBackward*>(self)->features(begin, end); },
        this);
    if (a_.dx == nullptr) return;
    cpu::GramInputArgs sums;
    sums.layer = of_.layer, sums.x = of_.x, sums.dx = a_.dx;
    sums.d_band = band_.get(), sums.d_border = border_.get();
    GramInput(sums).run(executor);
  }

 private:
  void features(int64_t begin, int64_t end) {
    const std::unique_ptr<double[]> room(new double[size_t((rows_ + 4) * out_)]);
    double *c = room.get(), *d_mean = c + rows_ * out_, *d_variance = d_mean + out_, *linear = d_variance + out_,
           *line = linear + out_;
    const double count = double(of_.layer.batch), half = 0.5 * count / (count - double(of_.correction));
    for (int64_t i = begin; i < end; ++i) {
      const double *first = of_.first + i * rows_, *std_i = of_.std + i * out_;
      read(c, i);
      for (int64_t o = 0; o < out_; ++o) {
        d_mean[o] = a_.d_mean != nullptr ? a_.d_mean[i * out_ + o] : 0;
        d_variance[o] = a_.d_std == nullptr || std_i[o] == 0 ? 0 : a_.d_std[i * out_ + o] * half / std_i[o];
      }
      for (int64_t r = 0; r < rows_ && a_.d_spline != nullptr; ++r) {
        const double* spread = of_.spread + (i * rows_ + r) * out_;
        for (int64_t o = 0; o < out_; ++o) line[o] = first[r] * d_mean[o] + 2 * spread[o] * d_variance[o];
        if (r < n_) write_row(a_.d_spline, of_.weights, (i * n_ + r) * out_, line, out_);
        if (r == n_) write_row(a_.d_base, of_.weights, i * out_, line, out_);
      }
      if (a_.dx == nullptr) continue;
      double *band = this->band(i), *border = this->border(i);
      mean(linear, first, c), centre(i, c, linear, first, line);
      for (int64_t o = 0; o < out_; ++o) linear[o] = d_mean[o] - 2 * d_variance[o] * linear[o];
      for (int64_t r = 0; r < rows_; ++r) {
        const double* own = c + r * out_;
        border[r < n_ ? r : n_ + 1] = dot(own, linear, out_) / count;
        for (int64_t o = 0; o < out_; ++o) line[o] = own[o] * d_variance[o];
        for (int64_t d = 0; r < n_ && d <= k_; ++d) {  // a product of two functions counts twice
          band[r * (k_ + 1) + d] = r + d < n_ ? (d == 0 ? 1 : 2) * dot(line, own + d * out_, out_) / count : 0;
        }
        if (has_base_) {
          border[columns_ + (r < n_ ? r : n_ + 1)] = (r < n_ ? 2 : 1) * dot(line, c + n_ * out_, out_) / count;
        }
      }
    }
  }

  const cpu::MomentsBackwardArgs& a_;
};

}  // namespace KAN_ISA
}  // namespace kan
