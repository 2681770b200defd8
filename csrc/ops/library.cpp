// The family's schemas, shared by every device: see docs/design.md for the mathematics.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(kan_kernels, m) {
  m.def(
      "forward(Tensor x, Tensor? s, Tensor spline_weight, Tensor? base_weight, Tensor? bias, Tensor grid, "
      "int spline_order, int base, int derivative, int basis=0) -> Tensor");
  m.def(
      "input(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, int spline_order, int base, "
      "int derivative, int basis=0) -> Tensor");
  m.def(
      "weight(Tensor x, Tensor? s, Tensor g, Tensor grid, int spline_order, int base, int derivative, int basis=0, "
      "Tensor? like=None) -> (Tensor, Tensor)");
  m.def(
      "backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, int spline_order, "
      "int base, int derivative, int basis=0) -> (Tensor, Tensor, Tensor)");
  m.def("gram(Tensor x, Tensor? w, Tensor grid, int spline_order, int base) -> (Tensor, Tensor)");
  m.def(
      "gram_input(Tensor x, Tensor? w, Tensor grid, int spline_order, int base, Tensor d_band, Tensor d_border) -> "
      "Tensor");
  m.def("cross_gram(Tensor x, Tensor? w, Tensor grid, int spline_order, Tensor other_grid, int other_order) -> Tensor");
  m.def(
      "edge_l1(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor grid, int spline_order, int base) -> "
      "Tensor");
  m.def(
      "edge_l1_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, int spline_order, "
      "int base, bool need_x, bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def("edge_scale(Tensor weight, Tensor scale) -> Tensor");
  m.def(
      "edge_scale_backward(Tensor weight, Tensor scale, Tensor g, bool need_weight, bool need_scale) -> "
      "(Tensor, Tensor)");
  m.def(
      "normed_rbf(Tensor x, Tensor? scale, Tensor? shift, Tensor spline_weight, Tensor? base_weight, Tensor? bias, "
      "Tensor grid, float epsilon, int base) -> Tensor");
  m.def(
      "normed_rbf_backward(Tensor x, Tensor? scale, Tensor? shift, Tensor spline_weight, Tensor? base_weight, "
      "Tensor g, Tensor grid, float epsilon, int base, bool need_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def(
      "convolution(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor? bias, Tensor grid, int spline_order, "
      "int base, int[] stride, int[] padding, int[] dilation, int groups, bool channels_last) -> Tensor");
  m.def(
      "convolution_backward(Tensor x, Tensor spline_weight, Tensor? base_weight, Tensor g, Tensor grid, "
      "int spline_order, int base, int[] stride, int[] padding, int[] dilation, int groups, bool channels_last, "
      "bool need_x, bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_isa() -> str");
}
