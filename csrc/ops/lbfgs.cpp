// torch.ops.kan_kernels.lbfgs_direction: what LBFGS stores, and its next direction, on vectors of few numbers.
#include "lbfgs.h"

#include "checks.h"

namespace kan {
namespace ops {
namespace {

using Made = std::tuple<Tensor, int64_t, int64_t, double, double, double>;

template <class T>
Made next_direction(const Tensor& pairs, const Tensor& inverse_curvatures, int64_t first, int64_t count, double scale,
                    const Tensor& gradient, const Tensor& previous, const Tensor& before, double t) {
  const int64_t size = pairs.size(1), n = pairs.size(2);
  const auto data = [](const Tensor& vector) { return static_cast<const T*>(vector.const_data_ptr()); };
  T* const steps = static_cast<T*>(pairs.mutable_data_ptr());
  double* const curvatures = static_cast<double*>(inverse_curvatures.mutable_data_ptr());
  lbfgs::Memory<T> memory{steps, steps + size * n, curvatures, size, n, first, count, scale};
  memory.store(data(gradient), data(previous), data(before), t);
  Tensor direction = empty(gradient, {n});
  T* const d = static_cast<T*>(direction.mutable_data_ptr());
  memory.direction(data(gradient), d);
  return {direction, memory.first, memory.count, memory.scale, lbfgs::dot(data(gradient), d, n), lbfgs::largest(d, n)};
}

// Stores what the step t d, from where the gradient was `previous`, did to it, and returns the next direction, first,
// count and scale, and of the direction the slope and the largest entry.
// pairs: (2, size, n), rings of steps and changes; inverse_curvatures: (size), double; they and the three vectors (n)
// are contiguous.
Made lbfgs_direction(Tensor pairs, Tensor inverse_curvatures, int64_t first, int64_t count, double scale,
                     const Tensor& gradient, const Tensor& previous, const Tensor& d, double t) {
  check(pairs.dim() == 3 && pairs.size(0) == 2, "pairs must have shape (2, size, n)");
  const DType dtype = dtype_of(pairs, "pairs");
  const int64_t size = pairs.size(1), n = pairs.size(2);
  check(dtype == DType::f32 || dtype == DType::f64, "pairs must be float32 or float64");
  check_shape(inverse_curvatures, "inverse_curvatures", {size});
  check(dtype_of(inverse_curvatures, "inverse_curvatures") == DType::f64, "inverse_curvatures must be float64");
  check(count >= 0 && count <= size && first >= 0 && first < std::max<int64_t>(1, size),
        "first and count must be in 0..", size, ", got ", first, " and ", count);
  check(pairs.is_contiguous() && inverse_curvatures.is_contiguous(), "pairs and inverse_curvatures must be contiguous");
  const std::pair<const Tensor&, const char*> vectors[] = {{gradient, "gradient"}, {previous, "previous"}, {d, "d"}};
  for (const auto& [vector, name] : vectors) {
    check_shape(vector, name, {n});
    check(dtype_of(vector, name) == dtype && vector.is_contiguous(), name, " must be contiguous, of pairs' dtype");
  }
  const auto run = dtype == DType::f64 ? &next_direction<double> : &next_direction<float>;
  return run(pairs, inverse_curvatures, first, count, scale, gradient, previous, d, t);
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
