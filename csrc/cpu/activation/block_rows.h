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
  // Asks for a row that is read soon.
  KAN_HD void fetch(int64_t b) const {
    if (!in_place_) return;
    for (int64_t f = 0; f < n_; f += 16) __builtin_prefetch(row(b) + f);
  }

 private:
  const MatrixView& matrix_;
  const int64_t i_, n_;
  float* const copy_;
  bool in_place_;
  const float* data_ = nullptr;
  int64_t stride_ = 0;
};

// Writes rows of a block to a contiguous matrix of `total` numbers, past the caches where none of them would hold it.
class RowWriter {
 public:
  RowWriter(void* out, DType dtype, int64_t row_stride, int64_t total, int64_t n) : out_(out), dtype_(dtype), n_(n) {
    streamed_ = dtype == DType::f32 && n % Simd<float>::lanes == 0 &&
                is_streamed(static_cast<const float*>(out), row_stride, total);
  }
  void write(int64_t offset, const float* row) const {
    if (!streamed_) return write_row(out_, dtype_, offset, row, n_);
    float* const to = static_cast<float*>(out_) + offset;
    for (int64_t f = 0; f < n_; f += Simd<float>::lanes) stream(to + f, load(row + f));
  }
  void finish() const {
    if (streamed_) finish_streams();
  }

 private:
  void* const out_;
  const DType dtype_;
  const int64_t n_;
  bool streamed_;
};

// Of so many rows copies of a matrix for each head are held.
inline int64_t rows_of_part(int64_t heads) {
  return max64(1, min64(kTileRows, kCopiedFloats / (kTileColumns * max64(1, heads))));
}

}  // namespace KAN_ISA
}  // namespace kan
