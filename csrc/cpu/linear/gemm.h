// The contractions of a basis of full support as a library's GEMMs: the values of a block of rows and
// features, made here, times the weights as they lie. Nothing larger than such blocks exists.
//
// All functions meet all coefficients here, so a product is all there is. Where the weights are larger than the values,
// the kernels of micro.h are bound by transposing them, and a library's product is not. How the work is cut depends
// on the shape alone, and each product runs on one thread: the same bits whatever their number.
#pragma once

#include <memory>

#include "blocking.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kGemmRows = 512;                 // of a block
constexpr int64_t kGemmValues = int64_t(1) << 17;  // of a block: they stay in the second-level cache
constexpr int64_t kGemmGroup = 64;                 // functions that are evaluated, then transposed, together
constexpr int64_t kGemmTasks = 8;
constexpr int64_t kGemmOutputs = 128;  // from here on it pays, and
constexpr int64_t kGemmBatch = 64;     // from here on

KAN_HD MatrixView transposed(const MatrixView& m) { return {m.data, m.dtype, m.col_stride, m.row_stride}; }

// How a layer is cut into blocks of rows and features, and these into groups of features.
struct GemmBlocks {
  int64_t rows, features, count, group;

  explicit GemmBlocks(const Shape& s) : rows(max64(1, min64(s.batch, kGemmRows))) {
    const int64_t most = max64(1, kGemmValues / rows / s.functions);
    features = ceil_div(s.in, ceil_div(s.in, most));
    count = ceil_div(s.in, features);
    group = min64(features, max64(1, kGemmGroup / s.functions));
  }
};

// Whether products pay, and whether there are tasks for two threads: alone, a library's product might use all.
// The benchmarks measure it. With more rows than twice the outputs the kernels of micro.h are as fast, and where the
// weights are no one matrix their copy costs more than the product saves.
template <class T>
bool suits_gemm(const Layer& layer, const Shape& s, const cpu::Executor& executor) {
  const bool matrix = layer.out_stride == 0 || layer.feature_stride == s.functions;
  return executor.gemm && !s.local && s.in > 0 && matrix && layer.weight_dtype == kDTypeOf<T> &&
         s.out >= kGemmOutputs && s.batch >= kGemmBatch && s.batch <= cpu::kGemmRowsPerOutput * s.out &&
         GemmBlocks(s).count > 1;
}

// The weights (in * functions, out) from a feature on, as they lie.
template <class T>
MatrixView weight_matrix(const Layer& layer, const Shape& s, int64_t feature) {
  MatrixView view{nullptr, kDTypeOf<T>, s.out, 1};
  if (layer.out_stride != 0) view.row_stride = 1, view.col_stride = layer.out_stride;
  view.data = static_cast<const T*>(layer.spline_weight) + feature * s.functions * view.row_stride;
  return view;
}

// out[c * ld + r] = in[r * in_ld + c]
template <class T>
void transpose(T* out, int64_t ld, const T* in, int64_t in_ld, int64_t rows, int64_t columns) {
  read_transposed(out, ld, MatrixView{in, kDTypeOf<T>, in_ld, 1}, 0, rows, 0, columns);
}

