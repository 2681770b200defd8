// The dense path: products with matrix instructions, whose spline operand is made in registers and never stored.
#pragma once

#include "cuda/spline.h"

namespace kan {
namespace cuda {

constexpr int kDenseOrder = 3;   // spline orders 1 .. 3
constexpr int kDenseKnots = 96;  // knots of one input, at most: the table of four of them lies in shared memory twice
constexpr int kGroups = 4, kGroupRows = 8, kChunk = kGroups * kGroupRows;

struct DenseArgs {
  SplineLayer layer;
  MatrixView x, row_scale, g;
  const void* bias = nullptr;
  int derivative = 0, input_derivative = 1;
  void* y = nullptr;
  DType y_dtype = DType::f32;
  void* input = nullptr;  // backward, each may be null
  DType input_dtype = DType::f32;
  void *d_spline = nullptr, *d_base = nullptr, *parts = nullptr;
  bool aligned = false;  // rows of the coefficients and of g are whole 16-byte pieces, and so are their starts
  bool tf32 = false;
  int64_t part = 0;  // forward: inputs of one part; weights' gradient: rows
  int64_t splits = 1;
  bool uniform = false;  // evaluation may take the fixed polynomials, where the knots are uniform
  bool pairs = false;    // y, or the weights' gradients: two neighbours may be stored together
  bool plain = false;    // forward: aligned, no derivative, no row scales: nothing but uniform knots is missing
  bool wide = false;     // forward: the base's inputs are read 8 at a time; input's gradient: 64 or 128 rows, not 32
  Polynomials polynomials, slope;  // of derivative and input_derivative
  int row_blocks = 1;              // backward: blocks of 8 coefficient rows that one tile holds of one input: 1, 2 or 4
};

// 16 bytes of a row into shared memory: its next `left` elements, and zeros.
template <class Element>
KAN_DEVICE void copy_elements(Element* to, const Element* from, int left) {
  KAN_ROLLED
  for (int n = 0; n < 16 / int(sizeof(Element)); ++n) to[n] = n < left ? from[n] : Element(0);
}

// Calls run(Known<D>) for the dtype that results of a Matrix are stored in: its own, or float32's for parts.
template <class Matrix, class Run>
KAN_DEVICE void with_result(bool own, Run run) {
  if constexpr (Matrix::kStored != DType::f32) {
    if (own) return run(Known<Matrix::kStored>{});
  }
  run(Known<DType::f32>{});
}

void dense_forward(const DenseArgs& a, void* stream);
int64_t dense_forward_rows(const DenseArgs& a);  // of x in one block
int64_t dense_forward_columns(const DenseArgs& a);

// Blocks of a backward kernel that share an input: each has some of its coefficient rows.
inline int64_t dense_parts(const DenseArgs& a) {
  return ceil_div(ceil_div(a.layer.functions, kGroupRows), a.row_blocks);
}

// The backward kernels: either gradient on its own.
void dense_input(const DenseArgs& a, void* stream);
int64_t dense_input_rows(bool strict);           // of x in one block, if wide
int64_t dense_input_inputs(const DenseArgs& a);  // of one block
void dense_weight(const DenseArgs& a, void* stream);
int64_t dense_weight_rows(const DenseArgs& a);    // of x in one step
int64_t dense_weight_inputs(const DenseArgs& a);  // of one block
int64_t dense_weight_outputs(const DenseArgs& a);

}  // namespace cuda
}  // namespace kan
