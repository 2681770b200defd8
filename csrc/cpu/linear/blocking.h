// What a call computes per row, and how it is cut into tasks.
#pragma once

#include "full_support_rows.h"
#include "micro.h"

namespace kan {
namespace KAN_ISA {

constexpr int kInputBlock = 16;                     // features whose columns of x are transposed together
constexpr int kSumInputs = 32;                      // inputs that are added up before they are added to y
constexpr int64_t kTileBytes = int64_t(512) << 10;  // a y or g tile: stays in the second-level cache
constexpr int64_t kStripBytes = int64_t(32) << 10;  // the part of a y panel that stays in the first-level cache
constexpr int64_t kStripCellRows = 16;              // rows of a strip for each cell
constexpr int64_t kSerialCycles = 60000;            // below this a second thread costs more than it saves
// Of small layers, and of what is computed beside them: a second thread would gain little, and wait where others run.
constexpr int64_t kSmallSerialCycles = 4 * kSerialCycles;
constexpr int kSmallOutputs = 8;  // of small layers

constexpr int64_t kOneCellRows = 512;  // rows of one block that all lie in one cell

template <class T>
constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::f64 : DType::f32;

constexpr int64_t kPartialBytes = int64_t(32) << 20;  // what splitting the rows of a sum may cost in memory

// The sizes of one layer, derived once. A basis of full support has one cell, with all of its functions.
struct Shape {
  int64_t batch, in, out;
  int functions, order, base, basis;
  bool local;
  int cells, grid_columns, n_knots, n_values;

  explicit Shape(const Layer& l)
      : batch(l.batch),
        in(l.in_features),
        out(l.out_features),
        functions(l.functions),
        order(l.order),
        base(l.base),
        basis(l.basis),
        local(kBases[basis].local),
        cells(local ? l.cells() : 1),
        grid_columns(int(kBases[basis].columns(functions, order))),
        n_knots(local ? l.knots() : 2),
        n_values((local ? order + 1 : functions) + (base != kNoBase)) {}

  int coefficient_rows() const { return functions + (base != kNoBase); }
};

template <class T>
int64_t estimated_cycles(const Shape& s, int64_t contractions) {
  const int64_t vectors = ceil_div(s.out, Simd<T>::lanes);
  return s.batch * s.in * (24 + contractions * s.n_values * vectors);
}

// Up to how many cycles a call stays on one thread.
inline int64_t serial_cycles(const Shape& s) { return s.out <= kSmallOutputs ? kSmallSerialCycles : kSerialCycles; }

// Rows of one block: enough for each cell to see several, few enough for the tile to stay in cache.
template <class T>
int64_t rows_per_block(const Shape& s, int64_t columns) {
  const int64_t wanted = s.local ? min64(kMaxRows, max64(256, 128 * int64_t(s.cells))) : kOneCellRows;
  const int64_t fitting = kTileBytes / (max64(1, columns) * int64_t(sizeof(T))) / 16 * 16;
  return max64(64, min64(wanted, fitting));
}

// Rows of a block that are sorted together: so few that their part of a panel stays in the first-level cache, since of
// a row a panel is read and written for a handful of multiply-adds. All, where that would leave a cell with few.
template <class T>
int64_t strip_rows(const Shape& s, int64_t rows, int64_t width) {
  const int64_t strip = max64(64, kStripBytes / (width * int64_t(sizeof(T))) / 16 * 16);
  return s.local && strip >= kStripCellRows * s.cells && strip < rows ? strip : rows;
}

// Into how many parts the rows of a weight gradient of `size` elements are cut: from the shape alone, so that the
// order of its sums does not depend on the machine.
template <class T>
int64_t row_splits(const Shape& s, int64_t wanted, int64_t least_rows, int64_t size) {
  const int64_t affordable = kPartialBytes / max64(1, size * int64_t(sizeof(T)));
  return max64(1, min64(wanted, min64(s.batch / least_rows, affordable)));
}

inline void execute(const cpu::Executor& executor, bool parallel, int64_t tasks, void (*body)(int64_t, int64_t, void*),
                    void* context) {
  if (parallel && tasks > 1 && executor.threads > 1) {
    executor.run(tasks, body, context);
  } else if (tasks > 0) {
    body(0, tasks, context);
  }
}

// Coefficients of one (feature, panel): where they lie if they can be used in place, else a converted, padded copy.
template <class T>
class Coefficients {
 public:
  const void *spline, *base;
  DType dtype;
  const Shape* shape;
  T* copy;  // [coefficient_rows][widest panel]
  // Where the functions of an edge lie together: [features][functions][packed_ld], as pack left it.
  T* packed = nullptr;
  int64_t packed_ld = 0, packed_feature = 0, packed_column = 0;

