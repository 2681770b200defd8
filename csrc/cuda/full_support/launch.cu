// How the kernels of bases of full support are cut to a shape, and what is launched for a call.
#include <stdexcept>
#include <string>

#include "cuda/blocking.h"
#include "cuda/parts.h"
#include "full_support.h"

namespace kan {
namespace cuda {
namespace {

constexpr int64_t kOnePassRows = 2048;  // up to here the rows of a weight gradient are not split: one launch
constexpr int64_t kLeastRows = 1024;    // of one of its parts

// Whether tiles hold numbers as they are stored.
bool as_stored(const FullSupportArgs& a) { return a.matrix || size_of(a.layer.weight_dtype) > 2; }
int64_t columns(const FullSupportArgs& a) { return full_support_columns(a.layer.out_features, a.matrix); }

// Whole inputs if as many as one fit into a tile of `most` functions, else equal parts of one input.
void cut_functions(FullSupportArgs& a, int most) {
  const int rows = a.layer.coefficient_rows();
  a.cut.tiles = int(ceil_div(rows, most));
  a.cut.functions = int(ceil_div(rows, a.cut.tiles));
  a.cut.features = int(std::max<int64_t>(1, std::min<int64_t>(most / rows, a.layer.in_features)));
}

FullSupportArgs arguments(const Layer& l, int derivative, const Options& options) {
  FullSupportArgs a;
  a.layer = l;
  a.grid_columns = kBases[l.basis].columns(l.functions, l.order);
  const bool together = l.out_stride != 0;
  a.feature_stride = together ? l.feature_stride : int64_t(l.functions) * l.out_features;
  a.function_stride = together ? 1 : l.out_features;
  a.out_stride = together ? l.out_stride : 1;
  const char* const reason = full_support_matrix_reason(l, derivative);
  if (options.path == Path::dense && reason)
    throw std::runtime_error(std::string("kan_kernels: the dense path cannot run this: ") + reason);
  a.matrix = !reason && options.path != Path::gather;
  a.pieces = as_stored(a) && !together && whole_pieces(l.spline_weight, l.out_features, l.weight_dtype) &&
             (!l.base_weight || whole_pieces(l.base_weight, l.out_features, l.weight_dtype));
  return a;
}

FullSupportArgs arguments(const ForwardArgs& args, const Options& options) {
  const Layer& l = args.layer;
  FullSupportArgs a = arguments(l, args.derivative, options);
  a.x = args.x, a.row_scale = args.row_scale;
  a.derivative = args.derivative;
  cut_functions(a, kFullSupportDepth);
  a.cut.shared_bytes = full_support_forward_bytes(a);
  const int64_t blocks = ceil_div(l.batch, full_support_forward_rows(a)) * ceil_div(l.out_features, columns(a));
  const int64_t memory = (l.in_features + l.out_features) / std::max<int64_t>(1, l.out_features);
  split(a.cut, l.in_features, blocks, kSplitFeatures, blocks >= kBlocks / 2 ? 1 : memory, a.cut.features);
  return a;
}

// One kernel of a backward call, for either or both results.
FullSupportArgs arguments(const BackwardArgs& args, const Options& options, int derivative, bool input, bool weight) {
  const Layer& l = args.layer;
  FullSupportArgs a = arguments(l, derivative, options);
  a.x = args.x, a.row_scale = args.row_scale, a.g = args.g;
  a.g_pieces = as_stored(a) && args.g.col_stride == 1 && whole_pieces(args.g.data, l.out_features, l.weight_dtype) &&
               args.g.row_stride * size_of(l.weight_dtype) % 16 == 0;
  a.derivative = args.weight_derivative, a.input_derivative = args.input_derivative;
  if (input) a.input = args.input, a.input_dtype = args.x.dtype;
  if (weight) a.d_spline = args.d_spline, a.d_base = args.d_base;
  cut_functions(a, kFullSupportTile);
  a.cut.shared_bytes = full_support_backward_bytes(a);
  const int64_t blocks =
      ceil_div(l.in_features, a.cut.features) * a.cut.tiles * (input ? 1 : ceil_div(l.out_features, columns(a)));
  const int64_t sums = std::max<int64_t>(1, l.in_features * a.layer.coefficient_rows() * l.out_features);
  const int64_t memory = weight ? l.batch * (l.in_features + l.out_features) / sums : l.batch;
  split(a.cut, l.batch, blocks, weight ? kLeastRows : 64, weight && l.batch <= kOnePassRows ? 1 : memory,
        full_support_backward_rows(a));
  return a;
}

// The kernels of one backward call: one for both gradients if a block has all outputs, else one each. In the workspace
// lie the parts of the weights' gradients and of the input's, if any, one behind the other.
struct Passes {
  FullSupportArgs input, weight;
  bool one_pass, has_input, has_weight;
  int64_t spline_size, base_size;       // of the gradients
  int64_t weight_bytes = 0, bytes = 0;  // of the workspace
  int input_parts = 1;

