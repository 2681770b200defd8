// torch.ops.kan_kernels.kan_conv*: convolution and its gradients, on CPU tensors.
#include <algorithm>
#include <vector>

#include "checks.h"

namespace kan {
namespace ops {
namespace {

using Numbers = std::vector<int64_t>;
constexpr int64_t kMostStep = int64_t(1) << 30;  // of a kernel, stride, dilation or padding: sums of products fit

// The spatial axes of images with 1 to 3 of them are the last ones of three; the others have size 1.
int64_t first_axis(int64_t dims) { return 3 - dims; }

cpu::ImageStrides strides_of(const Tensor& t) {
  cpu::ImageStrides s;
  const int64_t dims = t.dim() - 2;
  s.image = t.stride(0), s.channel = t.stride(1);
  for (int64_t d = 0; d < dims; ++d) s.axis[first_axis(dims) + d] = t.stride(2 + d);
  return s;
}

// A fresh tensor (n, channels, *size) beside `like`, contiguous or with the channels last.
Tensor empty_images(const Tensor& like, const Numbers& sizes, bool channels_last) {
  Numbers strides(sizes.size());
  int64_t step = 1;
  const auto place = [&](size_t d) { strides[d] = step, step *= std::max<int64_t>(1, sizes[d]); };
  if (channels_last) place(1);
  for (size_t d = sizes.size(); d-- > 2;) place(d);
  if (!channels_last) place(1);
  place(0);
  return empty(like, sizes.data(), int64_t(sizes.size()), strides.data());
}

// What both ops read, checked; owns what it had to copy.
struct Images {
  Tensor grid, spline_weight;
  OptionalTensor base_weight;
  cpu::ConvolutionLayer layer;
  Numbers y_sizes, x_sizes;

