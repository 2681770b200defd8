// torch.ops.kan_kernels.lbfgs_direction: an iteration of LBFGS on vectors of few numbers, for which each call of torch
// costs more than its arithmetic.
#include <cmath>
#include <utility>
#include <vector>

#include "checks.h"

namespace kan {
namespace ops {
namespace {

// In double for float too. Four sums, so that an addition need not wait for the one before it.
template <class T>
double dot(const T* a, const T* b, int64_t n) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int64_t lane = 0; lane < 4; ++lane) sums[lane] += double(a[i + lane]) * double(b[i + lane]);
  }
  for (; i < n; ++i) sums[0] += double(a[i]) * double(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
void add(T* to, double factor, const T* from, int64_t n) {
  const T rounded = T(factor);
  for (int64_t i = 0; i < n; ++i) to[i] += rounded * from[i];
}

// NaN where there is one.
template <class T>
double largest(const T* vector, int64_t n) {
  T most = 0;
  bool numbers = true;
  for (int64_t i = 0; i < n; ++i) {
    most = std::max(most, std::abs(vector[i]));
    numbers = numbers && vector[i] == vector[i];
  }
  return numbers ? double(most) : std::nan("");
}

// The last `count` steps s, what they did to the gradient y, and 1 / (y.s), oldest first from row `first` on: rings.
template <class T>
struct Memory {
  T *steps, *changes;
  double* inverse_curvatures;
  int64_t size, n, first, count;
  double scale;  // of the first inverse Hessian

  int64_t row(int64_t pair) const { return (first + pair) % size; }

  // Stores the step t d, if it shows curvature.
  void store(const T* gradient, const T* previous, const T* d, double t) {
    std::vector<T> y(n), s(n);
    for (int64_t i = 0; i < n; ++i) y[i] = gradient[i] - previous[i], s[i] = d[i] * T(t);
    const double curvature = dot(y.data(), s.data(), n);
    if (!(curvature > 1e-10)) return;
    scale = curvature / dot(y.data(), y.data(), n);
    if (size == 0) return;
    if (count == size) {
      first = row(1);
    } else {
      ++count;
    }
    const int64_t at = row(count - 1);
    std::copy(s.begin(), s.end(), steps + at * n), std::copy(y.begin(), y.end(), changes + at * n);
    inverse_curvatures[at] = 1.0 / curvature;
  }

  // Minus the inverse Hessian that the memory stands for, times the gradient: Nocedal & Wright, algorithm 7.4.
  void direction(const T* gradient, T* d) const {
    std::vector<double> shares(count);
    for (int64_t i = 0; i < n; ++i) d[i] = -gradient[i];
    for (int64_t pair = count; pair-- > 0;) {
      const int64_t at = row(pair);
      shares[pair] = inverse_curvatures[at] * dot(steps + at * n, d, n);
      add(d, -shares[pair], changes + at * n, n);
    }
    for (int64_t i = 0; i < n; ++i) d[i] *= T(scale);
    for (int64_t pair = 0; pair < count; ++pair) {
      const int64_t at = row(pair);
      add(d, shares[pair] - inverse_curvatures[at] * dot(changes + at * n, d, n), steps + at * n, n);
    }
  }
};

using Made = std::tuple<Tensor, int64_t, int64_t, double, double, double>;

template <class T>
Made next_direction(const Tensor& pairs, const Tensor& inverse_curvatures, int64_t first, int64_t count, double scale,
                    const Tensor& gradient, const Tensor& previous, const Tensor& before, double t) {
  const int64_t size = pairs.size(1), n = pairs.size(2);
  const auto data = [](const Tensor& vector) { return static_cast<const T*>(vector.const_data_ptr()); };
  T* const steps = static_cast<T*>(pairs.mutable_data_ptr());
  double* const curvatures = static_cast<double*>(inverse_curvatures.mutable_data_ptr());
  Memory<T> memory{steps, steps + size * n, curvatures, size, n, first, count, scale};
  memory.store(data(gradient), data(previous), data(before), t);
  Tensor direction = empty(gradient, {n});
  T* const d = static_cast<T*>(direction.mutable_data_ptr());
  memory.direction(data(gradient), d);
  return {direction, memory.first, memory.count, memory.scale, dot(data(gradient), d, n), largest(d, n)};
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
