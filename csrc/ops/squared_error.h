// The mean squared error of a prediction, and its cotangent in the prediction's place, on the CPU.
#pragma once

#include <type_traits>

#include "products.h"

namespace kan {
namespace ops {

// y: (rows, columns), contiguous; becomes the cotangent 2 (y - target) / (rows * columns). value: one number, NaN
// without any. Both have the dtype of the target.
inline void squared_error(const MatrixView& target, int64_t rows, int64_t columns, void* y, void* value) {
  constexpr int64_t kPart = 256;
  with_type(target.dtype, [&](auto type) {
    using T = decltype(type);
    using Number = std::conditional_t<std::is_same_v<T, double>, double, float>;
    T* at = static_cast<T*>(y);
    const double count = double(rows) * double(columns);
    const Number twice = Number(2.0 / count);
    double sum = 0.0, part = 0.0;  // in parts, so that rounding stays small beside many numbers
    int64_t left = kPart;
    for (int64_t row = 0; row < rows; ++row) {
      const T* wanted = static_cast<const T*>(target.data) + row * target.row_stride;
      for (int64_t n = 0; n < columns; ++n, ++at, wanted += target.col_stride) {
        const Number residual = Number(*at) - Number(*wanted);
        part += double(residual) * double(residual);
        *at = T(residual * twice);
        if (--left == 0) sum += part, part = 0.0, left = kPart;
      }
    }
    *static_cast<T*>(value) = T(Number((sum + part) / count));
  });
}

}  // namespace ops
}  // namespace kan