// A block of rows and features of x, and its values, a group of features at a time.
template <class T>
class GemmValues {
 public:
  static size_t bytes(const Shape& s, const GemmBlocks& blocks, int orders, bool scaled) {
    return Arena::bytes_for<T>(blocks.features * kRowStride) * (1 + scaled) +
           Arena::bytes_for<T>(blocks.group * (s.functions + (s.base != kNoBase)) * kRowStride) * orders;
  }
  GemmValues(Arena& arena, const Shape& s, const GemmBlocks& blocks, int orders, bool scaled)
      : s_(s), plain_(s), n_orders_(orders) {
    plain_.base = kNoBase, plain_.n_values = s.functions;  // the base's row belongs to another matrix
    x_ = arena.take<T>(blocks.features * kRowStride);
    if (scaled) row_scale_ = arena.take<T>(blocks.features * kRowStride);
    for (int n = 0; n < orders; ++n) {
      values[n] = arena.take<T>(blocks.group * (s.functions + (s.base != kNoBase)) * kRowStride);
      base[n] = values[n] + blocks.group * s.functions * kRowStride;
    }
  }
  void read(const MatrixView& x, const MatrixView& row_scale, int64_t row0, int64_t rows, int64_t feature,
            int64_t features) {
    rows_ = rows, feature_ = feature;
    read_transposed(x_, kRowStride, x, row0, rows, feature, features);
    if (row_scale_) read_transposed(row_scale_, kRowStride, row_scale, row0, rows, feature, features);
  }
  // Of n features from the block's f-th on. The row scales scale the values at the first order.
  void evaluate(const Layer& layer, int64_t f, int64_t n, const int* orders) {
    for (int64_t j = 0; j < n; ++j) {
      SortedRows<T> column{};  // in their own order
      column.x = x_ + (f + j) * kRowStride;
      column.row_scale = row_scale_ ? row_scale_ + (f + j) * kRowStride : nullptr;
      column.rows = int(rows_);
      T* at[2] = {};
      for (int v = 0; v < n_orders_; ++v) at[v] = values[v] + j * s_.functions * kRowStride;
      const T* grid = static_cast<const T*>(layer.grid) + (feature_ + f + j) * s_.grid_columns;
      evaluate_orders(at, orders, n_orders_, column, plain_, grid);
      if (row_scale_) scale_rows(at[0], s_.functions, column);
      for (int v = 0; v < n_orders_ && s_.base != kNoBase; ++v) {
        base_row(base[v] + j * kRowStride, column, s_.base, orders[v]);
        if (row_scale_ && v == 0) scale_rows(base[v] + j * kRowStride, 1, column);
      }
    }
  }

  // [n][(feature * functions + r) * kRowStride + row], [n][feature * kRowStride + row] of the group
  T *values[2] = {}, *base[2] = {};

 private:
  const Shape& s_;
  Shape plain_;
  const int n_orders_;
  T *x_ = nullptr, *row_scale_ = nullptr;
  int64_t rows_ = 0, feature_ = 0;
};

// A block of values (rows, functions) as a product reads or writes it.
template <class T>
struct GemmMatrix {
  T* data;
  int64_t ld;  // no power of two: the rows must not share cache sets

  static int64_t padded(int64_t columns) { return columns ? ceil_div(columns, 16) * 16 + 16 : 0; }
  static size_t bytes(int64_t rows, int64_t columns) {
    return Arena::bytes_for<T>((rows + Simd<T>::lanes) * padded(columns));
  }
  GemmMatrix(Arena& arena, int64_t rows, int64_t columns)
      : data(arena.take<T>((rows + Simd<T>::lanes) * padded(columns))), ld(padded(columns)) {}
  MatrixView view() const { return {data, kDTypeOf<T>, ld, 1}; }
  cpu::MatrixTarget target() const { return {data, kDTypeOf<T>, ld, 1}; }
};

template <class T>
class GemmForward {
 public:
  GemmForward(const ForwardArgs& args, const cpu::Executor& executor)
      : a_(args), executor_(executor), s_(args.layer), blocks_(s_) {
    row_blocks_ = ceil_div(s_.batch, kGemmRows);
    const int64_t affordable = max64(1, kPartialBytes / (s_.batch * s_.out * int64_t(sizeof(T))));
    const int64_t wanted = min64(ceil_div(kGemmTasks, row_blocks_), affordable);
    per_split_ = ceil_div(blocks_.count, min64(blocks_.count, wanted)) * blocks_.features;
    splits_ = ceil_div(s_.in, per_split_);
  }

