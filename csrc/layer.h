// A layer and the arguments of its kernels, as plain structs: what the kernels of every device share.
#pragma once

#include <cstdint>

#include "basis/config.h"
#include "basis/registry.h"

namespace kan {

struct Products;

enum class DType : int { f32, f64, bf16, f16 };

// A read-only matrix of any strides (counted in elements); data == nullptr means absent.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride = 0, col_stride = 0;
};

// What every kernel of B-splines reads. Compute type: double if weight_dtype is f64, else float; the grid has that
// type.
struct SplineLayer {
  int64_t batch = 0, in_features = 0, out_features = 0;
  int functions = 4, order = 3, base = 0;  // functions of a feature: cells + order
  DType weight_dtype = DType::f32;
  const void* grid = nullptr;           // (in, functions + order + 1), contiguous
  const void* spline_weight = nullptr;  // (in, functions, out), contiguous
  const void* base_weight = nullptr;    // (in, out), contiguous, or null

  KAN_HD int cells() const { return functions - order; }  // between the extension knots
  KAN_HD int knots() const { return functions + order + 1; }
  KAN_HD int coefficient_rows() const { return functions + (base != kNoBase); }
};

// The same of any basis: registry.h says what a row of the grid holds. The order is 0 for all but B-splines.
struct Layer : SplineLayer {
  int basis = kBSpline;
  // Elements between neighbouring features and outputs where instead the functions of an edge lie together, as other
  // codebases store them; 0 for the above. Not for B-splines and not in 16 bits. d_spline has the layout of
  // spline_weight.
  int64_t feature_stride = 0, out_stride = 0;
};

// y[b,o] = sum_i row_scale[b,i] phi_{i,o}^{(m)}(x[b,i]) + bias[o]
struct ForwardArgs {
  Layer layer;
  MatrixView x, row_scale;
  const void* bias = nullptr;  // (out), weight_dtype, or null
  int derivative = 0;
  void* y = nullptr;  // (batch, out), weight_dtype, contiguous
  // (in, out): sum_b |phi_{i,o}(x[b,i])| without a derivative and a row_scale, or null. Where kernels say that they
  // have it: cpu::KernelTable::takes_sizes.
  double* sizes = nullptr;
  // (in, 2, rows), of the compute type, or null: base(x) and base'(x) for a backward pass without a row_scale, for
  // layers of which cpu::KernelTable::kept_base_rows says how many rows. base_is_kept: they are there, of this x.
  void* kept_base = nullptr;
  bool base_is_kept = false;
};

// Either or both of
//   input[b,i]    = sum_o g[b,o] phi_{i,o}^{(input_derivative)}(x[b,i])                   if input != null
//   d_spline, d_base = sum_b row_scale[b,i] g[b,o] {B_r, base}^{(weight_derivative)}(x[b,i])   if d_spline != null
// in one pass over x and g.
struct BackwardArgs {
  Layer layer;
  MatrixView x, row_scale, g;
  int input_derivative = 1, weight_derivative = 0;
  void* input = nullptr;  // (batch, in), x.dtype, contiguous
  void* d_spline = nullptr;
  void* d_base = nullptr;
  // (in, out), of the compute type, or null: an edge's cotangent is g[b,o] + size_slopes[i,o] sign(phi_{i,o}(x[b,i])),
  // for the gradients of an error and of the sizes together, beside d_spline and without a row_scale. Likewise.
  const void* size_slopes = nullptr;
  const void* kept_base = nullptr;  // as the forward pass of this x left it, for first derivatives, or null
};

// All layers of a network of B-splines in one call: what a layer returns is what the next one reads. They share order,
// base and dtype.
struct NetworkForwardArgs {
  const SplineLayer* layers = nullptr;
  const void* const* biases = nullptr;  // (out) of each layer, or null
  const Products* products = nullptr;   // of each layer, or null: none anywhere
  int count = 0;
  MatrixView x;
  void* hidden = nullptr;  // what lies between the layers, (batch, width) behind one another, weight_dtype: of each
                           // layer its outputs if they are multiplied, and of all but the last its nodes
  void* y = nullptr;
};

// The gradients of x (if input != null), and of all weights (if d_spline != null).
struct NetworkBackwardArgs {
  const SplineLayer* layers = nullptr;
  const Products* products = nullptr;
  int count = 0;
  MatrixView x, g;
  const void* hidden = nullptr;
  void* input = nullptr;
  void* const* d_spline = nullptr;  // one of each for every layer
  void* const* d_base = nullptr;    // or null
  void* const* d_bias = nullptr;    // or null
};

}  // namespace kan
