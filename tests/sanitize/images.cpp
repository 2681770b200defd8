// Convolutions of one to three axes and their gradients, against plain loops.
#include "problem.h"

namespace sanitize {
namespace {

using kan::cpu::ConvolutionAxis;
using kan::cpu::ImageStrides;

// Images with strides, in the smallest block that holds them.
struct Images {
  int64_t size[5];  // images, channels, three axes
  ImageStrides strides;
  Buffer buffer;

  static ImageStrides layout(const int64_t* size, int kind) {
    ImageStrides s;
    int64_t step = kind == 2 ? 2 : 1;  // 0: contiguous, 1: channels last, 2: every other number
    if (kind == 1) s.channel = step, step *= size[1];
    for (int a = 2; a >= 0; --a) s.axis[a] = step, step *= size[2 + a];
    if (kind != 1) s.channel = step, step *= size[1];
    s.image = step;
    return s;
  }
  static size_t extent(const int64_t* size, const ImageStrides& s) {
    if (size[0] == 0) return 0;
    int64_t last = (size[0] - 1) * s.image + (size[1] - 1) * s.channel;
    for (int a = 0; a < 3; ++a) last += (size[2 + a] - 1) * s.axis[a];
    return size_t(last + 1);
  }
  Images(DType type, std::initializer_list<int64_t> sizes, int kind)
      : size{sizes.begin()[0], sizes.begin()[1], sizes.begin()[2], sizes.begin()[3], sizes.begin()[4]},
        strides(layout(size, kind)),
        buffer(type, extent(size, strides)) {}
  int64_t count() const { return size[0] * size[1] * size[2] * size[3] * size[4]; }
  size_t at(const int64_t* index) const {
    int64_t n = index[0] * strides.image + index[1] * strides.channel;
    for (int a = 0; a < 3; ++a) n += index[2 + a] * strides.axis[a];
    return size_t(n);
  }
  // The n-th index in the order of a contiguous array.
  void index(int64_t n, int64_t* out) const {
    for (int d = 4; d >= 0; --d) out[d] = n % size[d], n /= size[d];
  }
};

ConvolutionAxis make_axis(Random& random, int64_t size, int largest_kernel) {
  ConvolutionAxis a;
  a.size = size;
  a.kernel = 1 + random.below(largest_kernel), a.stride = 1 + random.below(3), a.dilation = 1 + random.below(3);
  a.padding = random.below(5);
  const int64_t after = std::max<int64_t>(random.below(5), (a.kernel - 1) * a.dilation + 1 - a.size - a.padding);
  a.out = (a.size + a.padding + after - (a.kernel - 1) * a.dilation - 1) / a.stride + 1;
  return a;
}

}  // namespace

void check_images(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  Problem p(seed);
  Random& random = p.random;
  const bool large = seed % 8 == 0;
  kan::cpu::ConvolutionLayer l;
  static_cast<kan::SplineLayer&>(l) = p.layer;
  l.batch = random.below(large ? 30 : 4);
  l.in_features = std::min<int64_t>(l.in_features, large ? 2 : 6);
  l.out_features = std::min<int64_t>(l.out_features, large ? 20 : 70);
  l.groups = random.pick({1, 1, 2, 3});
  if (l.in_features % l.groups) l.groups = 1;
  const int dims = 1 + random.below(3);
  for (int a = 3 - dims; a < 3; ++a)
    l.axis[a] = make_axis(random, large ? 4 + random.below(12) : 1 + random.below(5), dims == 3 ? 2 : 4);
  if (large && random.below(2)) l.axis[2] = make_axis(random, 400 + random.below(900), 4), l.batch = l.batch % 2;
  if (dims == 3) l.batch %= 3;
  const ConvolutionAxis* axis = l.axis;
  const int64_t C = l.in_features, O = l.out_features, R = l.functions, G = l.groups;
  const int64_t taps = axis[0].kernel * axis[1].kernel * axis[2].kernel;

  Images x(p.x_type, {l.batch, C, axis[0].size, axis[1].size, axis[2].size}, random.below(3));
  Images dx(p.x_type, {l.batch, C, axis[0].size, axis[1].size, axis[2].size}, random.below(2));
  Images y(l.weight_dtype, {l.batch, G * O, axis[0].out, axis[1].out, axis[2].out}, random.below(2));
  Images g(l.weight_dtype, {l.batch, G * O, axis[0].out, axis[1].out, axis[2].out}, random.below(3));
  Buffer grid(p.compute, size_t(C) * p.t[0].size()), bias(l.weight_dtype, size_t(G * O));
  Buffer spline(l.weight_dtype, size_t(C * R * taps * O)), base(l.weight_dtype, l.base ? size_t(C * taps * O) : 0);
  Buffer d_spline(l.weight_dtype, spline.count), d_base(l.weight_dtype, base.count);
  for (size_t n = 0; n < grid.count; ++n) grid.set(n, p.t[n / p.t[0].size()][n % p.t[0].size()]);
  for (Buffer* buffer : {&spline, &base, &bias, &g.buffer}) {
    for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, random.real(-1, 1));
  }
  int64_t at[5];
  for (int64_t n = 0; n < x.count(); ++n) x.index(n, at), x.buffer.set(x.at(at), p.point(at[1]));
  const bool with_bias = random.below(2);
  const kan::cpu::Executor executor = make_executor(random);
  l.x = x.buffer.data.get(), l.x_dtype = p.x_type, l.x_strides = x.strides;
  l.grid = grid.data.get();
  l.spline_weight = spline.data.get();
  l.base_weight = l.base ? base.data.get() : nullptr;
  kan::cpu::ConvolutionArgs forward;
  forward.layer = l;
  forward.bias = with_bias ? bias.data.get() : nullptr;
  forward.y = y.buffer.data.get(), forward.y_strides = y.strides;
  kernels.kan_conv(forward, executor);

