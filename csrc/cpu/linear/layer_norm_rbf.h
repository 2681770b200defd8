// A whole small layer of FastKAN's kind in one pass: a layer norm, Gaussians of what it gives, a base activation of x
// itself. Lanes are rows. Each of its parts alone is a call that costs more than its arithmetic.
#pragma once

#include <memory>

#include "few_outputs.h"
#include "layer_norm_rbf_args.h"

namespace kan {
namespace KAN_ISA {

// What both directions share: the sizes, and one feature's weights after the other.
template <class T>
class LayerNormRbf {
 public:
  explicit LayerNormRbf(const cpu::LayerNormRbfLayer& layer) : l_(layer), s_(layer.layer), plain_(s_) {
    plain_.base = kNoBase, plain_.n_values = s_.functions;
    scale_ = static_cast<const T*>(layer.scale);
    shift_ = static_cast<const T*>(layer.shift);
  }
  const Shape& shape() const { return s_; }
  // Of a table of weights: features of [functions][out], then [out] each of the base.
  int64_t splines_size() const { return s_.in * s_.functions * s_.out; }
  int64_t table_size() const { return splines_size() + (s_.base != kNoBase ? s_.in * s_.out : 0); }

  void load_table(T* table) const {
    const int64_t depth = s_.in * s_.functions;
    const T* spline = static_cast<const T*>(l_.layer.spline_weight);
    const T* base = static_cast<const T*>(l_.layer.base_weight);
    for (int64_t o = 0; o < s_.out; ++o) {
      for (int64_t j = 0; j < depth; ++j) table[j * s_.out + o] = spline[o * depth + j];
      for (int64_t i = 0; base && i < s_.in; ++i) table[(depth + i) * s_.out + o] = base[o * s_.in + i];
    }
  }

  // mean and 1 / sqrt(variance + epsilon) of each row, from columns x [in][kFewRows].
  void moments(T* mean, T* inverse, const T* x, int64_t rows) const {
    constexpr int L = Simd<T>::lanes;
    const T share = T(1) / T(s_.in);
    for (int64_t q = 0; q < rows; q += L) {
      Vec<T> sum = Vec<T>{}, squares = Vec<T>{};
      for (int64_t i = 0; i < s_.in; ++i) sum += load(x + i * kFewRows + q);
      sum *= share;
      for (int64_t i = 0; i < s_.in; ++i) {
        const Vec<T> distance = load(x + i * kFewRows + q) - sum;
        squares += distance * distance;
      }
      store(mean + q, sum);
      store(inverse + q, squares * share + T(l_.epsilon));
      for (int j = 0; j < L; ++j) inverse[q + j] = T(1) / root(inverse[q + j]);
    }
    for (int64_t q = rows; q % L != 0; ++q) inverse[q] = T(0);  // finite whatever epsilon is
  }
  // normal = (x - mean) / deviation, and z = normal * scale + shift, of feature i.
  void normalise(T* normal, T* z, const T* x, const T* mean, const T* inverse, int64_t i, int64_t rows) const {
    for (int64_t q = 0; q < rows; q += Simd<T>::lanes) {
      const Vec<T> v = (load(x + q) - load(mean + q)) * load(inverse + q);
      store(normal + q, v);
      store(z + q, v * scale(i) + (shift_ ? shift_[i] : T(0)));
    }
  }
  T scale(int64_t i) const { return scale_ ? scale_[i] : T(1); }

  void evaluate(T* const* values, const int* orders, int n, T* z, int64_t i, int64_t rows) const {
    const T* grid = static_cast<const T*>(l_.layer.grid) + i * s_.grid_columns;
    evaluate_orders(values, orders, n, column(z, rows), plain_, grid);
  }
  void base(T* values, T* x, int order, int64_t rows) const { base_row(values, column(x, rows), s_.base, order); }

 private:
  static float root(float v) { return __builtin_sqrtf(v); }
  static double root(double v) { return __builtin_sqrt(v); }
  static SortedRows<T> column(T* x, int64_t rows) {
    SortedRows<T> in{};
    in.x = x, in.rows = int(rows);
    return in;
  }

  const cpu::LayerNormRbfLayer& l_;
  const Shape s_;
  Shape plain_;
  const T *scale_, *shift_;
};

template <class T>
class LayerNormRbfForward {
 public:
  explicit LayerNormRbfForward(const cpu::LayerNormRbfForwardArgs& args) : a_(args), l_(args.layer), s_(l_.shape()) {}

  void run(const cpu::Executor& executor) {
    execute(
        executor, s_.batch * s_.in * s_.functions * (2 + s_.out / 4) > kSerialCycles, ceil_div(s_.batch, kFewRows),
        [](int64_t begin, int64_t end, void* self) { static_cast<const LayerNormRbfForward*>(self)->rows(begin, end); },
        this);
  }

