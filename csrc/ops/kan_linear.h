// The four ops of the family, once for every device: arguments are read, results allocated, kernels run.
//
// A Device is made from x and lives as long as the call. It says whether a tensor lies where x does (check), and runs
// the kernels (run, for either kind of arguments). register_family names the ops for one dispatch key.
#pragma once

#include "stack.h"

namespace kan {
namespace ops {

template <class Device>
struct Family {
  static Tensor kan_linear(const Tensor& x_in, const OptionalTensor& row_scale_in, const Tensor& spline_in,
                           const OptionalTensor& base_in, const OptionalTensor& bias_in, const Tensor& grid_in,
                           int64_t functions, int64_t order, int64_t base, int64_t derivative, int64_t basis) {
    check(spline_in.dim() == 3 || spline_in.dim() == 4, "spline_weight must have 3 dimensions, got ", spline_in.dim());
    const Device device(x_in);
    device.check(row_scale_in, "row_scale"), device.check(spline_in, "spline_weight"),
        device.check(base_in, "base_weight");
    device.check(bias_in, "bias"), device.check(grid_in, "grid");
    Stack stack(spline_in, 3);
    const Tensor x = stack.first(x_in, "x", 2, &Steps::x);
    const OptionalTensor row_scale = stack.first(row_scale_in, "row_scale", 2, &Steps::row_scale);
    const Tensor spline_weight = stack.first(spline_in, "spline_weight", 3, &Steps::spline_weight, true);
    const Tensor grid = stack.first(grid_in, "grid", 2, &Steps::grid, true);
    const int64_t out = spline_weight.size(2);
    LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), functions, order, base, basis);
    tensors.set_weights(spline_weight, stack.first(base_in, "base_weight", 2, &Steps::base_weight, true));
    ForwardArgs args;
    args.layer = tensors.layer;
    args.x = view(x, "x", x.size(0), x.size(1));
    args.row_scale = view_row_scale(row_scale, x);
    tensors.set_bias(stack.first(bias_in, "bias", 1, &Steps::bias, true));
    args.bias = tensors.bias_data();
    args.derivative = checked_derivative(derivative);
    Tensor y = stack.made(spline_weight, {x.size(0), out}, &Steps::y);
    args.y = y.mutable_data_ptr();
    run(device, args, stack);
    return y;
  }

  static Tensor grad_input(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight,
                           const Tensor& g, const Tensor& grid, int64_t functions, int64_t order, int64_t base,
                           int64_t derivative, int64_t basis) {
    Gradients call(x, {}, g, grid, functions, order, base, basis);
    call.set_weights(spline_weight, base_weight);
    call.ask_input(derivative);
    run(call.device, call.args, call.stack);
    return call.d_input;
  }

  // like: weights whose layout d_spline takes, where the kernels have it.
  static std::tuple<Tensor, Tensor> grad_weight(const Tensor& x, const OptionalTensor& row_scale, const Tensor& g,
                                                const Tensor& grid, int64_t functions, int64_t order, int64_t base,
                                                int64_t derivative, int64_t basis, const OptionalTensor& like) {
    Gradients call(x, row_scale, g, grid, functions, order, base, basis);
    if (like && !call.stack.is_stacked()) call.lie_like(*like);
    call.ask_weights(derivative);
    run(call.device, call.args, call.stack);
    return {call.d_spline, call.d_base};
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& spline_weight,
                                                     const OptionalTensor& base_weight, const Tensor& g,
                                                     const Tensor& grid, int64_t functions, int64_t order, int64_t base,
                                                     int64_t derivative, int64_t basis) {
    Gradients call(x, {}, g, grid, functions, order, base, basis);
    call.set_weights(spline_weight, base_weight);
    call.ask_weights(derivative);
    call.ask_input(derivative + 1);
    run(call.device, call.args, call.stack);
    return {call.d_input, call.d_spline, call.d_base};
  }

