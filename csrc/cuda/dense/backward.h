// What the two backward kernels share: which inputs and coefficient rows a block owns, and how they make splines.
#pragma once

#include "dense.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

// A block's columns are chunks of 4 groups of 8: `row_blocks` (1, 2 or 4) groups to an input, of neighbouring chunks. A
// slot is a group of a chunk.
struct Owned {
  int64_t i0;
  int log, block0;  // log2 of row_blocks

  KAN_DEVICE Owned(const DenseArgs& a, int chunks, int block) : log(a.row_blocks >> 1) {
    const int blocks = (a.layer.functions + kGroupRows - 1) / kGroupRows, parts = (blocks + a.row_blocks - 1) >> log;
    const int owner = block / parts;
    i0 = int64_t(owner) * (chunks >> log) * kGroups;
    block0 = (block - owner * parts) << log;
  }
  // Of the block's inputs, a slot's.
  KAN_DEVICE int local(int slot) const { return (slot / kGroups >> log) * kGroups + slot % kGroups; }
  KAN_DEVICE int64_t input(int slot) const { return i0 + local(slot); }
  // The block of 8 coefficient rows.
  KAN_DEVICE int block(int slot) const { return block0 + (slot / kGroups & ((1 << log) - 1)); }
};

// The splines at numbers of one input: its line, if it may be used, or the table of its knots and its place in that.
template <class Matrix, int K, bool Quick, int Rows>
KAN_DEVICE void make_splines(Spline<Matrix, K> (&spline)[Rows], const DenseArgs& a, const Polynomials& polynomials,
                             const Line& line, const float* table, int t, const float (&numbers)[Rows], bool scaled,
                             const float (&of_rows)[Rows], int derivative) {
  if (Quick && line.uniform) {
    evaluate_uniform(spline, polynomials, line, a.layer.knots(), numbers, scaled, of_rows, derivative);
    return;
  }
  // A real loop, whose numbers go around: this code is long.
  float x[Rows], scale[Rows];
  KAN_UNROLL
  for (int n = 0; n < Rows; ++n) x[n] = numbers[n], scale[n] = of_rows[n], spline[n] = {};
  KAN_ROLLED
  for (int n = 0; n < Rows; ++n) {
    const float now = x[0], now_scale = scale[0];
    KAN_UNROLL
    for (int up = 0; up < Rows - 1; ++up) x[up] = x[up + 1], scale[up] = scale[up + 1], spline[up] = spline[up + 1];
    x[Rows - 1] = now, scale[Rows - 1] = now_scale;
    spline[Rows - 1].evaluate(table, a.layer.knots(), t, now, now_scale, derivative);
  }
}

template <class M, int K>
struct Operands {
  using Matrix = M;
  static constexpr int kOrder = K;
};

// Calls run(Operands<Matrix, K>) for a layer's dtype and order.
template <class Run>
void with_operands(const DenseArgs& a, Run run) {
  const auto with_order = [&](auto matrix) {
    using Matrix = typename decltype(matrix)::Matrix;
    if (a.layer.order == 1) return run(Operands<Matrix, 1>{});
    if (a.layer.order == 2) return run(Operands<Matrix, 2>{});
    run(Operands<Matrix, 3>{});
  };
  switch (a.layer.weight_dtype) {
    case DType::bf16: return with_order(Operands<HalfMatrix<true>, 0>{});
    case DType::f16: return with_order(Operands<HalfMatrix<false>, 0>{});
    default:
      if (a.tf32) return with_order(Operands<FloatMatrix<false>, 0>{});
      with_order(Operands<FloatMatrix<true>, 0>{});
  }
}

}  // namespace
}  // namespace cuda
}  // namespace kan