  void run() {
    if (splits_ > 1) partials_.reset(new T[size_t(splits_ * s_.batch * s_.out)]);
    executor_.run(
        row_blocks_ * splits_,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const GemmForward*>(self)->task(t);
        },
        this);
    if (splits_ == 1) return;
    executor_.run(
        row_blocks_,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const GemmForward*>(self)->reduce(t * kGemmRows);
        },
        this);
  }

 private:
  void task(int64_t t) const {
    const int64_t row0 = t / splits_ * kGemmRows, rows = min64(kGemmRows, s_.batch - row0), split = t % splits_;
    const int64_t first = split * per_split_, last = min64(s_.in, first + per_split_);
    const bool scaled = a_.row_scale.data != nullptr;
    const int64_t functions = s_.functions, depth = blocks_.features * functions;
    const bool based = s_.base != kNoBase;
    Arena arena(GemmValues<T>::bytes(s_, blocks_, 1, scaled) + GemmMatrix<T>::bytes(rows, depth) +
                GemmMatrix<T>::bytes(rows, blocks_.features) * based);
    GemmValues<T> made(arena, s_, blocks_, 1, scaled);
    const GemmMatrix<T> values(arena, rows, depth), bases(arena, rows, blocks_.features * based);
    T* y = (splits_ == 1 ? static_cast<T*>(a_.y) : partials_.get() + split * s_.batch * s_.out) + row0 * s_.out;
    const cpu::MatrixTarget out{y, kDTypeOf<T>, s_.out};
    const bool biased = splits_ == 1 && a_.bias;
    for (int64_t b = 0; biased && b < rows; ++b) copy_row(y + b * s_.out, static_cast<const T*>(a_.bias), s_.out);
    for (int64_t i = first; i < last; i += blocks_.features) {
      const int64_t features = min64(blocks_.features, last - i);
      made.read(a_.x, a_.row_scale, row0, rows, i, features);
      for (int64_t f = 0; f < features; f += blocks_.group) {
        const int64_t n = min64(blocks_.group, features - f);
        made.evaluate(a_.layer, f, n, &a_.derivative);
        transpose(values.data + f * functions, values.ld, made.values[0], kRowStride, n * functions, rows);
        if (based) transpose(bases.data + f, bases.ld, made.base[0], kRowStride, n, rows);
      }
      executor_.gemm(values.view(), weight_matrix<T>(a_.layer, s_, i), out, rows, s_.out, features * functions,
                     biased || i > first);
      if (!based) continue;
      const T* base = static_cast<const T*>(a_.layer.base_weight) + i * s_.out;
      executor_.gemm(bases.view(), {base, kDTypeOf<T>, s_.out, 1}, out, rows, s_.out, features, true);
    }
  }

  // Adds the splits of a block of rows in their order.
  void reduce(int64_t row0) const {
    const int64_t size = s_.batch * s_.out;
    for (int64_t b = row0; b < min64(s_.batch, row0 + kGemmRows); ++b) {
      T* y = static_cast<T*>(a_.y) + b * s_.out;
      const T *part = partials_.get() + b * s_.out, *bias = static_cast<const T*>(a_.bias);
      for (int64_t o = 0; o < s_.out; ++o) {
        T sum = part[o];
        for (int64_t split = 1; split < splits_; ++split) sum += part[split * size + o];
        y[o] = bias ? sum + bias[o] : sum;
      }
    }
  }

  const ForwardArgs& a_;
  const cpu::Executor& executor_;
  const Shape s_;
  const GemmBlocks blocks_;
  int64_t row_blocks_, per_split_, splits_;
  std::unique_ptr<T[]> partials_;
};

