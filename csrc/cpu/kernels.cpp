// One instruction set's table of kernels. CMake compiles this file once per instruction set, with KAN_ISA naming it.
#include <chrono>
#include <cstring>

#include "cpu/activation/activation.h"
#include "cpu/conv/conv.h"
#include "cpu/edges/edges.h"
#include "cpu/linear/backward.h"
#include "cpu/linear/forward.h"
#include "cpu/linear/layer_norm_rbf.h"
#include "cpu/linear/small.h"

#define KAN_CONCAT_(a, b) a##b
#define KAN_CONCAT(a, b) KAN_CONCAT_(a, b)
#define KAN_STRING_(a) #a
#define KAN_STRING(a) KAN_STRING_(a)

namespace kan {
namespace KAN_ISA {
namespace {

template <class T>
void forward_as(const ForwardArgs& args, const cpu::Executor& executor) {
  const Shape shape(args.layer);
  if (is_small<T>(shape)) return small_forward<T>(args, shape, executor);
  Forward<T>(args, executor).run(executor);
}

template <class T>
void backward_as(const BackwardArgs& args, const cpu::Executor& executor) {
  const Shape shape(args.layer);
  if (is_small<T>(shape)) return small_backward<T>(args, shape, executor);
  Backward<T>(args, executor).run(executor);
}

void kan_linear(const ForwardArgs& args, const cpu::Executor& executor) {
  if (args.layer.out_features == 0) return;
  if (args.layer.weight_dtype == DType::f64) return forward_as<double>(args, executor);
  forward_as<float>(args, executor);
}

void kan_linear_backward(const BackwardArgs& args, const cpu::Executor& executor) {
  const Layer& l = args.layer;
  if (l.in_features == 0) return;
  if (l.out_features == 0) {  // the gradient of nothing
    if (args.input) std::memset(args.input, 0, size_t(l.batch * l.in_features * item_size(args.x.dtype)));
    return;
  }
  if (args.layer.weight_dtype == DType::f64) return backward_as<double>(args, executor);
  backward_as<float>(args, executor);
}

bool takes_sizes(const Layer& layer) {
  const Shape shape(layer);
  return layer.weight_dtype == DType::f64 ? is_small<double>(shape) : is_small<float>(shape);
}

int64_t kept_base_rows(const Layer& layer) {
  const Shape shape(layer);
  return takes_sizes(layer) ? small_kept_rows(shape) : 0;
}

void layer_norm_rbf(const cpu::LayerNormRbfForwardArgs& args, const cpu::Executor& executor) {
  if (args.layer.layer.weight_dtype == DType::f64) return LayerNormRbfForward<double>(args).run(executor);
  LayerNormRbfForward<float>(args).run(executor);
}

void layer_norm_rbf_backward(const cpu::LayerNormRbfBackwardArgs& args, const cpu::Executor& executor) {
  if (args.layer.layer.weight_dtype == DType::f64) return LayerNormRbfBackward<double>(args).run(executor);
  LayerNormRbfBackward<float>(args).run(executor);
}

constexpr int kPeakChains = 12, kSteps = 4096;

// A function of its own: around a call, the chains would live in memory.
__attribute__((noinline)) float multiply_add_chains(float start) {
  Vec<float> sum[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) sum[i] = broadcast(start + float(i));
  const Vec<float> scale = broadcast(0.999f), shift = broadcast(0.001f);
  for (int n = 0; n < kSteps; ++n) {
    KAN_UNROLL
    for (int i = 0; i < kPeakChains; ++i) sum[i] = sum[i] * scale + shift;
  }
  for (int i = 1; i < kPeakChains; ++i) sum[0] += sum[i];
  return sum[0][0];
}

double fma_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  double best = 0, spent = 0;
  volatile float sink = 0;
  while (spent < seconds) {
    const Clock::time_point start = Clock::now();
    sink = multiply_add_chains(sink);
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    const double rate = 2.0 * Simd<float>::lanes * kPeakChains * kSteps / elapsed;
    best = rate > best ? rate : best;
    spent += elapsed;
  }
  return best;
}

}  // namespace
}  // namespace KAN_ISA

namespace cpu {
extern const KernelTable KAN_CONCAT(kTable_, KAN_ISA);
const KernelTable KAN_CONCAT(kTable_, KAN_ISA) = {KAN_STRING(KAN_ISA),     KAN_VECTOR_BYTES,
                                                  KAN_ISA::kan_linear,     KAN_ISA::kan_linear_backward,
                                                  KAN_ISA::edge_gram,      KAN_ISA::edge_gram_grad_input,
                                                  KAN_ISA::edge_moments,   KAN_ISA::edge_moments_backward,
                                                  KAN_ISA::edge_l1,        KAN_ISA::edge_l1_backward,
                                                  KAN_ISA::layer_norm_rbf, KAN_ISA::layer_norm_rbf_backward,
                                                  KAN_ISA::kan_activation, KAN_ISA::kan_activation_backward,
                                                  KAN_ISA::kan_conv,       KAN_ISA::kan_conv_backward,
                                                  KAN_ISA::takes_sizes,    KAN_ISA::kept_base_rows,
                                                  KAN_ISA::fma_peak};
}  // namespace cpu
}  // namespace kan
