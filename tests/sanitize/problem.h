// What the sanitized checks share: random problems on heap buffers of exactly the right size, and plain loops over a
// textbook Cox-de Boor recursion.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace sanitize {

using kan::DType;

struct Random {
  uint64_t state;
  uint64_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  }
  int below(int n) { return int(next() % uint64_t(n)); }
  double real(double low, double high) { return low + (high - low) * double(next()) / 2147483648.0; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(int(values.size()))];
  }
};

inline size_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

inline uint16_t to_half(float value) {  // rounds toward zero: any 16-bit number will do here
  uint32_t u;
  std::memcpy(&u, &value, 4);
  const uint32_t sign = u >> 16 & 0x8000;
  const int exponent = int(u >> 23 & 0xff) - 112;
  if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (exponent <= 0) return uint16_t(sign);
  if (exponent >= 31) return uint16_t(sign | 0x7c00);
  return uint16_t(sign | uint32_t(exponent) << 10 | (u >> 13 & 0x3ff));
}

inline double from_half(uint16_t h) {
  const double sign = h & 0x8000 ? -1.0 : 1.0;
  const int exponent = h >> 10 & 31, fraction = h & 0x3ff;
  if (exponent == 31) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(fraction, -24) : sign * std::ldexp(1024 + fraction, exponent - 25);
}

// A heap block of exactly `count` elements; every byte 0xff until it is set.
struct Buffer {
  DType type;
  size_t count;
  std::unique_ptr<unsigned char[]> data;
  Buffer(DType type, size_t count) : type(type), count(count), data(new unsigned char[count * bytes_of(type)]) {
    std::memset(data.get(), 0xff, count * bytes_of(type));
  }
  void set(size_t n, double value) {
    unsigned char* at = data.get() + n * bytes_of(type);
    const float single = float(value);
    uint32_t u;
    std::memcpy(&u, &single, 4);
    uint16_t h = uint16_t(u >> 16);  // bfloat16 by truncation
    if (type == DType::f16) h = to_half(single);
    if (type == DType::f64) {
      std::memcpy(at, &value, 8);
    } else if (type == DType::f32) {
      std::memcpy(at, &single, 4);
    } else {
      std::memcpy(at, &h, 2);
    }
  }
  double get(size_t n) const {
    const unsigned char* at = data.get() + n * bytes_of(type);
    if (type == DType::f64) {
      double value;
      std::memcpy(&value, at, 8);
      return value;
    }
    uint32_t u = 0;
    if (type == DType::f32) {
      std::memcpy(&u, at, 4);
    } else {
      uint16_t h;
      std::memcpy(&h, at, 2);
      if (type == DType::f16) return from_half(h);
      u = uint32_t(h) << 16;
    }
    float single;
    std::memcpy(&single, &u, 4);
    return single;
  }
  bool unwritten(size_t n) const {
    const unsigned char* at = data.get() + n * bytes_of(type);
    return std::all_of(at, at + bytes_of(type), [](unsigned char byte) { return byte == 0xff; });
  }
};

// A matrix with strides, in the smallest block that holds it.
struct Matrix {
  int64_t rows, cols, row_stride, col_stride;
  Buffer buffer;
  static size_t extent(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
    return rows && cols ? size_t((rows - 1) * row_stride + (cols - 1) * col_stride + 1) : 0;
  }
  Matrix(DType type, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride)
      : rows(rows),
        cols(cols),
        row_stride(row_stride),
        col_stride(col_stride),
        buffer(type, extent(rows, cols, row_stride, col_stride)) {}
  size_t at(int64_t r, int64_t c) const { return size_t(r * row_stride + c * col_stride); }
  double get(int64_t r, int64_t c) const { return buffer.get(at(r, c)); }
  void set(int64_t r, int64_t c, double value) { buffer.set(at(r, c), value); }
  kan::MatrixView view() const { return {buffer.data.get(), buffer.type, row_stride, col_stride}; }
};

