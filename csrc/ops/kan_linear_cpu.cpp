// torch.ops.kan_kernels.kan_linear* and kan_network*: their schemas, and the kernels for CPU tensors.
#include "kan_network_lbfgs.h"

namespace kan {
namespace ops {
namespace {

struct CpuDevice {
  explicit CpuDevice(const Tensor&) {}
  template <class T>
  void check(const T&, const char*) const {}  // torch's dispatcher sends no other device's tensor here
  template <class Args>
  void run(const Args& args) const {
    check_grid_values(args.layer);
    run(args, executor());
  }
  static constexpr bool kNetworks = false;  // no kernel of its own for a whole network
  void multiply(const Products& p, DType dtype, int64_t rows, const void* outputs, void* nodes) const {
    ops::multiply(p, dtype, rows, outputs, nodes);
  }
  void multiply_backward(const Products& p, int64_t rows, const void* outputs, const MatrixView& g, void* made) const {
    ops::multiply_backward(p, rows, outputs, g, made);
  }
  // A network is a task, on one thread.
  template <class Args>
  void run_all(const Args& args, const Stack& stack) const {
    for (int64_t n = 0; n < (stack.steps.grid ? stack.count() : 1); ++n) {
      check_grid_values(of_network(args, stack.steps, n).layer);
    }
    struct Context {
      const Args& args;
      const Steps& steps;
    } context{args, stack.steps};
    const auto task = [](int64_t begin, int64_t end, void* pointer) {
      const Context& c = *static_cast<const Context*>(pointer);
      cpu::Executor alone = executor();
      alone.threads = 1;
      for (int64_t n = begin; n < end; ++n) run(of_network(c.args, c.steps, n), alone);
    };
    const cpu::Executor pool = executor();
    const Layer& l = args.layer;
    const bool parallel = stack.count() * l.batch * l.in_features * (8 + l.out_features) > kSerialWork;
    if (parallel && pool.threads > 1) return pool.run(stack.count(), task, &context);
    task(0, stack.count(), &context);
  }

 private:
  // multiply-adds, as for one small layer: below it a second thread would gain little, and wait where others run
  static constexpr int64_t kSerialWork = 240000;
  static void run(const ForwardArgs& args, const cpu::Executor& executor) { cpu::kernels().kan_linear(args, executor); }
  static void run(const BackwardArgs& args, const cpu::Executor& executor) {
    cpu::kernels().kan_linear_backward(args, executor);
  }
};

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def(
      "kan_linear(Tensor x, Tensor? row_scale, Tensor spline_weight, Tensor? base_weight, Tensor? bias, Tensor grid, "
      "int functions, int order, int base, int derivative, int basis) -> Tensor");
  m.def(
      "kan_linear_grad_input(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, "
      "int functions, int order, int base, int derivative, int basis) -> Tensor");
  m.def(
      "kan_linear_grad_weight(Tensor x, Tensor? row_scale, Tensor g, Tensor grid, int functions, int order, int base, "
      "int derivative, int basis, Tensor? like=None) -> (Tensor, Tensor)");
  m.def(
      "kan_linear_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, int functions, "
      "int order, int base, int derivative, int basis) -> (Tensor, Tensor, Tensor)");
  m.def(
      "kan_network(Tensor x, Tensor[] tensors, int layers, int order, int base, int[] products) -> (Tensor, "
      "Tensor)");
  m.def(
      "kan_network_backward(Tensor x, Tensor hidden, Tensor[] tensors, int layers, Tensor g, int order, int base, "
      "bool need_x, bool need_weight, int[] products) -> Tensor[]");
  m.def(
      "kan_network_error(Tensor x, Tensor target, Tensor[] tensors, int layers, int order, int base, int[] products, "
      "int[] places, float lamb, float l1, float entropy) -> (Tensor, Tensor, Tensor)");
  m.def(
      "kan_network_lbfgs(Tensor x, Tensor target, Tensor[] tensors, int layers, int order, int base, int[] products, "
      "int[] places, float lamb, float l1, float entropy, Tensor(a!) vector, Tensor(b!)? read, Tensor? mask, float "
      "scale, float value, Tensor gradient, Tensor(c!) pairs, Tensor(d!) inverse_curvatures, int first, int count, "
      "float inverse_scale, int iterations, Tensor? previous, Tensor? d, float t, float lr, int max_iter, int "
      "max_eval, float tolerance_grad, float tolerance_change) -> (Tensor, Tensor, int, int, int, int, float, float, "
      "float, float)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  kan::ops::register_family<kan::ops::CpuDevice>(m);
  kan::ops::register_network<kan::ops::CpuDevice>(m);
  m.impl("kan_network_error", TORCH_BOX(&kan::ops::kan_network_error<kan::ops::CpuDevice>));
  m.impl("kan_network_lbfgs", TORCH_BOX(&kan::ops::kan_network_lbfgs<kan::ops::CpuDevice>));
}
