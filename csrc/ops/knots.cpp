// torch.ops.kan_kernels.knots_increase on CPU tensors: what adapters ask whose own code divides by the knots'
// distances.
#include "checks.h"

namespace kan {
namespace ops {
namespace {

template <class T>
bool increase(const Tensor& grid) {
  const T* row = static_cast<const T*>(grid.const_data_ptr());
  bool good = true;
  for (int64_t i = 0; i < grid.size(0); ++i, row += grid.size(1)) good &= rises(row, grid.size(1), true);
  return good;
}

bool knots_increase(const Tensor& grid_in) {
  check(grid_in.dim() == 2 && grid_in.size(1) > 0, "grid must be (in, knots) with a knot or more");
  const Tensor grid = dense(grid_in);
  const DType dtype = dtype_of(grid, "grid");
  check(dtype == DType::f32 || dtype == DType::f64, "grid must be float32 or float64");
  return dtype == DType::f64 ? increase<double>(grid) : increase<float>(grid);
}

}  // namespace
}  // namespace ops
}  // namespace kan

// Whether all knots (in, columns) are finite and strictly increase.
STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) { m.def("knots_increase(Tensor grid) -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) { m.impl("knots_increase", TORCH_BOX(&kan::ops::knots_increase)); }
