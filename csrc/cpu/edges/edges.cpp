// One instruction set's kernels for sums over the rows. Compiled once per instruction set, as kernels.cpp is.
#include "edges.h"

#include <memory>

#include "gram.h"
#include "l1.h"
#include "moments.h"

namespace kan {
namespace KAN_ISA {

void edge_gram(const cpu::GramArgs& args, const cpu::Executor& executor) { Gram(args).run(executor); }

void edge_gram_grad_input(const cpu::GramInputArgs& args, const cpu::Executor& executor) {
  GramInput(args).run(executor);
}

void edge_moments(const cpu::MomentsArgs& args, const cpu::Executor& executor) { Moments(args).run(executor); }

void edge_moments_backward(const cpu::MomentsBackwardArgs& args, const cpu::Executor& executor) {
  MomentsBackward(args).run(executor);
}

void edge_l1(const cpu::EdgeL1Args& args, const cpu::Executor& executor) {
  cpu::EdgeL1BackwardArgs both;
  both.layer = args.layer;
  both.x = args.x;
  if (args.layer.weight_dtype == DType::f64) return EdgeL1<double>(both, args.mean).run(executor);
  EdgeL1<float>(both, args.mean).run(executor);
}

void edge_l1_backward(const cpu::EdgeL1BackwardArgs& args, const cpu::Executor& executor) {
  if (args.layer.weight_dtype == DType::f64) return EdgeL1<double>(args, nullptr).run(executor);
  EdgeL1<float>(args, nullptr).run(executor);
}

}  // namespace KAN_ISA
}  // namespace kan
