#include <stdexcept>
#include <string>

#include "blocking.h"
#include "cuda/full_support/full_support.h"
#include "kernels.h"
#include "parts.h"

namespace kan {
namespace cuda {
namespace {

int64_t gradient_size(const SplineLayer& l) {
  return l.in_features * (l.functions + (l.base != kNoBase)) * l.out_features;
}

GatherArgs gather_args(const BackwardArgs& args) {
  GatherArgs a;
  a.layer = args.layer;
  a.x = args.x, a.row_scale = args.row_scale, a.g = args.g;
  a.derivative = args.weight_derivative, a.input_derivative = args.input_derivative;
  return a;
}

DenseArgs dense_args(const BackwardArgs& args, const Options& options) {
  const SplineLayer& l = args.layer;
  DenseArgs a;
  a.layer = l;
  a.x = args.x, a.row_scale = args.row_scale, a.g = args.g;
  a.derivative = args.weight_derivative, a.input_derivative = args.input_derivative;
  a.tf32 = options.tf32;
  a.aligned = args.g.col_stride == 1 && whole_pieces(args.g.data, l.out_features, l.weight_dtype) &&
              args.g.row_stride * size_of(l.weight_dtype) % 16 == 0;
  return a;
}

// The kernels of one backward call, one for each gradient. Parts of the weights' gradient and of the input's, if any,
// lie in the workspace one behind the other.
struct DensePasses {
  DenseArgs input, weight;
  int64_t input_parts = 1, weight_bytes = 0, bytes = 0;

  DensePasses(const BackwardArgs& args, const Options& options) {
    const SplineLayer& l = args.layer;
    input = weight = dense_args(args, options);
    if (args.input) {
      input.input = args.input, input.input_dtype = args.x.dtype;
      input.aligned = input.aligned && whole_pieces(l.spline_weight, l.out_features, l.weight_dtype) &&
                      (!l.base_weight || whole_pieces(l.base_weight, l.out_features, l.weight_dtype));
      set_dense_input_blocking(input);
      input_parts = dense_parts(input);
    }
    if (args.d_spline) {
      weight.d_spline = args.d_spline, weight.d_base = args.d_base;
      set_dense_weight_blocking(weight);
      if (weight.splits > 1) weight_bytes = weight.splits * gradient_size(l) * 4;
    }
    bytes = weight_bytes + (input_parts > 1 ? input_parts * l.batch * l.in_features * 4 : 0);
  }
};

void reduce_gradient(const BackwardArgs& args, const void* parts, int64_t splits, void* stream) {
  const SplineLayer& l = args.layer;
  ReduceArgs r;
  r.from = parts, r.parts = splits, r.count = gradient_size(l), r.columns = l.out_features;
  r.main_rows = l.functions, r.rows = r.main_rows + (l.base != kNoBase);
  r.to = args.d_spline, r.last = args.d_base, r.dtype = l.weight_dtype;
  reduce(r, wide(l), stream);
}

void backward_dense(const BackwardArgs& args, const Options& options, void* workspace, void* stream) {
  const SplineLayer& l = args.layer;
  DensePasses passes(args, options);
  if (args.input && l.batch > 0) {
    void* const parts = static_cast<unsigned char*>(workspace) + passes.weight_bytes;
    const bool split = passes.input_parts > 1;
    if (split) passes.input.input = parts, passes.input.input_dtype = DType::f32;
    dense_input(passes.input, stream);
    if (split) {
      add_parts(parts, passes.input_parts, l.batch * l.in_features, args.input, args.x.dtype, false, stream);
    }
  }
  if (!args.d_spline) return;
  const bool split = passes.weight.splits > 1;
  if (split) passes.weight.parts = workspace;
  dense_weight(passes.weight, stream);
  if (split) reduce_gradient(args, workspace, passes.weight.splits, stream);
}

// The kernels of one backward call: one for both gradients if that can be, else one each.
struct GatherPasses {
  GatherShape both, input, weight;
  bool one_pass = false;

  explicit GatherPasses(const BackwardArgs& args) {
    if (args.input && args.d_spline) {
      both = gather_backward_blocking(args.layer, true, true);
      one_pass = both.coefficients > 0;
      if (one_pass) weight = both;
    }
    if (args.input && !one_pass) input = gather_backward_blocking(args.layer, true, false);
    if (args.d_spline && !one_pass) weight = gather_backward_blocking(args.layer, false, true);
  }
};

GatherArgs gather_args(const ForwardArgs& args) {
  GatherArgs a;
  a.layer = args.layer;
  a.x = args.x, a.row_scale = args.row_scale;
  a.derivative = args.derivative;
  a.shape = gather_forward_blocking(args.layer);
  return a;
}

DenseArgs dense_args(const ForwardArgs& args, const Options& options) {
  const SplineLayer& l = args.layer;
  DenseArgs a;
  a.layer = l;
  a.x = args.x, a.row_scale = args.row_scale;
  a.derivative = args.derivative;
  a.tf32 = options.tf32;
  a.aligned = whole_pieces(l.spline_weight, l.out_features, l.weight_dtype) &&
              (!l.base_weight || whole_pieces(l.base_weight, l.out_features, l.weight_dtype));
  set_dense_forward_blocking(a);
  return a;
}

int derivative_of(const BackwardArgs& args) {
  const int m = args.input ? args.input_derivative : 0, n = args.d_spline ? args.weight_derivative : 0;
  return m > n ? m : n;
}

Path path_of(const SplineLayer& layer, int derivative, const Options& options) {
  if (options.path == Path::automatic) return choose(layer, derivative, options);
  const char* const reason = options.path == Path::dense ? dense_reason(layer, derivative) : nullptr;
  if (reason) throw std::runtime_error(std::string("kan_kernels: the dense path cannot run this: ") + reason);
  return options.path;
}

}  // namespace

const char* dense_reason(const SplineLayer& l, int derivative) {
  if (l.out_features == 0) return "there are no outputs";
  if (l.weight_dtype == DType::f64) return "there is no matrix instruction for float64 here";
  if (l.order < 1 || l.order > kDenseOrder) return "spline_order is not in 1..3";
  if (l.knots() > kDenseKnots) return "the grid has more than 96 knots";
  if (derivative > 3) return "the derivative is above 3";
  if (l.weight_dtype == DType::f16 && derivative > 1) return "higher derivatives may be too large for float16";
  return nullptr;
}

int64_t forward_workspace(const ForwardArgs& args, const Options& options) {
  if (!kBases[args.layer.basis].local) return full_support_forward_workspace(args, options);
  const bool dense = path_of(args.layer, args.derivative, options) == Path::dense;
  const int64_t splits = dense ? dense_args(args, options).splits : gather_args(args).shape.splits;
  const int64_t size = args.layer.batch * args.layer.out_features;
  return splits > 1 ? splits * size * size_of(compute_type(args.layer)) : 0;
}

void forward(const ForwardArgs& args, const Options& options, void* workspace, void* stream) {
  if (!kBases[args.layer.basis].local) return run_full_support_forward(args, options, workspace, stream);
  const SplineLayer& l = args.layer;
  if (l.batch == 0 || l.out_features == 0) return;
  if (path_of(l, args.derivative, options) == Path::dense) {
    const DenseArgs a = dense_args(args, options);
    return run_forward(dense_forward, a, a.splits, args, workspace, stream);
  }
  const GatherArgs a = gather_args(args);
  run_forward(gather_forward, a, a.shape.splits, args, workspace, stream);
}

int64_t backward_workspace(const BackwardArgs& given, const Options& options) {
  if (!kBases[given.layer.basis].local) return full_support_backward_workspace(given, options);
  const BackwardArgs args = without_empty(given);
  if (path_of(args.layer, derivative_of(args), options) == Path::dense) return DensePasses(args, options).bytes;
  if (!args.d_spline) return 0;
  const GatherPasses passes(args);
  const int64_t splits = passes.weight.splits;
  return splits > 1 ? splits * gradient_size(args.layer) * size_of(compute_type(args.layer)) : 0;
}

void backward(const BackwardArgs& given, const Options& options, void* workspace, void* stream) {
  if (!kBases[given.layer.basis].local) return run_full_support_backward(given, options, workspace, stream);
  const BackwardArgs args = without_empty(given);
  const SplineLayer& l = args.layer;
  if (l.in_features == 0) return;
  if (path_of(l, derivative_of(args), options) == Path::dense) {
    return backward_dense(args, options, workspace, stream);
  }
  const GatherPasses passes(args);
  if (args.input && !passes.one_pass && l.batch > 0) {
    GatherArgs a = gather_args(args);
    a.input = args.input;
    a.shape = passes.input;
    gather_backward(a, stream);
  }
  if (!args.d_spline) return;
  GatherArgs a = gather_args(args);
  a.input = passes.one_pass ? args.input : nullptr;
  a.d_spline = args.d_spline, a.d_base = args.d_base;
  a.shape = passes.weight;
  a.parts = a.shape.splits > 1 ? workspace : nullptr;
  gather_backward(a, stream);
  if (a.parts) reduce_gradient(args, workspace, a.shape.splits, stream);
}

}  // namespace cuda
}  // namespace kan
