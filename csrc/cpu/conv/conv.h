// Convolution by univariate functions: the two kernels of one instruction set.
#pragma once

#include "cpu/kernels.h"

namespace kan {
namespace KAN_ISA {

void kan_conv(const cpu::ConvolutionArgs& args, const cpu::Executor& executor);
void kan_conv_backward(const cpu::ConvolutionBackwardArgs& args, const cpu::Executor& executor);

}  // namespace KAN_ISA
}  // namespace kan
