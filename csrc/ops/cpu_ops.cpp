// torch.ops.kan_kernels.* on CPU tensors.
#include "family.h"

namespace kan {
namespace ops {
namespace {

struct CpuDevice {
  explicit CpuDevice(const Tensor&) {}
  template <class T>
  void check(const T&, const char*) const {}  // torch's dispatcher sends no other device's tensor here
  void run(const cpu::ForwardArgs& args) const { cpu::kernels().forward(args, executor()); }
  void run(const cpu::BackwardArgs& args) const { cpu::kernels().backward(args, executor()); }

 private:
  // Tasks go to torch's own pool, so torch.set_num_threads and nested parallelism behave as everywhere in torch.
  static cpu::Executor executor() {
    return {[](int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context) {
              STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, tasks, 1, body, context));
            },
            int(torch::stable::get_num_threads())};
  }
};

std::string cpu_isa() { return cpu::kernels().name; }

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) { kan::ops::register_family<kan::ops::CpuDevice>(m); }

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&kan::ops::cpu_isa));
}
