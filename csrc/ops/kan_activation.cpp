// torch.ops.kan_kernels.kan_activation*: a learnable function for every feature and head, on CPU tensors.
#include "checks.h"

namespace kan {
namespace ops {
namespace {

// (batch, in, heads), in memory (batch, heads, in): each head is a matrix that GEMMs read in place.
Tensor empty_heads(const Tensor& like, int64_t batch, int64_t in, int64_t heads) {
  const int64_t sizes[] = {batch, in, heads};
  const int64_t strides[] = {std::max<int64_t>(1, heads) * std::max<int64_t>(1, in), 1, std::max<int64_t>(1, in)};
  return empty(like, sizes, 3, strides);
}

Tensor kan_activation(const Tensor& x, const OptionalTensor& row_scale, const Tensor& spline_weight,
                      const OptionalTensor& base_weight, const Tensor& grid, int64_t functions, int64_t order,
                      int64_t base, int64_t derivative, int64_t basis) {
  check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
  const int64_t heads = spline_weight.size(2);
  const DType dtype = dtype_of(spline_weight, "spline_weight");
  LayerTensors tensors(x, grid, heads, dtype, functions, order, base, basis);
  check_grid_values(tensors.layer);
  tensors.set_weights(dense(spline_weight), base_weight);
  cpu::ActivationArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.row_scale = view_row_scale(row_scale, x);
  args.derivative = checked_derivative(derivative);
  Tensor v = empty_heads(spline_weight, x.size(0), x.size(1), heads);
  args.v = v.mutable_data_ptr();
  cpu::kernels().kan_activation(args, executor());
  return v;
}

// A call of the backward kernel: what it reads, and what was asked of it.
struct Gradients {
  const Tensor x, g;
  LayerTensors tensors;
  cpu::ActivationBackwardArgs args;
  Tensor d_input, d_spline, d_base;

  Gradients(const Tensor& x_in, const OptionalTensor& row_scale, const Tensor& g_in, const Tensor& grid,
            int64_t functions, int64_t order, int64_t base, int64_t basis)
      : x(x_in), g(g_in), tensors(x, grid, heads(g), dtype_of(g, "g"), functions, order, base, basis) {
    check_shape(g, "g", {x.size(0), x.size(1), g.size(2)});
    check_grid_values(tensors.layer);
    args.layer = tensors.layer;
    args.x = view(x, "x", x.size(0), x.size(1));
    args.row_scale = view_row_scale(row_scale, x);
    args.g = {g.const_data_ptr(), dtype_of(g, "g"), g.stride(0), g.stride(1)};
    args.head_stride = g.stride(2);
  }
  void set_weights(const Tensor& spline_weight, const OptionalTensor& base_weight) {
    check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
    tensors.set_weights(dense(spline_weight), base_weight);
    args.layer = tensors.layer;
  }
  // One order more than the public limit: the gradient with respect to x of an output of that order.
  void ask_input(int64_t derivative) {
    args.input_derivative = checked_derivative(derivative, kMaxDerivative + 1);
    d_input = empty(x, {x.size(0), x.size(1)});
    args.input = d_input.mutable_data_ptr();
  }
  void ask_weights(int64_t derivative) {
    const Layer& l = args.layer;
    args.weight_derivative = checked_derivative(derivative);
    d_spline = empty(g, {l.in_features, l.functions, l.out_features});
    d_base = l.base != kNoBase ? empty(g, {l.in_features, l.out_features}) : empty(g, {0});
    args.d_spline = d_spline.mutable_data_ptr();
    args.d_base = d_base.mutable_data_ptr();
  }
  void run() const { cpu::kernels().kan_activation_backward(args, executor()); }

 private:
  static int64_t heads(const Tensor& g) {
    check(g.dim() == 3, "g must have 3 dimensions, got ", g.dim());
    return g.size(2);
  }
};

Tensor grad_input(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight, const Tensor& g,
                  const Tensor& grid, int64_t functions, int64_t order, int64_t base, int64_t derivative,
                  int64_t basis) {
  Gradients call(x, {}, g, grid, functions, order, base, basis);
  call.set_weights(spline_weight, base_weight);
  call.ask_input(derivative);
  call.run();
  return call.d_input;
}

std::tuple<Tensor, Tensor> grad_weight(const Tensor& x, const OptionalTensor& row_scale, const Tensor& g,
                                       const Tensor& grid, int64_t functions, int64_t order, int64_t base,
                                       int64_t derivative, int64_t basis) {
  Gradients call(x, row_scale, g, grid, functions, order, base, basis);
  call.ask_weights(derivative);
  call.run();
  return {call.d_spline, call.d_base};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& spline_weight,
                                            const OptionalTensor& base_weight, const Tensor& g, const Tensor& grid,
                                            int64_t functions, int64_t order, int64_t base, int64_t derivative,
                                            int64_t basis) {
  Gradients call(x, {}, g, grid, functions, order, base, basis);
  call.set_weights(spline_weight, base_weight);
  call.ask_weights(derivative);
  call.ask_input(derivative + 1);
  call.run();
  return {call.d_input, call.d_spline, call.d_base};
}

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def(
      "kan_activation(Tensor x, Tensor? row_scale, Tensor spline_weight, Tensor? base_weight, Tensor grid, "
      "int functions, int order, int base, int derivative, int basis) -> Tensor");
  m.def(
      "kan_activation_grad_input(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, "
      "int functions, int order, int base, int derivative, int basis) -> Tensor");
  m.def(
      "kan_activation_grad_weight(Tensor x, Tensor? row_scale, Tensor g, Tensor grid, int functions, int order, "
      "int base, int derivative, int basis) -> (Tensor, Tensor)");
  m.def(
      "kan_activation_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, "
      "int functions, int order, int base, int derivative, int basis) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("kan_activation", TORCH_BOX(&kan::ops::kan_activation));
  m.impl("kan_activation_grad_input", TORCH_BOX(&kan::ops::grad_input));
  m.impl("kan_activation_grad_weight", TORCH_BOX(&kan::ops::grad_weight));
  m.impl("kan_activation_backward", TORCH_BOX(&kan::ops::backward));
}
