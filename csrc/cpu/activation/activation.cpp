// One instruction set's kernels for activations. Compiled once per instruction set, as kernels.cpp is.
#include "activation.h"

#include <cstring>

#include "feature_lanes.h"
#include "sorted.h"

namespace kan {
namespace KAN_ISA {

void kan_activation(const cpu::ActivationArgs& args, const cpu::Executor& executor) {
  const Shape shape(args.layer);
  if (shape.batch == 0 || shape.in == 0 || shape.out == 0) return;
  if (args.layer.weight_dtype == DType::f64) return sorted_activation<double>(args, shape, executor);
  if (!takes_feature_lanes(shape)) return sorted_activation<float>(args, shape, executor);
  with_short_order(shape,
                   [&](auto order, auto heads) { feature_lanes_forward<order(), heads()>(args, shape, executor); });
}

void kan_activation_backward(const cpu::ActivationBackwardArgs& args, const cpu::Executor& executor) {
  const Shape shape(args.layer);
  if (shape.in == 0) return;
  if (shape.out == 0) {  // the gradient of nothing
    if (args.input) std::memset(args.input, 0, size_t(shape.batch * shape.in * item_size(args.x.dtype)));
    return;
  }
  if (args.layer.weight_dtype == DType::f64) return sorted_activation_backward<double>(args, shape, executor);
  if (!takes_feature_lanes(shape)) return sorted_activation_backward<float>(args, shape, executor);
  with_short_order(shape, [&](auto order, auto heads) {
    if (args.input_derivative == 0) return feature_lanes_backward<order(), order(), heads()>(args, shape, executor);
    feature_lanes_backward<order(), order() - 1, heads()>(args, shape, executor);
  });
}

}  // namespace KAN_ISA
}  // namespace kan