inline Matrix make_matrix(Random& random, DType type, int64_t rows, int64_t cols) {
  const int layout = random.below(6);
  if (layout == 0) return {type, rows, cols, 1, std::max<int64_t>(rows, 1)};  // transposed
  if (layout == 1) return {type, rows, cols, 2 * cols + 3, 2};                // a slice of a larger one
  if (layout == 2) return {type, rows, cols, 0, 1};                           // one row for all
  if (layout == 3) return {type, rows, cols, 1, 0};                           // one column for all
  return {type, rows, cols, cols, 1};
}

// B_r^{(m)}(x), r = 0 .. knots-order-2, by the textbook recursion with 0/0 = 0.
inline std::vector<double> basis(const std::vector<double>& t, int order, int m, double x) {
  std::vector<double> value(t.size() - 1);
  for (size_t j = 0; j + 1 < t.size(); ++j) value[j] = t[j] <= x && x < t[j + 1] && m <= order ? 1.0 : 0.0;
  const auto ratio = [](double a, double b) { return b == 0 ? 0.0 : a / b; };
  for (int p = 1; p <= order; ++p) {
    for (size_t j = 0; j + size_t(p) + 1 < t.size(); ++j) {
      const double left = t[j + p] - t[j], right = t[j + p + 1] - t[j + 1];
      value[j] = p > order - m ? p * (ratio(value[j], left) - ratio(value[j + 1], right))
                               : ratio((x - t[j]) * value[j], left) + ratio((t[j + p + 1] - x) * value[j + 1], right);
    }
    value.pop_back();
  }
  return value;
}

inline double sigmoid_derivative(double x, int m) {
  std::vector<double> s(size_t(m) + 1);
  s[0] = 1 / (1 + std::exp(-x));
  for (int n = 0; n < m; ++n) {  // s' = s (1 - s), by Leibniz
    double binomial = 1, sum = s[n];
    for (int i = 0; i <= n; ++i) {
      sum -= binomial * s[i] * s[n - i];
      binomial = binomial * (n - i) / (i + 1);
    }
    s[n + 1] = sum;
  }
  return s[m];
}

inline double base_derivative(int base, double x, int m) {
  if (base == 1) return x * sigmoid_derivative(x, m) + (m ? m * sigmoid_derivative(x, m - 1) : 0.0);
  return base == 0 ? 0.0 : m == 0 ? x : m == 1 ? 1.0 : 0.0;
}

inline void run_serially(int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context) {
  body(0, tasks, context);
}

inline void run_on_threads(int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> pool;
  const int64_t share = std::max<int64_t>(1, (tasks + 2) / 3);
  for (int64_t begin = 0; begin < tasks; begin += share) {
    pool.emplace_back(body, begin, std::min(tasks, begin + share), context);
  }
  for (std::thread& thread : pool) thread.join();
}

// One thread, or three.
inline kan::cpu::Executor make_executor(Random& random) {
  return random.below(3) ? kan::cpu::Executor{run_serially, 1} : kan::cpu::Executor{run_on_threads, 3};
}

struct Problem {
  Random random;
  kan::Layer layer;
  DType x_type, compute;
  int m;
  bool special;  // x holds NaN or infinities: only the memory, and where NaN must be, is checked
  std::vector<std::vector<double>> t;

  explicit Problem(uint64_t seed) : random{seed * 7919 + 1} {
    for (int n = 0; n < 8; ++n) random.next();
    const DType storage = random.pick({DType::f32, DType::f32, DType::f64, DType::bf16, DType::f16});
    layer.weight_dtype = storage;
    x_type = bytes_of(storage) == 2 && random.below(2) ? DType::f32 : storage;
    compute = storage == DType::f64 ? DType::f64 : DType::f32;
    const int size = random.below(10);
    layer.batch = size < 7 ? random.below(40) : size == 7 ? 1024 + random.below(400) : random.below(700);
    layer.in_features = 1 + random.below(size == 9 ? 90 : 9);
    layer.out_features = random.pick({1, 2, 3, 5, 7, 8, 10, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 129, 257});
    const int cells = random.pick({1, 2, 3, 4, 5, 5, 7, 8, 20, 64, 100});
    layer.order = random.pick({3, 3, 3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10});
    layer.functions = cells + layer.order;
    layer.base = random.below(3);
    m = bytes_of(storage) == 2 ? random.below(2) : random.pick({0, 0, 0, 1, 2, 3, 4, 12});
    if (cells > 8) m = std::min(m, 1);
    special = random.below(8) == 0;
    const int kind = random.below(4);
    for (int64_t i = 0; i < layer.in_features; ++i) {
      std::vector<double> row;
      double at = -1.0 - 2.0 * layer.order / cells;
      for (int j = 0; j < layer.knots(); ++j) {
        row.push_back(double(float(at)));
        const double gap = kind == 0         ? 1.0
                           : kind == 1       ? random.real(0.3, 1.7)
                           : random.below(3) ? random.real(0.5, 1.5)
                                             : 0;
        at += 2.0 / cells * gap;
      }
      t.push_back(row);
    }
  }

  double point(int64_t i) {
    const std::vector<double>& row = t[size_t(i)];
    const int kind = random.below(special ? 7 : 5);
    if (kind == 4) return row[size_t(random.below(int(row.size())))];
    if (kind == 5) return random.pick<double>({INFINITY, -INFINITY, NAN});
    if (kind == 6) return random.pick<double>({3e38, -3e38, 1e-40, -0.0});
    const double low = row.front(), high = row.back(), margin = kind == 3 ? 1.0 : 0.0;
    return random.real(low - margin, high + margin);
  }
};

// What a check of some kernels starts from: a problem that was drawn, and its sizes.
struct Drawn {
  const kan::cpu::KernelTable& kernels;
  uint64_t seed;
  Problem p;
  int64_t B = p.layer.batch, I = p.layer.in_features, O = p.layer.out_features, R = p.layer.functions;
};

inline int failures = 0;

// Compares one result with the plain loops. `scale` is the same sum over absolute values. `lost`: it must be NaN.
inline void compare(const char* isa, uint64_t seed, const char* what, const Problem& p, const Buffer& got, size_t n,
                    double want, double scale, bool lost) {
  const double eps = bytes_of(got.type) == 2 ? 1e-2 : p.compute == DType::f64 ? 1e-11 : 3e-4;
  const bool close = p.special || std::fabs(got.get(n) - want) <= eps * scale + 1e-30;
  const bool wrong = got.unwritten(n) || (lost ? !std::isnan(got.get(n)) : !close);
  if (!wrong || (got.type == DType::f16 && scale > 6e4)) return;
  if (++failures < 20) {
    std::printf("%s seed %llu %s[%zu]: got %g, expected %g (B %d I %d O %d R %d k %d m %d base %d)\n", isa,
                (unsigned long long)seed, what, n, got.get(n), want, int(p.layer.batch), int(p.layer.in_features),
                int(p.layer.out_features), p.layer.functions, p.layer.order, p.m, p.layer.base);
  }
}

void check_sums(const kan::cpu::KernelTable& kernels, uint64_t seed);         // sums.cpp
void check_bases(const kan::cpu::KernelTable& kernels, uint64_t seed);        // bases.cpp
void check_images(const kan::cpu::KernelTable& kernels, uint64_t seed);       // images.cpp
void check_activations(const kan::cpu::KernelTable& kernels, uint64_t seed);  // activations.cpp
void check_norms(const kan::cpu::KernelTable& kernels, uint64_t seed);        // norms.cpp
void check_sizes(const kan::cpu::KernelTable& kernels, uint64_t seed);        // sizes.cpp

}  // namespace sanitize
