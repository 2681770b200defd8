// The cost model behind the choice of a path: cycles of one multiprocessor for each edge (row, input, output) of the
// forward pass, from counts of instructions and published rates. It was never fitted to a measurement: `make gpu` on a
// card prints by how much each path misses it.
#include "cuda/full_support/full_support.h"
#include "kernels.h"

namespace kan {
namespace cuda {
namespace {

// Multiply-adds of mma.sync in one cycle of one multiprocessor. From compute capability 9 on it reaches 0.62 of the
// rate of the warp group's instructions, which this path does not use; 10 is taken to be like 9.
double matrix_rate(const SplineLayer& l, const Options& options) {
  const double half = options.capability_major == 9 || options.capability_major == 10 ? 0.62 * 2048.0 : 1024.0;
  if (l.weight_dtype != DType::f32) return half;
  return options.tf32 ? half / 2.0 : half / 6.0;  // strict float32 is three products
}

constexpr double kIssue = 4.0 * 32.0;  // lanes that start an instruction in a cycle
// Instructions of the dense loop beside the products, read from its machine code: one evaluation, and what a block of
// 8 rows takes: it is placed, and float32's coefficients are rounded, or split in two, by every warp for itself.
struct Work {
  double make, block;
};
Work dense_work(const SplineLayer& l, bool tf32) {
  if (l.weight_dtype != DType::f32) return {35.0, 25.0};
  return tf32 ? Work{35.0, 165.0} : Work{110.0, 720.0};
}
constexpr double kBanks = 32.0;  // 4-byte numbers that shared memory gives in a cycle
// Of the kernels for bases of full support: the base's value, made and left in shared memory, and what a multiply-add
// takes with its share of the operands' loads.
constexpr double kMakeBase = 60.0, kProduct = 1.2;
// Measured over counted, as `make gpu` prints it. Not measured yet.
constexpr double kDenseFactor = 1.0, kGatherFactor = 1.0;

}  // namespace

Cost cost(const SplineLayer& l, const Options& options) {
  const double out = double(l.out_features > 0 ? l.out_features : 1);
  const double blocks = double(ceil_div(l.functions, 8)), base = l.base != kNoBase ? 1.0 : 0.0;
  const bool strict = l.weight_dtype == DType::f32 && !options.tf32;
  const double tile = l.out_features > 64 && !strict ? 128.0 : 64.0;  // outputs that share an evaluation
  const double padded = double(ceil_div(l.out_features > 0 ? l.out_features : 1, int64_t(tile))) * tile;
  const Work work = dense_work(l, options.tf32);
  Cost c;
  c.dense = kDenseFactor * (padded / out) *
            ((8.0 * blocks + base) / matrix_rate(l, options) + (work.make + work.block * blocks) / kIssue / tile);
  const double shared = out < 32.0 ? out : 32.0;
  const double fetched = (double(l.order) + 1.0 + base) * (l.weight_dtype == DType::f64 ? 2.0 : 1.0);
  c.gather = kGatherFactor * (fetched * 1.5 / kBanks + kBases[kBSpline].cuda_work / kIssue / shared);
  return c;
}

Cost full_support_cost(const Layer& l, const Options& options) {
  const int64_t out = l.out_features > 0 ? l.out_features : 1;
  const double functions = double(l.functions), base = l.base != kNoBase ? 1.0 : 0.0;
  const double made = functions * kBases[l.basis].cuda_work + base * kMakeBase;
  const auto on = [&](double rate, int64_t tile) {
    const double padded = double(ceil_div(out, tile) * tile) / double(out);
    return padded * ((functions + base) / rate + made / kIssue / double(tile));
  };
  const double multiply_adds = kIssue / (l.weight_dtype == DType::f64 ? 2.0 : 1.0) / kProduct;
  return {on(matrix_rate(l, options), full_support_columns(out, true)),
          on(multiply_adds, full_support_columns(out, false))};
}

const char* too_small(const SplineLayer& l) {
  if (l.batch < 32) return "fewer than 32 rows";            // of a tile's 64 or 128
  if (l.in_features < 8) return "fewer than 8 inputs";      // of a backward tile's 16
  if (l.out_features < 16) return "fewer than 16 outputs";  // of a tile's 64
  return nullptr;
}

Path choose(const SplineLayer& l, int derivative, const Options& options) {
  if (dense_reason(l, derivative) || too_small(l)) return Path::gather;
  const Cost c = cost(l, options);
  return c.dense < c.gather ? Path::dense : Path::gather;
}

}  // namespace cuda
}  // namespace kan
