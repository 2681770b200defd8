// Matrix instructions as policies of the dense kernels' tile loops: bfloat16, float16, TF32, and float32 as three TF32
// products.
//
// The contracted dimension goes in chunks of 32: 4 groups of 8 rows. Its order is free as long as both operands agree,
// so group t belongs to the lanes with lane % 4 = t: over the chunk each of them holds exactly the 8 rows of its group,
// for the matrix rows lane/4 and lane/4 + 8. A spline's 8 rows of one input are thus made by one thread from one
// evaluation, and the permuted rows of the other operand cost nothing: they are in its addresses.
#pragma once

#include "storage.h"

namespace kan {
namespace cuda {

// Left operand of 16 x 32, made from values: low[e], high[e] are rows lane/4 and lane/4 + 8 at row e of the group.
template <bool Brain>
struct HalfMatrix {
  using Element = uint16_t;
  static constexpr int kSteps = 2;        // instructions that cover a chunk
  static constexpr bool kQuick = true;    // the operands' rounding hides that of a quick logistic function
  static constexpr int kTiles = 2;        // of 16 rows, of one warp of the forward kernel
  static constexpr int kRowPadding = 16;  // bytes: rows of the right operand start in different banks

  // x is stored in float32 or in the same 16 bits.
  static KAN_DEVICE float load(const MatrixView& m, int64_t row, int64_t column) {
    const int64_t at = row * m.row_stride + column * m.col_stride;
    if (m.dtype == DType::f32) return static_cast<const float*>(m.data)[at];
    const uint16_t bits = static_cast<const uint16_t*>(m.data)[at];
    return Brain ? bits_as_float(uint32_t(bits) << 16) : f16_to_float(bits);
  }
  static KAN_DEVICE uint32_t pack(float low, float high) { return Brain ? pack_bf16(low, high) : pack_f16(low, high); }
  static KAN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (Brain) {
      mma_bf16(d, a, b0, b1);
    } else {
      mma_f16(d, a, b0, b1);
    }
  }

  // One of the two matrix rows: 8 numbers of the group, packed.
  struct Row {
    uint32_t word[4];
    KAN_DEVICE void fill(const float (&value)[8]) {
      KAN_UNROLL
      for (int w = 0; w < 4; ++w) word[w] = pack(value[2 * w], value[2 * w + 1]);
    }
    // value[0..N) at rows first.. of the group, zero elsewhere; first may lie outside of it. N <= 4.
    template <int N>
    KAN_DEVICE void place(const float (&value)[N], int first) {
      const uint32_t even0 = pack(value[0], N > 1 ? value[N > 1 ? 1 : 0] : 0.0f);
      const uint32_t even1 = N > 2 ? pack(value[N > 2 ? 2 : 0], N > 3 ? value[N > 3 ? 3 : 0] : 0.0f) : 0;
      const bool odd = first & 1;
      const int at = (first - (odd ? 1 : 0)) / 2;
      const uint32_t w0 = odd ? even0 << 16 : even0;
      const uint32_t w1 = odd ? even0 >> 16 | even1 << 16 : even1;
      const uint32_t w2 = odd ? even1 >> 16 : 0;
      KAN_UNROLL
      for (int w = 0; w < 4; ++w) word[w] = w == at ? w0 : w == at + 1 ? w1 : w == at + 2 ? w2 : 0;
    }
  };

  // The row's 8 numbers, and one number, to shared memory.
  static KAN_DEVICE void store(unsigned char* to, const Row& row) {
    uint32_t* out = reinterpret_cast<uint32_t*>(to);
    KAN_UNROLL
    for (int w = 0; w < 4; ++w) out[w] = row.word[w];
  }
  static KAN_DEVICE void store(unsigned char* to, float value) {
    *reinterpret_cast<uint16_t*>(to) = uint16_t(pack(value, 0.0f));
  }

  struct Left {
    uint32_t a[kSteps][4];
    KAN_DEVICE void join(const Row& low, const Row& high) {
      KAN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        a[s][0] = low.word[2 * s], a[s][1] = high.word[2 * s];
        a[s][2] = low.word[2 * s + 1], a[s][3] = high.word[2 * s + 1];
      }
    }
  };

