// Layers of bases of full support and their gradients, in both layouts, against plain loops.
#include "problem.h"

namespace sanitize {
namespace {

using kan::MatrixView;
using Line = std::vector<long double>;
constexpr double kReach = 1.0;  // points lie in [-kReach, kReach], where all of these functions are tame

// B_r^{(m)}(x), r < functions, each basis by a formula that its header does not use where there is one.
Line values_of(int basis, const std::vector<double>& grid, int functions, int m, long double x) {
  Line value(size_t(functions), 0.0L);
  if (basis == kan::kRbf) {
    const long double width = grid.back();
    for (int r = 0; r < functions; ++r) {
      const long double t = (x - (long double)grid[size_t(r)]) / width;
      if (fabsl(t) > 60) continue;
      long double hermite = 1, before = 0;
      for (int n = 0; n < m; ++n) {
        const long double next = 2 * t * hermite - 2 * n * before;
        before = hermite, hermite = next;
      }
      value[size_t(r)] = hermite * expl(-t * t) * powl(-1 / width, m);
    }
  } else if (basis == kan::kFourier) {
    const int waves = functions / 2;
    for (int g = 1; g <= waves; ++g) {
      const long double c = cosl(g * x), s = sinl(g * x), size = powl(g, m);  // a quarter turn each derivative
      const long double turned[4] = {c, -s, -c, s};
      value[size_t(g - 1)] = size * turned[m % 4], value[size_t(waves + g - 1)] = size * turned[(m + 3) % 4];
    }
  } else if (basis == kan::kOrthogonal) {  // Leibniz's rule on the recurrence, from P_{-1} = 1 at place 0
    std::vector<Line> p(size_t(functions) + 1, Line(size_t(m) + 1, 0.0L));
    p[0][0] = 1;
    for (int r = 0; r < functions; ++r) {
      const auto number = [&](int kind) { return (long double)grid[size_t(kind * functions + r)]; };
      for (int j = 0; j <= m; ++j) {
        const size_t n = size_t(r), o = size_t(j);
        p[n + 1][o] = (number(0) * x + number(1)) * p[n][o];
        if (j > 0) p[n + 1][o] += j * number(0) * p[n][o - 1];
        if (r > 0) p[n + 1][o] -= number(2) * p[n - 1][o];
      }
      value[size_t(r)] = p[size_t(r) + 1].back();
    }
  } else {  // Chebyshev: every order up to m, by differentiating T_n = 2 x T_{n-1} - T_{n-2}
    std::vector<Line> t(size_t(functions), Line(size_t(m) + 1, 0.0L));
    for (int r = 0; r < functions; ++r) {
      for (int j = 0; j <= m; ++j) {
        const auto at = [&](int n, int order) { return n < 0 || order < 0 ? 0.0L : t[size_t(n)][size_t(order)]; };
        const int factor = r < 2 ? 1 : 2;
        t[size_t(r)][size_t(j)] = r == 0 ? (j == 0) : factor * (x * at(r - 1, j) + j * at(r - 1, j - 1)) - at(r - 2, j);
      }
      value[size_t(r)] = t[size_t(r)].back();
    }
  }
  return value;
}

// a, b and c of Gegenbauer polynomials, of Legendre's and Laguerre's kind, or of none: a polynomial from the start.
std::vector<std::vector<double>> recurrence(Random& random, int functions) {
  std::vector<std::vector<double>> abc(3, std::vector<double>(size_t(functions), 0.0));
  const int kind = random.below(functions > 13 ? 2 : 4);
  const double lambda = random.real(0.3, 1);
  for (int r = 0; r < functions; ++r) {
    double &a = abc[0][size_t(r)], &b = abc[1][size_t(r)], &c = abc[2][size_t(r)];
    if (kind == 3) {
      a = random.real(-1, 1), b = random.real(-1, 1), c = random.real(-1, 1);
    } else if (r == 0) {
      b = 1;
    } else if (kind == 0) {
      a = 2 * (r + lambda - 1) / r, c = (r + 2 * lambda - 2) / r;
    } else if (kind == 1) {
      a = (2.0 * r - 1) / r, c = (r - 1.0) / r;
    } else {
      a = -1.0 / r, b = (2.0 * r - 1) / r, c = (r - 1.0) / r;
    }
    if (r == 1 && kind < 3) c = 0;  // of the classical families
    for (double* number : {&a, &b, &c}) *number = double(float(*number));
  }
  return abc;
}

// A problem of one such basis.
Problem make_problem(uint64_t seed, std::vector<std::vector<double>>& grid) {
  Problem p(seed + 2000003);
  Random& random = p.random;
  kan::Layer& l = p.layer;
  l.basis = 1 + random.below(kan::kBasisCount - 1);
  const kan::BasisRecord& record = kan::kBases[l.basis];
  l.order = 0;
  l.functions = random.pick({1, 2, 3, 4, 5, 6, 8, 9, 13, 20, 33, 64, 70, record.most_functions}) * (1 + record.even);
  l.functions = std::min(l.functions, record.most_functions);
  p.m = bytes_of(l.weight_dtype) == 2 ? random.below(2) : random.pick({0, 0, 0, 1, 2, 3, 5, 12, 31, 32});
  l.in_features = std::min<int64_t>(l.in_features, 20);
  l.out_features = std::min<int64_t>(l.out_features, 140);
  if (seed % 16 == 0) {  // several blocks of features
    l.batch = 64 + random.below(20), l.out_features = 128 + random.below(20), l.functions = 64, l.in_features = 33;
    l.weight_dtype = p.compute = p.x_type = random.pick({DType::f32, DType::f64});
    if (seed % 128 == 0) l.in_features = 257;  // several blocks of features in one sum
  } else {
    const int64_t work = l.in_features * l.out_features * l.functions;
    l.batch = std::min<int64_t>(l.batch, 1 + 2000000 / work);
  }
  grid.clear();
  for (int64_t i = 0; i < l.in_features; ++i) {
    std::vector<double> row;
    if (record.row == kan::GridRow::centres) {
      for (int r = 0; r < l.functions; ++r) row.push_back(double(float(random.real(-kReach, kReach))));
      row.push_back(double(float(random.real(0.2, 1))));
    }
    if (l.basis == kan::kOrthogonal) {
      for (const std::vector<double>& numbers : recurrence(random, l.functions)) {
        row.insert(row.end(), numbers.begin(), numbers.end());
      }
    }
    grid.push_back(row);
  }
  return p;
}

}  // namespace

void check_bases(const kan::cpu::KernelTable& kernels, uint64_t seed) {
  std::vector<std::vector<double>> rows;
  Problem p = make_problem(seed, rows);
  Random& random = p.random;
  kan::Layer& l = p.layer;
  const int64_t B = l.batch, I = l.in_features, O = l.out_features, R = l.functions;
  const size_t columns = rows[0].size();
  const char* const name = kan::kBases[l.basis].name;
  Buffer grid(p.compute, size_t(I) * columns), spline(l.weight_dtype, size_t(I * R * O));
  Buffer base(l.weight_dtype, l.base ? size_t(I * O) : 0), bias(l.weight_dtype, size_t(O));
  for (size_t n = 0; n < grid.count; ++n) grid.set(n, rows[n / columns][n % columns]);
  for (Buffer* buffer : {&spline, &base, &bias}) {
    for (size_t n = 0; n < buffer->count; ++n) buffer->set(n, random.real(-1, 1));
  }
  const int layout = bytes_of(l.weight_dtype) == 2 ? 0 : random.below(3);  // [in][R][out], [in][out][R], [out][in][R]
  if (layout == 1) l.feature_stride = O * R, l.out_stride = R;
  if (layout == 2) l.feature_stride = R, l.out_stride = I * R;
  const auto place = [&](int64_t i, int64_t r, int64_t o) {
    return size_t(layout ? i * l.feature_stride + r + o * l.out_stride : (i * R + r) * O + o);
  };
  Matrix x = make_matrix(random, p.x_type, B, I), scale = make_matrix(random, p.x_type, B, I);
  Matrix g = make_matrix(random, l.weight_dtype, B, O);
  const bool far = l.basis == kan::kFourier && !l.base && bytes_of(p.x_type) > 2 && random.below(2);  // angles
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < I; ++i) {
      const bool odd = p.special && random.below(6) == 0;
      x.set(b, i, odd ? random.pick<double>({INFINITY, -INFINITY, NAN}) : random.real(-kReach, kReach));
      if (far && random.below(6) == 0) x.set(b, i, random.real(-1, 1) * 0x1p60);
      scale.set(b, i, random.real(-1, 1));
    }
    for (int64_t o = 0; o < O; ++o) g.set(b, o, random.real(-1, 1));
  }
  const bool with_scale = random.below(2), with_bias = random.below(2);
  const kan::cpu::Executor executor{random.below(3) ? run_serially : run_on_threads, random.below(2) ? 1 : 3};
  l.grid = grid.data.get();
  l.spline_weight = spline.data.get();
  l.base_weight = l.base ? base.data.get() : nullptr;

  Buffer y(l.weight_dtype, size_t(B * O)), t(p.x_type, size_t(B * I));
  Buffer d_spline(l.weight_dtype, spline.count), d_base(l.weight_dtype, base.count);
  kan::ForwardArgs forward;
  forward.layer = l;
  forward.x = x.view();
  if (with_scale) forward.row_scale = scale.view();
  forward.bias = with_bias ? bias.data.get() : nullptr;
  forward.derivative = p.m;
  forward.y = y.data.get();
  kernels.kan_linear(forward, executor);

  const int parts = random.below(3);  // both, the input's gradient alone, the weights' alone
  kan::BackwardArgs backward;
  backward.layer = l;
  backward.x = x.view();
  if (with_scale && parts == 2) backward.row_scale = scale.view();
  backward.g = g.view();
  backward.input_derivative = parts == 0 ? p.m + 1 : p.m;
  backward.weight_derivative = p.m;
  backward.input = parts != 2 ? t.data.get() : nullptr;
  backward.d_spline = parts != 1 ? d_spline.data.get() : nullptr;
  backward.d_base = parts != 1 && l.base ? d_base.data.get() : nullptr;
  kernels.kan_linear_backward(backward, executor);

  std::vector<double> y_want(y.count), y_size(y.count), c_want(spline.count), c_size(spline.count);
  std::vector<double> w_want(base.count), w_size(base.count);
  std::vector<bool> row_lost(size_t(B), false), feature_lost(size_t(I), false), base_lost(size_t(I), false);
  for (int64_t i = 0; i < I; ++i) {
    // The largest that each function becomes: in its units errors are measured.
    Line phi_size(size_t(R), 0.0L), psi_size(phi_size);
    const auto widen = [&](Line& size, const Line& line) {
      for (size_t r = 0; r < size.size(); ++r) size[r] = std::max(size[r], fabsl(line[r]));
    };
    double rho_size = 1, sigma_size = 1;
    for (int n = 0; n <= 32; ++n) {
      const long double at = kReach * (n / 16.0L - 1);
      rho_size = std::max(rho_size, std::fabs(base_derivative(l.base, double(at), p.m)));
      sigma_size = std::max(sigma_size, std::fabs(base_derivative(l.base, double(at), backward.input_derivative)));
      widen(phi_size, values_of(l.basis, rows[size_t(i)], int(R), p.m, at));
      widen(psi_size, values_of(l.basis, rows[size_t(i)], int(R), backward.input_derivative, at));
    }
    const long double largest = std::max(*std::max_element(phi_size.begin(), phi_size.end()),
                                         *std::max_element(psi_size.begin(), psi_size.end()));
    if (largest > (p.compute == DType::f64 ? 1e200L : 1e25L)) p.special = true;  // it may overflow
    for (int64_t b = 0; b < B; ++b) {
      const double at = x.get(b, i), s = with_scale ? scale.get(b, i) : 1.0, sb = parts == 2 ? s : 1.0;
      const Line phi = values_of(l.basis, rows[size_t(i)], int(R), p.m, at);
      const Line psi = values_of(l.basis, rows[size_t(i)], int(R), backward.input_derivative, at);
      widen(phi_size, phi), widen(psi_size, psi);  // fast waves are larger between the points above
      const double rho = base_derivative(l.base, at, p.m),
                   sigma = base_derivative(l.base, at, backward.input_derivative);
      const bool nan = std::isnan(at), lost = nan || (std::isinf(at) && l.basis != kan::kRbf);
      if (lost) row_lost[size_t(b)] = feature_lost[size_t(i)] = true;
      if (nan) base_lost[size_t(i)] = true;
      double sum = 0, size = 0;
      for (int64_t o = 0; o < O; ++o) {
        const size_t bo = size_t(b * O + o), io = size_t(i * O + o);
        const double cotangent = g.get(b, o), w = l.base ? base.get(io) : 0.0;
        y_want[bo] += s * w * rho, y_size[bo] += std::fabs(s) * (std::fabs(w) * rho_size + 1);
        sum += cotangent * w * sigma, size += std::fabs(cotangent) * (std::fabs(w) * sigma_size + 1);
        for (int64_t r = 0; r < R; ++r) {
          const size_t iro = place(i, r, o);
          const double c = spline.get(iro);
          y_want[bo] += s * double(phi[size_t(r)]) * c;
          y_size[bo] += std::fabs(s * c) * double(phi_size[size_t(r)]);
          sum += cotangent * double(psi[size_t(r)]) * c;
          size += std::fabs(cotangent * c) * double(psi_size[size_t(r)]);
          c_want[iro] += sb * cotangent * double(phi[size_t(r)]);
          c_size[iro] += std::fabs(sb * cotangent) * double(phi_size[size_t(r)]);
        }
        if (l.base) w_want[io] += sb * cotangent * rho, w_size[io] += std::fabs(sb * cotangent) * (rho_size + 1);
      }
      if (parts != 2) compare(kernels.name, seed, name, p, t, size_t(b * I + i), sum, size, lost);
    }
  }
  for (size_t n = 0; n < y.count; ++n) {
    const double extra = with_bias ? bias.get(n % size_t(O)) : 0.0;
    compare(kernels.name, seed, name, p, y, n, y_want[n] + extra, y_size[n] + 1, row_lost[n / size_t(O)]);
  }
  if (parts == 1) return;
  for (int64_t i = 0; i < I; ++i) {
    for (int64_t o = 0; o < O; ++o) {
      for (int64_t r = 0; r < R; ++r) {
        const size_t n = place(i, r, o);
        compare(kernels.name, seed, name, p, d_spline, n, c_want[n], c_size[n], feature_lost[size_t(i)]);
      }
      const size_t io = size_t(i * O + o);
      if (l.base) compare(kernels.name, seed, name, p, d_base, io, w_want[io], w_size[io] + 1e-3, base_lost[size_t(i)]);
    }
  }
}

}  // namespace sanitize
