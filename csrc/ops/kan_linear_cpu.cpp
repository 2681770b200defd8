// torch.ops.kan_kernels.kan_linear*: their schemas, and the kernels for CPU tensors.
#include "gemm.h"
#include "kan_linear.h"

namespace kan {
namespace ops {
namespace {

struct CpuDevice {
  explicit CpuDevice(const Tensor&) {}
  template <class T>
  void check(const T&, const char*) const {}  // torch's dispatcher sends no other device's tensor here
  void run(const ForwardArgs& args) const {
    check_grid_values(args.layer);
    cpu::kernels().kan_linear(args, with_gemm());
  }
  void run(const BackwardArgs& args) const {
    check_grid_values(args.layer);
    cpu::kernels().kan_linear_backward(args, with_gemm());
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
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) { kan::ops::register_family<kan::ops::CpuDevice>(m); }