  const int parts = random.below(3);  // both, the input's gradient alone, the weights' alone
  kan::cpu::ConvolutionBackwardArgs backward;
  backward.layer = l;
  backward.g = g.buffer.data.get(), backward.g_strides = g.strides;
  if (parts != 2) backward.dx = dx.buffer.data.get(), backward.dx_strides = dx.strides;
  backward.d_spline = parts != 1 ? d_spline.data.get() : nullptr;
  backward.d_base = parts != 1 && l.base ? d_base.data.get() : nullptr;
  kernels.kan_conv_backward(backward, executor);

  std::vector<double> y_want(size_t(y.count())), y_scale(y_want), c_want(spline.count), c_scale(size_t(C * taps * O));
  std::vector<double> w_want(base.count), w_scale(base.count);
  std::vector<bool> y_lost(size_t(y.count()), false), c_lost(size_t(C * taps), false);
  for (int64_t n = 0; n < x.count(); ++n) {
    x.index(n, at);
    const int64_t c = at[1], first = c / (C / G) * O;
    const double v = x.buffer.get(x.at(at));
    const std::vector<double> phi = basis(p.t[size_t(c)], l.order, 0, v);
    const std::vector<double> psi = basis(p.t[size_t(c)], l.order, 1, v);
    const double rho = base_derivative(l.base, v, 0), sigma = base_derivative(l.base, v, 1);
    double sum = 0, size = 1, peak = 0;
    for (double s : psi) peak = std::max(peak, std::fabs(s));
    std::vector<int64_t> live;  // functions that are not zero here
    for (int64_t r = 0; r < R; ++r) {
      if (phi[size_t(r)] != 0 || psi[size_t(r)] != 0) live.push_back(r);
    }
    bool met = false;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t tap[3] = {t / axis[2].kernel / axis[1].kernel, t / axis[2].kernel % axis[1].kernel,
                              t % axis[2].kernel};
      int64_t to[5] = {at[0], first, 0, 0, 0};
      bool valid = true;
      for (int a = 0; a < 3; ++a) {
        const int64_t ahead = at[2 + a] + axis[a].padding - tap[a] * axis[a].dilation;
        to[2 + a] = ahead / axis[a].stride;
        valid = valid && ahead >= 0 && ahead % axis[a].stride == 0 && to[2 + a] < axis[a].out;
      }
      if (!valid) continue;
      met = true;
      if (std::isnan(v)) c_lost[size_t(c * taps + t)] = true;
      for (int64_t o = 0; o < O; ++o) {
        to[1] = first + o;
        int64_t flat = 0;
        for (int d = 0; d < 5; ++d) flat = flat * y.size[d] + to[d];
        const size_t cto = size_t((c * taps + t) * O + o);
        const double cotangent = g.buffer.get(g.at(to)), w = l.base ? base.get(cto) : 0.0;
        if (std::isnan(v)) y_lost[size_t(flat)] = true;
        y_want[size_t(flat)] += w * rho, y_scale[size_t(flat)] += std::fabs(w * rho) + 5;
        sum += cotangent * w * sigma, size += std::fabs(cotangent) * (std::fabs(w * sigma) + 4 * peak + 1);
        c_scale[cto] += std::fabs(cotangent);
        if (l.base) w_want[cto] += cotangent * rho, w_scale[cto] += std::fabs(cotangent) * (std::fabs(rho) + 1);
        for (const int64_t r : live) {
          const size_t crto = size_t(((c * R + r) * taps + t) * O + o);
          y_want[size_t(flat)] += phi[size_t(r)] * spline.get(crto);
          sum += cotangent * psi[size_t(r)] * spline.get(crto);
          c_want[crto] += cotangent * phi[size_t(r)];
        }
      }
    }
    if (parts != 2) compare(kernels.name, seed, "dx", p, dx.buffer, dx.at(at), sum, size, met && std::isnan(v));
  }
  for (int64_t n = 0; n < y.count(); ++n) {
    y.index(n, at);
    const double extra = with_bias ? bias.get(size_t(at[1])) : 0.0;
    compare(kernels.name, seed, "convolution", p, y.buffer, y.at(at), y_want[size_t(n)] + extra, y_scale[size_t(n)] + 1,
            y_lost[size_t(n)]);
  }
  if (parts == 1) return;
  for (size_t n = 0; n < spline.count; ++n) {
    const size_t c = n / size_t(R * taps * O), t = n / size_t(O) % size_t(taps), o = n % size_t(O);
    const bool lost = c_lost[c * size_t(taps) + t];
    compare(kernels.name, seed, "d_spline of a convolution", p, d_spline, n, c_want[n],
            c_scale[(c * size_t(taps) + t) * size_t(O) + o] + 1e-3, lost);
    if (!lost && std::isnan(d_spline.get(n)) && ++failures < 20) {  // no spline is NaN at infinity
      std::printf("%s seed %llu: NaN in d_spline[%zu] of a tap that meets none\n", kernels.name,
                  (unsigned long long)seed, n);
    }
  }
  for (size_t n = 0; n < base.count; ++n) {
    compare(kernels.name, seed, "d_base of a convolution", p, d_base, n, w_want[n], w_scale[n] + 1e-3,
            c_lost[n / size_t(O)]);
  }
}

}  // namespace sanitize
