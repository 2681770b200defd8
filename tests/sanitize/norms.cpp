// A layer of Gaussians behind a layer norm, in one pass, and its gradients, against plain loops.
#include "cpu/linear/layer_norm_rbf_args.h"
#include "problem.h"

namespace sanitize {
namespace {

using Line = std::vector<double>;

// Few features and outputs; now and then several blocks of rows, and so many that they are split.
Problem make_problem(uint64_t seed) {
  Problem p(seed + 4000037);
  Random& random = p.random;
  kan::Layer& l = p.layer;
  l.basis = kan::kRbf, l.order = 0, p.m = 0;
  l.weight_dtype = p.compute = p.x_type = random.pick({DType::f32, DType::f64});
  l.functions = random.pick({1, 2, 3, 4, 5, 8, 8, 20, 33});
  l.in_features = seed % 8 == 3 ? 64 - random.below(3) : 1 + random.below(9);
  l.out_features = 1 + random.below(8);
  if (seed % 8 == 5) l.batch = 2100 + random.below(400);
  if (l.batch > 64) l.functions = std::min(l.functions, 8), l.in_features = std::min<int64_t>(l.in_features, 9);
  return p;
}

struct Norms : Drawn {
  DType type;
  Buffer grid, spline, base, bias, scale, shift;
  Matrix x, g;
  kan::cpu::LayerNormRbfLayer layer;
  kan::cpu::Executor executor;
  bool with_bias = false;

  Norms(const kan::cpu::KernelTable& table, uint64_t n)
      : Drawn{table, n, make_problem(n)},
        type(p.compute),
        grid(type, size_t(I * (R + 1))),
        spline(type, size_t(O * I * R)),
        base(type, p.layer.base ? size_t(O * I) : 0),
        bias(type, size_t(O)),
        scale(type, size_t(I)),
        shift(type, size_t(I)),
        x(make_matrix(p.random, type, B, I)),
        g(make_matrix(p.random, type, B, O)),
        executor(make_executor(p.random)) {
    Random& random = p.random;
    for (size_t at = 0; at < grid.count; ++at) {
      const bool width = at % size_t(R + 1) == size_t(R);
      grid.set(at, width ? random.real(0.5, 1.5) : random.real(-2, 2));
    }
    for (Buffer* buffer : {&spline, &base, &bias, &scale, &shift}) {
      for (size_t at = 0; at < buffer->count; ++at) buffer->set(at, random.real(-1, 1));
    }
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < I; ++i) {
        const bool odd = p.special && random.below(40) == 0;
        x.set(b, i, odd ? random.pick<double>({INFINITY, -INFINITY, NAN}) : random.real(-2, 2));
      }
      for (int64_t o = 0; o < O; ++o) g.set(b, o, random.real(-1, 1));
    }
    with_bias = random.below(2);
    layer.layer = p.layer;
    layer.layer.grid = grid.data.get();
    layer.layer.spline_weight = spline.data.get();
    layer.layer.base_weight = p.layer.base ? base.data.get() : nullptr;
    layer.x = x.view();
    if (random.below(3)) layer.scale = scale.data.get();
    if (random.below(3)) layer.shift = shift.data.get();
    layer.epsilon = random.pick<double>({0.01, 0.1, 1.0});
  }

  double scale_of(int64_t i) const { return layer.scale ? scale.get(size_t(i)) : 1.0; }
  double shift_of(int64_t i) const { return layer.shift ? shift.get(size_t(i)) : 0.0; }
  double base_of(int64_t o, int64_t i) const { return p.layer.base ? base.get(size_t(o * I + i)) : 0.0; }
  // Gaussian r of feature i at z, or its slope.
  double gaussian(int64_t i, int64_t r, double z, bool slope) const {
    const double width = grid.get(size_t(i * (R + 1) + R)), t = (z - grid.get(size_t(i * (R + 1) + r))) / width;
    return std::exp(-t * t) * (slope ? -2 * t / width : 1.0);
  }