 private:
  template <class Args>
  static void run(const Device& device, const Args& args, const Stack& stack) {
    if (!stack.is_stacked()) return device.run(args);
    device.run_all(args, stack);
  }

  // A call of the backward kernel: what it reads, and what was asked of it.
  struct Gradients {
    const Device device;
    Stack stack;
    const Tensor x, g, grid;
    LayerTensors tensors;
    BackwardArgs args;
    Tensor d_input, d_spline, d_base;

    Gradients(const Tensor& x_in, const OptionalTensor& row_scale, const Tensor& g_in, const Tensor& grid_in,
              int64_t functions, int64_t order, int64_t base, int64_t basis)
        : device(x_in),
          stack(g_in, 2),
          x(stack.first(x_in, "x", 2, &Steps::x)),
          g(stack.first(g_in, "g", 2, &Steps::g)),
          grid(stack.first(grid_in, "grid", 2, &Steps::grid, true)),
          tensors(x, grid, columns(g), dtype_of(g, "g"), functions, order, base, basis) {
      device.check(row_scale, "row_scale"), device.check(g, "g"), device.check(grid, "grid");
      args.layer = tensors.layer;
      args.x = view(x, "x", x.size(0), x.size(1));
      args.row_scale = view_row_scale(stack.first(row_scale, "row_scale", 2, &Steps::row_scale), x);
      args.g = view(g, "g", x.size(0), g.size(1));
    }
    void set_weights(const Tensor& spline_weight, const OptionalTensor& base_weight) {
      device.check(spline_weight, "spline_weight"), device.check(base_weight, "base_weight");
      kan::ops::check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
      tensors.set_weights(stack.first(spline_weight, "spline_weight", 3, &Steps::spline_weight, stack.is_stacked()),
                          stack.first(base_weight, "base_weight", 2, &Steps::base_weight, true));
      args.layer = tensors.layer;
    }
    void lie_like(const Tensor& weight) {
      const Layer& layer = args.layer;
      check_shape(weight, "like", {layer.in_features, layer.functions, layer.out_features});
      kan::ops::check(g.scalar_type() == weight.scalar_type(), "like must have g's dtype");
      tensors.follow_layout(weight);
      args.layer = tensors.layer;
    }
    // One order more than the public limit: the gradient with respect to x of an output of that order.
    void ask_input(int64_t derivative) {
      args.input_derivative = checked_derivative(derivative, kMaxDerivative + 1);
      d_input = stack.made(x, {x.size(0), x.size(1)}, &Steps::input);
      args.input = d_input.mutable_data_ptr();
    }
    void ask_weights(int64_t derivative) {
      const Layer& layer = args.layer;
      args.weight_derivative = checked_derivative(derivative);
      const int64_t strides[] = {layer.feature_stride, 1, layer.out_stride};
      const std::initializer_list<int64_t> sizes = {layer.in_features, layer.functions, layer.out_features};
      d_spline = layer.out_stride != 0 ? empty(g, sizes.begin(), 3, strides) : stack.made(g, sizes, &Steps::d_spline);
      d_base = layer.base != kNoBase ? stack.made(g, {layer.in_features, layer.out_features}, &Steps::d_base)
                                     : stack.made(g, {0}, &Steps::d_base);
      args.d_spline = d_spline.mutable_data_ptr();
      args.d_base = d_base.mutable_data_ptr();
    }
    static int64_t columns(const Tensor& g) {
      check_matrix(g, "g");
      return g.size(1);
    }
  };
};

template <class Device, class Library>
void register_family(Library& m) {
  using Ops = Family<Device>;
  m.impl("kan_linear", TORCH_BOX(&Ops::kan_linear));
  m.impl("kan_linear_grad_input", TORCH_BOX(&Ops::grad_input));
  m.impl("kan_linear_grad_weight", TORCH_BOX(&Ops::grad_weight));
  m.impl("kan_linear_backward", TORCH_BOX(&Ops::backward));
}

}  // namespace ops
}  // namespace kan
