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

// Numbers from one row's values to the next in shared memory: k+1 of the spline and the base's, in float32 of the
// orders that have kernels of their own padded to whole 16-byte pieces.
constexpr int value_stride(int order, bool wide) {
  return wide || order < 1 || order > kGatherOrder ? order + 2 : (order + 2 + 3) / 4 * 4;
}

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

template <int N>
struct Count {
  static constexpr int count = N;
};
// Calls run(Count<N>) for the outputs of a lane, N <= Most: 1 to 4, or 8.
template <int Most, class Run>
KAN_DEVICE void with_count(int count, Run run) {
  if constexpr (Most >= 8) {
    if (count == 8) return run(Count<8>{});
  }
  if constexpr (Most >= 4) {
    if (count == 4) return run(Count<4>{});
    if (count == 3) return run(Count<3>{});
  }
  if constexpr (Most >= 2) {
    if (count == 2) return run(Count<2>{});
  }
  run(Count<1>{});
}

// A coefficient where it lies, for grids too long for shared memory.
template <class T>
KAN_DEVICE_CALL T load_any(const void* data, DType dtype, int64_t at) {
  return load_as<T>(data, dtype, at);
}
// Coefficient `row` of feature i and output o, whichever of the two tensors holds it.
template <class T>
KAN_DEVICE T coefficient(const GatherArgs& a, int64_t i, int row, int64_t o) {
  const int64_t out = a.layer.out_features;
  if (row == a.layer.functions) return load_any<T>(a.layer.base_weight, a.layer.weight_dtype, i * out + o);
  return load_any<T>(a.layer.spline_weight, a.layer.weight_dtype, (i * a.layer.functions + row) * out + o);
}

// Copies rows of coefficients, `width` apart, to lines of shared memory, N to a row. Four rows are on their way at
// once. from: this lane's first output of the first row, of which `left` outputs exist; beyond them is zero.
template <class T, DType D, int Lanes, int N>
KAN_DEVICE void stage_rows(T* lines, const void* weight, int64_t from, int64_t width, int64_t left, int rows, int warp,
                           int warps) {
  constexpr int kAhead = 4;
  T* to = lines + lane_index() + warp * (N * 32);
  from += warp * width;
  KAN_ROLLED
  for (int row = warp; row < rows; row += kAhead * warps) {
    T c[kAhead][N];
    KAN_UNROLL
    for (int q = 0; q < kAhead; ++q) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        const bool exists = n * Lanes < left && row + q * warps < rows;
        c[q][n] = exists ? load_known<T, D>(weight, from + n * Lanes) : T(0);
      }
      from += warps * width;
    }
    KAN_UNROLL
    for (int q = 0; q < kAhead; ++q) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        if (row + q * warps < rows) to[n * 32] = c[q][n];
      }
      to += warps * (N * 32);
    }
  }
}

// The coefficients of `count` features from i on, of outputs o0 and up: the splines' rows of all `features` that have
// room, then their base rows.
template <class T, int Lanes, int N>
KAN_DEVICE void stage_features(const GatherArgs& a, T* lines, int features, int64_t i, int count, int64_t o0, int warp,
                               int warps) {
  const int functions = a.layer.functions;
  const int64_t out = a.layer.out_features, o = o0 + lane_index() % Lanes;
  with_dtype<T>(a.layer.weight_dtype, [&](auto known) {
    constexpr DType kStored = decltype(known)::dtype;
    stage_rows<T, kStored, Lanes, N>(lines, a.layer.spline_weight, i * functions * out + o, out, out - o,
                                     count * functions, warp, warps);
    if (a.layer.base == kNoBase) return;
    stage_rows<T, kStored, Lanes, N>(lines + features * functions * (N * 32), a.layer.base_weight, i * out + o, out,
                                     out - o, count, warp, warps);
  });
}

// The k+1 values of a row, and the base's, in registers.
template <class T, int K>
struct Values {
  static constexpr int kCount = K + 2;
  T value[kCount];
  KAN_DEVICE explicit Values(const T* from) {
    if constexpr (sizeof(T) == 4) {
      KAN_UNROLL
      for (int n = 0; n + 1 < kCount; n += 4) {
        uint32_t word[4];
        load_16_bytes(word, from + n);
        KAN_UNROLL
        for (int e = 0; e < 4 && n + e < kCount; ++e) value[n + e] = bits_as_float(word[e]);
      }
      if (kCount % 4 == 1) value[kCount - 1] = from[kCount - 1];
    } else {
      KAN_UNROLL
      for (int n = 0; n < kCount; ++n) value[n] = from[n];
    }
  }
  KAN_DEVICE T operator[](int n) const { return value[n]; }
};
// Of an order known at run time: where they lie.
template <class T>
struct Values<T, -1> {
  const T* from;
  KAN_DEVICE explicit Values(const T* at) : from(at) {}
  KAN_DEVICE T operator[](int n) const { return from[n]; }
};

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
