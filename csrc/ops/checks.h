// Reading tensors through the LibTorch stable ABI: shapes and dtypes are checked before any kernel sees a pointer.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "basis/config.h"
#include "cpu/kernels.h"

namespace kan {
namespace ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "kan_kernels: ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline cpu::DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return cpu::DType::f32;
    case ScalarType::Double: return cpu::DType::f64;
    case ScalarType::BFloat16: return cpu::DType::bf16;
    case ScalarType::Half: return cpu::DType::f16;
    default: break;
  }
  check(false, name, " must be float32, float64, bfloat16 or float16");
  return cpu::DType::f32;
}

inline void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> wanted) {
  bool same = t.dim() == int64_t(wanted.size());
  int64_t d = 0;
  for (int64_t size : wanted) same = same && t.size(d++) == size;
  if (same) return;
  std::ostringstream got, want;
  for (d = 0; d < t.dim(); ++d) got << (d ? ", " : "") << t.size(d);
  d = 0;
  for (int64_t size : wanted) want << (d++ ? ", " : "") << size;
  check(false, name, " has shape (", got.str(), "), expected (", want.str(), ")");
}

inline void check_matrix(const Tensor& t, const char* name) {
  check(t.dim() == 2, name, " must have 2 dimensions, got ", t.dim());
}

// The call through torch's dispatcher costs more than a small layer: made only where it changes something.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline void check_grid(const Tensor& grid, int64_t in_features, int64_t spline_order, int64_t base) {
  check_matrix(grid, "grid");
  check(spline_order >= 0 && spline_order <= kMaxOrder, "spline_order must be in 0..", kMaxOrder, ", got ",
        spline_order);
  check(base >= kNoBase && base <= kIdentity, "base must be 0 (none), 1 (silu) or 2 (identity), got ", base);
  check(grid.size(0) == in_features, "grid has ", grid.size(0), " rows, expected one for each of the ", in_features,
        " features of x");
  check(grid.size(1) >= 2 * spline_order + 2 && grid.size(1) < (int64_t(1) << 24), "grid has ", grid.size(1),
        " knots a row, expected grid_size + 2 * spline_order + 1 with grid_size >= 1");
}

// The grid of any basis, as cpu::Layer describes it.
inline void check_basis(const Tensor& grid, int64_t in_features, int64_t spline_order, int64_t base, int64_t basis) {
  check(basis >= kBSpline && basis <= kFourier,
        "basis must be 0 (B-splines), 1 (Gaussians), 2 (Chebyshev) or 3 (Fourier), got ", basis);
  if (basis == kBSpline) return check_grid(grid, in_features, spline_order, base);
  check_matrix(grid, "grid");
  check(base >= kNoBase && base <= kIdentity, "base must be 0 (none), 1 (silu) or 2 (identity), got ", base);
  check(grid.size(0) == in_features, "grid has ", grid.size(0), " rows, expected one for each of the ", in_features,
        " features of x");
  if (basis == kRbf) {
    check(spline_order == 0, "spline_order must be 0 for Gaussians, got ", spline_order);
    check(grid.size(1) >= 2 && grid.size(1) <= kMaxFunctions + 1, "grid has ", grid.size(1), " columns, expected 1 to ",
          kMaxFunctions, " centres and their width");
  } else if (basis == kFourier) {
    check(spline_order >= 1 && spline_order <= kMaxFrequencies,
          "spline_order, the number of frequencies, must be in 1..", kMaxFrequencies, ", got ", spline_order);
    check(grid.size(1) == 0, "grid has ", grid.size(1), " columns, expected none for a Fourier basis");
  } else {
    check(spline_order >= 0 && spline_order < kMaxFunctions, "spline_order, the degree, must be in 0..",
          kMaxFunctions - 1, ", got ", spline_order);
    check(grid.size(1) == 0, "grid has ", grid.size(1), " columns, expected none for Chebyshev polynomials");
  }
}

// Whether weights (in, functions, out) lie in memory as (out, in, functions) or (in, out, functions) and need no copy.
inline bool functions_together(const Tensor& t) {
  const int64_t in = t.size(0), functions = t.size(1), out = t.size(2);
  const bool wide = t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double;
  if (!wide || t.is_contiguous() || t.stride(1) != 1) return false;
  return (t.stride(0) == functions && t.stride(2) == in * functions) ||
         (t.stride(0) == out * functions && t.stride(2) == functions);
}

