// What LBFGS stores, as the ops have it in tensors.
#pragma once

#include <algorithm>

#include "checks.h"
#include "lbfgs.h"

namespace kan {
namespace ops {

// pairs: (2, size, n), rings of steps and changes; inverse_curvatures: (size), double; both contiguous.
struct LbfgsMemory {
  Tensor pairs, inverse_curvatures;
  int64_t first, count;
  double scale;

  // dtype: of the vectors, which have n numbers.
  void check_all(int64_t n, DType dtype) const {
    check(pairs.dim() == 3 && pairs.size(0) == 2, "pairs must have shape (2, size, n)");
    const int64_t size = pairs.size(1);
    check_shape(pairs, "pairs", {2, size, n});
    check_shape(inverse_curvatures, "inverse_curvatures", {size});
    check(dtype_of(inverse_curvatures, "inverse_curvatures") == DType::f64, "inverse_curvatures must be float64");
    check(count >= 0 && count <= size && first >= 0 && first < std::max<int64_t>(1, size),
          "first and count must be in 0..", size, ", got ", first, " and ", count);
    check(pairs.is_contiguous() && inverse_curvatures.is_contiguous() && dtype_of(pairs, "pairs") == dtype,
          "pairs and inverse_curvatures must be contiguous, pairs of the vector's dtype");
  }

  template <class T>
  lbfgs::Memory<T> rings() {
    const int64_t size = pairs.size(1), n = pairs.size(2);
    T* const steps = static_cast<T*>(pairs.mutable_data_ptr());
    double* const curvatures = static_cast<double*>(inverse_curvatures.mutable_data_ptr());
    return {steps, steps + size * n, curvatures, size, n, first, count, scale};
  }
};

}  // namespace ops
}  // namespace kan
