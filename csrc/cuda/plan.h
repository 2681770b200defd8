// How kernels are cut to a shape: from the shape alone, never from the data or the card.
#pragma once

#include "dense.h"
#include "gather.h"
#include "kernels.h"

namespace kan {
namespace cuda {

GatherShape plan_gather_forward(const cpu::SplineLayer& layer);
void plan_dense_forward(DenseArgs& a);   // part and splits
void plan_dense_backward(DenseArgs& a);  // and row_blocks, for the results that are asked for
// For one kernel that computes either or both; `coefficients` is 0 where both cannot be done in one pass.
GatherShape plan_gather_backward(const cpu::SplineLayer& layer, bool input, bool weight);

}  // namespace cuda
}  // namespace kan
