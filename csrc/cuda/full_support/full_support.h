// Bases of full support, on CUDA: a dense product with the values of all functions, which are made tile by tile
// in shared memory and are nowhere else.
//
// A tile is `functions` neighbouring functions (an input's base is its last) of `features` neighbouring inputs. The
// forward kernel contracts up to kFullSupportDepth of them at a time, a block of the backward kernel owns up to
// kFullSupportTile. The calls are those of kernels.h, which hands on what is not a B-spline.
#pragma once

#include "cuda/kernels.h"
#include "cuda/storage.h"

namespace kan {
namespace cuda {

constexpr int kFullSupportDepth = 32, kFullSupportTile = 64;
constexpr int kNarrow = 16, kWide = 64, kWidest = 128;  // outputs of a block; the last on matrix units alone

inline int64_t full_support_columns(int64_t out_features, bool matrix) {
  return out_features <= kNarrow ? kNarrow : matrix && out_features > kWide ? kWidest : kWide;
}

// How the functions are cut to tiles and the contracted dimension to parts; decided from the shape alone.
struct FullSupportCut {
  int features = 1, functions = 1;  // of a tile
  int tiles = 1;                    // of an input
  int64_t part = 0, splits = 1;     // forward: of the inputs; backward: of the rows
  int shared_bytes = 0;
};

struct FullSupportArgs {
  Layer layer;
  int64_t feature_stride = 0, function_stride = 0, out_stride = 0;  // of spline_weight and d_spline
  int64_t grid_columns = 0;
  MatrixView x, row_scale, g;
  const void* bias = nullptr;
  int derivative = 0, input_derivative = 1;
  void* y = nullptr;  // forward, or the parts of it
  DType y_dtype = DType::f32;
  void* input = nullptr;  // backward, each may be null; a part for each tile of an input
  DType input_dtype = DType::f32;
  void *d_spline = nullptr, *d_base = nullptr;
  void *parts = nullptr, *base_parts = nullptr;  // of these, in compute type, if splits > 1
  bool pieces = false, g_pieces = false;         // coefficients, and g, can be copied 16 bytes at a time
  bool matrix = false;                           // on matrix units: both operands have the storage's 16 bits
  FullSupportCut cut;

  KAN_HD int64_t coefficient(int64_t i, int r, int64_t o) const {
    return i * feature_stride + r * function_stride + o * out_stride;
  }
};

void full_support_forward(const FullSupportArgs& a, void* stream);
void full_support_backward(const FullSupportArgs& a, void* stream);
// What their blocks take for a call: rows of x at a time, bytes of shared memory.
int64_t full_support_forward_rows(const FullSupportArgs& a);
int64_t full_support_backward_rows(const FullSupportArgs& a);
int full_support_forward_bytes(const FullSupportArgs& a);
int full_support_backward_bytes(const FullSupportArgs& a);

int64_t full_support_forward_workspace(const ForwardArgs& args, const Options& options);
void run_full_support_forward(const ForwardArgs& args, const Options& options, void* workspace, void* stream);
int64_t full_support_backward_workspace(const BackwardArgs& args, const Options& options);
void run_full_support_backward(const BackwardArgs& args, const Options& options, void* workspace, void* stream);

}  // namespace cuda
}  // namespace kan
