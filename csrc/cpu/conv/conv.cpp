// One instruction set's kernels of convolution. Compiled once per instruction set, as kernels.cpp is.
#include "conv.h"

#include "backward.h"
#include "forward.h"

namespace kan {
namespace KAN_ISA {

void kan_conv(const cpu::ConvolutionArgs& args, const cpu::Executor& executor) {
  if (args.layer.weight_dtype == DType::f64) return ConvolutionForward<double>(args).run(executor);
  ConvolutionForward<float>(args).run(executor);
}

void kan_conv_backward(const cpu::ConvolutionBackwardArgs& args, const cpu::Executor& executor) {
  if (args.layer.in_features == 0) return;
  if (args.layer.weight_dtype == DType::f64) return ConvolutionBackward<double>(args).run(executor);
  ConvolutionBackward<float>(args).run(executor);
}

}  // namespace KAN_ISA
}  // namespace kan
