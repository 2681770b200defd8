// The arguments of the kernels for a whole layer with a layer norm: raw pointers, one dtype, f32 or f64.
#pragma once

#include "cpu/kernels.h"

namespace kan {
namespace cpu {

// z = (x - mean) / sqrt(variance + epsilon) * scale + shift, over each row;
// y[b,o] = sum_i ( sum_r B_r(z[b,i]) spline_weight[o, i, r] + base(x[b,i]) base_weight[o, i] ) + bias[o].
// Here the layer's weights are (out, in * functions) and (out, in), contiguous.
struct LayerNormRbfLayer {
  Layer layer;
  MatrixView x;
  const void *scale = nullptr, *shift = nullptr;  // (in), or null: 1 and 0
  double epsilon = 0;
};

struct LayerNormRbfForwardArgs {
  LayerNormRbfLayer layer;
  const void* bias = nullptr;  // (out), or null
  void* y = nullptr;           // (batch, out)
};

// Gradients for the cotangent g (batch, out), each contiguous and in the layout of its argument.
struct LayerNormRbfBackwardArgs {
  LayerNormRbfLayer layer;
  MatrixView g;
  void* dx = nullptr;  // (batch, in), or null
  void *d_spline = nullptr, *d_base = nullptr, *d_scale = nullptr, *d_shift = nullptr, *d_bias = nullptr;
};

}  // namespace cpu
}  // namespace kan
