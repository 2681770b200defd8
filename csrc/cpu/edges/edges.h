// Sums over the rows that describe a layer's edges: the Gram matrix of the basis, mean and deviation of phi, and the
// mean of |phi|.
#pragma once

#include <memory>

#include "cpu/linear/blocking.h"

namespace kan {
namespace KAN_ISA {

void edge_gram(const cpu::GramArgs& args, const cpu::Executor& executor);
void edge_gram_grad_input(const cpu::GramInputArgs& args, const cpu::Executor& executor);
void edge_moments(const cpu::MomentsArgs& args, const cpu::Executor& executor);
void edge_moments_backward(const cpu::MomentsBackwardArgs& args, const cpu::Executor& executor);
void edge_l1(const cpu::EdgeL1Args& args, const cpu::Executor& executor);
void edge_l1_backward(const cpu::EdgeL1BackwardArgs& args, const cpu::Executor& executor);

// How the rows of all features are cut: tasks are blocks of features times splits of the rows, so that every task
// owns its sums; the splits come from the shape alone.
struct Sweep {
  static constexpr int64_t kFeatures = 16;  // of one block: their columns of x are read together
  static constexpr int64_t kTasks = 16;     // features alone make so many tasks, or the rows are split too
  static constexpr int64_t kLeastRows = 2048;

  int64_t block, blocks, splits, rows_per_split;

  Sweep(const Shape& s, int64_t sums_of_a_feature) {
    block = max64(1, min64(kFeatures, s.in / kTasks));
    blocks = ceil_div(s.in, block);
    splits = row_splits<double>(s, ceil_div(kTasks, max64(1, blocks)), kLeastRows, s.in * sums_of_a_feature);
    rows_per_split = ceil_div(s.batch, splits);
  }
  int64_t tasks() const { return blocks * splits; }
};

// What one task holds of x: the columns of a block of features, and one of them sorted by cell.
template <class T>
struct SweepRows {
  SortedRows<T> sorted;
  T *x, *row_scale;  // [block][kRowStride]

  static size_t bytes(const Sweep& sweep, int n_knots) {
    return SortedRows<T>::bytes(n_knots) + 2 * Arena::bytes_for<T>(sweep.block * kRowStride);
  }
  SweepRows(Arena& arena, const Sweep& sweep, int n_knots) {
    sorted.take(arena, n_knots);
    x = arena.take<T>(sweep.block * kRowStride);
    row_scale = arena.take<T>(sweep.block * kRowStride);
  }
};

// body(i0, features, split, row0, rows) for every block of rows of one task.
template <class Body>
void for_row_blocks(const Sweep& sweep, const Shape& s, int64_t task, Body body) {
  const int64_t i0 = task / sweep.splits * sweep.block, features = min64(sweep.block, s.in - i0);
  const int64_t split = task % sweep.splits, first = min64(s.batch, split * sweep.rows_per_split);
  const int64_t last = min64(s.batch, first + sweep.rows_per_split);
  for (int64_t row0 = first; row0 < last; row0 += kMaxRows) {
    body(i0, features, split, row0, min64(kMaxRows, last - row0));
  }
}

// The first n lanes of a vector, zeros behind them.
template <class T>
KAN_HD Vec<T> load_first(const T* p, int n) {
  constexpr int L = Simd<T>::lanes;
  alignas(64) T lane[L] = {};
  for (int l = 0; l < n; ++l) lane[l] = p[l];
  return load(lane);
}

}  // namespace KAN_ISA
}  // namespace kan
