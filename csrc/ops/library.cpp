// The library of ops: the schemas stand beside their kernels for CPU tensors, in the file of their family.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/kernels.h"

namespace {
std::string cpu_isa() { return kan::cpu::kernels().name; }
}  // namespace

STABLE_TORCH_LIBRARY(kan_kernels, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }
