// Reading and writing storage types (16-bit, strided) at the edges; kernels see only contiguous float or double.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace kan {
namespace KAN_ISA {

KAN_HD int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
KAN_HD int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
KAN_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

KAN_HD int item_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

KAN_HD float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
KAN_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

struct Bfloat16 {
  uint16_t bits;
  KAN_HD operator float() const { return bits_to_float(uint32_t(bits) << 16); }
  static KAN_HD Bfloat16 from(float value) {  // round to nearest even; NaN stays NaN
    const uint32_t u = float_to_bits(value);
    const bool nan = (u & 0x7fffffff) > 0x7f800000;
    return {uint16_t(nan ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16)};
  }
};

struct Float16 {
  uint16_t bits;
  KAN_HD operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
    // Scaling by 2^112 moves the exponent bias and normalises subnormals exactly.
    return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 5.192296858534828e33f));
  }
  static KAN_HD Float16 from(float value) {  // round to nearest even
    const uint32_t u = float_to_bits(value), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
    if (magnitude < 0x38800000) {  // subnormal: the addition rounds at the right bit
      return {uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000))};
    }
    return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
  }
};

// out[0..n) = convert(in[0..n)), in pieces of a length that the compiler knows and turns into vectors.
template <class T, class S, class Convert>
KAN_HD void convert_row(T* out, const S* in, int64_t n, Convert&& convert) {
  constexpr int64_t kPiece = 16;
  int64_t i = 0;
  for (; i + kPiece <= n; i += kPiece) {
    for (int64_t j = 0; j < kPiece; ++j) out[i + j] = convert(in[i + j]);
  }
  for (; i < n; ++i) out[i] = convert(in[i]);
}

template <class T, class S>
KAN_HD void convert_in(T* out, const S* in, int64_t n, int64_t stride) {
  if (stride == 1) return convert_row(out, in, n, [](S value) { return T(value); });
  for (int64_t i = 0; i < n; ++i) out[i] = T(in[i * stride]);
}

// Rows here are short: vectors beat the string instructions that a plain loop of copies compiles to.
template <class T>
KAN_HD void copy_row(T* out, const T* in, int64_t n) {
  constexpr int L = Simd<T>::lanes;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(out + i, load(in + i));
  for (; i < n; ++i) {
    out[i] = in[i];
    __asm__ volatile("" ::: "memory");  // or the tail becomes a call of memcpy
  }
}

// total[0..n) += part[0..n)
template <class T>
KAN_HD void add_row(T* total, const T* part, int64_t n) {
  constexpr int L = Simd<T>::lanes;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(total + i, load(total + i) + load(part + i));
  for (; i < n; ++i) total[i] += part[i];
}

template <class T>
KAN_HD void fill_row(T* out, T value, int64_t n) {
  constexpr int L = Simd<T>::lanes;
  const Vec<T> values = broadcast(value);
  int64_t i = 0;
  for (; i + L <= n; i += L) store(out + i, values);
  for (; i < n; ++i) out[i] = value;
}

KAN_HD void convert_in(float* out, const float* in, int64_t n, int64_t stride) {
  if (stride == 1) return copy_row(out, in, n);
  for (int64_t i = 0; i < n; ++i) out[i] = in[i * stride];
}
KAN_HD void convert_in(double* out, const double* in, int64_t n, int64_t stride) {
  if (stride == 1) return copy_row(out, in, n);
  for (int64_t i = 0; i < n; ++i) out[i] = in[i * stride];
}

// out[0..n) = in[offset + i * stride], converted.
template <class T>
inline void read_row(T* out, const void* in, DType dtype, int64_t offset, int64_t n, int64_t stride) {
  switch (dtype) {
    case DType::f32: return convert_in(out, static_cast<const float*>(in) + offset, n, stride);
    case DType::f64: return convert_in(out, static_cast<const double*>(in) + offset, n, stride);
    case DType::bf16: return convert_in(out, static_cast<const Bfloat16*>(in) + offset, n, stride);
    case DType::f16: return convert_in(out, static_cast<const Float16*>(in) + offset, n, stride);
  }
}

// out[offset + i] = in[0..n), rounded to the storage type.
template <class T>
inline void write_row(void* out, DType dtype, int64_t offset, const T* in, int64_t n) {
  switch (dtype) {
    case DType::f32: return convert_in(static_cast<float*>(out) + offset, in, n, 1);
    case DType::f64: return convert_in(static_cast<double*>(out) + offset, in, n, 1);
    case DType::bf16:
      return convert_row(static_cast<Bfloat16*>(out) + offset, in, n, [](T v) { return Bfloat16::from(float(v)); });
    case DType::f16:
      return convert_row(static_cast<Float16*>(out) + offset, in, n, [](T v) { return Float16::from(float(v)); });
  }
}

