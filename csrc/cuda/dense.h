// The dense path: products with matrix instructions, whose spline operand is made in registers and never stored.
#pragma once

#include "matrix.h"
#include "table.h"

namespace kan {
namespace cuda {

constexpr int kDenseOrder = 3;   // spline orders 1 .. 3
constexpr int kDenseKnots = 96;  // knots of one input, at most: the table of four of them lies in shared memory twice
constexpr int kGroups = 4, kGroupRows = 8, kChunk = kGroups * kGroupRows;

struct DenseArgs {
  cpu::Layer layer;
  MatrixView x, side, g;
  const void* bias = nullptr;
  int derivative = 0, input_derivative = 1;
  void* y = nullptr;
  DType y_dtype = DType::f32;
  void* input = nullptr;  // backward, each may be null
  DType input_dtype = DType::f32;
  void *d_spline = nullptr, *d_base = nullptr, *parts = nullptr;
  bool aligned = false;  // rows of the coefficients and of g are whole 16-byte pieces, and so are their starts
  bool tf32 = false;
  int64_t part = 0;  // forward: inputs of one part; backward: rows
  int64_t splits = 1;
  int row_blocks = 1;  // backward: blocks of 8 coefficient rows that one tile holds of one input: 1, 2 or 4

  KAN_HD int n_knots() const { return layer.grid_size + 2 * layer.spline_order + 1; }
  KAN_HD int n_splines() const { return layer.grid_size + layer.spline_order; }
};

// 16 bytes of a row of `columns` elements, from column o on, into shared memory; zeros behind the row's end, and for a
// row that does not exist (row == null). Asynchronous if every piece of the row is aligned.
template <class Element>
KAN_DEVICE void stage_piece(unsigned char* to, const Element* row, int64_t o, int64_t columns, bool aligned) {
  constexpr int kCount = 16 / int(sizeof(Element));
  const int64_t left = row ? columns - o : 0;
  const int count = int(left < 0 ? 0 : left > kCount ? kCount : left);
  if (aligned) {
    copy_async(to, count > 0 ? row + o : nullptr, count * int(sizeof(Element)));
    return;
  }
  Element* out = reinterpret_cast<Element*>(to);
  KAN_ROLLED
  for (int n = 0; n < kCount; ++n) out[n] = n < count ? row[o + n] : Element(0);
}

void dense_forward(const DenseArgs& a, void* stream);
int64_t dense_forward_rows(const DenseArgs& a);  // of x in one block
int64_t dense_forward_columns(const DenseArgs& a);
int64_t dense_backward_outputs();  // of one block
int64_t dense_backward_inputs(const DenseArgs& a);
int64_t dense_backward_parts(const DenseArgs& a);  // of the input's gradient: blocks that share an input's rows
void dense_backward(const DenseArgs& a, void* stream);

}  // namespace cuda
}  // namespace kan
