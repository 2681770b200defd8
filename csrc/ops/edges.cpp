// torch.ops.kan_kernels.edge_gram*, edge_moments*, edge_l1*: sums over the rows that describe edges, on CPU tensors.
#include "checks.h"

namespace kan {
namespace ops {
namespace {

const double* doubles(const Tensor& t) { return static_cast<const double*>(t.const_data_ptr()); }
double* doubles(Tensor& t) { return static_cast<double*>(t.mutable_data_ptr()); }

MatrixView view_rows(const OptionalTensor& w, const Tensor& x) {
  return w ? view(*w, "w", x.size(0), x.size(1)) : MatrixView{};
}

// The layer of a basis without weights, all in double; x may have any dtype.
Layer basis_of(const Tensor& x, const Tensor& grid, int64_t order, int64_t base) {
  check_matrix(x, "x");
  const int64_t functions = spline_functions(grid, order);
  check_basis(grid, x.size(1), functions, order, base, kBSpline);
  check(dtype_of(grid, "grid") == DType::f64, "grid must be float64");
  Layer layer;
  layer.batch = x.size(0);
  layer.in_features = x.size(1);
  layer.functions = int(functions);
  layer.order = int(order);
  layer.base = int(base);
  layer.weight_dtype = DType::f64;
  layer.grid = grid.const_data_ptr();
  check_grid_values(layer);
  return layer;
}

std::tuple<Tensor, Tensor> edge_gram(const Tensor& x, const OptionalTensor& w, const Tensor& grid_in, int64_t order,
                                     int64_t base) {
  const Tensor grid = dense(grid_in);
  cpu::GramArgs args;
  args.layer = basis_of(x, grid, order, base);
  args.x = view(x, "x", x.size(0), x.size(1));
  args.w = view_rows(w, x);
  const int64_t n = args.layer.functions, has_base = base != kNoBase;
  Tensor band = empty(grid, {x.size(1), n, order + 1});
  Tensor border = empty(grid, {x.size(1), 1 + has_base, n + 1 + has_base});
  args.band = doubles(band);
  args.border = doubles(border);
  cpu::kernels().edge_gram(args, executor());
  return {band, border};
}

Tensor edge_gram_grad_input(const Tensor& x, const OptionalTensor& w, const Tensor& grid_in, int64_t order,
                            int64_t base, const Tensor& d_band_in, const Tensor& d_border_in) {
  const Tensor grid = dense(grid_in), d_band = dense(d_band_in), d_border = dense(d_border_in);
  cpu::GramInputArgs args;
  args.layer = basis_of(x, grid, order, base);
  args.x = view(x, "x", x.size(0), x.size(1));
  args.w = view_rows(w, x);
  const int64_t n = args.layer.functions, has_base = base != kNoBase;
  check_shape(d_band, "d_band", {x.size(1), n, order + 1});
  check_shape(d_border, "d_border", {x.size(1), 1 + has_base, n + 1 + has_base});
  check(dtype_of(d_band, "d_band") == DType::f64 && dtype_of(d_border, "d_border") == DType::f64,
        "d_band and d_border must be float64");
  args.d_band = doubles(d_band);
  args.d_border = doubles(d_border);
  Tensor dx = empty(grid, {x.size(0), x.size(1)});
  args.dx = doubles(dx);
  cpu::kernels().edge_gram_grad_input(args, executor());
  return dx;
}

Tensor edge_cross_gram(const Tensor& x, const OptionalTensor& w, const Tensor& grid_in, int64_t order,
                       const Tensor& other_in, int64_t other_order) {
  const Tensor grid = dense(grid_in), other = dense(other_in);
  cpu::GramArgs args;
  args.layer = basis_of(x, grid, order, kNoBase);
  const Layer beside = basis_of(x, other, other_order, kNoBase);
  args.x = view(x, "x", x.size(0), x.size(1));
  args.w = view_rows(w, x);
  args.other_grid = doubles(other);
  args.other_functions = beside.functions;
  args.other_order = beside.order;
  Tensor cross = empty(grid, {x.size(1), args.layer.functions, beside.functions});
  args.cross = doubles(cross);
  cpu::kernels().edge_gram(args, executor());
  return cross;
}

// Mean, deviation, and what the gradients need of them.
using Moments = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct MomentsTensors {
  const Tensor grid, spline_weight;
  OptionalTensor base_weight;
  cpu::MomentsArgs args;
  int64_t in, out, functions, rows;

  MomentsTensors(const Tensor& x, const Tensor& spline_weight_in, const OptionalTensor& base_weight_in,
                 const Tensor& grid_in, int64_t order, int64_t base, int64_t correction)
      : grid(dense(grid_in)), spline_weight(dense(spline_weight_in)) {
    args.layer = basis_of(x, grid, order, base);
    in = x.size(1), functions = args.layer.functions, rows = functions + (base != kNoBase);
    check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
    args.layer.out_features = out = spline_weight.size(2);
    check_shape(spline_weight, "spline_weight", {in, functions, out});
    check(correction >= 0 && x.size(0) > correction, "x must have more than ", correction, " rows, got ", x.size(0));
    args.x = view(x, "x", x.size(0), in);
    args.weights = dtype_of(spline_weight, "spline_weight");
    args.spline_weight = spline_weight.const_data_ptr();
    args.correction = correction;
    check(bool(base_weight_in) == (base != kNoBase), "base_weight must be given exactly where there is a base");
    if (!base_weight_in) return;
    base_weight = dense(*base_weight_in);
    check_shape(*base_weight, "base_weight", {in, out});
    check(dtype_of(*base_weight, "base_weight") == args.weights, "base_weight must have spline_weight's dtype");
    args.base_weight = base_weight->const_data_ptr();
  }
};

Moments edge_moments(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight,
                     const Tensor& grid, int64_t order, int64_t base, int64_t correction) {
  MomentsTensors t(x, spline_weight, base_weight, grid, order, base, correction);
  Tensor mean = empty(t.grid, {t.in, t.out}), std = empty(t.grid, {t.in, t.out});
  Tensor spread = empty(t.grid, {t.in, t.rows, t.out}), first = empty(t.grid, {t.in, 1, t.rows});
  t.args.mean = doubles(mean), t.args.std = doubles(std);
  t.args.spread = doubles(spread), t.args.first = doubles(first);
  cpu::kernels().edge_moments(t.args, executor());
  return {mean, std, spread, first};
}

std::tuple<Tensor, Tensor, Tensor> edge_moments_backward(
    const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight, const Tensor& grid, int64_t order,
    int64_t base, int64_t correction, const OptionalTensor& d_mean_in, const OptionalTensor& d_std_in,
    const Tensor& std_in, const Tensor& spread_in, const Tensor& first_in, bool need_x, bool need_weight) {
  MomentsTensors t(x, spline_weight, base_weight, grid, order, base, correction);
  const Tensor std = dense(std_in), spread = dense(spread_in), first = dense(first_in);
  cpu::MomentsBackwardArgs args;
  OptionalTensor d_mean, d_std;
  const auto read = [&](const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
    check_shape(tensor, name, shape);
    check(dtype_of(tensor, name) == DType::f64, name, " must be float64");
    return const_cast<double*>(doubles(tensor));
  };
  t.args.std = read(std, "std", {t.in, t.out});
  t.args.spread = read(spread, "spread", {t.in, t.rows, t.out});
  t.args.first = read(first, "first", {t.in, 1, t.rows});
  if (d_mean_in) d_mean = dense(*d_mean_in), args.d_mean = read(*d_mean, "d_mean", {t.in, t.out});
  if (d_std_in) d_std = dense(*d_std_in), args.d_std = read(*d_std, "d_std", {t.in, t.out});
  args.of = t.args;
  Tensor dx = need_x ? empty(t.grid, {x.size(0), t.in}) : empty(t.grid, {0});
  const Tensor& like = t.spline_weight;
  const bool need_base = need_weight && base != kNoBase;
  Tensor d_spline = need_weight ? empty(like, {t.in, t.functions, t.out}) : empty(like, {0});
  Tensor d_base = need_base ? empty(like, {t.in, t.out}) : empty(like, {0});
  args.dx = need_x ? doubles(dx) : nullptr;
  args.d_spline = need_weight ? d_spline.mutable_data_ptr() : nullptr;
  args.d_base = need_base ? d_base.mutable_data_ptr() : nullptr;
  cpu::kernels().edge_moments_backward(args, executor());
  return {dx, d_spline, d_base};
}

// Sums of |phi| are for float32 and float64: 16-bit tensors are widened before.
void check_wide(const Tensor& x, const Tensor& spline_weight) {
  const DType dtype = dtype_of(spline_weight, "spline_weight");
  check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
  check(dtype == DType::f32 || dtype == DType::f64, "spline_weight must be float32 or float64");
  check(dtype_of(x, "x") == dtype, "x must have spline_weight's dtype");
}

Tensor edge_l1(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight, const Tensor& grid,
               int64_t order, int64_t base) {
  check_wide(x, spline_weight);
  const int64_t out = spline_weight.size(2);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_functions(grid, order), order,
                       base, kBSpline);
  check_grid_values(tensors.layer);
  tensors.set_weights(spline_weight, base_weight);
  cpu::EdgeL1Args args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  Tensor mean = empty(spline_weight, {x.size(1), out});
  args.mean = mean.mutable_data_ptr();
  cpu::kernels().edge_l1(args, executor());
  return mean;
}

std::tuple<Tensor, Tensor, Tensor> edge_l1_backward(const Tensor& x, const Tensor& spline_weight,
                                                    const OptionalTensor& base_weight, const Tensor& g_in,
                                                    const Tensor& grid, int64_t order, int64_t base, bool need_x,
                                                    bool need_weight) {
  check_wide(x, spline_weight);
  const int64_t in = x.size(1), out = spline_weight.size(2);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_functions(grid, order), order,
                       base, kBSpline);
  check_grid_values(tensors.layer);
  tensors.set_weights(spline_weight, base_weight);
  const Tensor g = dense(g_in);
  check_shape(g, "g", {in, out});
  check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
  cpu::EdgeL1BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), in);
  args.g = g.const_data_ptr();
  const bool d_base_wanted = need_weight && base != kNoBase;
  Tensor dx = need_x ? empty(x, {x.size(0), in}) : empty(x, {0});
  Tensor d_spline = need_weight ? empty(g, {in, args.layer.functions, out}) : empty(g, {0});
  Tensor d_base = d_base_wanted ? empty(g, {in, out}) : empty(g, {0});
  args.dx = need_x ? dx.mutable_data_ptr() : nullptr;
  args.d_spline = need_weight ? d_spline.mutable_data_ptr() : nullptr;
  args.d_base = d_base_wanted ? d_base.mutable_data_ptr() : nullptr;
  cpu::kernels().edge_l1_backward(args, executor());
  return {dx, d_spline, d_base};
}

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def("edge_gram(Tensor x, Tensor? w, Tensor grid, int order, int base) -> (Tensor, Tensor)");
  m.def(
      "edge_gram_grad_input(Tensor x, Tensor? w, Tensor grid, int order, int base, Tensor d_band, Tensor d_border) -> "
      "Tensor");
  m.def("edge_cross_gram(Tensor x, Tensor? w, Tensor grid, int order, Tensor other_grid, int other_order) -> Tensor");
  m.def(
      "edge_moments(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor grid, int order, int base, int "
      "correction) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "edge_moments_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor grid, int order, int base, "
      "int correction, Tensor? d_mean, Tensor? d_std, Tensor std, Tensor spread, Tensor first, bool need_x, "
      "bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def("edge_l1(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor grid, int order, int base) -> Tensor");
  m.def(
      "edge_l1_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, int order, "
      "int base, bool need_x, bool need_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("edge_gram", TORCH_BOX(&kan::ops::edge_gram));
  m.impl("edge_gram_grad_input", TORCH_BOX(&kan::ops::edge_gram_grad_input));
  m.impl("edge_cross_gram", TORCH_BOX(&kan::ops::edge_cross_gram));
  m.impl("edge_moments", TORCH_BOX(&kan::ops::edge_moments));
  m.impl("edge_moments_backward", TORCH_BOX(&kan::ops::edge_moments_backward));
  m.impl("edge_l1", TORCH_BOX(&kan::ops::edge_l1));
  m.impl("edge_l1_backward", TORCH_BOX(&kan::ops::edge_l1_backward));
}
