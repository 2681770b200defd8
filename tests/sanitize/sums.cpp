// Sums over the rows: Gram matrices of one and of two bases, mean, deviation and L1 norm of edges, and their gradients.
#include "problem.h"

namespace sanitize {
namespace {

using kan::cpu::Executor;
using kan::cpu::KernelTable;

// Now and then so many rows that they are split.
Problem make_problem(uint64_t seed) {
  Problem p(seed);
  p.layer.out_features = std::min<int64_t>(p.layer.out_features, 70);
  p.layer.weight_dtype = p.compute;
  if (seed % 16 == 0) {
    p.layer.batch = 4096 + p.random.below(600);
    p.layer.in_features = std::min<int64_t>(p.layer.in_features, 2);
    p.layer.out_features = std::min<int64_t>(p.layer.out_features, 20);
  }
  return p;
}

struct Sums : Drawn {
  int k;
  DType f64 = DType::f64;
  Buffer grid;       // of the layer, in the type it computes in
  Buffer wide_grid;  // the same in double
  Matrix x, w;
  bool weighted;
  Executor executor;

  Sums(const KernelTable& table, uint64_t n)
      : Drawn{table, n, make_problem(n)},
        k(p.layer.order),
        grid(p.compute, size_t(I) * p.t[0].size()),
        wide_grid(f64, grid.count),
        x(make_matrix(p.random, p.compute, B, I)),
        w(make_matrix(p.random, p.x_type, B, I)),
        weighted(p.random.below(2)),
        executor(make_executor(p.random)) {
    for (size_t n = 0; n < grid.count; ++n) {
      const double knot = p.t[n / p.t[0].size()][n % p.t[0].size()];
      grid.set(n, knot), wide_grid.set(n, knot);
    }
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < I; ++i) x.set(b, i, p.point(i)), w.set(b, i, p.random.real(0, 1));
    }
  }

  double weight(int64_t b, int64_t i) const { return weighted ? w.get(b, i) : 1.0; }

  // Splines, the constant 1 and, where there is one, the base: the m-th derivatives at one point.
  std::vector<double> functions(int64_t i, double at, int m) const {
    std::vector<double> f = basis(p.t[size_t(i)], k, m, at);
    f.push_back(m == 0 ? 1.0 : 0.0);
    if (p.layer.base) f.push_back(base_derivative(p.layer.base, at, m));
    return f;
  }

  bool lost(int64_t i) const { return lost(x, i); }
  bool lost(const Matrix& of, int64_t i) const {
    for (int64_t b = 0; b < B; ++b) {
      if (std::isnan(of.get(b, i))) return true;
    }
    return false;
  }

  kan::Layer wide_layer() const {
    kan::Layer layer = p.layer;
    layer.weight_dtype = f64;
    layer.grid = wide_grid.data.get();
    return layer;
  }

  void own() {
    const int64_t rows = 1 + (p.layer.base != 0), columns = R + rows;
    Buffer band(f64, size_t(I * R * (k + 1))), border(f64, size_t(I * rows * columns));
    kan::cpu::GramArgs args;
    args.layer = wide_layer();
    args.x = x.view();
    if (weighted) args.w = w.view();
    args.band = reinterpret_cast<double*>(band.data.get());
    args.border = reinterpret_cast<double*>(border.data.get());
    kernels.edge_gram(args, executor);

    Buffer d_band(f64, band.count), d_border(f64, border.count), dx(f64, size_t(B * I));
    for (Buffer* buffer : {&d_band, &d_border}) {
      for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, p.random.real(-1, 1));
    }
    kan::cpu::GramInputArgs back;
    back.layer = args.layer;
    back.x = args.x;
    back.w = args.w;
    back.d_band = reinterpret_cast<double*>(d_band.data.get());
    back.d_border = reinterpret_cast<double*>(d_border.data.get());
    back.dx = reinterpret_cast<double*>(dx.data.get());
    kernels.edge_gram_grad_input(back, executor);

