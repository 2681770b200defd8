// Activations, functions without a sum over the features, and their gradients, against plain loops.
#include "problem.h"

namespace sanitize {
namespace {

// Few heads, or more than are streamed at once; now and then several tiles of rows and features, rows that are split,
// whole vectors of features, knots that all features share and even ones that they do not, and the derivative whose
// steps show to which cell a knot belongs.
Problem make_problem(uint64_t seed) {
  Problem p(seed);
  p.layer.out_features = 1 + p.layer.out_features % 5;
  if (seed % 4 == 2) {
    p.layer.in_features = 1 + p.random.below(80), p.layer.batch = std::min<int64_t>(p.layer.batch, 100);
    if (bytes_of(p.layer.weight_dtype) > 2) p.m = p.layer.order;
  }
  if (seed % 8 == 0) {
    p.layer.in_features = 16 * (1 + p.random.below(5)), p.layer.batch = 200 + p.random.below(400);
    p.m = std::min(p.m, 4);
    if (seed % 16 == 8) p.layer.out_features = 6;
  }
  if (seed % 32 == 0) p.layer.batch = 2048 + p.random.below(600);
  for (size_t i = p.t.size(); i < size_t(p.layer.in_features); ++i) p.t.push_back(p.t[i - 1]);
  p.t.resize(size_t(p.layer.in_features));
  for (size_t i = 0; seed % 3 == 2 && i < p.t.size(); ++i) {
    for (double& knot : p.t[i]) knot = double(float(knot * (1 + 0.25 * double(i % 3))));
  }
  if (seed % 3 == 1) std::fill(p.t.begin(), p.t.end(), std::vector<double>(p.t[0]));
  return p;
}

// (batch, in, heads) in one of several orders of its axes, in the smallest block that holds it.
struct Cube {
  int64_t row, feature, head;
  Buffer buffer;
  Cube(Random& random, DType type, int64_t B, int64_t I, int64_t H) : buffer(type, size_t(B * I * H)) {
    const int layout = random.below(3);
    row = layout == 2 ? 1 : I * H, feature = layout == 0 ? H : layout == 1 ? 1 : B * H;
    head = layout == 0 ? 1 : layout == 1 ? I : B;
  }
  size_t at(int64_t b, int64_t i, int64_t h) const { return size_t(b * row + i * feature + h * head); }
};

}  // namespace

void check_activations(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  Problem p = make_problem(seed);
  const kan::Layer& sizes = p.layer;
  const int64_t B = sizes.batch, I = sizes.in_features, H = sizes.out_features, R = sizes.functions;
  const size_t knots = p.t[0].size();
  Buffer grid(p.compute, size_t(I) * knots), spline(sizes.weight_dtype, size_t(I * R * H));
  Buffer base(sizes.weight_dtype, sizes.base ? size_t(I * H) : 0);
  for (int64_t i = 0; i < I; ++i) {
    for (size_t j = 0; j < knots; ++j) grid.set(size_t(i) * knots + j, p.t[size_t(i)][j]);
  }
  for (Buffer* buffer : {&spline, &base}) {
    for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, p.random.real(-1, 1));
  }
  Matrix x = make_matrix(p.random, p.x_type, B, I), row_scale = make_matrix(p.random, p.x_type, B, I);
  Cube g(p.random, sizes.weight_dtype, B, I, H);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < I; ++i) x.set(b, i, p.point(i)), row_scale.set(b, i, p.random.real(-1, 1));
  }
  for (size_t n = 0; n < g.buffer.count; ++n) g.buffer.set(n, p.random.real(-1, 1));
  const bool with_scale = p.random.below(2);
  const kan::cpu::Executor executor = make_executor(p.random);
  p.layer.grid = grid.data.get();
  p.layer.spline_weight = spline.data.get();
  p.layer.base_weight = sizes.base ? base.data.get() : nullptr;

  Buffer v(sizes.weight_dtype, size_t(B * I * H)), t(p.x_type, size_t(B * I));
  Buffer d_spline(sizes.weight_dtype, spline.count), d_base(sizes.weight_dtype, base.count);
  kan::cpu::ActivationArgs forward;
  forward.layer = p.layer;
  forward.x = x.view();
  if (with_scale) forward.row_scale = row_scale.view();
  forward.derivative = p.m;
  forward.v = v.data.get();
  kernels.kan_activation(forward, executor);

  const int parts = p.random.below(3);  // both, the input's gradient alone, the weights' alone
  kan::cpu::ActivationBackwardArgs backward;
  backward.layer = p.layer;
  backward.x = x.view();
  if (with_scale && parts == 2) backward.row_scale = row_scale.view();
  backward.g = {g.buffer.data.get(), sizes.weight_dtype, g.row, g.feature};
  backward.head_stride = g.head;
  backward.input_derivative = parts == 0 ? p.m + 1 : p.m;
  backward.weight_derivative = p.m;
  backward.input = parts != 2 ? t.data.get() : nullptr;
  backward.d_spline = parts != 1 ? d_spline.data.get() : nullptr;
  backward.d_base = parts != 1 && sizes.base ? d_base.data.get() : nullptr;
  kernels.kan_activation_backward(backward, executor);

  std::vector<double> c_want(spline.count), c_scale(size_t(I * H)), w_want(base.count), w_scale(base.count);
  std::vector<bool> lost(size_t(I), false);  // where x is NaN
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < I; ++i) {
      const double at = x.get(b, i), s = with_scale ? row_scale.get(b, i) : 1.0, sb = parts == 2 ? s : 1.0;
      const std::vector<double> phi = basis(p.t[size_t(i)], sizes.order, p.m, at);
      const std::vector<double> psi = basis(p.t[size_t(i)], sizes.order, backward.input_derivative, at);
      const double rho = base_derivative(sizes.base, at, p.m);
      const double sigma = base_derivative(sizes.base, at, backward.input_derivative);
      double sum = 0, size = 0, peak = 0, peak_psi = 0;
      for (double value : phi) peak = std::max(peak, std::fabs(value));
      for (double value : psi) peak_psi = std::max(peak_psi, std::fabs(value));
      if (std::isnan(at)) lost[size_t(i)] = true;
      for (int64_t h = 0; h < H; ++h) {
        const size_t ih = size_t(i * H + h);
        const double cotangent = g.buffer.get(g.at(b, i, h)), w = sizes.base ? base.get(ih) : 0.0;
        double value = s * w * rho;
        sum += cotangent * w * sigma;
        size += std::fabs(cotangent) * (std::fabs(w * sigma) + 4 * peak_psi + 1);
        c_scale[ih] += std::fabs(sb * cotangent) * (peak + 1e-3);
        for (int64_t r = 0; r < R; ++r) {
          const size_t irh = size_t((i * R + r) * H + h);
          value += s * phi[size_t(r)] * spline.get(irh);
          sum += cotangent * psi[size_t(r)] * spline.get(irh);
          c_want[irh] += sb * cotangent * phi[size_t(r)];
        }
        if (sizes.base)
          w_want[ih] += sb * cotangent * rho, w_scale[ih] += std::fabs(sb * cotangent) * (std::fabs(rho) + 1);
        const double scale = std::fabs(s) * (std::fabs(w * rho) + 4 * peak + 1);
        compare(kernels.name, seed, "v", p, v, size_t((b * H + h) * I + i), value, scale, std::isnan(at));
      }
      if (parts != 2) compare(kernels.name, seed, "v input", p, t, size_t(b * I + i), sum, size, std::isnan(at));
    }
  }
  if (parts == 1) return;
  for (size_t n = 0; n < spline.count; ++n) {
    const size_t ih = n / size_t(R * H) * size_t(H) + n % size_t(H);
    compare(kernels.name, seed, "v d_spline", p, d_spline, n, c_want[n], c_scale[ih], lost[n / size_t(R * H)]);
  }
  for (size_t n = 0; n < base.count; ++n) {
    compare(kernels.name, seed, "v d_base", p, d_base, n, w_want[n], w_scale[n], lost[n / size_t(H)]);
  }
}

}  // namespace sanitize
