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

KAN_DEVICE void load_8_floats(float (&value)[8], const unsigned char* from) {
  KAN_UNROLL
  for (int half = 0; half < 2; ++half) {
    uint32_t word[4];
    load_16_bytes(word, from + 16 * half);
    KAN_UNROLL
    for (int e = 0; e < 4; ++e) value[4 * half + e] = bits_as_float(word[e]);
  }
}

// Left operand of 16 x 32, made from values: low[e], high[e] are rows lane/4 and lane/4 + 8 at row e of the group.
template <bool Brain>
struct HalfMatrix {
  using Element = uint16_t;
  static constexpr DType kStored = Brain ? DType::bf16 : DType::f16;
  static constexpr int kSteps = 2;        // instructions that cover a chunk
  static constexpr bool kQuick = true;    // the operands' rounding hides that of a quick logistic function
  static constexpr bool kPlain = true;    // the forward kernel has registers to spare
  static constexpr int kTiles = 2;        // of 16 rows, of one warp of the forward kernel
  static constexpr int kRowPadding = 16;  // bytes: rows of the right operand start in different banks

  // x is stored in float32 or in the same 16 bits.
  static KAN_DEVICE float load(const MatrixView& m, int64_t row, int64_t column) {
    const int64_t at = (row * m.row_stride + column * m.col_stride) * size_of(m.dtype);
    return load(static_cast<const unsigned char*>(m.data) + at, m.dtype);
  }
  static KAN_DEVICE float load(const unsigned char* from, DType dtype) {
    if (dtype == DType::f32) return *reinterpret_cast<const float*>(from);
    return widen(*reinterpret_cast<const uint16_t*>(from));
  }
  // A number from its bits.
  static KAN_DEVICE float number(uint32_t raw, DType dtype) {
    return dtype == DType::f32 ? bits_as_float(raw) : widen(raw);
  }
  static KAN_DEVICE float widen(uint32_t bits) {
    return Brain ? bits_as_float(bits << 16) : f16_to_float(uint16_t(bits));
  }
  // 8 neighbours, from an address that is a multiple of 16.
  static KAN_DEVICE void load_8(float (&value)[8], const unsigned char* from, DType dtype) {
    if (dtype == DType::f32) return load_8_floats(value, from);
    uint32_t word[4];
    load_16_bytes(word, from);
    KAN_UNROLL
    for (int e = 0; e < 8; ++e) value[e] = widen(word[e / 2] >> 16 * (e % 2) & 0xffffu);
  }
  static KAN_DEVICE uint32_t pack(float low, float high) { return Brain ? pack_bf16(low, high) : pack_f16(low, high); }
  static KAN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (Brain) {
      mma_bf16(d, a, b0, b1);
    } else {
      mma_f16(d, a, b0, b1);
    }
  }

  // For a window's place (first row + 4, or 12: outside) the selectors of a row's four words: 16 digits, those of the
  // window's 8 bytes in the midst of digits that stand for the sign of its last value, which is not negative.
  static constexpr int kPlacementBytes = 13 * 8;
  static KAN_DEVICE void fill_placement(unsigned char* placement) {
    const int at = thread_index();
    if (at > 12) return;
    uint64_t digits = 0;
    for (int byte = 15; byte >= 0; --byte) {
      const int from = byte - 2 * (at - 4);
      digits = digits << 4 | uint64_t(from >= 0 && from < 8 ? from : 15);
    }
    reinterpret_cast<uint64_t*>(placement)[at] = digits;
  }

  // A spline's k+1 values, N <= 4, of which the last is not negative.
  template <int N>
  struct Window {
    uint32_t word[2];
    KAN_DEVICE void fill(const float (&value)[N]) {
      word[0] = pack(value[0], N > 1 ? value[N > 1 ? 1 : 0] : 0.0f);
      word[1] = N > 2 ? pack(value[N > 2 ? 2 : 0], N > 3 ? value[N > 3 ? 3 : 0] : 0.0f) : 0;
    }
  };

  // One of the two matrix rows: 8 numbers of the group, packed.
  struct Row {
    uint32_t word[4];
    KAN_DEVICE void fill(const float (&value)[8]) {
      KAN_UNROLL
      for (int w = 0; w < 4; ++w) word[w] = pack(value[2 * w], value[2 * w + 1]);
    }
    // A window's values at rows first.. of the group, zero elsewhere; first may lie outside of it.
    template <int N>
    KAN_DEVICE void place(const Window<N>& window, int first, SharedAddress placement) {
      uint32_t digits[2];
      load_shared(digits, placement + 8 * least(uint32_t(first) + 4, 12));
      KAN_UNROLL
      for (int w = 0; w < 4; ++w) {
        word[w] = permute_bytes(window.word[0], window.word[1], digits[w / 2] >> 16 * (w % 2));
      }
    }
    KAN_DEVICE void change_sign(uint32_t sign) {  // the bit of a negative float, or 0
      const uint32_t both = sign | sign >> 16;
      KAN_UNROLL
      for (int w = 0; w < 4; ++w) word[w] ^= both;
    }
  };

  // The row's 8 numbers, and one number, to shared memory.
  static KAN_DEVICE void store(unsigned char* to, const Row& row) { store_16_bytes(to, row.word); }
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

  // What the backward kernels multiply, with both operands in shared memory. Ready: N words as they were loaded, made
  // ready once for all products they are in; product: of a left operand and two words of a right one.
  template <int N>
  struct Ready {
    uint32_t word[N];
    KAN_DEVICE void fill(const uint32_t (&raw)[N]) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) word[n] = raw[n];
    }
    template <bool Base>  // values of the basis, or of the base, as store() left them
    KAN_DEVICE void fill_values(const uint32_t (&raw)[N]) {
      fill(raw);
    }
    KAN_DEVICE void choose(bool second, const Ready& other) {  // other if so
      KAN_UNROLL
      for (int n = 0; n < N; ++n) word[n] = second ? other.word[n] : word[n];
    }
  };
  static KAN_DEVICE void product(float (&d)[4], const Ready<4>& a, const Ready<2>& b) {
    multiply(d, a.word, b.word[0], b.word[1]);
  }
  // Of left' right, kDepth rows of each, `stride` bytes apart: where a lane reads, and the left operand's 16 columns,
  // or 16 columns of the right one.
  static constexpr int kDepth = 16;
  static KAN_DEVICE int left_offset(int stride) {
    const int q = lane_index() / 8, j = lane_index() % 8;
    return (j + 8 * (q / 2)) * stride + (q & 1) * 16;
  }
  static KAN_DEVICE int right_offset(int stride) {
    const int q = lane_index() / 8, j = lane_index() % 8;
    return (j + 8 * (q & 1)) * stride + (q / 2) * 16;
  }
  static KAN_DEVICE void load_left(uint32_t (&word)[4], SharedAddress at, int) { load_matrices_transposed(word, at); }
  static KAN_DEVICE void load_right(uint32_t (&word)[4], SharedAddress at, int) { load_matrices_transposed(word, at); }

  // The two products of full-support layers, whose operands all lie in shared memory, rows `stride` bytes apart.
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

  // Adds left (16 M x 32) times right (32 x 8 N) to sums. mine: of right, whose group t, row e lies at group_stride t +
  // row_stride e bytes, what this lane reads first.
  static KAN_DEVICE int offset(int group_stride, int row_stride) {
    const int lane = lane_index(), q = lane / 8, j = lane % 8;
    return (j / 2) * group_stride + (2 * (q & 1) + (j & 1)) * row_stride + (q / 2) * 16;
  }
  template <int M, int N>
  static KAN_DEVICE void multiply_chunk(float (&sums)[M][N][4], const Left (&left)[M], SharedAddress mine,
                                        int row_stride) {
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

}  // namespace cuda
}  // namespace kan