template <class T, class S>
inline void transpose_in(T* out, int64_t ld, const S* in, int64_t row_stride, int64_t rows, int64_t col_stride,
                         int64_t cols) {
  if (row_stride == 1) {
    for (int64_t c = 0; c < cols; ++c) convert_in(out + c * ld, in + c * col_stride, rows, 1);
    return;
  }
  int64_t r = 0;
  if constexpr (std::is_same_v<T, S>) {
    constexpr int64_t L = Simd<T>::lanes;
    const int64_t whole = cols / L * L;
    for (; col_stride == 1 && whole > 0 && r + L <= rows; r += L) {
      for (int64_t c = 0; c < whole; c += L) {
        transpose_square(out + c * ld + r, ld, in + r * row_stride + c, row_stride);
      }
    }
    if (r > 0 && whole < cols) transpose_in(out + whole * ld, ld, in + whole, row_stride, r, col_stride, cols - whole);
  }
  constexpr int64_t kRows = 8;  // of one line of the output at a time
  for (; r + kRows <= rows; r += kRows) {
    for (int64_t c = 0; c < cols; ++c) {
      T* line = out + c * ld + r;
      const S* column = in + r * row_stride + c * col_stride;
      KAN_UNROLL
      for (int64_t j = 0; j < kRows; ++j) line[j] = T(column[j * row_stride]);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) out[c * ld + r] = T(in[r * row_stride + c * col_stride]);
  }
}

// A tile of a matrix, transposed: out[c * ld + r] = in[row0 + r, col0 + c].
template <class T>
inline void read_transposed(T* out, int64_t ld, const MatrixView& in, int64_t row0, int64_t rows, int64_t col0,
                            int64_t cols) {
  const int64_t offset = row0 * in.row_stride + col0 * in.col_stride;
  const auto read = [&](const auto* data) {
    transpose_in(out, ld, data + offset, in.row_stride, rows, in.col_stride, cols);
  };
  switch (in.dtype) {
    case DType::f32: return read(static_cast<const float*>(in.data));
    case DType::f64: return read(static_cast<const double*>(in.data));
    case DType::bf16: return read(static_cast<const Bfloat16*>(in.data));
    case DType::f16: return read(static_cast<const Float16*>(in.data));
  }
}

// Rows of a matrix from at most `Widest` columns: out[(row0 + b) * row_stride + column + c] = columns[c * ld + b].
template <int64_t Widest, class T>
inline void write_rows(void* out, DType dtype, int64_t row_stride, const T* columns, int64_t ld, int64_t row0,
                       int64_t rows, int64_t column, int64_t n) {
  constexpr int64_t kRows = 16;  // at a time
  T lines[kRows * Widest];
  for (int64_t b0 = 0; b0 < rows; b0 += kRows) {
    const int64_t count = min64(kRows, rows - b0);
    transpose_in(lines, Widest, columns + b0, ld, n, 1, count);
    for (int64_t b = 0; b < count; ++b) {
      write_row(out, dtype, (row0 + b0 + b) * row_stride + column, lines + b * Widest, n);
    }
  }
}

// Columns of a block of rows, padded to whole vectors with zeros.
template <class T>
inline void read_columns(T* columns, int64_t ld, const MatrixView& in, int64_t row0, int64_t rows, int64_t column,
                         int64_t n) {
  read_transposed(columns, ld, in, row0, rows, column, n);
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t b = rows; b % Simd<T>::lanes != 0; ++b) columns[c * ld + b] = T(0);
  }
}

// A bump allocator of 64-byte aligned scratch, one a thread, kept between calls while it is small.
class Arena {
 public:
  // One may be alive in a thread, and one that is shared: for what a call holds while its tasks have the other, here
  // too.
  explicit Arena(size_t bytes, bool shared = false) : bytes_(bytes + 64), cached_(cached(shared)) {
    Buffer& cache = cached_;
    if (cache.size < bytes_) {
      ::operator delete(cache.data);
      cache = {nullptr, 0};
      cache = {::operator new(bytes_), bytes_};
    }
    const uintptr_t start = reinterpret_cast<uintptr_t>(cache.data);
    next_ = reinterpret_cast<char*>((start + 63) & ~uintptr_t(63));
  }
  ~Arena() {
    Buffer& cache = cached_;
    if (cache.size > kKeep) {
      ::operator delete(cache.data);
      cache = {nullptr, 0};
    }
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class U>
  U* take(int64_t n) {
    U* p = reinterpret_cast<U*>(next_);
    next_ += bytes_for<U>(n);
    return p;
  }
  template <class U>
  static size_t bytes_for(int64_t n) {
    return (size_t(n) * sizeof(U) + 63) & ~size_t(63);
  }

 private:
  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
    ~Buffer() { ::operator delete(data); }
    Buffer() = default;
    Buffer(void* d, size_t s) : data(d), size(s) {}
    Buffer& operator=(Buffer&& other) {
      data = other.data, size = other.size;
      other.data = nullptr, other.size = 0;
      return *this;
    }
  };
  static Buffer& cached(bool shared) {
    static thread_local Buffer buffers[2];
    return buffers[shared];
  }
  static constexpr size_t kKeep = size_t(8) << 20;
  size_t bytes_;
  Buffer& cached_;
  char* next_;
};

}  // namespace KAN_ISA
}  // namespace kan