  Passes(const BackwardArgs& args, const Options& options) {
    const Layer& l = args.layer;
    const int size = size_of(compute_type(l));
    const int m = args.input ? args.input_derivative : 0, n = args.d_spline ? args.weight_derivative : 0;
    one_pass = args.input && args.d_spline && l.out_features <= columns(arguments(l, std::max(m, n), options));
    has_input = args.input && !one_pass;
    has_weight = args.d_spline != nullptr;
    if (has_input) input = arguments(args, options, std::max(m, n), true, false);
    if (has_weight) weight = arguments(args, options, std::max(m, n), one_pass, true);
    spline_size = l.in_features * (l.functions) * l.out_features;
    base_size = l.base != kNoBase ? l.in_features * l.out_features : 0;
    if (has_weight && weight.cut.splits > 1) weight_bytes = weight.cut.splits * (spline_size + base_size) * size;
    if (args.input) input_parts = (one_pass ? weight : input).cut.tiles;
    bytes = weight_bytes + (input_parts > 1 ? input_parts * l.batch * l.in_features * size : 0);
  }
};

}  // namespace

const char* full_support_matrix_reason(const Layer& l, int derivative) {
  if (l.weight_dtype == DType::f64) return "there is no matrix instruction for float64 here";
  if (l.weight_dtype == DType::f32) return "float32 products of this basis are not rounded to TF32";
  if (l.weight_dtype == DType::f16 && derivative > 1) return "higher derivatives may be too large for float16";
  return nullptr;
}

int64_t full_support_forward_workspace(const ForwardArgs& args, const Options& options) {
  const int64_t splits = arguments(args, options).cut.splits;
  return splits > 1 ? splits * args.layer.batch * args.layer.out_features * size_of(compute_type(args.layer)) : 0;
}

void run_full_support_forward(const ForwardArgs& args, const Options& options, void* workspace, void* stream) {
  const Layer& l = args.layer;
  if (l.batch == 0 || l.out_features == 0) return;
  const FullSupportArgs a = arguments(args, options);
  run_forward(full_support_forward, a, a.cut.splits, args, workspace, stream);
}

int64_t full_support_backward_workspace(const BackwardArgs& args, const Options& options) {
  return Passes(without_empty(args), options).bytes;
}

void run_full_support_backward(const BackwardArgs& given, const Options& options, void* workspace, void* stream) {
  const BackwardArgs args = without_empty(given);
  const Layer& l = args.layer;
  if (l.in_features == 0) return;
  Passes passes(args, options);
  unsigned char* const parts = static_cast<unsigned char*>(workspace);
  FullSupportArgs& slopes = passes.one_pass ? passes.weight : passes.input;
  if (passes.input_parts > 1) slopes.input = parts + passes.weight_bytes, slopes.input_dtype = compute_type(l);
  if (passes.has_input && l.batch > 0) full_support_backward(passes.input, stream);
  if (passes.has_weight) {
    const int64_t splits = passes.weight.cut.splits;
    unsigned char* const base_parts = parts + splits * passes.spline_size * size_of(compute_type(l));
    if (splits > 1) passes.weight.parts = parts, passes.weight.base_parts = base_parts;
    full_support_backward(passes.weight, stream);
    if (splits > 1) {
      add_parts(parts, splits, passes.spline_size, args.d_spline, l.weight_dtype, wide(l), stream);
      add_parts(base_parts, splits, passes.base_size, args.d_base, l.weight_dtype, wide(l), stream);
    }
  }
  if (passes.input_parts == 1) return;
  add_parts(parts + passes.weight_bytes, passes.input_parts, l.batch * l.in_features, args.input, args.x.dtype, wide(l),
            stream);
}

}  // namespace cuda
}  // namespace kan
