// The CPU kernels under ASan and UBSan: thousands of shapes on heap buffers of exactly the right size, no Python.
//
// Every result starts as bytes 0xff, so that an entry which is never written is seen, and is compared with a plain
// double loop over a textbook Cox-de Boor recursion. Usage: kan_sanitize [cases] [first seed]
#include <cstdio>

#include "problem.h"

namespace sanitize {
namespace {

void check(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  Problem p(seed);
  if (p.layer.in_features > 60) p.layer.in_features = 33;  // the last input is a sum of its own
  if (seed % 4 == 3) {                                     // many rows and few outputs: sums of several blocks
    p.layer.batch = 2100 + p.random.below(3000), p.layer.out_features = 1 + p.random.below(6);
    p.layer.in_features = std::min<int64_t>(p.layer.in_features, 2);
    p.layer.base = kan::kSilu, p.m = 0, p.special = false;
  }
  const kan::Layer& sizes = p.layer;
  const int64_t B = sizes.batch, I = sizes.in_features, O = sizes.out_features, R = sizes.functions;
  const size_t knots = p.t[0].size();
  Buffer grid(p.compute, size_t(I) * knots), spline(sizes.weight_dtype, size_t(I * R * O));
  Buffer base(sizes.weight_dtype, sizes.base ? size_t(I * O) : 0), bias(sizes.weight_dtype, size_t(O));
  for (int64_t i = 0; i < I; ++i) {
    for (size_t j = 0; j < knots; ++j) grid.set(size_t(i) * knots + j, p.t[size_t(i)][j]);
  }
  for (Buffer* buffer : {&spline, &base, &bias}) {
    for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, p.random.real(-1, 1));
  }
  Matrix x = make_matrix(p.random, p.x_type, B, I), row_scale = make_matrix(p.random, p.x_type, B, I);
  Matrix g = make_matrix(p.random, sizes.weight_dtype, B, O);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < I; ++i) x.set(b, i, p.point(i)), row_scale.set(b, i, p.random.real(-1, 1));
    for (int64_t o = 0; o < O; ++o) g.set(b, o, p.random.real(-1, 1));
  }
  const bool with_scale = p.random.below(2) || seed % 4 == 3, with_bias = p.random.below(2);
  const kan::cpu::Executor executor = make_executor(p.random);
  p.layer.grid = grid.data.get();
  p.layer.spline_weight = spline.data.get();
  p.layer.base_weight = sizes.base ? base.data.get() : nullptr;

  Buffer y(sizes.weight_dtype, size_t(B * O)), t(p.x_type, size_t(B * I));
  Buffer d_spline(sizes.weight_dtype, size_t(I * R * O)), d_base(sizes.weight_dtype, sizes.base ? size_t(I * O) : 0);
  kan::ForwardArgs forward;
  forward.layer = p.layer;
  forward.x = x.view();
  if (with_scale) forward.row_scale = row_scale.view();
  forward.bias = with_bias ? bias.data.get() : nullptr;
  forward.derivative = p.m;
  forward.y = y.data.get();
  kernels.kan_linear(forward, executor);

  const int parts = p.random.below(3);  // both, the input's gradient alone, the weights' alone
  kan::BackwardArgs backward;
  backward.layer = p.layer;
  backward.x = x.view();
  if (with_scale && parts == 2) backward.row_scale = row_scale.view();
  backward.g = g.view();
  backward.input_derivative = parts == 0 ? p.m + 1 : p.m;
  backward.weight_derivative = p.m;
  backward.input = parts != 2 ? t.data.get() : nullptr;
  backward.d_spline = parts != 1 ? d_spline.data.get() : nullptr;
  backward.d_base = parts != 1 && sizes.base ? d_base.data.get() : nullptr;
  kernels.kan_linear_backward(backward, executor);

  std::vector<double> y_want(y.count), y_scale(y.count), c_want(spline.count), c_scale(size_t(I * O));
  std::vector<double> w_want(base.count), w_scale(base.count);
  std::vector<bool> row_lost(size_t(B), false), feature_lost(size_t(I), false);  // where x is NaN
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < I; ++i) {
      const double at = x.get(b, i), s = with_scale ? row_scale.get(b, i) : 1.0, sb = parts == 2 ? s : 1.0;
      const std::vector<double> phi = basis(p.t[size_t(i)], sizes.order, p.m, at);
      const std::vector<double> psi = basis(p.t[size_t(i)], sizes.order, backward.input_derivative, at);
      const double rho = base_derivative(sizes.base, at, p.m);
      const double sigma = base_derivative(sizes.base, at, backward.input_derivative);
      double sum = 0, size = 0, peak = 0, peak_psi = 0;
      if (std::isnan(at)) row_lost[size_t(b)] = feature_lost[size_t(i)] = true;
      for (double v : phi) peak = std::max(peak, std::fabs(v));
      for (double v : psi) peak_psi = std::max(peak_psi, std::fabs(v));
      for (int64_t o = 0; o < O; ++o) {
        const size_t bo = size_t(b * O + o), io = size_t(i * O + o);
        const double cotangent = g.get(b, o), w = sizes.base ? base.get(io) : 0.0;
        y_want[bo] += s * w * rho;
        y_scale[bo] += std::fabs(s) * (std::fabs(w * rho) + 4 * peak + 1);
        sum += cotangent * w * sigma;
        size += std::fabs(cotangent) * (std::fabs(w * sigma) + 4 * peak_psi + 1);
        c_scale[io] += std::fabs(sb * cotangent) * (peak + 1e-3);
        for (int64_t r = 0; r < R; ++r) {
          if (phi[size_t(r)] == 0 && psi[size_t(r)] == 0) continue;
          const size_t iro = size_t((i * R + r) * O + o);
          y_want[bo] += s * phi[size_t(r)] * spline.get(iro);
          sum += cotangent * psi[size_t(r)] * spline.get(iro);
          c_want[iro] += sb * cotangent * phi[size_t(r)];
        }
        if (sizes.base)
          w_want[io] += sb * cotangent * rho, w_scale[io] += std::fabs(sb * cotangent) * (std::fabs(rho) + 1);
      }
      if (parts != 2) compare(kernels.name, seed, "input", p, t, size_t(b * I + i), sum, size, std::isnan(at));
    }
  }
  for (size_t n = 0; n < y.count; ++n) {
    const double extra = with_bias ? bias.get(n % size_t(O)) : 0.0;
    compare(kernels.name, seed, "forward", p, y, n, y_want[n] + extra, y_scale[n] + 1, row_lost[n / size_t(O)]);
  }
  if (parts == 1) return;
  for (size_t n = 0; n < spline.count; ++n) {
    const size_t io = n / size_t(R * O) * size_t(O) + n % size_t(O);
    compare(kernels.name, seed, "d_spline", p, d_spline, n, c_want[n], c_scale[io], feature_lost[n / size_t(R * O)]);
  }
  for (size_t n = 0; n < base.count; ++n) {
    compare(kernels.name, seed, "d_base", p, d_base, n, w_want[n], w_scale[n], feature_lost[n / size_t(O)]);
  }
}

}  // namespace
}  // namespace sanitize

int main(int argc, char** argv) {
  using namespace sanitize;
  const uint64_t cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 400;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  for (const char* const* name = kan::cpu::compiled_isas(); *name; ++name) {
    const kan::cpu::KernelTable* kernels = kan::cpu::kernels_for(*name);
    if (!kernels) {
      std::printf("%s: this machine cannot run it\n", *name);
      continue;
    }
    for (uint64_t seed = first; seed < first + cases; ++seed) {
      check(*kernels, seed);
      check_sums(*kernels, seed);
      check_norms(*kernels, seed);
      check_sizes(*kernels, seed);
      for (uint64_t n = 0; n < 2; ++n) check_activations(*kernels, 2 * seed + n);
      for (uint64_t n = 0; n < 2; ++n) check_bases(*kernels, 2 * seed + n);
      for (uint64_t n = 0; n < 3; ++n) check_images(*kernels, 3 * seed + n);
    }
    std::printf("%s: %llu cases, %d wrong results so far\n", *name, (unsigned long long)cases, failures);
  }
  return failures != 0;
}