  // The backward kernel's two products, whose operands all lie in shared memory, rows `stride` bytes apart.
  // sums += left (16 M x depth) right', where right holds 8 N rows of length depth as in multiply_chunk: column 2 t + e
  // of 8-column tile n is row 2 n + e of group t.
  template <int M, int N>
  static KAN_DEVICE void multiply_rows(float (&sums)[M][N][4], const unsigned char* left, int stride,
                                       const unsigned char* right, int group_stride, int row_stride, int depth) {
    const int lane = lane_index(), q = lane / 8, j = lane % 8;
    const unsigned char* a_row = left + (j + 8 * (q & 1)) * stride + (q / 2) * 16;
    const unsigned char* b_row =
        right + (j / 2) * group_stride + (2 * (N > 1 ? q / 2 : 0) + (j & 1)) * row_stride + (q & 1) * 16;
    for (int k = 0; k < depth; k += 16) {
      uint32_t a[M][4];
      KAN_UNROLL
      for (int m = 0; m < M; ++m) load_matrices(a[m], a_row + 16 * m * stride + 2 * k);
      KAN_UNROLL
      for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        load_matrices(b, b_row + 2 * n * row_stride + 2 * k);
        KAN_UNROLL
        for (int m = 0; m < M; ++m) {
          multiply(sums[m][n], a[m], b[0], b[1]);
          if (n + 1 < N) multiply(sums[m][n + 1 < N ? n + 1 : n], a[m], b[2], b[3]);
        }
      }
    }
  }
  // sums += left' right, left depth x 16 M, right depth x 8 N.
  template <int M, int N>
  static KAN_DEVICE void multiply_columns(float (&sums)[M][N][4], const unsigned char* left, int left_stride,
                                          const unsigned char* right, int right_stride, int depth) {
    const int lane = lane_index(), q = lane / 8, j = lane % 8;
    const unsigned char* a_row = left + (j + 8 * (q / 2)) * left_stride + (q & 1) * 16;
    const unsigned char* b_row = right + (j + 8 * (q & 1)) * right_stride + (N > 1 ? q / 2 : 0) * 16;
    for (int k = 0; k < depth; k += 16) {
      uint32_t a[M][4];
      KAN_UNROLL
      for (int m = 0; m < M; ++m) load_matrices_transposed(a[m], a_row + k * left_stride + m * 32);
      KAN_UNROLL
      for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, b_row + k * right_stride + n * 16);
        KAN_UNROLL
        for (int m = 0; m < M; ++m) {
          multiply(sums[m][n], a[m], b[0], b[1]);
          if (n + 1 < N) multiply(sums[m][n + 1 < N ? n + 1 : n], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Adds left (16 M x 32) times right (32 x 8 N) to sums. right: group t, row e at group_stride t + row_stride e bytes.
  template <int M, int N>
  static KAN_DEVICE void multiply_chunk(float (&sums)[M][N][4], const Left (&left)[M], const unsigned char* right,
                                        int group_stride, int row_stride) {
    const int lane = lane_index(), q = lane / 8, j = lane % 8;
    const unsigned char* mine = right + (j / 2) * group_stride + (2 * (q & 1) + (j & 1)) * row_stride + (q / 2) * 16;
    KAN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      KAN_UNROLL
      for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, mine + 4 * s * row_stride + n * 16);
        KAN_UNROLL
        for (int m = 0; m < M; ++m) {
          multiply(sums[m][n], left[m].a[s], b[0], b[1]);
          multiply(sums[m][n + 1], left[m].a[s], b[2], b[3]);
        }
      }
    }
  }
};

// A float32 number as two TF32 numbers: high + low = value to 21 bits. An infinite one is all low: high would meet the
// other operand's low part, and infinity times 0 is NaN.
struct Split {
  uint32_t high, low;
  KAN_DEVICE explicit Split(float value) {
    high = round_tf32(value);
    const bool infinite = (high & 0x7fffffffu) == 0x7f800000u;
    low = infinite ? high : round_tf32(value - bits_as_float(high));
    high = infinite ? 0 : high;
  }
};

template <bool Strict>
struct FloatMatrix {
  using Element = float;
  static constexpr int kSteps = 4;
  static constexpr bool kQuick = !Strict;
  static constexpr int kTiles = Strict ? 1 : 2;  // a split operand takes twice the registers
  static constexpr int kRowPadding = 0;

  static KAN_DEVICE float load(const MatrixView& m, int64_t row, int64_t column) {
    return static_cast<const float*>(m.data)[row * m.row_stride + column * m.col_stride];
  }

  struct Row {
    float value[8];
    KAN_DEVICE void fill(const float (&from)[8]) {
      KAN_UNROLL
      for (int e = 0; e < 8; ++e) value[e] = from[e];
    }
    template <int N>
    KAN_DEVICE void place(const float (&from)[N], int first) {
      // With masks: a chain of choices would be compiled to an array in local memory.
      uint32_t mask[8 + N - 1];
      KAN_UNROLL
      for (int d = 0; d < 8 + N - 1; ++d) mask[d] = first + N - 1 == d ? 0xffffffffu : 0;
      KAN_UNROLL
      for (int e = 0; e < 8; ++e) {
        uint32_t bits = 0;
        KAN_UNROLL
        for (int j = 0; j < N; ++j) bits |= mask[e - j + N - 1] & float_as_bits(from[j]);
        value[e] = bits_as_float(bits);
      }
    }
  };

  static KAN_DEVICE void store(unsigned char* to, const Row& row) {
    float* out = reinterpret_cast<float*>(to);
    KAN_UNROLL
    for (int e = 0; e < 8; ++e) out[e] = row.value[e];
  }
  static KAN_DEVICE void store(unsigned char* to, float value) { *reinterpret_cast<float*>(to) = value; }

