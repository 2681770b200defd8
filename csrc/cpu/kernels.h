// The CPU kernels' interface: raw pointers in, raw pointers out, no torch. One table per instruction set.
#pragma once

#include "layer.h"

namespace kan {
namespace cpu {

// Sums over the rows of products of two functions of one input, all in double whatever x is stored as. The functions
// are the n splines, the constant 1 and, where there is one, the base activation, in this order.
//   band[i,r,d]   = sum_b w[b,i] B_r(x[b,i]) B_{r+d}(x[b,i]), 0 past the last spline   (in, n, k + 1)
//   border[i,0,c] = sum_b w[b,i] f_c(x[b,i])                                           (in, 1 or 2, n + 1 or 2)
//   border[i,1,c] = sum_b w[b,i] base(x[b,i]) f_c(x[b,i])
// or, beside a second grid, the sums of products of splines on either:
//   cross[i,r,q]  = sum_b w[b,i] B_r(x[b,i]) B'_q(x[b,i])                              (in, n, n')
struct GramArgs {
  Layer layer;  // its grid is double; its weights are not read
  MatrixView x, w;
  double* band = nullptr;
  double* border = nullptr;
  const double* other_grid = nullptr;  // (in, other_functions + other_order + 1), contiguous
  int other_functions = 4, other_order = 3;
  double* cross = nullptr;
};

// dx[b,i] = the gradient of <d_band, band> + <d_border, border>
struct GramInputArgs {
  Layer layer;
  MatrixView x, w;
  const double* d_band = nullptr;
  const double* d_border = nullptr;
  double* dx = nullptr;  // (batch, in), contiguous
};

// Mean and deviation of every edge over the rows, in double: phi_{i,o} = sum_r c[i,r,o] f_r with the splines f and, as
// the last function, the base. With first[i,r] the mean of f_r and S that of f_r f_q, spread = (S - first first') c.
//   mean[i,o] = sum_r first[i,r] c[i,r,o],   std[i,o]^2 = batch / (batch - correction) sum_r c[i,r,o] spread[i,r,o]
// A variance that is rounding is 0.
struct MomentsArgs {
  Layer layer;  // of a Gram matrix; in, out, functions count here too
  MatrixView x;
  const void* spline_weight = nullptr;  // (in, n, out), contiguous, of `weights`
  const void* base_weight = nullptr;    // (in, out), contiguous, or null
  DType weights = DType::f32;
  int64_t correction = 1;
  double* mean = nullptr;  // (in, out), contiguous, as is std
  double* std = nullptr;
  double* spread = nullptr;  // (in, n or n + 1, out), contiguous
  double* first = nullptr;   // (in, n or n + 1), contiguous
};

// The gradients of sum d_mean mean + d_std std by x, or by the weights, or both.
struct MomentsBackwardArgs {
  MomentsArgs of;                  // its results are read
  const double* d_mean = nullptr;  // (in, out), contiguous, or null, as is d_std
  const double* d_std = nullptr;
  double* dx = nullptr;      // (batch, in), contiguous, or null
  void* d_spline = nullptr;  // (in, n, out), of `weights`, contiguous, or null
  void* d_base = nullptr;    // (in, out); beside d_spline where there is a base
};

// mean[i,o] = 1/batch sum_b |phi_{i,o}(x[b,i])|, in weight_dtype, which is f32 or f64.
struct EdgeL1Args {
  Layer layer;
  MatrixView x;
  void* mean = nullptr;  // (in, out), contiguous
};

// The gradients of sum_{i,o} g[i,o] mean[i,o]: dx, or the weights', or both.
struct EdgeL1BackwardArgs {
  Layer layer;
  MatrixView x;
  const void* g = nullptr;   // (in, out), weight_dtype, contiguous
  void* dx = nullptr;        // (batch, in), weight_dtype, contiguous, or null
  void* d_spline = nullptr;  // (in, n, out), weight_dtype, contiguous, or null
  void* d_base = nullptr;    // (in, out); beside d_spline where there is a base
};

// One axis of a convolution: tap t of output o reads position o * stride + t * dilation - padding.
struct ConvolutionAxis {
  int64_t size = 1, kernel = 1, stride = 1, padding = 0, dilation = 1, out = 1;
};

// Images (batch, channels, size of each axis) of any strides, counted in elements.
struct ImageStrides {
  int64_t image = 0, channel = 0, axis[3] = {0, 0, 0};
};

// y[b,o,p] = sum_{c,t} phi_{c,t,o}(x[b, c, position of p's tap t]) + bias[o], where positions outside of x add nothing.
// The layer's batch are images, its in_features the channels of all groups, its out_features the outputs of one.
struct ConvolutionLayer : SplineLayer {
  // spline_weight: (channels, functions, *kernel, out), base_weight: (channels, *kernel, out)
  int64_t groups = 1;
  ConvolutionAxis axis[3];
  DType x_dtype = DType::f32;
  ImageStrides x_strides;
  const void* x = nullptr;
};

// The part of a convolution that basis evaluation reads.
inline Layer basis_layer(const ConvolutionLayer& l) {
  Layer layer;
  static_cast<SplineLayer&>(layer) = l;
  return layer;
}

struct ConvolutionArgs {
  ConvolutionLayer layer;
  const void* bias = nullptr;  // (groups * out), weight_dtype, or null
  void* y = nullptr;           // (batch, groups * out, *out), weight_dtype; the channels or the last axis have stride 1
  ImageStrides y_strides;
};

// The gradients with respect to x (if dx != null) and to the weights (if d_spline != null) in one pass.
struct ConvolutionBackwardArgs {
  ConvolutionLayer layer;
  const void* g = nullptr;  // the cotangent of y, weight_dtype
  ImageStrides g_strides;
  void* dx = nullptr;  // (batch, channels, *size), x_dtype; the channels or the last axis have stride 1
  ImageStrides dx_strides;
  void* d_spline = nullptr;
  void* d_base = nullptr;
};

// A learnable function for every feature and head; the layer's out_features are its heads.
//   v[b,i,h] = row_scale[b,i] phi_{i,h}^{(m)}(x[b,i])
struct ActivationArgs {
  Layer layer;  // the functions of an edge never lie together
  MatrixView x, row_scale;
  int derivative = 0;
  void* v = nullptr;  // (batch, heads, in), weight_dtype, contiguous
};

// Either or both of
//   input[b,i]       = sum_h g[b,i,h] phi_{i,h}^{(input_derivative)}(x[b,i])                      if input != null
//   d_spline, d_base = sum_b row_scale[b,i] g[b,i,h] {B_r, base}^{(weight_derivative)}(x[b,i])    if d_spline != null
// in one pass over x and g.
struct ActivationBackwardArgs {
  Layer layer;
  MatrixView x, row_scale, g;  // g: of the first head; the others follow at head_stride elements
  int64_t head_stride = 0;
  int input_derivative = 1, weight_derivative = 0;
  void* input = nullptr;  // (batch, in), x.dtype, contiguous
  void* d_spline = nullptr;
  void* d_base = nullptr;
};

// How tasks are spread: run(n, body, context) calls body(begin, end, context) over a partition of [0, n).
struct Executor {
  void (*run)(int64_t tasks, void (*body)(int64_t begin, int64_t end, void* context), void* context) = nullptr;
  int threads = 1;
};

struct LayerNormRbfForwardArgs;
struct LayerNormRbfBackwardArgs;

struct KernelTable {
  const char* name;
  int vector_bytes;
  void (*kan_linear)(const ForwardArgs&, const Executor&);
  void (*kan_linear_backward)(const BackwardArgs&, const Executor&);
  void (*edge_gram)(const GramArgs&, const Executor&);
  void (*edge_gram_grad_input)(const GramInputArgs&, const Executor&);
  void (*edge_moments)(const MomentsArgs&, const Executor&);
  void (*edge_moments_backward)(const MomentsBackwardArgs&, const Executor&);
  void (*edge_l1)(const EdgeL1Args&, const Executor&);
  void (*edge_l1_backward)(const EdgeL1BackwardArgs&, const Executor&);
  void (*layer_norm_rbf)(const LayerNormRbfForwardArgs&, const Executor&);
  void (*layer_norm_rbf_backward)(const LayerNormRbfBackwardArgs&, const Executor&);
  void (*kan_activation)(const ActivationArgs&, const Executor&);
  void (*kan_activation_backward)(const ActivationBackwardArgs&, const Executor&);
  void (*kan_conv)(const ConvolutionArgs&, const Executor&);
  void (*kan_conv_backward)(const ConvolutionBackwardArgs&, const Executor&);
  bool (*takes_sizes)(const Layer&);        // whether kan_linear and its backward take sizes of edges
  int64_t (*kept_base_rows)(const Layer&);  // rows for which they keep the base's values, 0: none
  double (*fma_peak)(double seconds);       // measured multiply-add rate of one thread, float32, in FLOP/s
};

// The best table that this machine runs, unless KAN_KERNELS_CPU_ISA names a lower one. Throws on an unknown name.
const KernelTable& kernels();
// A table by name, or null if it was not compiled or this machine cannot run it.
const KernelTable* kernels_for(const char* isa);
// All names compiled into this library, best first, null-terminated.
const char* const* compiled_isas();

}  // namespace cpu
}  // namespace kan
