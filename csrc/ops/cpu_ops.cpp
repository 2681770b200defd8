// torch.ops.kan_kernels.* on CPU tensors.
#include "checks.h"

namespace kan {
namespace ops {
namespace {

// Tasks go to torch's own pool, so torch.set_num_threads and nested parallelism behave as everywhere in torch.
cpu::Executor executor() {
  return {[](int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context) {
            STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, tasks, 1, body, context));
          },
          int(torch::stable::get_num_threads())};
}

Tensor forward(const Tensor& x, const OptionalTensor& s, const Tensor& spline_weight, const OptionalTensor& base_weight,
               const OptionalTensor& bias, const Tensor& grid, int64_t spline_order, int64_t base, int64_t derivative) {
  check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
  const int64_t out = spline_weight.size(2);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_order, base);
  tensors.set_weights(spline_weight, base_weight);
  cpu::ForwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.side = view_side(s, x);
  OptionalTensor bias_rows;
  if (bias) {
    check_shape(*bias, "bias", {out});
    check(dtype_of(*bias, "bias") == args.layer.weight_dtype, "bias must have spline_weight's dtype");
    bias_rows = dense(*bias);
    args.bias = bias_rows->const_data_ptr();
  }
  args.derivative = checked_derivative(derivative);
  Tensor y = empty(spline_weight, {x.size(0), out});
  args.y = y.mutable_data_ptr();
  cpu::kernels().forward(args, executor());
  return y;
}

Tensor input(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight, const Tensor& g,
             const Tensor& grid, int64_t spline_order, int64_t base, int64_t derivative) {
  check_matrix(g, "g");
  LayerTensors tensors(x, grid, g.size(1), dtype_of(spline_weight, "spline_weight"), spline_order, base);
  tensors.set_weights(spline_weight, base_weight);
  check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
  cpu::BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.g = view(g, "g", x.size(0), g.size(1));
  args.input_derivative = checked_derivative(derivative);
  Tensor result = empty(x, {x.size(0), x.size(1)});
  args.input = result.mutable_data_ptr();
  cpu::kernels().backward(args, executor());
  return result;
}

std::tuple<Tensor, Tensor> weight(const Tensor& x, const OptionalTensor& s, const Tensor& g, const Tensor& grid,
                                  int64_t spline_order, int64_t base, int64_t derivative) {
  check_matrix(g, "g");
  const int64_t out = g.size(1);
  LayerTensors tensors(x, grid, out, dtype_of(g, "g"), spline_order, base);
  cpu::BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.side = view_side(s, x);
  args.g = view(g, "g", x.size(0), out);
  args.weight_derivative = checked_derivative(derivative);
  Tensor d_spline = empty(g, {x.size(1), args.layer.grid_size + args.layer.spline_order, out});
  Tensor d_base = base != kNoBase ? empty(g, {x.size(1), out}) : empty(g, {0});
  args.d_spline = d_spline.mutable_data_ptr();
  args.d_base = d_base.mutable_data_ptr();
  cpu::kernels().backward(args, executor());
  return {d_spline, d_base};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& spline_weight,
                                            const OptionalTensor& base_weight, const Tensor& g, const Tensor& grid,
                                            int64_t spline_order, int64_t base, int64_t derivative) {
  check_matrix(g, "g");
  const int64_t out = g.size(1);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_order, base);
  tensors.set_weights(spline_weight, base_weight);
  check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
  cpu::BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.g = view(g, "g", x.size(0), out);
  args.weight_derivative = checked_derivative(derivative);
  args.input_derivative = checked_derivative(derivative + 1);
  Tensor result = empty(x, {x.size(0), x.size(1)});
  Tensor d_spline = empty(g, {x.size(1), args.layer.grid_size + args.layer.spline_order, out});
  Tensor d_base = base != kNoBase ? empty(g, {x.size(1), out}) : empty(g, {0});
  args.input = result.mutable_data_ptr();
  args.d_spline = d_spline.mutable_data_ptr();
  args.d_base = d_base.mutable_data_ptr();
  cpu::kernels().backward(args, executor());
  return {result, d_spline, d_base};
}

std::string cpu_isa() { return cpu::kernels().name; }

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("forward", TORCH_BOX(&kan::ops::forward));
  m.impl("input", TORCH_BOX(&kan::ops::input));
  m.impl("weight", TORCH_BOX(&kan::ops::weight));
  m.impl("backward", TORCH_BOX(&kan::ops::backward));
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&kan::ops::cpu_isa));
}
