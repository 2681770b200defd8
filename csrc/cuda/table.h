// The knots of 4 neighbouring inputs in shared memory, with the reciprocals that the spline triangle divides by.
//
// Numbers of one knot lie side by side for the 4 inputs. Ends are padded by repetition, so no index needs a clamp.
#pragma once

#include "evaluate.h"

namespace kan {
namespace cuda {

template <int K>
struct KnotTable {
  static constexpr int kPad = K - 1;  // repeated knots at each end

  static KAN_HD int padded(int n_knots) { return n_knots + 2 * kPad; }
  static KAN_HD int size(int n_knots) { return 4 * (K + 1) * padded(n_knots) + 4; }  // floats

  // Written by all `threads` threads of a block: the knots of inputs i0 .. i0+3. Missing inputs repeat the last.
  static KAN_DEVICE void fill(float* table, const float* grid, int n_knots, int64_t i0, int64_t n_inputs, int thread,
                              int threads) {
    const int length = padded(n_knots);
    for (int e = thread; e < 4 * length; e += threads) {
      const int64_t i = i0 + e % 4 < n_inputs ? i0 + e % 4 : n_inputs - 1;
      const float* knots = grid + i * n_knots;
      const int q = e / 4 - kPad;
      const float knot = knots[clamp(q, n_knots)];
      table[e] = knot;
      KAN_ROLLED
      for (int p = 1; p <= K; ++p) {
        const float width = knots[clamp(q + p, n_knots)] - knot;
        table[4 * p * length + e] = width > 0.0f ? 1.0f / width : 0.0f;
      }
      if (e / 4 == 0) {  // what turns x - first knot into a guess of the cell
        const float span = knots[n_knots - 1] - knots[0];
        table[4 * (K + 1) * length + e] = span > 0.0f ? float(n_knots - 1) / span : 0.0f;
      }
    }
  }

  // The cell of x for input t, or -1. A guess that is exact for uniform knots, and a search where it is not confirmed.
  static KAN_DEVICE int locate(const float* table, int n_knots, int t, float x) {
    const float* knots = table + 4 * kPad + t;
    const int last = n_knots - 1;
    const float begin = knots[0];
    if (!(x >= begin) || !(x < knots[4 * last])) return -1;
    int cell = int((x - begin) * table[4 * (K + 1) * padded(n_knots) + t]);
    cell = cell < 0 ? 0 : cell > last - 1 ? last - 1 : cell;
    if (x >= knots[4 * cell] && x < knots[4 * cell + 4]) return cell;
    int low = 0, length = last;
    while (length > 1) {  // invariant: knots[low] <= x < knots[low + length]
      const int half = length / 2;
      const bool right = x >= knots[4 * (low + half)];
      low = right ? low + half : low;
      length = right ? length - half : half;
    }
    return low;
  }

  // The knots around a cell of input t.
  static KAN_DEVICE scalar::CellKnots<K, float> around(const float* table, int n_knots, int t, int cell) {
    const int length = padded(n_knots);
    const float* at = table + 4 * (kPad + cell) + t;
    scalar::CellKnots<K, float> knots;
    KAN_UNROLL
    for (int j = 1; j <= K; ++j) {
      knots.left[j] = at[4 * (1 - j)];
      knots.right[j] = at[4 * j];
    }
    KAN_UNROLL
    for (int p = 1; p <= K; ++p) {
      KAN_UNROLL
      for (int r = 0; r < p; ++r) knots.inverse[p * (p - 1) / 2 + r] = at[4 * (p * length + 1 - p + r)];
    }
    return knots;
  }

 private:
  static KAN_DEVICE int clamp(int q, int n_knots) { return q < 0 ? 0 : q > n_knots - 1 ? n_knots - 1 : q; }
};

}  // namespace cuda
}  // namespace kan
