// torch.ops.kan_kernels.* on CPU tensors.
#include "gemm.h"
#include "kan_linear.h"

namespace kan {
namespace ops {
namespace {

struct CpuDevice {
  explicit CpuDevice(const Tensor&) {}
  template <class T>
  void check(const T&, const char*) const {}  // torch's dispatcher sends no other device's tensor here
  void run(const cpu::ForwardArgs& args) const { cpu::kernels().forward(args, with_products()); }
  void run(const cpu::BackwardArgs& args) const { cpu::kernels().backward(args, with_products()); }
};

std::string cpu_isa() { return cpu::kernels().name; }

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) { kan::ops::register_family<kan::ops::CpuDevice>(m); }

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&kan::ops::cpu_isa));
}
