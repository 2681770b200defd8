// torch.ops.kan_kernels.layer_norm_rbf: a whole small layer with a layer norm, and its gradients, on CPU tensors.
#include "checks.h"
#include "cpu/linear/layer_norm_rbf_args.h"

namespace kan {
namespace ops {
namespace {

constexpr int64_t kMostOutputs = 8, kMostFeatures = 64;

bool takes(DType dtype) { return dtype == DType::f32 || dtype == DType::f64; }

// Why the op is not for layers of these sizes, or an empty string.
std::string layer_norm_rbf_reason(int64_t in, int64_t out, int64_t dtype) {
  check_dtype_code(dtype);
  if (out > kMostOutputs || in > kMostFeatures) {
    return "it has more than " + std::to_string(kMostOutputs) + " outputs or " + std::to_string(kMostFeatures) +
           " features";
  }
  return takes(DType(dtype)) ? "" : "the op takes float32 and float64";
}

// The layer's tensors, checked and made contiguous; owns what it had to copy.
struct LayerNormRbfTensors {
  OptionalTensor scale, shift, base_weight;
  Tensor grid, spline_weight;
  cpu::LayerNormRbfLayer made;

  LayerNormRbfTensors(const Tensor& x, const OptionalTensor& scale_in, const OptionalTensor& shift_in,
                      const Tensor& spline, const OptionalTensor& base, const Tensor& grid_in, double epsilon,
                      int64_t base_code)
      : grid(dense(grid_in)), spline_weight(dense(spline)) {
    check_matrix(x, "x"), check_matrix(spline, "spline_weight");
    check_matrix(grid, "grid");
    const int64_t in = x.size(1), out = spline.size(0), functions = grid.size(1) - 1;
    check_basis(grid, in, functions, 0, base_code, kRbf);
    check_shape(spline, "spline_weight", {out, in * functions});
    check(in >= 1 && in <= kMostFeatures, "x has ", in, " features, expected 1 to ", kMostFeatures);
    check(out >= 1 && out <= kMostOutputs, "spline_weight has ", out, " rows, expected 1 to ", kMostOutputs);
    const DType dtype = dtype_of(x, "x");
    check(takes(dtype), "x must be float32 or float64");
    check(dtype_of(spline, "spline_weight") == dtype, "spline_weight must have x's dtype");
    check(dtype_of(grid, "grid") == dtype, "grid must have x's dtype");
    check(base.has_value() == (base_code != kNoBase), "base_weight must be given if and only if base is not 0");
    Layer& layer = made.layer;
    layer.batch = x.size(0), layer.in_features = in, layer.out_features = out;
    layer.functions = int(functions), layer.order = 0, layer.base = int(base_code), layer.basis = kRbf;
    layer.weight_dtype = dtype;
    layer.grid = grid.const_data_ptr();
    check_grid_values(layer);
    layer.spline_weight = spline_weight.const_data_ptr();
    if (base) {
      check_shape(*base, "base_weight", {out, in});
      layer.base_weight = kept(base_weight, *base, "base_weight");
    }
    made.x = view(x, "x", x.size(0), in);
    made.epsilon = epsilon;
    if (scale_in) check_shape(*scale_in, "scale", {in}), made.scale = kept(scale, *scale_in, "scale");
    if (shift_in) check_shape(*shift_in, "shift", {in}), made.shift = kept(shift, *shift_in, "shift");
  }
  const void* kept(OptionalTensor& slot, const Tensor& given, const char* name) const {
    check(dtype_of(given, name) == made.layer.weight_dtype, name, " must have x's dtype");
    slot = dense(given);
    return slot->const_data_ptr();
  }
};

Tensor layer_norm_rbf(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& shift,
                      const Tensor& spline_weight, const OptionalTensor& base_weight, const OptionalTensor& bias,
                      const Tensor& grid, double epsilon, int64_t base) {
  const LayerNormRbfTensors tensors(x, scale, shift, spline_weight, base_weight, grid, epsilon, base);
  cpu::LayerNormRbfForwardArgs args;
  args.layer = tensors.made;
  const int64_t out = tensors.made.layer.out_features;
  OptionalTensor bias_row;
  if (bias) check_shape(*bias, "bias", {out}), args.bias = tensors.kept(bias_row, *bias, "bias");
  Tensor y = empty(x, {x.size(0), out});
  args.y = y.mutable_data_ptr();
  cpu::kernels().layer_norm_rbf(args, executor());
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_norm_rbf_backward(
    const Tensor& x, const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& spline_weight,
    const OptionalTensor& base_weight, const Tensor& g, const Tensor& grid, double epsilon, int64_t base, bool need_x) {
  const LayerNormRbfTensors tensors(x, scale, shift, spline_weight, base_weight, grid, epsilon, base);
  const Layer& layer = tensors.made.layer;
  const int64_t in = layer.in_features, out = layer.out_features;
  check(dtype_of(g, "g") == layer.weight_dtype, "g must have x's dtype");
  cpu::LayerNormRbfBackwardArgs args;
  args.layer = tensors.made;
  args.g = view(g, "g", x.size(0), out);
  Tensor dx = need_x ? empty(x, {x.size(0), in}) : empty(x, {0});
  Tensor d_scale = empty(x, {in}), d_shift = empty(x, {in}), d_spline = empty(x, {out, spline_weight.size(1)});
  Tensor d_base = base != kNoBase ? empty(x, {out, in}) : empty(x, {0}), d_bias = empty(x, {out});
  if (need_x) args.dx = dx.mutable_data_ptr();
  args.d_scale = d_scale.mutable_data_ptr(), args.d_shift = d_shift.mutable_data_ptr();
  args.d_spline = d_spline.mutable_data_ptr(), args.d_base = d_base.mutable_data_ptr();
  args.d_bias = d_bias.mutable_data_ptr();
  cpu::kernels().layer_norm_rbf_backward(args, executor());
  return {dx, d_scale, d_shift, d_spline, d_base, d_bias};
}

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def(
      "layer_norm_rbf(Tensor x, Tensor? scale, Tensor? shift, Tensor spline_weight, Tensor? base_weight, Tensor? bias, "
      "Tensor grid, float epsilon, int base) -> Tensor");
  m.def(
      "layer_norm_rbf_backward(Tensor x, Tensor? scale, Tensor? shift, Tensor spline_weight, Tensor? base_weight, "
      "Tensor g, Tensor grid, float epsilon, int base, bool need_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def("layer_norm_rbf_reason(int in_features, int out_features, int dtype) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) {
  m.impl("layer_norm_rbf_reason", TORCH_BOX(&kan::ops::layer_norm_rbf_reason));
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("layer_norm_rbf", TORCH_BOX(&kan::ops::layer_norm_rbf));
  m.impl("layer_norm_rbf_backward", TORCH_BOX(&kan::ops::layer_norm_rbf_backward));
}