 private:
  void rows(int64_t first_block, int64_t last_block) const {
    const int64_t in = s_.in, out = s_.out, table_size = l_.table_size();
    Arena arena(Arena::bytes_for<T>(in * kFewRows) + Arena::bytes_for<T>(out * kFewRows) +
                4 * Arena::bytes_for<T>(kFewRows) + Arena::bytes_for<T>(s_.functions * kRowStride) +
                Arena::bytes_for<T>(table_size));
    T *x = arena.take<T>(in * kFewRows), *y = arena.take<T>(out * kFewRows);
    T *mean = arena.take<T>(kFewRows), *inverse = arena.take<T>(kFewRows);
    T *normal = arena.take<T>(kFewRows), *z = arena.take<T>(kFewRows);
    T *values = arena.take<T>(s_.functions * kRowStride), *table = arena.take<T>(table_size);
    l_.load_table(table);
    const T* bias = static_cast<const T*>(a_.bias);
    const FewKernels<T>& few = few_kernels<T>(out);
    const int order = 0;
    for (int64_t row0 = first_block * kFewRows; row0 < min64(s_.batch, last_block * kFewRows); row0 += kFewRows) {
      const int64_t rows = min64(kFewRows, s_.batch - row0);
      read_columns(x, kFewRows, a_.layer.x, row0, rows, 0, in);
      l_.moments(mean, inverse, x, rows);
      for (int64_t o = 0; o < out; ++o) {
        for (int64_t q = 0; q < rows; q += Simd<T>::lanes)
          store(y + o * kFewRows + q, broadcast(bias ? bias[o] : T(0)));
      }
      for (int64_t i = 0; i < in; ++i) {
        T* const column = x + i * kFewRows;
        l_.normalise(normal, z, column, mean, inverse, i, rows);
        l_.evaluate(&values, &order, 1, z, i, rows);
        few.forward(y, values, s_.functions, table + i * s_.functions * out, rows);
        if (s_.base == kNoBase) continue;
        l_.base(values, column, 0, rows);
        few.forward(y, values, 1, table + l_.splines_size() + i * out, rows);
      }
      read_transposed(static_cast<T*>(a_.y) + row0 * out, out, MatrixView{y, kDTypeOf<T>, kFewRows, 1}, 0, out, 0,
                      rows);
    }
  }

  const cpu::LayerNormRbfForwardArgs& a_;
  const LayerNormRbf<T> l_;
  const Shape& s_;
};

template <class T>
class LayerNormRbfBackward {
 public:
  explicit LayerNormRbfBackward(const cpu::LayerNormRbfBackwardArgs& args) : a_(args), l_(args.layer), s_(l_.shape()) {
    size_ = l_.table_size() + 2 * s_.in + s_.out;  // the weights', the norm's scale and shift, the bias
    splits_ = row_splits<T>(s_, 64, 4 * kFewRows, size_);
    per_split_ = ceil_div(ceil_div(s_.batch, splits_), kFewRows) * kFewRows;
  }

  void run(const cpu::Executor& executor) {
    sums_.reset(new T[size_t(splits_ * size_)]());
    execute(
        executor, s_.batch * s_.in * s_.functions * (4 + s_.out / 2) > kSerialCycles, splits_,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const LayerNormRbfBackward*>(self)->split(t);
        },
        this);
    for (int64_t t = 1; t < splits_; ++t) add_row(sums_.get(), sums_.get() + t * size_, size_);
    write();
  }

