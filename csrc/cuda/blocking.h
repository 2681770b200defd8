// How kernels are cut to a shape: from the shape alone, never from the data or the card.
#pragma once

#include <algorithm>

#include "cuda/dense/dense.h"
#include "cuda/gather/gather.h"
#include "kernels.h"

namespace kan {
namespace cuda {

constexpr int64_t kBlocks = 264;     // enough to fill the largest cards twice
constexpr int64_t kFull = 96;        // from here on, larger tiles are worth more than more blocks
constexpr int64_t kSplitRows = 256;  // of one part of a gather kernel's weight gradient, at least
constexpr int64_t kSplitFeatures = 16;
constexpr int64_t kPartNumbers = 1 << 21;  // that the parts of a weight gradient may always have in memory

// Parts of a contraction of length n: enough blocks, whole parts of at least `least`, memory within `most` parts.
template <class Shape>
void split(Shape& s, int64_t n, int64_t blocks, int64_t least, int64_t most, int64_t unit) {
  const int64_t wanted = ceil_div(kBlocks, std::max<int64_t>(1, blocks));
  const int64_t splits = std::max<int64_t>(1, std::min({wanted, n / least, most}));
  s.part = ceil_div(std::max<int64_t>(1, ceil_div(n, splits)), unit) * unit;
  s.splits = std::max<int64_t>(1, ceil_div(n, s.part));
}

GatherShape gather_forward_blocking(const SplineLayer& layer);
void set_dense_forward_blocking(DenseArgs& a);  // part and splits
void set_dense_input_blocking(DenseArgs& a);    // row_blocks and wide
void set_dense_weight_blocking(DenseArgs& a);   // row_blocks, part and splits
// For one kernel that computes either or both; `coefficients` is 0 where both cannot be done in one pass.
GatherShape gather_backward_blocking(const SplineLayer& layer, bool input, bool weight);

}  // namespace cuda
}  // namespace kan
