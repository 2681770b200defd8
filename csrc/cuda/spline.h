// The splines of four neighbouring inputs, made by the threads that hold them as a matrix operand.
#pragma once

#include "matrix_float.h"
#include "table.h"
#include "uniform.h"

namespace kan {
namespace cuda {

// The k+1 values at a number x, and its cell.
template <class Matrix, int K>
struct Spline {
  static constexpr int kNowhere = 1 << 20;  // a cell far from all rows

  typename Matrix::template Window<K + 1> window;
  int cell;

  // Of the rows of a block, the one of the first value. Unsigned: outside the knots the cell may be any number.
  KAN_DEVICE int first(int block, int rows) const { return int(uint32_t(cell) - uint32_t(K + block * rows)); }

  // NaN goes to the first row, and from any row to every output.
  KAN_DEVICE void fill_nan() {
    const float value[K + 1] = {NAN};
    window.fill(value);
    cell = K;
  }

  // scale >= 0, as a window wants it: the sign of row scales is put on the placed row.
  KAN_DEVICE void evaluate(const float* table, int n_knots, int t, float x, float scale, int derivative) {
    const int at = KnotTable<K>::locate(table, n_knots, t, x);
    float value[K + 1] = {};
    if (at >= 0 && derivative <= K) {
      // x + 0: of a negative zero at a knot that is 0, a window's last value would be one too.
      scalar::bspline_values<K, float, float>(KnotTable<K>::around(table, n_knots, t, at), x + 0.0f, scale, derivative,
                                              value);
    }
    cell = at < 0 ? kNowhere : at;
    window.fill(value);
    if (x != x) fill_nan();
  }
};

// The same for several numbers of one input, on uniform knots. scaled: scale and the derivative's unit count.
template <class Matrix, int K, int Rows>
KAN_DEVICE void evaluate_uniform(Spline<Matrix, K> (&spline)[Rows], const Polynomials& polynomials, const Line& line,
                                 int n_knots, const float (&x)[Rows], bool scaled, const float (&scale)[Rows],
                                 int derivative) {
  float value[Rows][K + 1];
  int cell[Rows];
  KAN_UNROLL
  for (int n = 0; n < Rows; ++n) cell[n] = uniform_values<K>(polynomials, line, x[n], value[n]);
  if (scaled) {
    float unit = derivative > 0 ? line.scale : 1.0f;  // from the cell's unit to that of x
    if (derivative > 1) unit *= line.scale;
    KAN_UNROLL
    for (int n = 0; n < Rows; ++n) {
      KAN_UNROLL
      for (int j = 0; j <= K; ++j) value[n][j] *= unit * scale[n];
      // The product may overflow: not in a row that exists.
      if (uint32_t(cell[n]) >= uint32_t(n_knots - 1)) cell[n] = Spline<Matrix, K>::kNowhere;
    }
  }
  KAN_UNROLL
  for (int n = 0; n < Rows; ++n) {
    spline[n].window.fill(value[n]);
    spline[n].cell = cell[n];
  }
  bool nan = false;
  KAN_UNROLL
  for (int n = 0; n < Rows; ++n) nan = nan || x[n] != x[n];
  if (!nan) return;
  KAN_UNROLL
  for (int n = 0; n < Rows; ++n) {
    if (x[n] != x[n]) spline[n].fill_nan();
  }
}

}  // namespace cuda
}  // namespace kan