  // Transposes the weights of n features and the outputs from column0 on; column1 may be padding.
  void pack(const Layer& layer, int64_t feature, int64_t n, int64_t column0, int64_t column1) {
    const int64_t functions = shape->functions, outputs = min64(shape->out, column1) - column0;
    packed_ld = column1 - column0, packed_feature = feature, packed_column = column0;
    const MatrixView matrix{spline, dtype, layer.out_stride, 1};
    const bool adjoin = layer.feature_stride == functions;  // then the features are one matrix
    for (int64_t f = 0; f < n; f += adjoin ? n : 1) {
      read_transposed(packed + f * functions * packed_ld, packed_ld, matrix, column0, outputs,
                      (feature + f) * layer.feature_stride, adjoin ? n * functions : functions);
    }
    for (int64_t r = 0; r < n * functions; ++r) {
      for (int64_t o = outputs; o < packed_ld; ++o) packed[r * packed_ld + o] = T(0);
    }
  }
  // Features to pack at once: they stay in the second-level cache.
  static int64_t features_packed(const Shape& s, int64_t columns) {
    int64_t n = kInputBlock;
    while (n > 1 && n * s.functions * columns * int64_t(sizeof(T)) > kTileBytes) n /= 2;
    return n;
  }

  Panel<T> panel(int64_t feature, int64_t column, int vectors) const {
    if (packed) return packed_panel(feature, column, vectors);
    const int64_t width = int64_t(vectors) * Simd<T>::lanes, out = shape->out;
    const int64_t spline_at = feature * shape->functions * out + column, base_at = feature * out + column;
    const bool in_place = item_size(dtype) == int(sizeof(T)) && column + width <= out;
    if (in_place) {
      T* rows = const_cast<T*>(static_cast<const T*>(spline)) + spline_at;
      if (!base) return {rows, rows + out, out, out};
      return {const_cast<T*>(static_cast<const T*>(base)) + base_at, rows, out, 0};
    }
    const int64_t n = min64(width, out - column);
    T* row = copy;
    for (int64_t r = base ? -1 : 0; r < shape->functions; ++r, row += width) {
      read_row(row, r < 0 ? base : spline, dtype, r < 0 ? base_at : spline_at + r * out, n, 1);
      for (int64_t o = n; o < width; ++o) row[o] = T(0);
    }
    return {copy, copy + width, width, base ? 0 : width};
  }

 private:
  Panel<T> packed_panel(int64_t feature, int64_t column, int vectors) const {
    const int64_t width = int64_t(vectors) * Simd<T>::lanes, n = min64(width, shape->out - column);
    T* rows = packed + (feature - packed_feature) * shape->functions * packed_ld + column - packed_column;
    if (!base) return {rows, rows + packed_ld, packed_ld, packed_ld};
    read_row(copy, base, dtype, feature * shape->out + column, n, 1);
    for (int64_t o = n; o < width; ++o) copy[o] = T(0);
    return {copy, rows, packed_ld, 0};
  }
};

// The rows of one feature, sorted by cell. x, row_scale: its columns (row_scale may be null); grid: its knots.
template <class T>
void sort_feature(SortedRows<T>& sorted, const Shape& s, const T* x, const T* row_scale, int64_t rows, const T* grid) {
  if (s.local) return sort_rows(sorted, x, row_scale, int(rows), grid, s.n_knots, s.order, s.cells);
  keep_rows(sorted, x, row_scale, int(rows));
}

// values[n] <- the base activation's and all basis functions' values at derivative order orders[n]; of the last as
// micro_slopes takes them, if `sums`.
template <class T>
void evaluate_orders(T* const* values, const int* orders, int n, const SortedRows<T>& sorted, const Shape& s,
                     const T* grid, bool sums = false) {
  T* functions[2];
  for (int v = 0; v < n; ++v) {
    functions[v] = values[v];
    if (s.base == kNoBase) continue;
    base_row(values[v], sorted, s.base, orders[v]);
    functions[v] += kRowStride;
  }
  if (!s.local) return full_support_rows(s.basis, functions, orders, n, sorted, grid, s.functions);
  for (int v = 0; v < n; ++v) {
    spline_rows_of<T>(s.order)(functions[v], sorted, grid, s.n_knots, orders[v], sums && v == n - 1);
  }
}

// The same at one order, times the row scales if `scaled`.
template <class T>
void evaluate_rows(T* values, const SortedRows<T>& sorted, const Shape& s, const T* grid, int derivative, bool scaled) {
  evaluate_orders(&values, &derivative, 1, sorted, s, grid);
  if (scaled) scale_rows(values, s.n_values, sorted);
}

}  // namespace KAN_ISA
}  // namespace kan
