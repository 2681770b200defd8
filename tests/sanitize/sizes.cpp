// The sizes of a small layer's edges from its forward pass, and their gradients beside an error's, against plain loops;
// the same bits on any number of threads. In half of the cases the base is kept for the backward pass.
#include "problem.h"

namespace sanitize {
namespace {

// A layer that takes sizes: of all orders, bases and outputs of such; now and then so many rows that there are tasks.
Problem make_problem(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  Problem p(seed + 7000003);
  Random& random = p.random;
  kan::Layer& l = p.layer;
  p.m = 0, p.special = false;
  l.order = random.below(4), l.functions = random.pick({1, 2, 5, 5, 8, 20}) + l.order, l.base = random.below(3);
  l.out_features = 1 + random.below(8);
  if (!kernels.takes_sizes(l)) l.batch = 4000;
  if (!kernels.takes_sizes(l)) l.out_features = 1 + random.below(6);
  l.batch = 16 * l.out_features + random.below(500);
  l.in_features = random.pick({1, 2, 7, 8, 9, 9, 17, 33, 70});
  if (l.in_features > 9 && seed % 2) l.batch = 16 * l.out_features + random.below(60);
  if (seed % 4 == 0) l.batch = 2400 + random.below(1000), l.in_features = random.pick({7, 8, 9});
  p.t.clear();
  for (int64_t i = 0; i < l.in_features; ++i) {
    p.t.emplace_back();
    double at = -1.0 - 2.0 * l.order / l.cells();
    for (int j = 0; j < l.knots(); ++j) {
      p.t.back().push_back(double(float(at)));
      at += 2.0 / l.cells() * (seed % 3 ? 1.0 : random.real(0.3, 1.7));
    }
  }
  return p;
}

// What the two passes write.
struct Results {
  Buffer y, sizes, input, d_spline, d_base;
  bool same(const Results& other) const {
    const auto equal = [](const Buffer& a, const Buffer& b) {
      return std::memcmp(a.data.get(), b.data.get(), a.count * bytes_of(a.type)) == 0;
    };
    return equal(y, other.y) && equal(sizes, other.sizes) && equal(input, other.input) &&
           equal(d_spline, other.d_spline) && equal(d_base, other.d_base);
  }
};

struct Sizes {
  const kan::cpu::KernelTable& kernels;
  uint64_t seed;
  Problem p;
  const int64_t B = p.layer.batch, I = p.layer.in_features, O = p.layer.out_features, R = p.layer.functions;
  const DType type = p.layer.weight_dtype;
  Buffer grid{p.compute, size_t(I) * p.t[0].size()}, spline{type, size_t(I * R * O)};
  Buffer base{type, p.layer.base ? size_t(I * O) : 0}, slopes{p.compute, size_t(I * O)};
  Matrix x = make_matrix(p.random, p.x_type, B, I), g = make_matrix(p.random, type, B, O);
  const bool with_input = p.random.below(4) != 0;

