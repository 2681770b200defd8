// torch.ops.kan_kernels.* on CPU tensors: sums over the rows.
#include "checks.h"

namespace kan {
namespace ops {
namespace {

const double* doubles(const Tensor& t) { return static_cast<const double*>(t.const_data_ptr()); }
double* doubles(Tensor& t) { return static_cast<double*>(t.mutable_data_ptr()); }

cpu::MatrixView view_rows(const OptionalTensor& w, const Tensor& x) {
  return w ? view(*w, "w", x.size(0), x.size(1)) : cpu::MatrixView{};
}

// The layer of a basis without weights, all in double; x may have any dtype.
cpu::Layer basis_of(const Tensor& x, const Tensor& grid, int64_t spline_order, int64_t base) {
  check_matrix(x, "x");
  check_grid(grid, x.size(1), spline_order, base);
  check(dtype_of(grid, "grid") == cpu::DType::f64, "grid must be float64");
  cpu::Layer layer;
  layer.batch = x.size(0);
  layer.in_features = x.size(1);
  layer.spline_order = int(spline_order);
  layer.grid_size = int(grid.size(1) - 2 * spline_order - 1);
  layer.base = int(base);
  layer.weight_dtype = cpu::DType::f64;
  layer.grid = grid.const_data_ptr();
  return layer;
}

int64_t splines(const cpu::Layer& layer) { return layer.grid_size + layer.spline_order; }

std::tuple<Tensor, Tensor> gram(const Tensor& x, const OptionalTensor& w, const Tensor& grid_in, int64_t spline_order,
                                int64_t base) {
  const Tensor grid = dense(grid_in);
  cpu::GramArgs args;
  args.layer = basis_of(x, grid, spline_order, base);
  args.x = view(x, "x", x.size(0), x.size(1));
  args.w = view_rows(w, x);
  const int64_t n = splines(args.layer), has_base = base != kNoBase;
  Tensor band = empty(grid, {x.size(1), n, spline_order + 1});
  Tensor border = empty(grid, {x.size(1), 1 + has_base, n + 1 + has_base});
  args.band = doubles(band);
  args.border = doubles(border);
  cpu::kernels().gram(args, executor());
  return {band, border};
}

Tensor gram_input(const Tensor& x, const OptionalTensor& w, const Tensor& grid_in, int64_t spline_order, int64_t base,
                  const Tensor& d_band_in, const Tensor& d_border_in) {
  const Tensor grid = dense(grid_in), d_band = dense(d_band_in), d_border = dense(d_border_in);
  cpu::GramInputArgs args;
  args.layer = basis_of(x, grid, spline_order, base);
  args.x = view(x, "x", x.size(0), x.size(1));
  args.w = view_rows(w, x);
  const int64_t n = splines(args.layer), has_base = base != kNoBase;
  check_shape(d_band, "d_band", {x.size(1), n, spline_order + 1});
  check_shape(d_border, "d_border", {x.size(1), 1 + has_base, n + 1 + has_base});
  check(dtype_of(d_band, "d_band") == cpu::DType::f64 && dtype_of(d_border, "d_border") == cpu::DType::f64,
        "d_band and d_border must be float64");
  args.d_band = doubles(d_band);
  args.d_border = doubles(d_border);
  Tensor dx = empty(grid, {x.size(0), x.size(1)});
  args.dx = doubles(dx);
  cpu::kernels().gram_input(args, executor());
  return dx;
}

Tensor cross_gram(const Tensor& x, const OptionalTensor& w, const Tensor& grid_in, int64_t spline_order,
                  const Tensor& other_in, int64_t other_order) {
  const Tensor grid = dense(grid_in), other = dense(other_in);
  cpu::GramArgs args;
  args.layer = basis_of(x, grid, spline_order, kNoBase);
  const cpu::Layer beside = basis_of(x, other, other_order, kNoBase);
  args.x = view(x, "x", x.size(0), x.size(1));
  args.w = view_rows(w, x);
  args.other_grid = doubles(other);
  args.other_size = beside.grid_size;
  args.other_order = beside.spline_order;
  Tensor cross = empty(grid, {x.size(1), splines(args.layer), splines(beside)});
  args.cross = doubles(cross);
  cpu::kernels().gram(args, executor());
  return cross;
}

// Sums of |phi| are for float32 and float64: 16-bit tensors are widened before.
void check_wide(const Tensor& x, const Tensor& spline_weight) {
  const cpu::DType dtype = dtype_of(spline_weight, "spline_weight");
  check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
  check(dtype == cpu::DType::f32 || dtype == cpu::DType::f64, "spline_weight must be float32 or float64");
  check(dtype_of(x, "x") == dtype, "x must have spline_weight's dtype");
}

Tensor edge_l1(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight, const Tensor& grid,
               int64_t spline_order, int64_t base) {
  check_wide(x, spline_weight);
  const int64_t out = spline_weight.size(2);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_order, base);
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
                                                    const Tensor& grid, int64_t spline_order, int64_t base, bool need_x,
                                                    bool need_weight) {
  check_wide(x, spline_weight);
  const int64_t in = x.size(1), out = spline_weight.size(2);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_order, base);
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
  Tensor d_spline = need_weight ? empty(g, {in, splines(args.layer), out}) : empty(g, {0});
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

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("gram", TORCH_BOX(&kan::ops::gram));
  m.impl("gram_input", TORCH_BOX(&kan::ops::gram_input));
  m.impl("cross_gram", TORCH_BOX(&kan::ops::cross_gram));
  m.impl("edge_l1", TORCH_BOX(&kan::ops::edge_l1));
  m.impl("edge_l1_backward", TORCH_BOX(&kan::ops::edge_l1_backward));
}
