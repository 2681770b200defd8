// What a call computes per row, and how it is cut into tasks.
#pragma once

#include "micro.h"

namespace kan {
namespace KAN_ISA {

constexpr int kInputBlock = 16;                     // features whose columns of x are transposed together
constexpr int64_t kTileBytes = int64_t(512) << 10;  // a y or g tile: stays in the second-level cache
constexpr int64_t kSerialCycles = 60000;            // below this a second thread costs more than it saves

constexpr int64_t kPartialBytes = int64_t(32) << 20;  // what splitting the rows of a sum may cost in memory

// The sizes of one layer, derived once.
struct Shape {
  int64_t batch, in, out;
  int order, grid_size, base;
  int n_knots, n_splines, n_values;

  explicit Shape(const cpu::Layer& l)
      : batch(l.batch),
        in(l.in_features),
        out(l.out_features),
        order(l.spline_order),
        grid_size(l.grid_size),
        base(l.base),
        n_knots(l.grid_size + 2 * l.spline_order + 1),
        n_splines(l.grid_size + l.spline_order),
        n_values(l.spline_order + 1 + (l.base != kNoBase)) {}

  int coefficient_rows() const { return n_splines + (base != kNoBase); }
};

template <class T>
int64_t estimated_cycles(const Shape& s, int64_t contractions) {
  const int64_t vectors = ceil_div(s.out, Simd<T>::lanes);
  return s.batch * s.in * (24 + contractions * s.n_values * vectors);
}

// Rows of one block: enough for each cell to see several, few enough for the tile to stay in cache.
template <class T>
int64_t rows_per_block(const Shape& s, int64_t columns) {
  const int64_t wanted = min64(kMaxRows, max64(256, 128 * int64_t(s.grid_size)));
  const int64_t fitting = kTileBytes / (max64(1, columns) * int64_t(sizeof(T))) / 16 * 16;
  return max64(64, min64(wanted, fitting));
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
struct Coefficients {
  const void *spline, *base;
  DType dtype;
  const Shape* shape;
  T* copy;  // [coefficient_rows][widest panel]

  Panel<T> panel(int64_t feature, int64_t column, int vectors) const {
    const int64_t width = int64_t(vectors) * Simd<T>::lanes, out = shape->out;
    const int64_t spline_at = feature * shape->n_splines * out + column, base_at = feature * out + column;
    const bool in_place = item_size(dtype) == int(sizeof(T)) && column + width <= out;
    if (in_place) {
      T* rows = const_cast<T*>(static_cast<const T*>(spline)) + spline_at;
      if (!base) return {rows, rows + out, out, out};
      return {const_cast<T*>(static_cast<const T*>(base)) + base_at, rows, out, 0};
    }
    const int64_t n = min64(width, out - column);
    T* row = copy;
    for (int64_t r = base ? -1 : 0; r < shape->n_splines; ++r, row += width) {
      read_row(row, r < 0 ? base : spline, dtype, r < 0 ? base_at : spline_at + r * out, n, 1);
      for (int64_t o = n; o < width; ++o) row[o] = T(0);
    }
    return {copy, copy + width, width, base ? 0 : width};
  }
};

// Sorted rows and the values of every row's basis functions, at one derivative order.
template <class T>
void evaluate_rows(T* values, const SortedRows<T>& sorted, const Shape& s, const T* knots, int derivative,
                   bool scaled) {
  T* splines = values;
  if (s.base != kNoBase) {
    base_row(values, sorted, s.base, derivative);
    splines += kRowStride;
  }
  spline_rows_of<T>(s.order)(splines, sorted, knots, s.n_knots, derivative);
  if (scaled) scale_rows(values, s.n_values, sorted);
}

}  // namespace KAN_ISA
}  // namespace kan
