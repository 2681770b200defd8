// Reading tensors through the LibTorch stable ABI: shapes and dtypes are checked before any kernel sees a pointer.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu/kernels.h"
#include "grid_values.h"

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

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: break;
  }
  check(false, name, " must be float32, float64, bfloat16 or float16");
  return DType::f32;
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

// The values of a grid on the CPU, before a kernel reads them.
inline void check_grid_values(const Layer& layer) {
  const std::string complaint = grid_complaint(layer);
  if (!complaint.empty()) throw std::runtime_error(complaint);
}

inline void check_dtype_code(int64_t dtype) {
  check(dtype >= 0 && dtype <= 3, "dtype must be 0 (float32), 1 (float64), 2 (bfloat16) or 3 (float16), got ", dtype);
}

// That functions and order are of one basis, as its record says.
inline void check_functions(int64_t functions, int64_t order, int64_t base, int64_t basis) {
  check(base >= kNoBase && base <= kIdentity, "base must be 0 (none), 1 (silu) or 2 (identity), got ", base);
  check(basis >= 0 && basis < kBasisCount, "basis must be the code of one, in 0..", kBasisCount - 1, ", got ", basis);
  const BasisRecord& record = kBases[basis];
  const int most_order = record.local ? kMaxOrder : 0;
  check(order >= 0 && order <= most_order, "order must be in 0..", most_order, " for the basis ", record.name, ", got ",
        order);
  check(functions > order && functions <= record.most_functions && !(record.even && functions % 2),
        "functions must be ", record.even ? "even and " : "", "in ", order + 1, "..", record.most_functions,
        " for the basis ", record.name, " of order ", order, ", got ", functions);
}

// That the grid is one of them, too.
inline void check_basis(const Tensor& grid, int64_t in_features, int64_t functions, int64_t order, int64_t base,
                        int64_t basis) {
  check_matrix(grid, "grid");
  check_functions(functions, order, base, basis);
  const BasisRecord& record = kBases[basis];
  check(grid.size(0) == in_features, "grid has ", grid.size(0), " rows, expected one for each of the ", in_features,
        " features of x");
  check(grid.size(1) == record.columns(functions, order), "grid has ", grid.size(1), " columns, expected ",
        record.columns(functions, order), " for ", functions, " functions of order ", order, " of the basis ",
        record.name);
}

// The number of functions that the knots of a grid have, for ops of B-splines alone.
inline int64_t spline_functions(const Tensor& grid, int64_t order) {
  check_matrix(grid, "grid");
  check(order >= 0 && order <= kMaxOrder, "order must be in 0..", kMaxOrder, ", got ", order);
  check(grid.size(1) >= 2 * order + 2, "grid has ", grid.size(1), " knots a row, expected ", 2 * order + 2,
        " or more for order ", order);
  return grid.size(1) - order - 1;
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
  OptionalTensor spline_weight, base_weight, bias;
  Layer layer;

  LayerTensors(const Tensor& x, const Tensor& grid_in, int64_t out_features, DType weight_dtype, int64_t functions,
               int64_t order, int64_t base, int64_t basis)
      : LayerTensors((check_matrix(x, "x"), x.size(0)), x.size(1), dtype_of(x, "x"), grid_in, out_features,
                     weight_dtype, functions, order, base, basis) {}

  LayerTensors(int64_t batch, int64_t in_features, DType x_dtype, const Tensor& grid_in, int64_t out_features,
               DType weight_dtype, int64_t functions, int64_t order, int64_t base, int64_t basis)
      : grid(dense(grid_in)) {
    check_basis(grid, in_features, functions, order, base, basis);
    const bool wide = weight_dtype == DType::f64;
    check(dtype_of(grid, "grid") == (wide ? DType::f64 : DType::f32),
          "grid must be float64 for float64 weights and float32 otherwise");
    check(x_dtype == weight_dtype || (!wide && x_dtype == DType::f32),
          "x must have the weights' dtype, or float32 beside 16-bit weights");
    layer.batch = batch;
    layer.in_features = in_features;
    layer.out_features = out_features;
    layer.functions = int(functions);
    layer.order = int(order);
    layer.base = int(base);
    layer.basis = int(basis);
    layer.weight_dtype = weight_dtype;
    layer.grid = grid.const_data_ptr();
  }

  // Takes over the strides of weights whose functions lie together, if the kernels have them for this basis.
  bool follow_layout(const Tensor& spline) {
    const bool together = !kBases[layer.basis].local && functions_together(spline);
    if (together) layer.feature_stride = spline.stride(0), layer.out_stride = spline.stride(2);
    return together;
  }

  void set_weights(const Tensor& spline, const OptionalTensor& base) {
    const int64_t in = layer.in_features, out = layer.out_features;
    check_shape(spline, "spline_weight", {in, layer.functions, out});
    spline_weight = follow_layout(spline) ? spline : dense(spline);
    layer.spline_weight = spline_weight->const_data_ptr();
    check(base.has_value() == (layer.base != kNoBase), "base_weight must be given if and only if base is not 0");
    if (!base) return;
    check_shape(*base, "base_weight", {in, out});
    check(dtype_of(*base, "base_weight") == layer.weight_dtype, "base_weight must have spline_weight's dtype");
    base_weight = dense(*base);
    layer.base_weight = base_weight->const_data_ptr();
  }

  void set_bias(const OptionalTensor& given) {
    if (!given) return;
    check_shape(*given, "bias", {layer.out_features});
    check(dtype_of(*given, "bias") == layer.weight_dtype, "bias must have spline_weight's dtype");
    bias = dense(*given);
  }
  const void* bias_data() const { return bias ? bias->const_data_ptr() : nullptr; }
};

inline int checked_derivative(int64_t derivative, int largest = kMaxDerivative) {
  check(derivative >= 0 && derivative <= largest, "derivative must be in 0..", largest, ", got ", derivative);
  return int(derivative);
}

inline MatrixView view(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  check_shape(t, name, {rows, columns});
  return {t.const_data_ptr(), dtype_of(t, name), t.stride(0), t.stride(1)};
}

inline MatrixView view_row_scale(const OptionalTensor& row_scale, const Tensor& x) {
  if (!row_scale) return {};
  check(row_scale->scalar_type() == x.scalar_type(), "row_scale must have x's dtype");
  return view(*row_scale, "row_scale", x.size(0), x.size(1));
}

// A fresh tensor beside `like`; goes straight to the allocator.
inline Tensor empty(const Tensor& like, const int64_t* sizes, int64_t n, const int64_t* strides) {
  int32_t dtype = 0, device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(n, sizes, strides, dtype, device_type, device_index, &handle));
  return Tensor(handle);
}
// A fresh contiguous tensor of n dimensions, up to 4, beside `like`.
inline Tensor empty(const Tensor& like, const int64_t* sizes, int64_t n) {
  int64_t strides[4] = {1, 1, 1, 1};
  for (int64_t d = n - 2; d >= 0; --d) strides[d] = strides[d + 1] * std::max<int64_t>(1, sizes[d + 1]);
  return empty(like, sizes, n, strides);
}
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return empty(like, sizes.begin(), int64_t(sizes.size()));
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