template <class T>
class GemmBackward {
 public:
  GemmBackward(const BackwardArgs& args, const cpu::Executor& executor)
      : a_(args), executor_(executor), s_(args.layer), blocks_(s_), g_(args.g) {
    size_ = a_.d_spline ? s_.in * s_.coefficient_rows() * s_.out : 0;
    splits_ = row_splits<T>(s_, ceil_div(kGemmTasks, blocks_.count), kGemmRows, size_);
    rows_per_split_ = ceil_div(ceil_div(s_.batch, splits_), kGemmRows) * kGemmRows;
    splits_ = ceil_div(s_.batch, rows_per_split_);
    if (g_.col_stride != 1 || g_.row_stride < s_.out) {  // a library would copy it for every product
      dense_g_.reset(new T[size_t(s_.batch * s_.out)]);
      for (int64_t b = 0; b < s_.batch; ++b) {
        read_row(dense_g_.get() + b * s_.out, g_.data, g_.dtype, b * g_.row_stride, s_.out, g_.col_stride);
      }
      g_ = {dense_g_.get(), kDTypeOf<T>, s_.out, 1};
    }
  }

  void run() {
    if (a_.d_spline && splits_ > 1) sums_.reset(new T[size_t(splits_ * size_)]);
    executor_.run(
        blocks_.count * splits_,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const GemmBackward*>(self)->task(t);
        },
        this);
    if (!sums_) return;
    executor_.run(
        s_.in,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t i = begin; i < end; ++i) static_cast<const GemmBackward*>(self)->reduce(i);
        },
        this);
  }

 private:
  void task(int64_t t) const {
    const int64_t i = t / splits_ * blocks_.features, features = min64(blocks_.features, s_.in - i),
                  split = t % splits_;
    const int64_t first = split * rows_per_split_, last = min64(s_.batch, first + rows_per_split_);
    const bool scaled = a_.row_scale.data != nullptr, weight = a_.d_spline != nullptr, input = a_.input != nullptr;
    const bool based = s_.base != kNoBase;
    const int64_t functions = s_.functions, depth = features * functions;
    const int orders[2] = {weight ? a_.weight_derivative : a_.input_derivative, a_.input_derivative};
    const int n_orders = weight + input, slope = weight;  // the place of the input's order
    const int64_t group_size = blocks_.group * functions * kRowStride, column_size = features * kRowStride;

    Arena arena(GemmValues<T>::bytes(s_, blocks_, n_orders, scaled) + GemmMatrix<T>::bytes(blocks_.rows, depth) +
                GemmMatrix<T>::bytes(blocks_.rows, features) * based +
                (Arena::bytes_for<T>(group_size) + Arena::bytes_for<T>(column_size) * (1 + based)) * input);
    GemmValues<T> made(arena, s_, blocks_, n_orders, scaled);
    // First sum_o g[b,o] weight[., o], then, in its place, the values.
    const GemmMatrix<T> block(arena, blocks_.rows, depth), bases(arena, blocks_.rows, features * based);
    T* sums = input ? arena.take<T>(group_size) : nullptr;
    T* result = input ? arena.take<T>(column_size) : nullptr;
    T* base_sums = input && based ? arena.take<T>(column_size) : nullptr;
    for (int64_t row0 = first; row0 < last; row0 += kGemmRows) {
      const int64_t rows = min64(kGemmRows, last - row0);
      MatrixView g = g_;
      g.data = static_cast<const T*>(g.data) + row0 * g.row_stride;
      if (input)
        executor_.gemm(g, transposed(weight_matrix<T>(a_.layer, s_, i)), block.target(), rows, depth, s_.out, false);
      if (input && based) {
        const MatrixView base{static_cast<const T*>(a_.layer.base_weight) + i * s_.out, kDTypeOf<T>, s_.out, 1};
        executor_.gemm(g, transposed(base), bases.target(), rows, features, s_.out, false);
        transpose(base_sums, kRowStride, bases.data, bases.ld, rows, features);
      }
      made.read(a_.x, a_.row_scale, row0, rows, i, features);
      for (int64_t f = 0; f < features; f += blocks_.group) {
        const int64_t n = min64(blocks_.group, features - f);
        T* const part = block.data + f * functions;
        made.evaluate(a_.layer, f, n, orders);
        if (input) transpose(sums, kRowStride, part, block.ld, rows, n * functions);
        for (int64_t j = 0; input && j < n; ++j) {
          slopes(result + (f + j) * kRowStride, made.values[slope] + j * functions * kRowStride,
                 sums + j * functions * kRowStride, based ? made.base[slope] + j * kRowStride : nullptr,
                 based ? base_sums + (f + j) * kRowStride : nullptr, rows);
        }
        if (weight) transpose(part, block.ld, made.values[0], kRowStride, n * functions, rows);
        if (weight && based) transpose(bases.data + f, bases.ld, made.base[0], kRowStride, n, rows);
      }
      if (input) transpose(static_cast<T*>(a_.input) + row0 * s_.in + i, s_.in, result, kRowStride, features, rows);
      if (!weight) continue;
      const bool add = row0 > first;
      executor_.gemm(transposed(block.view()), g, spline_target(i, split), depth, s_.out, rows, add);
      if (based) executor_.gemm(transposed(bases.view()), g, base_target(i, split), features, s_.out, rows, add);
    }
  }

  // result[q] = sum_r values[r][q] sums[r][q] + base[q] base_sums[q]
  void slopes(T* result, const T* values, const T* sums, const T* base, const T* base_sums, int64_t rows) const {
    for (int64_t q = 0; q < rows; q += Simd<T>::lanes) {  // surplus lanes are padding
      Vec<T> sum = base ? load(base + q) * load(base_sums + q) : Vec<T>{};
      for (int r = 0; r < s_.functions; ++r) sum += load(values + r * kRowStride + q) * load(sums + r * kRowStride + q);
      store(result + q, sum);
    }
  }

  // Where the gradient of the weights from feature i on is summed up: in place, or, functions first, apart.
  cpu::MatrixTarget spline_target(int64_t i, int64_t split) const {
    const int64_t stride = a_.layer.out_stride;
    if (splits_ > 1) return {spline_sums(split) + i * s_.functions * s_.out, kDTypeOf<T>, s_.out};
    T* out = static_cast<T*>(a_.d_spline) + i * s_.functions * (stride ? 1 : s_.out);
    return stride ? cpu::MatrixTarget{out, kDTypeOf<T>, 1, stride} : cpu::MatrixTarget{out, kDTypeOf<T>, s_.out};
  }
  cpu::MatrixTarget base_target(int64_t i, int64_t split) const {
    T* out = splits_ == 1 ? static_cast<T*>(a_.d_base) : base_sums(split);
    return {out + i * s_.out, kDTypeOf<T>, s_.out};
  }
  T* spline_sums(int64_t split) const { return sums_.get() + split * size_; }
  T* base_sums(int64_t split) const { return spline_sums(split) + s_.in * s_.functions * s_.out; }

  // Adds the splits of one feature in their order, and writes them where they belong.
  void reduce(int64_t i) const {
    const int64_t size = s_.functions * s_.out;
    T* total = spline_sums(0) + i * size;
    for (int64_t split = 1; split < splits_; ++split) {
      add_row(total, spline_sums(split) + i * size, size);
    }
    T* out = static_cast<T*>(a_.d_spline);
    if (a_.layer.out_stride == 0) {
      copy_row(out + i * size, total, size);
    } else {
      transpose(out + i * a_.layer.feature_stride, a_.layer.out_stride, total, s_.out, s_.functions, s_.out);
    }
    if (s_.base == kNoBase) return;
    T* base = base_sums(0) + i * s_.out;
    for (int64_t split = 1; split < splits_; ++split) {
      add_row(base, base_sums(split) + i * s_.out, s_.out);
    }
    copy_row(static_cast<T*>(a_.d_base) + i * s_.out, base, s_.out);
  }

  const BackwardArgs& a_;
  const cpu::Executor& executor_;
  const Shape s_;
  const GemmBlocks blocks_;
  MatrixView g_;
  std::unique_ptr<T[]> dense_g_, sums_;
  int64_t size_, splits_, rows_per_split_;
};

}  // namespace KAN_ISA
}  // namespace kan