// The layer's own tensors, made contiguous; owns what it had to copy.
struct LayerTensors {
  Tensor grid;
  OptionalTensor spline_weight, base_weight;
  cpu::Layer layer;

  LayerTensors(const Tensor& x, const Tensor& grid_in, int64_t out_features, cpu::DType weight_dtype,
               int64_t spline_order, int64_t base, int64_t basis = kBSpline)
      : grid(dense(grid_in)) {
    check_matrix(x, "x");
    check_basis(grid, x.size(1), spline_order, base, basis);
    const bool wide = weight_dtype == cpu::DType::f64;
    check(dtype_of(grid, "grid") == (wide ? cpu::DType::f64 : cpu::DType::f32),
          "grid must be float64 for float64 weights and float32 otherwise");
    const cpu::DType x_dtype = dtype_of(x, "x");
    check(x_dtype == weight_dtype || (!wide && x_dtype == cpu::DType::f32),
          "x must have the weights' dtype, or float32 beside 16-bit weights");
    layer.batch = x.size(0);
    layer.in_features = x.size(1);
    layer.out_features = out_features;
    layer.spline_order = int(spline_order);
    layer.grid_size = basis == kChebyshev ? 1
                      : basis == kFourier ? int(spline_order)
                                          : int(grid.size(1) - 2 * spline_order - 1);
    layer.base = int(base);
    layer.basis = int(basis);
    layer.weight_dtype = weight_dtype;
    layer.grid = grid.const_data_ptr();
  }

  // Takes over the strides of weights whose functions lie together, if the kernels have them for this basis.
  bool follow_layout(const Tensor& spline) {
    const bool together = layer.basis != kBSpline && functions_together(spline);
    if (together) layer.feature_stride = spline.stride(0), layer.out_stride = spline.stride(2);
    return together;
  }

  void set_weights(const Tensor& spline, const OptionalTensor& base) {
    const int64_t in = layer.in_features, out = layer.out_features;
    check_shape(spline, "spline_weight", {in, layer.grid_size + layer.spline_order, out});
    spline_weight = follow_layout(spline) ? spline : dense(spline);
    layer.spline_weight = spline_weight->const_data_ptr();
    check(base.has_value() == (layer.base != kNoBase), "base_weight must be given if and only if base is not 0");
    if (!base) return;
    check_shape(*base, "base_weight", {in, out});
    check(dtype_of(*base, "base_weight") == layer.weight_dtype, "base_weight must have spline_weight's dtype");
    base_weight = dense(*base);
    layer.base_weight = base_weight->const_data_ptr();
  }
};

inline int checked_derivative(int64_t derivative, int largest = kMaxDerivative) {
  check(derivative >= 0 && derivative <= largest, "derivative must be in 0..", largest, ", got ", derivative);
  return int(derivative);
}

inline cpu::MatrixView view(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  check_shape(t, name, {rows, columns});
  return {t.const_data_ptr(), dtype_of(t, name), t.stride(0), t.stride(1)};
}

inline cpu::MatrixView view_side(const OptionalTensor& side, const Tensor& x) {
  if (!side) return {};
  check(side->scalar_type() == x.scalar_type(), "s must have x's dtype");
  return view(*side, "s", x.size(0), x.size(1));
}

// A fresh tensor beside `like`; goes straight to the allocator.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, const int64_t* strides) {
  int32_t dtype = 0, device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype,
                                                         device_type, device_index, &handle));
  return Tensor(handle);
}
// A fresh contiguous tensor beside `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes) {
  int64_t strides[3] = {1, 1, 1};
  const int64_t n = int64_t(sizes.size());
  for (int64_t d = n - 2; d >= 0; --d) strides[d] = strides[d + 1] * std::max<int64_t>(1, sizes.begin()[d + 1]);
  return empty(like, sizes, strides);
}

// Tasks go to torch's own pool, so torch.set_num_threads and nested parallelism behave as everywhere in torch.
inline cpu::Executor executor() {
  return {[](int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context) {
            STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, tasks, 1, body, context));
          },
          int(torch::stable::get_num_threads())};
}

}  // namespace ops
}  // namespace kan