  // One row normalised; returns 1 / sqrt(variance + epsilon).
  double normalise(int64_t b, Line& normal) const {
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < I; ++i) mean += x.get(b, i) / double(I);
    for (int64_t i = 0; i < I; ++i) squares += (x.get(b, i) - mean) * (x.get(b, i) - mean) / double(I);
    const double inverse = 1 / std::sqrt(squares + layer.epsilon);
    for (int64_t i = 0; i < I; ++i) normal[size_t(i)] = (x.get(b, i) - mean) * inverse;
    return inverse;
  }

  bool lost(int64_t b) const {
    for (int64_t i = 0; i < I; ++i) {
      if (!std::isfinite(x.get(b, i))) return true;
    }
    return false;
  }

  void close(const char* what, const Buffer& got, size_t n, double want, double size, bool gone) const {
    compare(kernels.name, seed, what, p, got, n, want, size, gone);
  }

  void forward() const {
    Buffer y(type, size_t(B * O));
    kan::cpu::LayerNormRbfForwardArgs args;
    args.layer = layer;
    args.bias = with_bias ? bias.data.get() : nullptr;
    args.y = y.data.get();
    kernels.layer_norm_rbf(args, executor);
    Line normal{Line(size_t(I))};
    for (int64_t b = 0; b < B; ++b) {
      normalise(b, normal);
      for (int64_t o = 0; o < O; ++o) {
        double sum = with_bias ? bias.get(size_t(o)) : 0.0, size = 1;
        for (int64_t i = 0; i < I; ++i) {
          const double z = normal[size_t(i)] * scale_of(i) + shift_of(i), w = base_of(o, i);
          const double rho = base_derivative(p.layer.base, x.get(b, i), 0);
          sum += w * rho, size += std::fabs(w * rho);
          for (int64_t r = 0; r < R; ++r) {
            const double c = spline.get(size_t((o * I + i) * R + r));
            sum += c * gaussian(i, r, z, false), size += std::fabs(c);
          }
        }
        close("norm y", y, size_t(b * O + o), sum, size, lost(b));
      }
    }
  }

  void backward() const {
    Buffer dx(type, size_t(B * I)), d_spline(type, spline.count), d_base(type, base.count), d_bias(type, size_t(O));
    Buffer d_scale(type, size_t(I)), d_shift(type, size_t(I));
    const bool need_x = seed % 4 != 1;
    kan::cpu::LayerNormRbfBackwardArgs args;
    args.layer = layer;
    args.g = g.view();
    args.dx = need_x ? dx.data.get() : nullptr;
    args.d_spline = d_spline.data.get(), args.d_base = p.layer.base ? d_base.data.get() : nullptr;
    args.d_scale = d_scale.data.get(), args.d_shift = d_shift.data.get(), args.d_bias = d_bias.data.get();
    kernels.layer_norm_rbf_backward(args, executor);

    Line normal{Line(size_t(I))}, slope(normal), steep(normal);
    Line spline_want(spline.count), spline_size(spline.count), base_want(base.count), base_size(base.count);
    Line scale_want(normal), scale_size(normal), shift_want(normal), shift_size(normal);
    Line bias_want{Line(size_t(O))}, bias_size(bias_want);
    bool gone = false;  // a row's NaN is in every sum over the rows
    for (int64_t b = 0; b < B; ++b) {
      const double inverse = normalise(b, normal);
      const bool row_gone = lost(b);
      gone = gone || row_gone;
      double along_one = 0, along_normal = 0, width = 0;
      for (int64_t i = 0; i < I; ++i) {
        const size_t at = size_t(i);
        const double z = normal[at] * scale_of(i) + shift_of(i);
        slope[at] = steep[at] = 0;
        for (int64_t o = 0; o < O; ++o) {
          const double cotangent = g.get(b, o), rho = base_derivative(p.layer.base, x.get(b, i), 0);
          for (int64_t r = 0; r < R; ++r) {
            const size_t oir = size_t((o * I + i) * R + r);
            slope[at] += cotangent * spline.get(oir) * gaussian(i, r, z, true);
            steep[at] += 4 * std::fabs(cotangent * spline.get(oir));
            spline_want[oir] += cotangent * gaussian(i, r, z, false), spline_size[oir] += std::fabs(cotangent);
          }
          if (!p.layer.base) continue;
          base_want[size_t(o * I + i)] += cotangent * rho;
          base_size[size_t(o * I + i)] += std::fabs(cotangent) * (std::fabs(rho) + 1);
        }
        along_one += slope[at] * scale_of(i), along_normal += slope[at] * scale_of(i) * normal[at];
        width += steep[at] * std::fabs(scale_of(i)) * (1 + std::fabs(normal[at]));
        scale_want[at] += slope[at] * normal[at], scale_size[at] += steep[at] * (std::fabs(normal[at]) + 1);
        shift_want[at] += slope[at], shift_size[at] += steep[at];
      }
      for (int64_t o = 0; o < O; ++o)
        bias_want[size_t(o)] += g.get(b, o), bias_size[size_t(o)] += std::fabs(g.get(b, o));
      for (int64_t i = 0; need_x && i < I; ++i) {
        const size_t at = size_t(i);
        const double across = (along_one + normal[at] * along_normal) / double(I);
        double want = (slope[at] * scale_of(i) - across) * inverse;
        double size = (steep[at] * std::fabs(scale_of(i)) + width * (1 + std::fabs(normal[at])) / double(I)) * inverse;
        for (int64_t o = 0; o < O; ++o) {
          const double part = g.get(b, o) * base_of(o, i);
          want += part * base_derivative(p.layer.base, x.get(b, i), 1), size += 2 * std::fabs(part);
        }
        close("norm dx", dx, size_t(b * I + i), want, size + 1e-2, row_gone);
      }
    }
    for (size_t n = 0; n < spline.count; ++n) close("norm d_spline", d_spline, n, spline_want[n], spline_size[n], gone);
    for (size_t n = 0; n < base.count; ++n) close("norm d_base", d_base, n, base_want[n], base_size[n], false);
    for (size_t n = 0; n < size_t(I); ++n) {
      close("norm d_scale", d_scale, n, scale_want[n], scale_size[n], gone);
      close("norm d_shift", d_shift, n, shift_want[n], shift_size[n], gone);
    }
    for (size_t n = 0; n < size_t(O); ++n) close("norm d_bias", d_bias, n, bias_want[n], bias_size[n], false);
  }
};

}  // namespace

void check_norms(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  const Norms norms(kernels, seed);
  norms.forward();
  norms.backward();
}

}  // namespace sanitize
