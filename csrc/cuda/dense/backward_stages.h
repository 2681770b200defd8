// What a block of the backward kernel owns, and its tiles on their way to shared memory.
#pragma once

#include "dense.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kChunks = 4, kOutputs = 64;
constexpr int kColumns = kChunks * kChunk;  // of the basis, in one block
constexpr int kBaseColumns = 16;            // of the base, behind them

// Shared memory of one block, in bytes. M: 16-row tiles of a warp; two warps share the rows of a tile.
template <class Matrix>
struct Layout {
  static constexpr int kSize = int(sizeof(typename Matrix::Element));
  static constexpr int M = kSize == 2 ? 2 : 1, kRows = 2 * 16 * M;
  static constexpr int kStride = kOutputs * kSize + (kSize == 2 ? 16 : 32);  // of g and of the coefficients
  static constexpr int kGroupStride = kGroupRows * kStride + (kSize == 2 ? 32 : 64);
  static constexpr int kBasisStride = (kColumns + kBaseColumns) * kSize + (kSize == 2 ? 16 : 96);
  static constexpr int kG = kRows * kStride;
  static constexpr int kCoefficients = kChunks * kGroups * kGroupStride + kBaseColumns * kStride;
  static constexpr int kBasis = kRows * kBasisStride;
  static constexpr int kSlopes = kChunks * kRows * kGroups * 4;

  static constexpr int kPlacement = (Matrix::kPlacementBytes + 15) / 16 * 16;
  static constexpr int kLines = Matrix::kQuick ? kPanel * int(sizeof(Line)) : 0;

  int g, coefficients, basis, slopes, placement, lines, tables, all;  // offsets
  // stages of g and of the coefficients
  KAN_HD Layout(bool input, bool weight, int g_stages, int coefficient_stages, int table_bytes) {
    g = 0;
    coefficients = g + g_stages * kG;
    basis = coefficients + (input ? coefficient_stages * kCoefficients : 0);
    slopes = basis + (weight ? kBasis : 0);
    placement = slopes + (input ? kSlopes : 0);
    lines = placement + kPlacement;
    tables = lines + kLines;
    all = tables + table_bytes;
  }
};

template <int K>
KAN_HD int table_bytes(const DenseArgs& a) {
  return kChunks / a.row_blocks * KnotTable<K>::size(a.layer.knots()) * 4;
}

// How many times over g and the coefficients lie in shared memory. The latter change only where there are several
// tiles of outputs.
template <class Matrix, int K>
KAN_HD int stages(const DenseArgs& a) {
  const bool tiles = a.input && a.layer.out_features > kOutputs;
  return Layout<Matrix>(a.input, a.d_spline, 2, tiles ? 2 : 1, table_bytes<K>(a)).all <= 96 * 1024 ? 2 : 1;
}

// Which inputs and coefficient rows a block owns.
struct Owned {
  int64_t i0;
  int row_blocks, block0;
  KAN_DEVICE explicit Owned(const DenseArgs& a) : row_blocks(a.row_blocks) {
    const int blocks = (a.layer.functions + kGroupRows - 1) / kGroupRows,
              parts = (blocks + row_blocks - 1) / row_blocks;
    i0 = int64_t(block_index_x() / parts) * (kChunks / row_blocks * kGroups);
    block0 = block_index_x() % parts * row_blocks;
  }
  KAN_DEVICE int64_t input(int chunk, int group) const { return i0 + chunk / row_blocks * kGroups + group; }
  KAN_DEVICE int block(int chunk) const { return block0 + chunk % row_blocks; }  // of 8 coefficient rows
};

template <class Matrix>
KAN_DEVICE void stage_g(const DenseArgs& a, unsigned char* to, int64_t b0, int64_t last, int64_t o0) {
  using Element = typename Matrix::Element;
  using L = Layout<Matrix>;
  constexpr int kPieces = kOutputs * L::kSize / 16;
  const Element* g = static_cast<const Element*>(a.g.data);
  KAN_ROLLED
  for (int piece = thread_index(); piece < L::kRows * kPieces; piece += kThreads) {
    const int row = piece / kPieces, column = piece % kPieces;
    const int64_t b = b0 + row, o = o0 + column * (16 / L::kSize);
    unsigned char* at = to + row * L::kStride + column * 16;
    const Element* from = g + b * a.g.row_stride + o * a.g.col_stride;
    const int64_t left = b < last ? a.layer.out_features - o : 0;
    if (a.aligned || a.g.col_stride == 1) {
      stage_piece(at, from, left, a.aligned);
    } else {
      KAN_ROLLED
      for (int n = 0; n < 16 / L::kSize; ++n) {
        reinterpret_cast<Element*>(at)[n] = n < left ? from[n * a.g.col_stride] : Element(0);
      }
    }
  }
}

template <class Matrix>
KAN_DEVICE void stage_coefficients(const DenseArgs& a, const Owned& owned, unsigned char* to, int64_t o0) {
  using Element = typename Matrix::Element;
  using L = Layout<Matrix>;
  constexpr int kPieces = kOutputs * L::kSize / 16;
  const int64_t out = a.layer.out_features;
  KAN_ROLLED
  for (int piece = thread_index(); piece < (kColumns + kBaseColumns) * kPieces; piece += kThreads) {
    const int row = piece / kPieces, column = piece % kPieces;
    const int64_t o = o0 + column * (16 / L::kSize);
    const Element* from = nullptr;
    int64_t left = 0;
    unsigned char* at = to + column * 16;
    if (row < kColumns) {
      const int chunk = row / kChunk, group = row / kGroupRows % kGroups, e = row % kGroupRows;
      const int64_t i = owned.input(chunk, group);
      const int r = owned.block(chunk) * kGroupRows + e;
      if (i < a.layer.in_features && r < a.layer.functions) {
        from = static_cast<const Element*>(a.layer.spline_weight) + (i * a.layer.functions + r) * out + o;
        left = out - o;
      }
      at += (chunk * kGroups + group) * L::kGroupStride + e * L::kStride;
    } else {
      const int chunk = (row - kColumns) / kGroups;
      const int64_t i = owned.input(chunk, row % kGroups);
      if (a.layer.base != kNoBase && i < a.layer.in_features && owned.block(chunk) == 0) {
        from = static_cast<const Element*>(a.layer.base_weight) + i * out + o;
        left = out - o;
      }
      at += kChunks * kGroups * L::kGroupStride + (row - kColumns) * L::kStride;
    }
    stage_piece(at, from, left, a.aligned);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace kan