  Images(const Tensor& x, const Tensor& spline, const OptionalTensor& base_in, const Tensor& grid_in, int64_t order,
         int64_t base, const Numbers& stride, const Numbers& padding, const Numbers& dilation, int64_t groups)
      : grid(dense(grid_in)), spline_weight(dense(spline)) {
    const int64_t dims = x.dim() - 2;
    check(dims >= 1 && dims <= 3, "x must have 3 to 5 dimensions, got ", x.dim());
    check(spline.dim() == dims + 3, "spline_weight must have ", dims + 3, " dimensions, got ", spline.dim());
    for (const auto& [numbers, name, count] :
         {std::tuple(&stride, "stride", dims), {&padding, "padding", 2 * dims}, {&dilation, "dilation", dims}}) {
      check(int64_t(numbers->size()) == count, name, " has ", numbers->size(), " numbers, expected ", count);
    }
    const int64_t channels = x.size(1), out = spline.size(dims + 2);
    check(out > 0, "spline_weight must have at least one output");
    check(groups >= 1 && channels % groups == 0, "groups must divide the ", channels, " channels, got ", groups);
    const int64_t functions = spline_functions(grid, order);
    check_basis(grid, channels, functions, order, base, kBSpline);
    layer.batch = x.size(0), layer.in_features = channels, layer.out_features = out;
    layer.functions = int(functions);
    layer.order = int(order);
    layer.base = int(base);
    layer.groups = groups;
    layer.weight_dtype = dtype_of(spline, "spline_weight");
    layer.x_dtype = dtype_of(x, "x");
    const bool wide = layer.weight_dtype == DType::f64;
    check(dtype_of(grid, "grid") == (wide ? DType::f64 : DType::f32),
          "grid must be float64 for float64 weights and float32 otherwise");
    check(layer.x_dtype == layer.weight_dtype || (!wide && layer.x_dtype == DType::f32),
          "x must have the weights' dtype, or float32 beside 16-bit weights");
    check(spline.size(0) == channels && spline.size(1) == functions, "spline_weight must have shape (", channels, ", ",
          functions, ", *kernel, out)");
    y_sizes = {x.size(0), out * groups}, x_sizes = {x.size(0), channels};
    for (int64_t d = 0; d < dims; ++d) {
      cpu::ConvolutionAxis& axis = layer.axis[first_axis(dims) + d];
      axis.size = x.size(2 + d), axis.kernel = spline.size(2 + d);
      axis.stride = stride[d], axis.dilation = dilation[d], axis.padding = padding[2 * d];
      check(axis.size >= 1 && axis.kernel >= 1 && axis.stride >= 1 && axis.dilation >= 1 && axis.padding >= 0 &&
                padding[2 * d + 1] >= 0,
            "size, kernel, stride and dilation must be positive and padding not negative");
      check(std::max({axis.kernel, axis.stride, axis.dilation, axis.padding, padding[2 * d + 1]}) <= kMostStep,
            "kernel, stride, dilation and padding must be at most 2^30");
      const int64_t room = axis.size + axis.padding + padding[2 * d + 1] - (axis.kernel - 1) * axis.dilation - 1;
      check(room >= 0, "x is smaller than the kernel on axis ", d);
      axis.out = room / axis.stride + 1;
      y_sizes.push_back(axis.out), x_sizes.push_back(axis.size);
    }
    check(base_in.has_value() == (base != kNoBase), "base_weight must be given if and only if base is not 0");
    if (base_in) {
      bool fits = base_in->dim() == dims + 2 && base_in->size(0) == channels;
      for (int64_t d = 1; fits && d < dims + 2; ++d) fits = base_in->size(d) == spline.size(d + 1);
      check(fits, "base_weight must have shape (", channels, ", *kernel, ", out, "), as spline_weight");
      check(dtype_of(*base_in, "base_weight") == layer.weight_dtype, "base_weight must have spline_weight's dtype");
      base_weight = dense(*base_in);
      layer.base_weight = base_weight->const_data_ptr();
    }
    layer.grid = grid.const_data_ptr();
    layer.spline_weight = spline_weight.const_data_ptr();
    layer.x = x.const_data_ptr();
    layer.x_strides = strides_of(x);
    check_grid_values(cpu::basis_layer(layer));
  }
};

// stride, dilation: a number for each axis; padding: two for each, before and behind.
Tensor kan_conv(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight,
                const OptionalTensor& bias, const Tensor& grid, int64_t order, int64_t base, Numbers stride,
                Numbers padding, Numbers dilation, int64_t groups, bool channels_last) {
  const Images images(x, spline_weight, base_weight, grid, order, base, stride, padding, dilation, groups);
  cpu::ConvolutionArgs args;
  args.layer = images.layer;
  OptionalTensor bias_row;
  if (bias) {
    check_shape(*bias, "bias", {images.y_sizes[1]});
    check(dtype_of(*bias, "bias") == args.layer.weight_dtype, "bias must have spline_weight's dtype");
    bias_row = dense(*bias);
    args.bias = bias_row->const_data_ptr();
  }
  Tensor y = empty_images(spline_weight, images.y_sizes, channels_last);
  args.y = y.mutable_data_ptr();
  args.y_strides = strides_of(y);
  cpu::kernels().kan_conv(args, executor());
  return y;
}

// dx with the layout of y; what was not asked for is empty.
std::tuple<Tensor, Tensor, Tensor> kan_conv_backward(const Tensor& x, const Tensor& spline_weight,
                                                     const OptionalTensor& base_weight, const Tensor& g,
                                                     const Tensor& grid, int64_t order, int64_t base, Numbers stride,
                                                     Numbers padding, Numbers dilation, int64_t groups,
                                                     bool channels_last, bool need_x, bool need_weight) {
  const Images images(x, spline_weight, base_weight, grid, order, base, stride, padding, dilation, groups);
  cpu::ConvolutionBackwardArgs args;
  args.layer = images.layer;
  bool same = g.dim() == int64_t(images.y_sizes.size());
  for (int64_t d = 0; same && d < g.dim(); ++d) same = g.size(d) == images.y_sizes[d];
  check(same, "g must have the shape of the result");
  check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
  args.g = g.const_data_ptr();
  args.g_strides = strides_of(g);
  const bool need_base = need_weight && base != kNoBase;
  Tensor dx = need_x ? empty_images(x, images.x_sizes, channels_last) : empty(x, {0});
  Tensor d_spline = need_weight ? torch::stable::empty_like(images.spline_weight) : empty(g, {0});
  Tensor d_base = need_base ? torch::stable::empty_like(*images.base_weight) : empty(g, {0});
  if (need_x) args.dx = dx.mutable_data_ptr(), args.dx_strides = strides_of(dx);
  if (need_weight) args.d_spline = d_spline.mutable_data_ptr();
  if (need_base) args.d_base = d_base.mutable_data_ptr();
  cpu::kernels().kan_conv_backward(args, executor());
  return {dx, d_spline, d_base};
}

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def(
      "kan_conv(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor? bias, Tensor grid, int order, int base, "
      "int[] stride, int[] padding, int[] dilation, int groups, bool channels_last) -> Tensor");
  m.def(
      "kan_conv_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, int order, "
      "int base, int[] stride, int[] padding, int[] dilation, int groups, bool channels_last, bool need_x, "
      "bool need_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("kan_conv", TORCH_BOX(&kan::ops::kan_conv));
  m.impl("kan_conv_backward", TORCH_BOX(&kan::ops::kan_conv_backward));
}
