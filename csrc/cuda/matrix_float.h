// TF32, and float32 as three TF32 products: policies with the interface of HalfMatrix (matrix.h).
#pragma once

#include "matrix.h"

namespace kan {
namespace cuda {

// A float32 number as two TF32 numbers: high + low = value to 21 bits, where the matrix units ignore the last bits of
// low. Three instructions, where the conversion of round_tf32 alone is four on some cards. Low of what is infinite or
// NaN is NaN ...
struct Split {
  uint32_t high, low;
  KAN_DEVICE explicit Split(float value) {
    high = (float_as_bits(value) + 0x1000u) & 0xffffe000u;
    low = float_as_bits(value - bits_as_float(high));
  }
};
// ... but a base value, which an infinite x makes: it is all low, for high would meet the other operand's low part, and
// infinity times 0 is NaN.
struct GuardedSplit {
  uint32_t high, low;
  KAN_DEVICE explicit GuardedSplit(float value) {
    const Split parts(value);
    const bool infinite = std::fabs(bits_as_float(parts.high)) == INFINITY;
    low = infinite ? parts.high : parts.low;
    high = infinite ? 0 : parts.high;
  }
};

template <bool Strict>
struct FloatMatrix {
  using Element = float;
  static constexpr DType kStored = DType::f32;
  static constexpr int kSteps = 4;
  static constexpr bool kQuick = !Strict, kPlain = false;
  static constexpr int kTiles = Strict ? 1 : 2;  // a split operand takes twice the registers
  static constexpr int kRowPadding = 0;

  static KAN_DEVICE float load(const MatrixView& m, int64_t row, int64_t column) {
    return static_cast<const float*>(m.data)[row * m.row_stride + column * m.col_stride];
  }
  static KAN_DEVICE float load(const unsigned char* from, DType) { return *reinterpret_cast<const float*>(from); }
  static KAN_DEVICE void load_8(float (&value)[8], const unsigned char* from, DType) { load_8_floats(value, from); }

  static KAN_DEVICE float number(uint32_t raw, DType) { return bits_as_float(raw); }

  static constexpr int kPlacementBytes = 0;
  static KAN_DEVICE void fill_placement(unsigned char*) {}

  // An operand: rounded, where it stays in one piece.
  static KAN_DEVICE float round(float value) { return Strict ? value : bits_as_float(round_tf32(value)); }

  template <int N>
  struct Window {
    float value[N];
    KAN_DEVICE void fill(const float (&from)[N]) {
      KAN_UNROLL
      for (int j = 0; j < N; ++j) value[j] = round(from[j]);
    }
  };

  struct Row {
    float value[8];
    KAN_DEVICE void fill(const float (&from)[8]) {
      KAN_UNROLL
      for (int e = 0; e < 8; ++e) value[e] = round(from[e]);
    }
    // As for 16 bits, by the binary digits of first: one place up or not, two places up or not, then groups of four.
    template <int N>
    KAN_DEVICE void place(const Window<N>& window, int first, SharedAddress) {
      const bool odd = first & 1, two = first & 2;
      const int quad = first >> 2;
      float one[5], all[8];
      KAN_UNROLL
      for (int n = 0; n < 5; ++n) {
        const float here = n < N ? window.value[n < N ? n : 0] : 0.0f;
        one[n] = odd ? (n > 0 && n <= N ? window.value[n > 0 && n <= N ? n - 1 : 0] : 0.0f) : here;
      }
      KAN_UNROLL
      for (int n = 0; n < 8; ++n) {
        all[n] = two ? (n > 1 && n < 7 ? one[n > 1 && n < 7 ? n - 2 : 0] : 0.0f) : (n < 5 ? one[n < 5 ? n : 0] : 0.0f);
      }
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) {
        value[e] = quad == 0 ? all[e] : quad == -1 ? all[e + 4] : 0.0f;
        value[e + 4] = quad == 1 ? all[e] : quad == 0 ? all[e + 4] : 0.0f;
      }
    }
    KAN_DEVICE void change_sign(uint32_t sign) {
      KAN_UNROLL
      for (int e = 0; e < 8; ++e) value[e] = bits_as_float(float_as_bits(value[e]) ^ sign);
    }
  };

