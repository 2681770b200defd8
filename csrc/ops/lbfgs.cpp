// torch.ops.kan_kernels.lbfgs_direction: what LBFGS stores, and its next direction, on vectors of few numbers.
#include "lbfgs_memory.h"

namespace kan {
namespace ops {
namespace {

using Made = std::tuple<Tensor, int64_t, int64_t, double, double, double>;

template <class T>
Made next_direction(LbfgsMemory& stored, const Tensor& gradient, const Tensor& previous, const Tensor& before,
                    double t) {
  const auto data = [](const Tensor& vector) { return static_cast<const T*>(vector.const_data_ptr()); };
  lbfgs::Memory<T> memory = stored.rings<T>();
  memory.store(data(gradient), data(previous), data(before), t);
  Tensor direction = empty(gradient, {memory.n});
  T* const d = static_cast<T*>(direction.mutable_data_ptr());
  memory.direction(data(gradient), d);
  return {direction,
          memory.first,
          memory.count,
          memory.scale,
          lbfgs::dot(data(gradient), d, memory.n),
          lbfgs::largest(d, memory.n)};
}

// Stores what the step t d, from where the gradient was `previous`, did to it, and returns the next direction, first,
// count and scale, and of the direction the slope and the largest entry. The three vectors are contiguous.
Made lbfgs_direction(Tensor pairs, Tensor inverse_curvatures, int64_t first, int64_t count, double scale,
                     const Tensor& gradient, const Tensor& previous, const Tensor& d, double t) {
  LbfgsMemory memory{pairs, inverse_curvatures, first, count, scale};
  const DType dtype = dtype_of(pairs, "pairs");
  check(dtype == DType::f32 || dtype == DType::f64, "pairs must be float32 or float64");
  const int64_t n = pairs.dim() == 3 ? pairs.size(2) : 0;
  memory.check_all(n, dtype);
  const std::pair<const Tensor&, const char*> vectors[] = {{gradient, "gradient"}, {previous, "previous"}, {d, "d"}};
  for (const auto& [vector, name] : vectors) {
    check_shape(vector, name, {n});
    check(dtype_of(vector, name) == dtype && vector.is_contiguous(), name, " must be contiguous, of pairs' dtype");
  }
  const auto run = dtype == DType::f64 ? &next_direction<double> : &next_direction<float>;
  return run(memory, gradient, previous, d, t);
}

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def(
      "lbfgs_direction(Tensor(a!) pairs, Tensor(b!) inverse_curvatures, int first, int count, float scale, Tensor "
      "gradient, Tensor previous, Tensor d, float t) -> (Tensor, int, int, float, float, float)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) { m.impl("lbfgs_direction", TORCH_BOX(&kan::ops::lbfgs_direction)); }
