#include "blocking.h"

namespace kan {
namespace cuda {
namespace {

int size_of_compute(const SplineLayer& l) { return l.weight_dtype == DType::f64 ? 8 : 4; }

// The widest layout for the outputs; each step of narrow() asks for less shared memory.
void lay_out(GatherShape& s, const SplineLayer& l, int lanes) {
  s.lanes = lanes;
  const int most = outputs_per_lane(lanes, l.weight_dtype == DType::f64, l.order);
  s.per_lane = int(std::max<int64_t>(1, std::min<int64_t>(ceil_div(l.out_features, lanes), most)));
  if (s.per_lane > 4) s.per_lane = 8;  // kernels exist for 1 to 4 and 8
}
void widest(GatherShape& s, const SplineLayer& l) {
  const int of_8_lanes = 8 * outputs_per_lane(8, l.weight_dtype == DType::f64, l.order);
  lay_out(s, l, l.out_features <= 8 ? 1 : l.out_features <= of_8_lanes ? 8 : 32);
}
bool narrow(GatherShape& s, const SplineLayer& l) {
  if (s.lanes == 32 && s.per_lane == 1) return false;
  if (s.lanes == 32) return --s.per_lane, true;
  lay_out(s, l, s.lanes == 1 ? 8 : 32);
  return true;
}

// Parts of the weights' gradient that memory has room for.
int64_t most_parts(const SplineLayer& l) {
  const int64_t size = std::max<int64_t>(1, l.in_features * l.coefficient_rows() * l.out_features);
  return std::max(kPartNumbers, l.batch * (l.in_features + l.out_features)) / size;
}

// Blocks of 8 coefficient rows that a tile holds of one input.
int row_blocks(const SplineLayer& l) {
  const int64_t blocks = ceil_div(l.functions, kGroupRows);
  return blocks > 2 ? 4 : int(blocks);
}

}  // namespace

GatherShape gather_forward_blocking(const SplineLayer& l) {
  const int size = size_of_compute(l);
  const auto bytes = [&](const GatherShape& s) {
    const int64_t pairs = int64_t(s.features) * s.rows;
    const int64_t panel = s.staged ? int64_t(s.features) * l.coefficient_rows() * s.per_lane * 32 * size : 0;
    return panel + kGatherWarps * pairs * (value_stride(l.order, size == 8) * size + 4);
  };
  GatherShape s;
  widest(s, l);
  s.staged = true;
  s.features = 1;
  const auto rows = [](const GatherShape& shape) { return shape.lanes == 32 ? 8 : 32; };
  s.rows = rows(s);
  while (bytes(s) > kSharedBudget && narrow(s, l)) s.rows = rows(s);
  if (bytes(s) > kSharedLimit) {  // a single line of every row is too much: read them where they are
    widest(s, l);
    s.rows = rows(s);
    s.staged = false;
  }
  while (s.features < std::min<int64_t>(kGatherFeatures, l.in_features)) {
    GatherShape more = s;
    ++more.features;
    if (bytes(more) > kSharedBudget) break;
    s = more;
  }
  s.shared_bytes = int(bytes(s));
  const int64_t blocks =
      ceil_div(l.batch, kGatherWarps * s.rows) * ceil_div(l.out_features, int64_t(s.lanes) * s.per_lane);
  const int64_t memory = (l.in_features + l.out_features) / std::max<int64_t>(1, l.out_features);
  split(s, l.in_features, blocks, kSplitFeatures, blocks >= kBlocks / 2 ? 1 : memory, 4);
  return s;
}

GatherShape gather_backward_blocking(const SplineLayer& l, bool input, bool weight) {
  const int size = size_of_compute(l);
  const auto bytes = [&](const GatherShape& s) {
    const int64_t line = int64_t(s.per_lane) * 32 * size, all = int64_t(s.features) * s.warps;
    const int64_t values = int64_t(32) * value_stride(l.order, size == 8) * ((weight ? 1 : 0) + (input ? 1 : 0)) * size;
    const int64_t partial = input ? int64_t(2) * 32 * (s.lanes | 1) * size : 0;
    return (input && s.staged ? s.features * l.coefficient_rows() * line : 0) +
           all * ((weight ? s.coefficients * line : 0) + values + partial + 33 * 4);
  };
  GatherShape s;
  widest(s, l);
  s.coefficients = l.coefficient_rows();
  s.features = s.warps = 1;
  const auto whole = [&] { return int64_t(s.lanes) * s.per_lane >= l.out_features; };
  s.staged = input && whole();
  if (input && weight) {
    while (whole() && bytes(s) > kSharedBudget && narrow(s, l)) continue;
    if (!whole() || bytes(s) > kSharedLimit) {
      s.coefficients = 0;
      return s;
    }
  } else if (input) {
    if (bytes(s) > kSharedBudget) s.staged = false;
  } else {
    while (bytes(s) > kSharedBudget && narrow(s, l)) continue;
    while (bytes(s) > kSharedLimit) s.coefficients = (s.coefficients + 1) / 2;
  }
  // More warps while they fit: first other features, then more of them on the same rows.
  const int64_t rows = std::max<int64_t>(1, ceil_div(l.batch, 32));
  for (const bool feature : {true, false}) {
    for (;;) {
      GatherShape more = s;
      (feature ? more.features : more.warps) *= 2;
      if (more.features * more.warps > 8 || (feature && (more.features > 4 || s.features >= l.in_features))) break;
      if ((!feature && s.warps >= rows) || bytes(more) > kSharedBudget) break;
      s = more;
    }
  }
  s.shared_bytes = int(bytes(s));
  const int64_t blocks = ceil_div(l.in_features, s.features) * ceil_div(l.coefficient_rows(), s.coefficients) *
                         (input ? 1 : ceil_div(l.out_features, int64_t(s.lanes) * s.per_lane));
  split(s, l.batch, blocks, weight ? kSplitRows : 32, weight ? most_parts(l) : l.batch, 32);
  return s;
}

void set_dense_forward_blocking(DenseArgs& a) {
  const SplineLayer& l = a.layer;
  const int64_t blocks = ceil_div(l.batch, dense_forward_rows(a)) * ceil_div(l.out_features, dense_forward_columns(a));
  const int64_t memory = (l.in_features + l.out_features) / std::max<int64_t>(1, l.out_features);
  split(a, l.in_features, blocks, 64, blocks >= kBlocks / 2 ? 1 : memory, kChunk);
}

void set_dense_input_blocking(DenseArgs& a) {
  const SplineLayer& l = a.layer;
  a.row_blocks = row_blocks(l);
  const int64_t rows = dense_input_rows(l.weight_dtype == DType::f32 && !a.tf32);
  const int64_t columns = ceil_div(l.in_features, dense_input_inputs(a)) * dense_parts(a);
  a.wide = l.order < kDenseOrder || ceil_div(l.batch, rows) * columns >= kFull;  // lower orders have one tile
}

void set_dense_weight_blocking(DenseArgs& a) {
  const SplineLayer& l = a.layer;
  a.row_blocks = row_blocks(l);
  const int64_t blocks = ceil_div(l.in_features, dense_weight_inputs(a)) * dense_parts(a) *
                         ceil_div(l.out_features, dense_weight_outputs(a));
  const int64_t rows = dense_weight_rows(a);
  split(a, ceil_div(l.batch, rows) * rows, blocks, rows, most_parts(l), rows);
}

}  // namespace cuda
}  // namespace kan
