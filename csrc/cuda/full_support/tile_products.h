// Products of two tiles in shared memory, whose sums a block of 256 threads keeps in registers: policies of the tile
// kernels. Tiles are rows of `Element`s, `stride` elements apart; a stride is a whole number of 16-byte pieces.
//
//   Down<Rows>     sums (Rows x Columns) += left' right, left depth x Rows, right depth x Columns
//   Across<Rows>   sums (Rows x 64) += left right', left Rows x depth, right 64 x depth
//
// each(f) calls f(row, column, sum) for the sums of a thread.
#pragma once

#include "cuda/matrix.h"

namespace kan {
namespace cuda {

constexpr int kTileThreads = 256;

// Elements from one row of a tile to the next: so that neighbouring rows begin in different banks.
template <class Element>
KAN_HD constexpr int tile_stride(int columns) {
  return columns + 16 / int(sizeof(Element));
}

// N neighbours, in pieces of up to 16 bytes.
template <int N, class T>
KAN_DEVICE void load_numbers(T (&to)[N], const T* from) {
  constexpr int kBytes = N * int(sizeof(T)) % 16 == 0 ? 16 : N * int(sizeof(T)) % 8 == 0 ? 8 : int(sizeof(T));
  constexpr int kEach = kBytes / int(sizeof(T));
  struct alignas(kBytes) Piece {
    T number[kEach];
  };
  KAN_UNROLL
  for (int n = 0; n < N / kEach; ++n) {
    const Piece piece = reinterpret_cast<const Piece*>(from)[n];
    KAN_UNROLL
    for (int e = 0; e < kEach; ++e) to[kEach * n + e] = piece.number[e];
  }
}

// Multiply-adds of T, float or double, one instruction each. 16 x 16 threads share a tile.
template <class T, int Columns>
struct ScalarProduct {
  using Number = T;
  using Element = T;
  static constexpr int kColumns = Columns;
  static constexpr int kForwardRows = 512 / int(sizeof(T)), kBackwardRows = 256 / int(sizeof(T));
  static constexpr int kDepth = 1;  // what Down's depth must be a multiple of

  static KAN_DEVICE Element narrow(Number value) { return value; }
  static KAN_DEVICE Element load(const void* data, DType dtype, int64_t at) {
    return sizeof(T) == 8 ? static_cast<const T*>(data)[at] : load_as<T>(data, dtype, at);
  }

  template <int Rows>
  struct Down {
    static constexpr int M = Rows / 16, N = Columns / 16;
    T sums[M][N] = {};

    KAN_DEVICE void multiply(const T* left, int left_stride, const T* right, int right_stride, int depth) {
      left += thread_index() / 16 * M, right += thread_index() % 16 * N;
      for (int k = 0; k < depth; ++k, left += left_stride, right += right_stride) {
        T l[M], r[N];
        load_numbers<M>(l, left);
        load_numbers<N>(r, right);
        KAN_UNROLL
        for (int m = 0; m < M; ++m) {
          KAN_UNROLL
          for (int n = 0; n < N; ++n) sums[m][n] += l[m] * r[n];
        }
      }
    }
    template <class F>
    KAN_DEVICE void each(F f) const {
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        KAN_UNROLL
        for (int n = 0; n < N; ++n) f(thread_index() / 16 * M + m, thread_index() % 16 * N + n, sums[m][n]);
      }
    }
  };

  template <int Rows>
  struct Across {
    static constexpr int M = Rows / 16, N = 4, kPiece = 16 / int(sizeof(T));
    T sums[M][N] = {};