 private:
  void split(int64_t t) const {
    constexpr int L = Simd<T>::lanes;
    const int64_t in = s_.in, out = s_.out, table_size = l_.table_size(), n = s_.functions;
    const int64_t columns = in * kFewRows, values_size = n * kRowStride;
    Arena arena(3 * Arena::bytes_for<T>(columns) + Arena::bytes_for<T>(out * kFewRows) +
                5 * Arena::bytes_for<T>(kFewRows) + 2 * Arena::bytes_for<T>(values_size) +
                Arena::bytes_for<T>(table_size));
    T *x = arena.take<T>(columns), *normal = arena.take<T>(columns), *dz = arena.take<T>(columns);
    T *g = arena.take<T>(out * kFewRows), *mean = arena.take<T>(kFewRows), *inverse = arena.take<T>(kFewRows);
    T *z = arena.take<T>(kFewRows), *along_one = arena.take<T>(kFewRows), *along_normal = arena.take<T>(kFewRows);
    T* const values[2] = {arena.take<T>(values_size), arena.take<T>(values_size)};
    T* table = arena.take<T>(table_size);
    l_.load_table(table);
    T *sums = sums_.get() + t * size_, *d_scale = sums + table_size, *d_shift = d_scale + in, *d_bias = d_shift + in;
    const FewKernels<T>& few = few_kernels<T>(out);
    const int orders[2] = {0, 1};
    const int64_t last = min64(s_.batch, (t + 1) * per_split_);
    for (int64_t row0 = t * per_split_; row0 < last; row0 += kFewRows) {
      const int64_t rows = min64(kFewRows, last - row0);
      read_columns(x, kFewRows, a_.layer.x, row0, rows, 0, in);
      read_columns(g, kFewRows, a_.g, row0, rows, 0, out);
      l_.moments(mean, inverse, x, rows);
      for (int64_t q = 0; q < rows; q += L) store(along_one + q, Vec<T>{}), store(along_normal + q, Vec<T>{});
      for (int64_t o = 0; o < out; ++o) d_bias[o] += sum_column(g + o * kFewRows, rows);
      for (int64_t i = 0; i < in; ++i) {
        const int64_t at = i * kFewRows;
        l_.normalise(normal + at, z, x + at, mean, inverse, i, rows);
        l_.evaluate(values, orders, 2, z, i, rows);
        few.weights(sums + i * n * out, values[0], n, g, rows);
        for (int64_t q = 0; q < rows; q += L) store(dz + at + q, Vec<T>{});
        few.input(dz + at, values[1], n, table + i * n * out, g, rows);
        for (int64_t q = rows; q % L != 0; ++q) dz[at + q] = T(0);
        Vec<T> scale_sum = Vec<T>{}, shift_sum = Vec<T>{};
        for (int64_t q = 0; q < rows; q += L) {
          const Vec<T> slope = load(dz + at + q), part = slope * load(normal + at + q);
          scale_sum += part, shift_sum += slope;
          store(along_one + q, load(along_one + q) + slope * l_.scale(i));
          store(along_normal + q, load(along_normal + q) + part * l_.scale(i));
        }
        d_scale[i] += sum_lanes<T>(scale_sum), d_shift[i] += sum_lanes<T>(shift_sum);
        if (s_.base == kNoBase) continue;
        l_.base(values[0], x + at, 0, rows);
        few.weights(sums + l_.splines_size() + i * out, values[0], 1, g, rows);
      }
      if (a_.dx) input(row0, rows, x, normal, dz, inverse, along_one, along_normal, g, table, values[0]);
    }
  }

  // dx of a block of rows: through the norm, and through the base.
  void input(int64_t row0, int64_t rows, T* x, const T* normal, T* dz, const T* inverse, const T* along_one,
             const T* along_normal, const T* g, const T* table, T* slopes) const {
    const T share = T(1) / T(s_.in);
    for (int64_t i = 0; i < s_.in; ++i) {
      const int64_t at = i * kFewRows;
      for (int64_t q = 0; q < rows; q += Simd<T>::lanes) {
        const Vec<T> across = (load(along_one + q) + load(normal + at + q) * load(along_normal + q)) * share;
        store(dz + at + q, (load(dz + at + q) * l_.scale(i) - across) * load(inverse + q));
      }
      if (s_.base == kNoBase) continue;
      l_.base(slopes, x + at, 1, rows);
      few_kernels<T>(s_.out).input(dz + at, slopes, 1, table + l_.splines_size() + i * s_.out, g, rows);
    }
    read_transposed(static_cast<T*>(a_.dx) + row0 * s_.in, s_.in, MatrixView{dz, kDTypeOf<T>, kFewRows, 1}, 0, s_.in, 0,
                    rows);
  }

  static T sum_column(const T* column, int64_t rows) {
    Vec<T> sum = Vec<T>{};
    for (int64_t q = 0; q < rows; q += Simd<T>::lanes) sum += load(column + q);
    return sum_lanes<T>(sum);
  }

  // The sums in the layout of the weights, outputs first.
  void write() const {
    const int64_t out = s_.out, depth = s_.in * s_.functions;
    const T* sums = sums_.get();
    T *spline = static_cast<T*>(a_.d_spline), *base = static_cast<T*>(a_.d_base);
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t j = 0; j < depth; ++j) spline[o * depth + j] = sums[j * out + o];
      for (int64_t i = 0; s_.base != kNoBase && i < s_.in; ++i) base[o * s_.in + i] = sums[(depth + i) * out + o];
    }
    sums += l_.table_size();
    copy_row(static_cast<T*>(a_.d_scale), sums, s_.in);
    copy_row(static_cast<T*>(a_.d_shift), sums + s_.in, s_.in);
    copy_row(static_cast<T*>(a_.d_bias), sums + 2 * s_.in, out);
  }

  const cpu::LayerNormRbfBackwardArgs& a_;
  const LayerNormRbf<T> l_;
  const Shape& s_;
  int64_t size_, splits_, per_split_;
  std::unique_ptr<T[]> sums_;
};

}  // namespace KAN_ISA
}  // namespace kan