  struct Left {
    float a[kSteps][4];
    KAN_DEVICE void join(const Row& low, const Row& high) {
      KAN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        a[s][0] = low.value[2 * s], a[s][1] = high.value[2 * s];
        a[s][2] = low.value[2 * s + 1], a[s][3] = high.value[2 * s + 1];
      }
    }
  };

  // The tensor core cuts its sums short, so strict products start from zero at each step and are added by the ordinary,
  // correctly rounded addition.
  template <int M, int N>
  static KAN_DEVICE void multiply_chunk(float (&sums)[M][N][4], const Left (&left)[M], const unsigned char* right,
                                        int group_stride, int row_stride) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const unsigned char* mine = right + t * group_stride + g * 4;
    float a[M][kSteps][4];
    KAN_UNROLL
    for (int m = 0; m < M; ++m) {
      KAN_UNROLL
      for (int e = 0; e < 4 * kSteps; ++e) a[m][e / 4][e % 4] = left[m].a[e / 4][e % 4];
    }
    // A real loop, whose operands move up: unrolled, all of its loads and splits would be made at once and not fit.
    KAN_ROLLED
    for (int s = 0; s < kSteps; ++s) {
      uint32_t high[M][4], low[M][4];
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        split(a[m][0], high[m], low[m]);
        KAN_UNROLL
        for (int e = 0; e < 4 * (kSteps - 1); ++e) a[m][e / 4][e % 4] = a[m][e / 4 + 1][e % 4];
      }
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        const float b0 = *reinterpret_cast<const float*>(mine + 2 * s * row_stride + n * 32);
        const float b1 = *reinterpret_cast<const float*>(mine + (2 * s + 1) * row_stride + n * 32);
        multiply<M, N>(sums, n, high, low, b0, b1);
      }
    }
  }

  // As for 16 bits. Here a thread's two columns of the contracted dimension are neighbours: one 8-byte load.
  template <int M, int N>
  static KAN_DEVICE void multiply_rows(float (&sums)[M][N][4], const unsigned char* left, int stride,
                                       const unsigned char* right, int group_stride, int row_stride, int depth) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const unsigned char* a_row = left + g * stride + 8 * t;
    const unsigned char* b_row = right + (g / 2) * group_stride + (g & 1) * row_stride + 8 * t;
    for (int k = 0; k < depth; k += 8) {
      uint32_t high[M][4], low[M][4];
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        const float* upper = reinterpret_cast<const float*>(a_row + 16 * m * stride + 4 * k);
        const float* lower = reinterpret_cast<const float*>(a_row + (16 * m + 8) * stride + 4 * k);
        const float a[4] = {upper[0], lower[0], upper[1], lower[1]};
        split(a, high[m], low[m]);
      }
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        const float* b = reinterpret_cast<const float*>(b_row + 2 * n * row_stride + 4 * k);
        multiply<M, N>(sums, n, high, low, b[0], b[1]);
      }
    }
  }
  template <int M, int N>
  static KAN_DEVICE void multiply_columns(float (&sums)[M][N][4], const unsigned char* left, int left_stride,
                                          const unsigned char* right, int right_stride, int depth) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const unsigned char* a_row = left + t * left_stride + 4 * g;
    const unsigned char* b_row = right + t * right_stride + 4 * g;
    for (int k = 0; k < depth; k += 8) {
      uint32_t high[M][4], low[M][4];
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        const float* upper = reinterpret_cast<const float*>(a_row + k * left_stride + 64 * m);
        const float* lower = reinterpret_cast<const float*>(a_row + (k + 4) * left_stride + 64 * m);
        const float a[4] = {upper[0], upper[8], lower[0], lower[8]};
        split(a, high[m], low[m]);
      }
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        const float b0 = *reinterpret_cast<const float*>(b_row + k * right_stride + 32 * n);
        const float b1 = *reinterpret_cast<const float*>(b_row + (k + 4) * right_stride + 32 * n);
        multiply<M, N>(sums, n, high, low, b0, b1);
      }
    }
  }

 private:
  static KAN_DEVICE void split(const float (&value)[4], uint32_t (&high)[4], uint32_t (&low)[4]) {
    KAN_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (Strict) {
        const Split parts(value[e]);
        high[e] = parts.high, low[e] = parts.low;
      } else {
        high[e] = round_tf32(value[e]);
      }
    }
  }

  template <int M, int N>
  static KAN_DEVICE void multiply(float (&sums)[M][N][4], int n, const uint32_t (&high)[M][4],
                                  const uint32_t (&low)[M][4], float b0, float b1) {
    if (!Strict) {
      const uint32_t r0 = round_tf32(b0), r1 = round_tf32(b1);
      KAN_UNROLL
      for (int m = 0; m < M; ++m) mma_tf32(sums[m][n], high[m], r0, r1);
      return;
    }
    const Split s0(b0), s1(b1);
    KAN_UNROLL
    for (int m = 0; m < M; ++m) {
      float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma_tf32(part, low[m], s0.high, s1.high);
      mma_tf32(part, high[m], s0.low, s1.low);
      mma_tf32(part, high[m], s0.high, s1.high);
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) sums[m][n][e] += part[e];
    }
  }
};

}  // namespace cuda
}  // namespace kan
