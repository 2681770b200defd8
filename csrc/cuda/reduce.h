// Sums of parts in a fixed order. See reduce.cu.
#pragma once

#include "storage.h"

namespace kan {
namespace cuda {

// to[e] = bias[e % columns] + sum_part from[part][e] for e of (groups, rows, columns) in `count` numbers of the compute
// type; of the `rows` rows of a group the first main_rows go to `to`, the one behind them, if any, to `last`.
struct ReduceArgs {
  const void* from = nullptr;
  int64_t parts = 1, count = 0, columns = 1, rows = 1, main_rows = 1, stride = 0;
  const void* bias = nullptr;
  void *to = nullptr, *last = nullptr;
  DType dtype = DType::f32;  // of to, last and bias
};

void reduce(ReduceArgs a, bool wide, void* stream);  // wide: the compute type is double

}  // namespace cuda
}  // namespace kan
