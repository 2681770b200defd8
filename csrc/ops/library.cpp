// The library of ops: each op's schema stands in the file of its name.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/kernels.h"

namespace {
std::string cpu_isa() { return kan::cpu::kernels().name; }
}  // namespace

STABLE_TORCH_LIBRARY(kan_kernels, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }
