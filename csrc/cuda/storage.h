// Numbers in global memory: any of the four dtypes in, any out. The dtype is the same for a whole launch, so the
// branches are uniform; arithmetic is float, or double beside float64 storage.
#pragma once

#include "layer.h"
#include "warp.h"

namespace kan {
namespace cuda {

// A number of a dtype that is known when this is compiled.
template <class T, DType D>
KAN_DEVICE T load_known(const void* data, int64_t at) {
  if constexpr (D == DType::f32) return T(static_cast<const float*>(data)[at]);
  if constexpr (D == DType::f64) return T(static_cast<const double*>(data)[at]);
  if constexpr (D == DType::bf16) return T(bits_as_float(uint32_t(static_cast<const uint16_t*>(data)[at]) << 16));
  if constexpr (D == DType::f16) return T(f16_to_float(static_cast<const uint16_t*>(data)[at]));
}

template <class T>
KAN_DEVICE T load_as(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::f32: return load_known<T, DType::f32>(data, at);
    case DType::f64: return load_known<T, DType::f64>(data, at);
    case DType::bf16: return load_known<T, DType::bf16>(data, at);
    default: return load_known<T, DType::f16>(data, at);
  }
}

template <DType D>
struct Known {
  static constexpr DType dtype = D;
};
// Calls run(Known<D>) for the dtype of weights whose compute type is T: one test for many numbers.
template <class T, class Run>
KAN_DEVICE void with_dtype(DType dtype, Run run) {
  if constexpr (sizeof(T) == 8) {
    run(Known<DType::f64>{});
  } else if (dtype == DType::f32) {
    run(Known<DType::f32>{});
  } else if (dtype == DType::bf16) {
    run(Known<DType::bf16>{});
  } else {
    run(Known<DType::f16>{});
  }
}

template <class T>
KAN_DEVICE T load_as(const MatrixView& m, int64_t row, int64_t column) {
  return load_as<T>(m.data, m.dtype, row * m.row_stride + column * m.col_stride);
}

template <DType D, class T>
KAN_DEVICE void store_known(void* data, int64_t at, T value) {
  if constexpr (D == DType::f32) static_cast<float*>(data)[at] = float(value);
  if constexpr (D == DType::f64) static_cast<double*>(data)[at] = double(value);
  if constexpr (D == DType::bf16) static_cast<uint16_t*>(data)[at] = uint16_t(pack_bf16(float(value), 0.0f));
  if constexpr (D == DType::f16) static_cast<uint16_t*>(data)[at] = uint16_t(pack_f16(float(value), 0.0f));
}

template <class T>
KAN_DEVICE void store_as(void* data, DType dtype, int64_t at, T value) {
  switch (dtype) {
    case DType::f32: return store_known<DType::f32>(data, at, value);
    case DType::f64: return store_known<DType::f64>(data, at, value);
    case DType::bf16: return store_known<DType::bf16>(data, at, value);
    default: return store_known<DType::f16>(data, at, value);
  }
}

// Two neighbours. together: their address is a multiple of their size.
template <DType D>
KAN_DEVICE void store_pair(void* data, int64_t at, float first, float second, bool together) {
  if (!together) {
    store_known<D>(data, at, first), store_known<D>(data, at + 1, second);
  } else if constexpr (D == DType::f32) {
    const uint64_t both = uint64_t(float_as_bits(second)) << 32 | float_as_bits(first);
    *reinterpret_cast<uint64_t*>(static_cast<float*>(data) + at) = both;
  } else {
    const uint32_t both = D == DType::bf16 ? pack_bf16(first, second) : pack_f16(first, second);
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(data) + at) = both;
  }
}

KAN_HD int size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Whether every row of so many columns is whole pairs, or 16-byte pieces, from an aligned start on.
inline bool whole_pairs(const void* data, int64_t columns, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(2 * size_of(dtype)) == 0 && columns % 2 == 0;
}
inline bool whole_pieces(const void* data, int64_t columns, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * size_of(dtype) % 16 == 0;
}

KAN_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cuda
}  // namespace kan