  static KAN_DEVICE void store(unsigned char* to, const Row& row) {
    KAN_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t word[4];
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) word[e] = float_as_bits(row.value[4 * half + e]);
      store_16_bytes(to + 16 * half, word);
    }
  }
  static KAN_DEVICE void store(unsigned char* to, float value) { *reinterpret_cast<float*>(to) = round(value); }

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

  static KAN_DEVICE int offset(int group_stride, int) { return lane_index() % 4 * group_stride + lane_index() / 4 * 4; }

  // The tensor core cuts its sums short, so strict products start from zero at each step and are added by the ordinary,
  // correctly rounded addition.
  template <int M, int N>
  static KAN_DEVICE void multiply_chunk(float (&sums)[M][N][4], const Left (&left)[M], SharedAddress mine,
                                        int row_stride) {
    if constexpr (!Strict) {
      KAN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        uint32_t high[M][4];
        KAN_UNROLL
        for (int m = 0; m < M; ++m) {
          KAN_UNROLL
          for (int e = 0; e < 4; ++e) high[m][e] = float_as_bits(left[m].a[s][e]);
        }
        multiply_step<M, N>(sums, high, high, mine + 2 * s * row_stride, row_stride);
      }
    } else {
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
        multiply_step<M, N>(sums, high, low, mine + 2 * s * row_stride, row_stride);
      }
    }
  }

  // As for 16 bits.
  template <int N>
  struct Ready {
    uint32_t high[N], low[Strict ? N : 1];
    KAN_DEVICE void fill(const uint32_t (&raw)[N]) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        if constexpr (Strict) {
          const Split parts(bits_as_float(raw[n]));
          high[n] = parts.high, low[n] = parts.low;
        } else {
          high[n] = round_tf32(bits_as_float(raw[n]));
        }
      }
    }
    template <bool Base>  // they are rounded; an infinite x makes infinite base values
    KAN_DEVICE void fill_values(const uint32_t (&raw)[N]) {
      if constexpr (Strict && !Base) {
        fill(raw);
      } else {
        KAN_UNROLL
        for (int n = 0; n < N; ++n) {
          high[n] = raw[n];
          if constexpr (Strict) {
            const GuardedSplit parts(bits_as_float(raw[n]));
            high[n] = parts.high, low[n] = parts.low;
          }
        }
      }
    }
    KAN_DEVICE void choose(bool second, const Ready& other) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        high[n] = second ? other.high[n] : high[n];
        if constexpr (Strict) low[n] = second ? other.low[n] : low[n];
      }
    }
  };
  static KAN_DEVICE void product(float (&d)[4], const Ready<4>& a, const Ready<2>& b) {
    if constexpr (Strict) {
      float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma_tf32(part, a.low, b.high[0], b.high[1]);
      mma_tf32(part, a.high, b.low[0], b.low[1]);
      mma_tf32(part, a.high, b.high[0], b.high[1]);
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) d[e] += part[e];
    } else {
      mma_tf32(d, a.high, b.high[0], b.high[1]);
    }
  }
  static constexpr int kDepth = 8;
  static KAN_DEVICE int left_offset(int stride) { return lane_index() % 4 * stride + lane_index() / 4 * 4; }
  static KAN_DEVICE int right_offset(int stride) { return left_offset(stride); }
  static KAN_DEVICE void load_left(uint32_t (&word)[4], SharedAddress at, int stride) {
    load_number(word[0], at), load_number(word[1], at + 32);
    load_number(word[2], at + 4 * stride), load_number(word[3], at + 4 * stride + 32);
  }
  static KAN_DEVICE void load_right(uint32_t (&word)[4], SharedAddress at, int stride) {
    load_number(word[0], at), load_number(word[1], at + 4 * stride);
    load_number(word[2], at + 32), load_number(word[3], at + 4 * stride + 32);
  }

 private:
  static KAN_DEVICE void load_number(uint32_t& word, SharedAddress from) {
    uint32_t one[1];
    load_shared(one, from);
    word = one[0];
  }

  // Two rows of each group.
  template <int M, int N>
  static KAN_DEVICE void multiply_step(float (&sums)[M][N][4], const uint32_t (&high)[M][4],
                                       const uint32_t (&low)[M][4], SharedAddress right, int row_stride) {
    KAN_UNROLL
    for (int n = 0; n < N; ++n) {
      uint32_t b0[1], b1[1];
      load_shared(b0, right + n * 32);
      load_shared(b1, right + row_stride + n * 32);
      multiply<M, N>(sums, n, high, low, bits_as_float(b0[0]), bits_as_float(b1[0]));
    }
  }

  static KAN_DEVICE void split(const float (&value)[4], uint32_t (&high)[4], uint32_t (&low)[4]) {
    KAN_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (Strict) {
        const GuardedSplit parts(value[e]);
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
