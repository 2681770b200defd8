// Splines on uniform knots, for operands of at most 11 bits: the cell is a floor and the values are fixed polynomials.
//
// Only for derivatives m < k, where the functions are continuous: a cell found an ulp off costs an ulp. Whether the
// knots are uniform is decided by the kernels themselves, from the knots, at every call.
#pragma once

#include "storage.h"

namespace kan {
namespace cuda {

constexpr int kUniformOrder = 3;
constexpr int kPanel = 32;  // inputs whose knots are looked at together

// Of a cell: how far a knot may be from its uniform place. It moves a value by less than 2^-14, an eighth of what
// rounding a TF32 operand may. Farther than kFarthest cells from 0, x scale + offset no longer tells where x is.
constexpr float kUniformTolerance = 1.0f / 16384.0f, kFarthest = 1024.0f;

// Of one input: x scale + offset counts cells from the first knot, where the knots are uniform.
struct alignas(16) Line {
  float scale, offset;
  int uniform;
};

// Of the m-th derivative of the k+1 functions on one cell, with the cell as unit: function j is sum_n c[j][n] p^n in
// the position p = u in the cell, 0 <= u < 1, or, for 2 j < k, p = 1 - u: there no power cancels another.
struct Polynomials {
  float c[kUniformOrder + 1][kUniformOrder + 1];
};
Polynomials uniform_polynomials(int order, int derivative);

// Written by all threads of a block, for inputs i0 .. i0+31; missing ones repeat the last. A line's flag speaks for all
// inputs that one warp looks at, so that it is the same for four neighbours.
template <int Threads>
KAN_DEVICE void fill_lines(Line* lines, const float* grid, int n_knots, int64_t i0, int64_t n_inputs, bool allowed) {
  constexpr int kEach = Threads / kPanel;  // threads that share an input
  const int input = thread_index() / kEach, last = n_knots - 1;
  const float* knots = grid + (i0 + input < n_inputs ? i0 + input : n_inputs - 1) * n_knots;
  const float begin = knots[0], end = knots[last], scale = float(last) / (end - begin), offset = -begin * scale;
  bool good = allowed && end > begin && std::fabs(offset) <= kFarthest && std::fabs(end * scale) <= kFarthest;
  KAN_ROLLED
  for (int q = thread_index() % kEach; q < last; q += kEach) {
    good = good && std::fabs((knots[q] - begin) * scale - float(q)) <= kUniformTolerance;
  }
  const bool bad = any_in_warp(!good);
  if (thread_index() % kEach == 0) lines[input] = {scale, offset, bad ? 0 : 1};
}

// The cell of x, and its k+1 values in units of scale^m; outside the knots a cell that does not exist, and finite
// values. NaN is the caller's.
template <int K>
KAN_DEVICE int uniform_values(const Polynomials& polynomials, const Line& line, float x, float (&value)[K + 1]) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: numbers about it are whole
  const float y = x * line.scale + line.offset, whole = add_down(y, kShift);
  const float u = saturate(y - (whole - kShift)), mirrored = 1.0f - u;
  KAN_UNROLL
  for (int j = 0; j <= K; ++j) {
    const float p = 2 * j < K ? mirrored : u;
    value[j] = polynomials.c[j][K];
    KAN_UNROLL
    for (int n = K - 1; n >= 0; --n) value[j] = value[j] * p + polynomials.c[j][n];
  }
  return int(float_as_bits(whole) - float_as_bits(kShift));
}

}  // namespace cuda
}  // namespace kan