  void draw() {
    const bool with_nan = p.random.below(4) == 0;
    for (size_t n = 0; n < grid.count; ++n) grid.set(n, p.t[n / p.t[0].size()][n % p.t[0].size()]);
    for (Buffer* buffer : {&spline, &base, &slopes}) {
      for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, p.random.real(-1, 1));
    }
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < I; ++i) x.set(b, i, with_nan && p.random.below(60) == 0 ? double(NAN) : p.point(i));
      for (int64_t o = 0; o < O; ++o) g.set(b, o, p.random.real(-1, 1));
    }
    p.layer.grid = grid.data.get();
    p.layer.spline_weight = spline.data.get();
    p.layer.base_weight = p.layer.base ? base.data.get() : nullptr;
  }

  // kept: the base is kept, for a second forward pass too.
  Results run(const kan::cpu::Executor& executor, bool kept) const {
    Buffer bases(p.compute, size_t(kept ? 2 * I * kernels.kept_base_rows(p.layer) : 0));
    Results made{Buffer(type, size_t(B * O)), Buffer(DType::f64, size_t(I * O)), Buffer(p.x_type, size_t(B * I)),
                 Buffer(type, spline.count), Buffer(type, base.count)};
    kan::ForwardArgs forward;
    forward.layer = p.layer, forward.x = x.view(), forward.y = made.y.data.get();
    forward.sizes = reinterpret_cast<double*>(made.sizes.data.get());
    if (kept) forward.kept_base = bases.data.get();
    kernels.kan_linear(forward, executor);
    forward.base_is_kept = kept;
    if (kept && seed % 2) kernels.kan_linear(forward, executor);
    kan::BackwardArgs backward;
    if (kept) backward.kept_base = bases.data.get();
    backward.layer = p.layer, backward.x = x.view(), backward.g = g.view();
    backward.size_slopes = slopes.data.get();
    if (with_input) backward.input = made.input.data.get();
    backward.d_spline = made.d_spline.data.get();
    if (p.layer.base) backward.d_base = made.d_base.data.get();
    kernels.kan_linear_backward(backward, executor);
    return made;
  }

  void check() {
    const bool keeps = kernels.kept_base_rows(p.layer) > 0, kept = keeps && seed % 4 < 2;
    if (keeps != (p.layer.base != 0) && ++failures < 20) {
      std::printf("%s seed %llu: the base is %skept\n", kernels.name, (unsigned long long)seed, keeps ? "" : "not ");
    }
    const Results got = run({run_serially, 1}, kept);
    for (int threads : {2, 3}) {
      if (!run({run_on_threads, threads}, kept).same(got) && ++failures < 20) {
        std::printf("%s seed %llu: %d threads give other bits\n", kernels.name, (unsigned long long)seed, threads);
      }
    }
    const double eps = p.compute == DType::f64 ? 1e-11 : 3e-4;  // as in `compare`
    for (int64_t i = 0; i < I; ++i) {
      const std::vector<double> none(size_t(O), 0.0), none_of_splines(size_t(R * O), 0.0);
      std::vector<double> size = none, d_base = none, base_scale = none, d_spline = none_of_splines;
      std::vector<double> spline_scale = none;
      bool lost = false;
      for (int64_t b = 0; b < B; ++b) {
        const double at = x.get(b, i);
        const std::vector<double> f = basis(p.t[size_t(i)], p.layer.order, 0, at);
        const std::vector<double> df = basis(p.t[size_t(i)], p.layer.order, 1, at);
        const double rho = base_derivative(p.layer.base, at, 0), slope = base_derivative(p.layer.base, at, 1);
        double sum = 0, scale = 1;
        lost = lost || std::isnan(at);
        for (int64_t o = 0; o < O; ++o) {
          const size_t io = size_t(i * O + o), column = size_t(o);
          const double w = p.layer.base ? base.get(io) : 0.0;
          double phi = w * rho, dphi = w * slope, doubt = 0, peak = 0;
          for (int64_t r = 0; r < R; ++r) {
            const double c = spline.get(size_t((i * R + r) * O + o));
            phi += c * f[size_t(r)], dphi += c * df[size_t(r)], peak = std::max(peak, std::fabs(df[size_t(r)]));
          }
          // where the sign is rounding, twice the term may be missing or too much
          const bool small = std::fabs(phi) < (p.compute == DType::f64 ? 1e-12 : 1e-5);
          if (small && phi != 0) doubt = 2 * std::fabs(slopes.get(io)) / eps;
          const double cotangent = g.get(b, o) + slopes.get(io) * ((phi > 0) - (phi < 0));
          size[column] += std::fabs(phi), sum += cotangent * dphi;
          scale += std::fabs(cotangent) * (std::fabs(w * slope) + 4 * peak + 1) + doubt * (peak * double(R) + 1);
          d_base[column] += cotangent * rho,
              base_scale[column] += (std::fabs(cotangent) + doubt) * (std::fabs(rho) + 1);
          spline_scale[column] += std::fabs(cotangent) + doubt;
          for (int64_t r = 0; r < R; ++r) d_spline[size_t(r * O + o)] += cotangent * f[size_t(r)];
        }
        if (with_input) {
          compare(kernels.name, seed, "input", p, got.input, size_t(b * I + i), sum, scale, std::isnan(at));
        }
      }
      for (int64_t o = 0; o < O; ++o) {
        const size_t io = size_t(i * O + o), column = size_t(o);
        compare(kernels.name, seed, "sizes", p, got.sizes, io, size[column], size[column] + 0.03 * double(B), lost);
        if (p.layer.base) {
          compare(kernels.name, seed, "d_base", p, got.d_base, io, d_base[column], base_scale[column], lost);
        }
        for (int64_t r = 0; r < R; ++r) {
          compare(kernels.name, seed, "d_spline", p, got.d_spline, size_t((i * R + r) * O + o),
                  d_spline[size_t(r * O + o)], spline_scale[column], lost);
        }
      }
    }
  }
};

}  // namespace

void check_sizes(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  Sizes sizes{kernels, seed, make_problem(kernels, seed)};
  sizes.draw();
  if (kernels.takes_sizes(sizes.p.layer)) return sizes.check();
  std::printf("%s seed %llu: no layer that takes sizes\n", kernels.name, (unsigned long long)seed), ++failures;
}

}  // namespace sanitize
