// The coefficients on their way to the forward kernel: the order of its chunks, and a ring of stages in shared memory.
#pragma once

#include "dense.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

template <class Matrix, int N>
struct Stage {
  static constexpr int kColumns = 8 * N;
  static constexpr int kRowStride = kColumns * int(sizeof(typename Matrix::Element)) + Matrix::kRowPadding;
  static constexpr int kGroupStride = kGroupRows * kRowStride + 32;  // the four groups start in different banks
  static constexpr int kBytes = kGroups * kGroupStride;
  static constexpr int kCount = sizeof(typename Matrix::Element) == 2 ? 4 : 3;
  static constexpr int kPlacement = (Matrix::kPlacementBytes + 15) / 16 * 16;
};

// The inputs of one part, and how many chunks they make. Splines first: of four inputs, block after block of 8 rows.
// Then the base: 32 inputs, 8 neighbours to a group.
struct Chunks {
  int64_t first, last;
  int blocks;  // of 8 rows, of one input
  int splines, all;

  KAN_DEVICE Chunks(const DenseArgs& a, int64_t part) {
    first = part * a.part;
    last = first + a.part < a.layer.in_features ? first + a.part : a.layer.in_features;
    const int inputs = int(last - first);
    blocks = (a.layer.functions + kGroupRows - 1) / kGroupRows;
    splines = (inputs + kGroups - 1) / kGroups * blocks;
    all = splines + (a.layer.base != kNoBase ? (inputs + kChunk - 1) / kChunk : 0);
  }
};

// A place in the order of the chunks and what this thread copies there: kPasses pieces, kStep rows apart.
template <class Matrix, int N>
struct Stager {
  using Element = typename Matrix::Element;
  using S = Stage<Matrix, N>;
  static constexpr int kSize = int(sizeof(Element)), kPieces = S::kColumns * kSize / 16;  // of a row
  static constexpr int kStep = kThreads / kPieces, kPasses = kChunk / kStep;
  static_assert(kStep % 4 == 0 && kChunk % kStep == 0, "a thread's rows keep their place in a group, or half of it");

  const unsigned char* from;         // this thread's first piece
  SharedAddress to;                  // of the first stage
  int64_t group_bytes, chunk_bytes;  // between groups of one chunk, chunks of different inputs
  int limit;                         // the piece of pass n is of an input that exists while n kStep < limit
  int rows;                          // of the group that exist, from the first piece's on
  int left, spline_left;             // chunks
  int block = 0, blocks, place = 0;  // place: bytes, in the ring of stages

  KAN_DEVICE Stager(const DenseArgs& a, const Chunks& chunks, const unsigned char* stages)
      : left(chunks.all), spline_left(chunks.splines) {
    to = keep(stages + offset());
    if (spline_left > 0) {
      start(a, chunks, a.layer.spline_weight, a.layer.functions, chunks.blocks, a.layer.functions);
    } else {
      start(a, chunks, a.layer.base_weight, kGroupRows, 1, 1);
    }
  }
  static KAN_DEVICE int64_t row_bytes(const DenseArgs& a) { return a.layer.out_features * kSize; }
  static KAN_DEVICE int offset() {
    const int row = thread_index() / kPieces;
    return row / kGroupRows * S::kGroupStride + row % kGroupRows * S::kRowStride + thread_index() % kPieces * 16;
  }
  // Of the row, from this thread's pieces on.
  static KAN_DEVICE int columns(const DenseArgs& a) {
    const int64_t o = int64_t(block_index_y()) * S::kColumns + thread_index() % kPieces * (16 / kSize);
    const int64_t rest = a.layer.out_features - o;
    return rest < 0 ? 0 : rest < S::kColumns ? int(rest) : S::kColumns;
  }
  // of_group, of_input: rows of memory from one group, or one input, to the next.
  KAN_DEVICE void start(const DenseArgs& a, const Chunks& chunks, const void* weight, int of_group, int n_blocks,
                        int of_input) {
    const int row = thread_index() / kPieces, group = row / kGroupRows, e = row % kGroupRows;
    const int64_t first = chunks.first * of_input + group * of_group + e;
    from = static_cast<const unsigned char*>(weight) + first * row_bytes(a) +
           (int64_t(block_index_y()) * S::kColumns * kSize + thread_index() % kPieces * 16);
    group_bytes = of_group * row_bytes(a);
    chunk_bytes = kGroups * group_bytes - (n_blocks - 1) * kGroupRows * row_bytes(a);
    const int inputs = int(chunks.last - chunks.first);
    limit = columns(a) == 0 ? 0 : of_input > 1 ? (inputs - group) * kGroupRows : inputs - row;
    rows = of_group - e;
    blocks = n_blocks;
  }

  // Copies a chunk and goes on to the next.
  KAN_DEVICE void next(const DenseArgs& a, const Chunks& chunks, bool aligned) {
    if (left > 0) copy(a, aligned);
    commit_copies();
    place = place < (S::kCount - 1) * S::kBytes ? place + S::kBytes : 0;
    --left;
    if (--spline_left == 0) {
      start(a, chunks, a.layer.base_weight, kGroupRows, 1, 1);
    } else if (++block < blocks) {
      from += kGroupRows * row_bytes(a), rows -= kGroupRows;
    } else {
      from += chunk_bytes, rows += (blocks - 1) * kGroupRows, limit -= kChunk, block = 0;
    }
  }

 private:
  // Calls copy(where in the stage, from, exists) for pass n and moves `piece` on to the next.
  template <class Copy>
  KAN_DEVICE void pass(const DenseArgs& a, int n, const unsigned char*& piece, Copy copy) const {
    const int below = n * kStep % kGroupRows, down = n * kStep / kGroupRows;
    copy(place + down * S::kGroupStride + below * S::kRowStride, piece, n * kStep < limit && below < rows);
    if (kStep >= kGroupRows) {
      piece += kStep / kGroupRows * group_bytes;
    } else {
      piece += below == 0 ? kStep * row_bytes(a) : group_bytes - kStep * row_bytes(a);
    }
  }
  KAN_DEVICE void copy(const DenseArgs& a, bool aligned) const {
    const unsigned char* piece = from;
    if (aligned) {
      KAN_UNROLL
      for (int n = 0; n < kPasses; ++n) {
        pass(a, n, piece, [&](int at, const void* what, bool exists) { copy_async(to + at, what, exists ? 16 : 0); });
      }
      return;
    }
    KAN_ROLLED
    for (int n = 0; n < kPasses; ++n) {
      pass(a, n, piece, [&](int at, const void* what, bool exists) {
        copy_elements(reinterpret_cast<Element*>(shared_memory() + offset() + at), static_cast<const Element*>(what),
                      exists ? columns(a) : 0);
      });
    }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace kan
