// The rows of matrices in one block of features: read where they lie if that can be, and written past the caches.
#pragma once

#include "tiles.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kCopiedFloats = 1 << 14;  // of one matrix that is not read where it lies

// The rows of a matrix in one block of features: where they lie if whole vectors of them can be read there, else
// copies.
class BlockRows {
 public:
  static int64_t floats(int64_t rows) { return rows * kTileColumns; }

  // copy: floats(rows of a part) numbers; n: features.
  BlockRows(const MatrixView& matrix, int64_t i, int64_t n, float* copy) : matrix_(matrix), i_(i), n_(n), copy_(copy) {
    in_place_ = matrix.dtype == DType::f32 && matrix.col_stride == 1 && n % Simd<float>::lanes == 0;
  }
  void read(int64_t row0, int64_t rows) {
    if (in_place_) {
      data_ = static_cast<const float*>(matrix_.data) + row0 * matrix_.row_stride + i_, stride_ = matrix_.row_stride;
      return;
    }
    const MatrixView transposed{matrix_.data, matrix_.dtype, matrix_.col_stride, matrix_.row_stride};
    read_transposed(copy_, kTileColumns, transposed, i_, n_, row0, rows);
    for (int64_t b = 0; n_ % Simd<float>::lanes != 0 && b < rows; ++b) {
      for (int64_t f = n_; f % Simd<float>::lanes != 0; ++f) copy_[b * kTileColumns + f] = 0.0f;
    }
    data_ = copy_, stride_ = kTileColumns;
  }
  const float* row(int64_t b) const { return data_ + b * stride_; }
  int64_t stride() const { return stride_; }
  // Asks for a row that is read soon; behind the last row of a tile, for one of the next block.
  KAN_HD void fetch(int64_t b, int64_t rows) const {
    if (!in_place_) return;
    const float* const from = b < rows ? row(b) : row(b - rows) + kTileColumns;
    for (int64_t f = 0; f < n_; f += 16) __builtin_prefetch(from + f);
  }

 private:
  const MatrixView matrix_;
  const int64_t i_, n_;
  float* const copy_;
  bool in_place_;
  const float* data_ = nullptr;
  int64_t stride_ = 0;
};

// Where a kernel puts rows of a block, `stride` numbers apart.
struct RowTarget {
  float* to;
  int64_t stride;
  bool streamed;

  KAN_HD void put(int64_t row, int64_t f, Vec<float> v) const {
    float* const p = to + row * stride + f;
    streamed ? stream(p, v) : store(p, v);
  }
};

constexpr int64_t kStreamedRows = 4;  // at a time: the lines of more are not whole before they leave the core

// Writes rows of a block to a contiguous matrix of `total` numbers, some at a time: whole vectors where they belong,
// past the caches where none of them would hold the matrix; else by way of copies.
class RowWriter {
 public:
  // copies: of `rows` rows of kTileColumns.
  RowWriter(void* out, DType dtype, int64_t row_stride, int64_t total, int64_t n, int64_t rows, float* copies)
      : out_(out), dtype_(dtype), row_stride_(row_stride), n_(n), rows_(rows), copies_(copies) {
    const bool whole = dtype == DType::f32 && n % Simd<float>::lanes == 0;
    streamed_ = whole && is_streamed(static_cast<const float*>(out), row_stride, total);
    in_place_ = whole && (!streamed_ || rows <= kStreamedRows);
  }
  // Of the rows from an offset on.
  RowTarget target(int64_t offset) const {
    if (!in_place_) return {copies_, kTileColumns, false};
    return {static_cast<float*>(out_) + offset, row_stride_, streamed_};
  }
  // Ends what was put there.
  void finish_rows(int64_t offset) const {
    for (int64_t r = 0; !in_place_ && r < rows_; ++r, offset += row_stride_) {
      const float* const row = copies_ + r * kTileColumns;
      if (!streamed_) {
        write_row(out_, dtype_, offset, row, n_);
        continue;
      }
      float* const to = static_cast<float*>(out_) + offset;
      for (int64_t f = 0; f < n_; f += Simd<float>::lanes) stream(to + f, load(row + f));
    }
  }
  void finish() const {
    if (streamed_) finish_streams();
  }

 private:
  void* const out_;
  const DType dtype_;
  const int64_t row_stride_, n_, rows_;
  float* const copies_;
  bool in_place_, streamed_;
};

// Of so many rows copies of a matrix for each head are held.
inline int64_t rows_of_part(int64_t heads) {
  return max64(1, min64(kTileRows, kCopiedFloats / (kTileColumns * max64(1, heads))));
}

}  // namespace KAN_ISA
}  // namespace kan