    KAN_DEVICE void multiply(const T* left, int left_stride, const T* right, int right_stride, int depth) {
      left += thread_index() / 16 * left_stride, right += thread_index() % 16 * right_stride;
      for (int k = 0; k < depth; k += kPiece) {
        T l[M][kPiece];
        KAN_UNROLL
        for (int m = 0; m < M; ++m) load_numbers<kPiece>(l[m], left + 16 * m * left_stride + k);
        KAN_UNROLL
        for (int n = 0; n < N; ++n) {
          T r[kPiece];
          load_numbers<kPiece>(r, right + 16 * n * right_stride + k);
          KAN_UNROLL
          for (int m = 0; m < M; ++m) {
            KAN_UNROLL
            for (int e = 0; e < kPiece; ++e) sums[m][n] += l[m][e] * r[e];
          }
        }
      }
    }
    template <class F>
    KAN_DEVICE void each(F f) const {
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        KAN_UNROLL
        for (int n = 0; n < N; ++n) f(thread_index() / 16 + 16 * m, thread_index() % 16 + 16 * n, sums[m][n]);
      }
    }
  };
};

// bfloat16 or float16 operands on matrix units, sums in float. Warps share a tile: kDown x 8 / kDown of them.
template <bool Brain, int Columns>
struct HalfProduct {
  using Number = float;
  using Element = uint16_t;
  using Matrix = HalfMatrix<Brain>;
  static constexpr int kColumns = Columns;
  static constexpr int kForwardRows = Columns > 64 ? 64 : 128, kBackwardRows = 64;  // as the registers allow
  static constexpr int kDepth = 16;

  static KAN_DEVICE Element narrow(Number value) { return Element(Matrix::pack(value, 0.0f)); }
  static KAN_DEVICE Element load(const void* data, DType, int64_t at) { return static_cast<const Element*>(data)[at]; }

  template <int Rows>
  struct Down {
    static constexpr int kDown = Columns == 16 && Rows == 128 ? 8 : 4, kAcross = 8 / kDown;
    static constexpr int M = Rows / 16 / kDown, N = Columns / 8 / kAcross;
    float sums[M][N][4] = {};

    static KAN_DEVICE int first_row() { return warp_index() % kDown * 16 * M; }
    static KAN_DEVICE int first_column() { return warp_index() / kDown * 8 * N; }
    KAN_DEVICE void multiply(const Element* left, int left_stride, const Element* right, int right_stride, int depth) {
      Matrix::template multiply_columns<M, N>(sums, bytes(left + first_row()), 2 * left_stride,
                                              bytes(right + first_column()), 2 * right_stride, depth);
    }
    template <class F>
    KAN_DEVICE void each(F f) const {
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        KAN_UNROLL
        for (int n = 0; n < N; ++n) {
          KAN_UNROLL
          for (int e = 0; e < 4; ++e) {
            f(first_row() + 16 * m + lane_index() / 4 + 8 * (e / 2),
              first_column() + 8 * n + 2 * (lane_index() % 4) + e % 2, sums[m][n][e]);
          }
        }
      }
    }
  };

  template <int Rows>
  struct Across {
    static constexpr int M = Rows / 64, N = 4;
    float sums[M][N][4] = {};

    static KAN_DEVICE int first_row() { return warp_index() % 4 * 16 * M; }
    static KAN_DEVICE int first_column() { return warp_index() / 4 * 8 * N; }
    KAN_DEVICE void multiply(const Element* left, int left_stride, const Element* right, int right_stride, int depth) {
      Matrix::template multiply_rows<M, N>(sums, bytes(left + first_row() * left_stride), 2 * left_stride,
                                           bytes(right + first_column() * right_stride), 16 * right_stride,
                                           2 * right_stride, depth);
    }
    template <class F>
    KAN_DEVICE void each(F f) const {
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        KAN_UNROLL
        for (int n = 0; n < N; ++n) {
          KAN_UNROLL
          for (int e = 0; e < 4; ++e) {
            // the columns' order is that of multiply_rows
            f(first_row() + 16 * m + lane_index() / 4 + 8 * (e / 2),
              first_column() + 8 * (lane_index() % 4) + 2 * n + e % 2, sums[m][n][e]);
          }
        }
      }
    }
  };

 private:
  static KAN_DEVICE const unsigned char* bytes(const Element* at) { return reinterpret_cast<const unsigned char*>(at); }
};

}  // namespace cuda
}  // namespace kan
