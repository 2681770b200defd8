// The gather path: k+1 coefficients an edge, in the storage's own arithmetic. It serves every order, every dtype, long
// grids, and layers too narrow for matrix instructions.
//
// A warp works on 32/Lanes rows at a time; Lanes neighbouring lanes hold the outputs o = lane % Lanes + Lanes n,
// n < per_lane. In shared memory a coefficient row is per_lane lines of 32 numbers, one for each lane (narrow layers
// keep 32/Lanes copies): whatever rows the lanes pick, they read 32 different banks.
#pragma once

#include "cuda/evaluate.h"

namespace kan {
namespace cuda {

constexpr int kGatherWarps = 4;           // of a block of the forward kernel
constexpr int kGatherFeatures = 4;        // evaluated at once by the forward kernel
constexpr int kSharedBudget = 48 * 1024;  // bytes that every device grants without asking
constexpr int kSharedLimit = 96 * 1024;   // bytes that every device of compute capability 8.0 or more can grant

constexpr int kGatherOrder = 3;  // the order that doubles have a kernel of their own for

// Outputs of one lane, at most. In double precision, kernels of any order have no registers for more.
constexpr int outputs_per_lane(int lanes, bool wide, int order) {
  const int most = lanes == 1 ? 8 : lanes == 8 ? 2 : 4;
  return lanes > 1 && wide && order != kGatherOrder ? most / 2 : most;
}

// How a gather kernel is cut to a shape; decided on the host from the shape alone.
struct GatherShape {
  int lanes = 32, per_lane = 1;
  int rows = 8;         // forward: rows of one warp
  int features = 1;     // of one block at a time
  int warps = 1;        // backward: warps that share one feature
  bool staged = false;  // the coefficients go through shared memory
  int64_t splits = 1;   // parts of the contracted dimension, summed by a second kernel
  int64_t part = 0;     // its length in one part
  int shared_bytes = 0;
  int coefficients = 0;  // backward: coefficient rows (the base row among them) of one block
};

struct GatherArgs {
  SplineLayer layer;
  MatrixView x, row_scale, g;
  const void* bias = nullptr;
  int derivative = 0;  // of the forward values, or of the weight's
  int input_derivative = 1;
  void* y = nullptr;  // forward, or the parts of it
  DType y_dtype = DType::f32;
  void* input = nullptr;  // backward, each may be null
  void* d_spline = nullptr;
  void* d_base = nullptr;
  void* parts = nullptr;  // of the weights' gradient, in compute type, if splits > 1
  GatherShape shape;
};

// Coefficient `row` of feature i and output o, whichever of the two tensors holds it.
template <class T>
KAN_DEVICE T coefficient(const GatherArgs& a, int64_t i, int row, int64_t o) {
  const int64_t out = a.layer.out_features;
  if (row == a.layer.functions) return load_as<T>(a.layer.base_weight, a.layer.weight_dtype, i * out + o);
  return load_as<T>(a.layer.spline_weight, a.layer.weight_dtype, (i * a.layer.functions + row) * out + o);
}

// Fills lines [0, n_rows * per_lane) of one feature with the coefficients of outputs o0 and up; zero beyond the last.
template <class T, int Lanes>
KAN_DEVICE void stage_feature(const GatherArgs& a, T* lines, int64_t i, int64_t o0, int warp, int warps) {
  const int per_lane = a.shape.per_lane, lane = lane_index();
  for (int line = warp; line < a.layer.coefficient_rows() * per_lane; line += warps) {
    const int64_t o = o0 + lane % Lanes + int64_t(line % per_lane) * Lanes;
    lines[line * 32 + lane] = o < a.layer.out_features ? coefficient<T>(a, i, line / per_lane, o) : T(0);
  }
}

// Runs Kernel<T, K, Lanes>::run for the arguments' dtype, order and shape; K < 0: the order is known at run time.
template <template <class, int, int> class Kernel, class T, int K>
void run_lanes(const GatherArgs& a, void* stream) {
  if (a.shape.lanes == 1) return Kernel<T, K, 1>::run(a, stream);
  if (a.shape.lanes == 8) return Kernel<T, K, 8>::run(a, stream);
  Kernel<T, K, 32>::run(a, stream);
}
template <template <class, int, int> class Kernel>
void run_gather(const GatherArgs& a, void* stream) {
  const int order = a.layer.order;
  if (a.layer.weight_dtype == DType::f64) {
    return order == kGatherOrder ? run_lanes<Kernel, double, kGatherOrder>(a, stream)
                                 : run_lanes<Kernel, double, -1>(a, stream);
  }
  switch (order) {
    case 1: return run_lanes<Kernel, float, 1>(a, stream);
    case 2: return run_lanes<Kernel, float, 2>(a, stream);
    case 3: return run_lanes<Kernel, float, 3>(a, stream);
    default: return run_lanes<Kernel, float, -1>(a, stream);
  }
}

void gather_forward(const GatherArgs& a, void* stream);
void gather_backward(const GatherArgs& a, void* stream);

}  // namespace cuda
}  // namespace kan