    for (int64_t i = 0; i < I; ++i) {
      std::vector<double> band_want(R * (k + 1), 0.0), border_want(rows * columns, 0.0), border_size(border_want);
      for (int64_t b = 0; b < B; ++b) {
        const std::vector<double> f = functions(i, x.get(b, i), 0), df = functions(i, x.get(b, i), 1);
        double slope = 0, size = 1;
        for (int64_t r = 0; r < R; ++r) {
          for (int64_t d = 0; d <= k && r + d < R; ++d) {
            const size_t n = size_t(r * (k + 1) + d);
            const double g = d_band.get(size_t(i * R * (k + 1)) + n);
            band_want[n] += weight(b, i) * f[size_t(r)] * f[size_t(r + d)];
            slope += g * (df[size_t(r)] * f[size_t(r + d)] + f[size_t(r)] * df[size_t(r + d)]);
            size += std::fabs(df[size_t(r)]) + std::fabs(df[size_t(r + d)]);
          }
        }
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t c = 0; c < columns; ++c) {
            const size_t n = size_t(row * columns + c), left = size_t(R + row), right = size_t(c);
            const double g = d_border.get(size_t(i * rows * columns) + n);
            border_want[n] += weight(b, i) * f[left] * f[right];
            border_size[n] += std::fabs(f[left] * f[right]) + 1;
            slope += g * (df[left] * f[right] + f[left] * df[right]);
            size += std::fabs(df[left] * f[right]) + std::fabs(f[left] * df[right]);
          }
        }
        compare(kernels.name, seed, "gram_input", p, dx, size_t(b * I + i), weight(b, i) * slope, size,
                std::isnan(x.get(b, i)));
      }
      for (int64_t n = 0; n < R * (k + 1); ++n) {
        const bool beside = n / (k + 1) + n % (k + 1) < R;
        compare(kernels.name, seed, "band", p, band, size_t(i * R * (k + 1) + n), band_want[size_t(n)], double(B + 1),
                beside && lost(i));
      }
      for (int64_t n = 0; n < rows * columns; ++n) {
        const bool constants = n == R;  // the sum of the weights
        compare(kernels.name, seed, "border", p, border, size_t(i * rows * columns + n), border_want[size_t(n)],
                border_size[size_t(n)] + 1, !constants && lost(i));
      }
    }
  }

  void moments() {
    if (B < 2) return;
    const int64_t rows = R + (p.layer.base != 0);
    const bool inside = p.random.below(2);  // of the cells, some at their end, where slopes of order 1 jump
    Matrix at = make_matrix(p.random, p.compute, B, I);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < I; ++i) {
        const double low = p.t[size_t(i)][size_t(k)], high = p.t[size_t(i)][size_t(R)];
        at.set(b, i, !inside ? x.get(b, i) : b % 5 == 4 ? high : p.random.real(low, high));
      }
    }
    const DType type = p.random.pick({DType::f32, DType::f64, DType::bf16, DType::f16});
    Buffer spline(type, size_t(I * R * O)), base(type, size_t(I * O)), d_spline(type, spline.count);
    Buffer d_base(type, base.count), d_mean(f64, size_t(I * O)), d_std(f64, d_mean.count), dx(f64, size_t(B * I));
    Buffer mean(f64, d_mean.count), std(f64, d_mean.count), spread(f64, size_t(I * rows * O));
    Buffer first(f64, size_t(I * rows));
    for (Buffer* buffer : {&spline, &base, &d_mean, &d_std}) {
      for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, p.random.real(-1, 1));
    }
    const auto doubles = [](Buffer& buffer) { return reinterpret_cast<double*>(buffer.data.get()); };
    kan::cpu::MomentsBackwardArgs args;
    args.of.layer = wide_layer(), args.of.x = at.view(), args.of.weights = type;
    args.of.spline_weight = spline.data.get(), args.of.base_weight = p.layer.base ? base.data.get() : nullptr;
    args.of.correction = p.random.below(2);
    args.of.mean = doubles(mean), args.of.std = doubles(std);
    args.of.spread = doubles(spread), args.of.first = doubles(first);
    kernels.edge_moments(args.of, executor);
    const int parts = p.random.below(3);  // 1: no weights, 2: no x
    args.d_mean = p.random.below(4) ? doubles(d_mean) : nullptr, args.d_std = doubles(d_std);
    args.dx = parts != 2 ? doubles(dx) : nullptr;
    args.d_spline = parts != 1 ? d_spline.data.get() : nullptr;
    args.d_base = parts != 1 && p.layer.base ? d_base.data.get() : nullptr;
    kernels.edge_moments_backward(args, executor);

    Problem wide = p;
    wide.compute = type == DType::f32 ? DType::f32 : f64;
    const double left = double(B - args.of.correction);
    for (int64_t i = 0; i < I; ++i) {
      const bool gone = lost(at, i);
      std::vector<std::vector<double>> f, df;
      for (int64_t b = 0; b < B; ++b)
        f.push_back(functions(i, at.get(b, i), 0)), df.push_back(functions(i, at.get(b, i), 1));
      std::vector<double> slopes(size_t(B), 0.0), sizes(size_t(B), 1.0);
      bool exact = true;  // nothing that rounding is large in
      for (int64_t o = 0; o < O; ++o) {
        const size_t io = size_t(i * O + o);
        const auto c = [&](int64_t r) { return r < R ? spline.get(size_t((i * R + r) * O + o)) : base.get(io); };
        std::vector<double> phi(size_t(B), 0.0), means(size_t(rows), 0.0);
        double total = 0, size = 1;
        for (int64_t b = 0; b < B; ++b) {
          for (int64_t r = 0; r < rows; ++r) {
            const double value = f[size_t(b)][size_t(r < R ? r : R + 1)];
            phi[size_t(b)] += c(r) * value, means[size_t(r)] += value / double(B), size += std::fabs(value) / double(B);
          }
          total += phi[size_t(b)] / double(B);
        }
        double square = 0;
        for (double value : phi) square += (value - total) * (value - total);
        const double deviation = std::sqrt(square / left), terms = size * size * double(B);
        compare(kernels.name, seed, "mean", wide, mean, io, total, size, gone);
        if (!(square > 1e-4 * terms / double(B))) {
          exact = false;
          continue;
        }
        compare(kernels.name, seed, "std", wide, std, io, deviation, terms / deviation, gone);
        const double gm = args.d_mean ? d_mean.get(io) : 0, gs = d_std.get(io);
        for (int64_t r = 0; r < rows && parts != 1; ++r) {
          double both = 0, by = 0;
          for (int64_t b = 0; b < B; ++b) {
            const double value = f[size_t(b)][size_t(r < R ? r : R + 1)];
            both += (value - means[size_t(r)]) * (phi[size_t(b)] - total), by += std::fabs(value);
          }
          compare(kernels.name, seed, r < R ? "std d_spline" : "std d_base", wide, r < R ? d_spline : d_base,
                  r < R ? size_t((i * R + r) * O + o) : io, gm * means[size_t(r)] + gs * both / (left * deviation),
                  1 + by + terms / deviation, gone);
        }
        for (int64_t b = 0; b < B; ++b) {
          double slope = 0;
          for (int64_t r = 0; r < rows; ++r) {
            const double value = df[size_t(b)][size_t(r < R ? r : R + 1)];
            slope += c(r) * value, sizes[size_t(b)] += std::fabs(value) * (1 + size * size / deviation);
          }
          slopes[size_t(b)] += slope * (gm / double(B) + gs * (phi[size_t(b)] - total) / (left * deviation));
        }
      }
      for (int64_t b = 0; b < B && parts != 2 && exact && !gone; ++b) {
        compare(kernels.name, seed, "std dx", wide, dx, size_t(b * I + i), slopes[size_t(b)], sizes[size_t(b)], false);
      }
    }
  }

  void beside_another() {
    const int order = p.random.below(11), size = 1 + p.random.below(12), knots = size + 2 * order + 1;
    const int n_other = size + order;
    std::vector<std::vector<double>> t;
    Buffer other(f64, size_t(I * knots)), cross(f64, size_t(I * R * n_other));
    for (int64_t i = 0; i < I; ++i) {
      t.emplace_back();
      double at = p.random.real(-1.5, 0);
      for (int j = 0; j < knots; ++j) {
        t.back().push_back(at);
        other.set(size_t(i * knots + j), at);
        if (p.random.below(4)) at += p.random.real(0, 3.0 / size);
      }
    }
    kan::cpu::GramArgs args;
    args.layer = wide_layer();
    args.layer.base = 0;
    args.x = x.view();
    if (weighted) args.w = w.view();
    args.other_grid = reinterpret_cast<double*>(other.data.get());
    args.other_order = order;
    args.other_functions = n_other;
    args.cross = reinterpret_cast<double*>(cross.data.get());
    kernels.edge_gram(args, executor);
    for (int64_t i = 0; i < I; ++i) {
      std::vector<double> want(R * n_other, 0.0);
      for (int64_t b = 0; b < B; ++b) {
        const std::vector<double> f = basis(p.t[size_t(i)], k, 0, x.get(b, i));
        const std::vector<double> g = basis(t[size_t(i)], order, 0, x.get(b, i));
        for (size_t n = 0; n < want.size(); ++n) {
          want[n] += weight(b, i) * f[n / size_t(n_other)] * g[n % size_t(n_other)];
        }
      }
      for (size_t n = 0; n < want.size(); ++n) {
        compare(kernels.name, seed, "cross", p, cross, size_t(i * R * n_other) + n, want[n], double(B + 1), lost(i));
      }
    }
  }

  void absolute() {
    Buffer spline(p.compute, size_t(I * R * O)), base(p.compute, p.layer.base ? size_t(I * O) : 0);
    Buffer g(p.compute, size_t(I * O)), mean(p.compute, size_t(I * O)), dx(p.compute, size_t(B * I));
    Buffer d_spline(p.compute, spline.count), d_base(p.compute, base.count);
    for (Buffer* buffer : {&spline, &base, &g}) {
      for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, p.random.real(-1, 1));
    }
    p.layer.grid = grid.data.get();
    p.layer.spline_weight = spline.data.get();
    p.layer.base_weight = p.layer.base ? base.data.get() : nullptr;
    kan::cpu::EdgeL1Args args;
    args.layer = p.layer;
    args.x = x.view();
    args.mean = mean.data.get();
    kernels.edge_l1(args, executor);
    const int parts = p.random.below(3);
    kan::cpu::EdgeL1BackwardArgs back;
    back.layer = p.layer;
    back.x = args.x;
    back.g = g.data.get();
    back.dx = parts != 2 ? dx.data.get() : nullptr;
    back.d_spline = parts != 1 ? d_spline.data.get() : nullptr;
    back.d_base = parts != 1 && p.layer.base ? d_base.data.get() : nullptr;
    kernels.edge_l1_backward(back, executor);

    Problem gradients = p;  // in float32 a sign may be rounding: only the memory, and where NaN must be, is checked
    gradients.special = p.special || p.compute == DType::f32;
    for (int64_t i = 0; i < I; ++i) {
      std::vector<double> want(O, 0.0), size(O, 0.0), dc(R * O, 0.0), db(O, 0.0), db_size(O, 0.0);
      for (int64_t b = 0; b < B; ++b) {
        const std::vector<double> f = functions(i, x.get(b, i), 0), df = functions(i, x.get(b, i), 1);
        double slope = 0, slope_size = 1e-9;
        for (int64_t o = 0; o < O; ++o) {
          double phi = 0, dphi = 0, terms = 0;
          for (int64_t r = 0; r <= R; ++r) {
            if (r == R && !p.layer.base) continue;
            const double c = r < R ? spline.get(size_t((i * R + r) * O + o)) : base.get(size_t(i * O + o));
            const size_t n = size_t(r < R ? r : R + 1);
            phi += c * f[n], dphi += c * df[n], terms += std::fabs(f[n]) + std::fabs(df[n]);
          }
          const double s = g.get(size_t(i * O + o)) * ((phi > 0) - (phi < 0)) / double(B);
          want[size_t(o)] += std::fabs(phi) / double(B), size[size_t(o)] += terms / double(B);
          slope += s * dphi, slope_size += terms / double(B);
          for (int64_t r = 0; r < R; ++r) dc[size_t(r * O + o)] += s * f[size_t(r)];
          if (p.layer.base) db[size_t(o)] += s * f[size_t(R + 1)], db_size[size_t(o)] += std::fabs(f[size_t(R + 1)]);
        }
        if (parts != 2) {
          compare(kernels.name, seed, "edge dx", gradients, dx, size_t(b * I + i), slope, slope_size,
                  std::isnan(x.get(b, i)));
        }
      }
      for (int64_t o = 0; o < O; ++o) {
        const size_t io = size_t(i * O + o);
        if (B > 0) compare(kernels.name, seed, "edge mean", p, mean, io, want[size_t(o)], size[size_t(o)], lost(i));
        if (parts == 1) continue;
        if (p.layer.base) {
          compare(kernels.name, seed, "edge d_base", gradients, d_base, io, db[size_t(o)], db_size[size_t(o)] + 1,
                  lost(i));
        }
        for (int64_t r = 0; r < R; ++r) {
          compare(kernels.name, seed, "edge d_spline", gradients, d_spline, size_t((i * R + r) * O + o),
                  dc[size_t(r * O + o)], 1.0, lost(i));
        }
      }
    }
  }
};

}  // namespace

void check_sums(const KernelTable& kernels, uint64_t seed) {
  Sums sums(kernels, seed + 1000003);
  sums.own();
  sums.beside_another();
  sums.moments();
  sums.absolute();
}

}  // namespace sanitize
