// A learnable function for every feature and head: v[b,i,h] = phi_{i,h}(x[b,i]), and its gradients.
#pragma once

#include "cpu/kernels.h"

namespace kan {
namespace KAN_ISA {

void kan_activation(const cpu::ActivationArgs& args, const cpu::Executor& executor);
void kan_activation_backward(const cpu::ActivationBackwardArgs& args, const cpu::Executor& executor);

}  // namespace KAN_ISA
}  // namespace kan
