// torch.ops.kan_kernels.edge_scale* on CPU tensors: edges' weights times a scale of each edge, in another layout.
#include "checks.h"

namespace kan {
namespace ops {
namespace {

// The arguments of weight (out, in, functions) and scale (out, in), both contiguous.
cpu::EdgeScaleArgs edge_scale_args(const Tensor& weight, const Tensor& scale) {
  check(weight.dim() == 3, "weight must have 3 dimensions, got ", weight.dim());
  check_shape(scale, "scale", {weight.size(0), weight.size(1)});
  cpu::EdgeScaleArgs args;
  args.dtype = dtype_of(weight, "weight");
  check(args.dtype == DType::f32 || args.dtype == DType::f64, "weight must be float32 or float64");
  check(dtype_of(scale, "scale") == args.dtype, "scale must have weight's dtype");
  args.out_features = weight.size(0), args.in_features = weight.size(1), args.functions = weight.size(2);
  args.weight = weight.const_data_ptr();
  args.scale = scale.const_data_ptr();
  return args;
}

Tensor edge_scale(const Tensor& weight_in, const Tensor& scale_in) {
  const Tensor weight = dense(weight_in), scale = dense(scale_in);
  cpu::EdgeScaleArgs args = edge_scale_args(weight, scale);
  Tensor product = empty(weight, {args.in_features, args.functions, args.out_features});
  args.product = product.mutable_data_ptr();
  cpu::kernels().edge_scale(args, executor());
  return product;
}

std::tuple<Tensor, Tensor> edge_scale_backward(const Tensor& weight_in, const Tensor& scale_in, const Tensor& g_in,
                                               bool need_weight, bool need_scale) {
  const Tensor weight = dense(weight_in), scale = dense(scale_in), g = dense(g_in);
  cpu::EdgeScaleArgs args = edge_scale_args(weight, scale);
  const int64_t out = args.out_features, in = args.in_features, functions = args.functions;
  check_shape(g, "g", {in, functions, out});
  check(dtype_of(g, "g") == args.dtype, "g must have weight's dtype");
  args.g = g.const_data_ptr();
  Tensor d_weight = need_weight ? empty(weight, {out, in, functions}) : empty(weight, {0});
  Tensor d_scale = need_scale ? empty(weight, {out, in}) : empty(weight, {0});
  args.d_weight = need_weight ? d_weight.mutable_data_ptr() : nullptr;
  args.d_scale = need_scale ? d_scale.mutable_data_ptr() : nullptr;
  cpu::kernels().edge_scale(args, executor());
  return {d_weight, d_scale};
}

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def("edge_scale(Tensor weight, Tensor scale) -> Tensor");
  m.def(
      "edge_scale_backward(Tensor weight, Tensor scale, Tensor g, bool need_weight, bool need_scale) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("edge_scale", TORCH_BOX(&kan::ops::edge_scale));
  m.impl("edge_scale_backward", TORCH_BOX(&kan::ops::edge_scale_backward));
}
