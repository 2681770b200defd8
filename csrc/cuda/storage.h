// Numbers in global memory: any of the four dtypes in, any out. The dtype is the same for a whole launch, so the
// branches are uniform; arithmetic is float, or double beside float64 storage.
#pragma once

#include "layer.h"
#include "warp.h"

namespace kan {
namespace cuda {

template <class T>
KAN_DEVICE T load_as(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::f32: return T(static_cast<const float*>(data)[at]);
    case DType::f64: return T(static_cast<const double*>(data)[at]);
    case DType::bf16: return T(bits_as_float(uint32_t(static_cast<const uint16_t*>(data)[at]) << 16));
    default: return T(f16_to_float(static_cast<const uint16_t*>(data)[at]));
  }
}

template <class T>
KAN_DEVICE T load_as(const MatrixView& m, int64_t row, int64_t column) {
  return load_as<T>(m.data, m.dtype, row * m.row_stride + column * m.col_stride);
}

template <class T>
KAN_DEVICE void store_as(void* data, DType dtype, int64_t at, T value) {
  switch (dtype) {
    case DType::f32: static_cast<float*>(data)[at] = float(value); return;
    case DType::f64: static_cast<double*>(data)[at] = double(value); return;
    case DType::bf16: static_cast<uint16_t*>(data)[at] = uint16_t(pack_bf16(float(value), 0.0f)); return;
    default: static_cast<uint16_t*>(data)[at] = uint16_t(pack_f16(float(value), 0.0f)); return;
  }
}

KAN_HD int size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Whether every row of so many columns is whole 16-byte pieces from an aligned start on.
inline bool whole_pieces(const void* data, int64_t columns, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * size_of(dtype) % 16 == 0;
}

KAN_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cuda
}  // namespace kan
