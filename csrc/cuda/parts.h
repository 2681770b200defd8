// What calls of kernels share whose results come in parts: the compute type, and the sums of the parts.
#pragma once

#include "reduce.h"

namespace kan {
namespace cuda {

inline bool wide(const SplineLayer& l) { return l.weight_dtype == DType::f64; }
inline DType compute_type(const SplineLayer& l) { return wide(l) ? DType::f64 : DType::f32; }

// A layer without outputs has no gradient but the input's, which is zero.
inline BackwardArgs without_empty(BackwardArgs args) {
  if (args.layer.out_features == 0) args.d_spline = args.d_base = nullptr;
  return args;
}

// to[e] = the sum over the parts, which lie as the result does.
inline void add_parts(const void* from, int64_t parts, int64_t count, void* to, DType dtype, bool wide, void* stream) {
  ReduceArgs r;
  r.from = from, r.parts = parts, r.count = r.columns = count, r.to = to, r.dtype = dtype;
  reduce(r, wide, stream);
}

// Runs a forward kernel, straight into y or in parts that are added afterwards.
template <class Args>
void run_forward(void (*kernel)(const Args&, void*), Args a, int64_t splits, const ForwardArgs& args, void* workspace,
                 void* stream) {
  const SplineLayer& l = args.layer;
  const bool split = splits > 1;
  a.bias = split ? nullptr : args.bias;
  a.y = split ? workspace : args.y;
  a.y_dtype = split ? compute_type(l) : l.weight_dtype;
  kernel(a, stream);
  if (!split) return;
  ReduceArgs r;
  r.from = workspace, r.parts = splits, r.count = l.batch * l.out_features, r.columns = l.out_features;
  r.bias = args.bias, r.to = args.y, r.dtype = l.weight_dtype;
  reduce(r, wide(l), stream);
}

}  // namespace cuda
}  // namespace kan
