// LBFGS with a strong-Wolfe line search on vectors of few numbers, for which each call of torch costs more than its
// arithmetic. training/lbfgs.py takes the same steps on tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace kan {
namespace ops {
namespace lbfgs {

// In double for float too. Four sums, so that an addition need not wait for the one before it.
template <class T>
double dot(const T* a, const T* b, int64_t n) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int64_t lane = 0; lane < 4; ++lane) sums[lane] += double(a[i + lane]) * double(b[i + lane]);
  }
  for (; i < n; ++i) sums[0] += double(a[i]) * double(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
void add(T* to, double factor, const T* from, int64_t n) {
  const T rounded = T(factor);
  for (int64_t i = 0; i < n; ++i) to[i] += rounded * from[i];
}

// NaN where there is one.
template <class T>
double largest(const T* vector, int64_t n) {
  T most = 0;
  bool numbers = true;
  for (int64_t i = 0; i < n; ++i) {
    most = std::max(most, std::abs(vector[i]));
    numbers = numbers && vector[i] == vector[i];
  }
  return numbers ? double(most) : std::nan("");
}

// The last `count` steps s, what they did to the gradient y, and 1 / (y.s), oldest first from row `first` on: rings.
template <class T>
struct Memory {
  T *steps, *changes;
  double* inverse_curvatures;
  int64_t size, n, first, count;
  double scale;  // of the first inverse Hessian

  int64_t row(int64_t pair) const { return (first + pair) % size; }
  void clear() { first = count = 0, scale = 1.0; }

  // Stores the step t d, if it shows curvature.
  void store(const T* gradient, const T* previous, const T* d, double t) {
    std::vector<T> y(n), s(n);
    for (int64_t i = 0; i < n; ++i) y[i] = gradient[i] - previous[i], s[i] = d[i] * T(t);
    const double curvature = dot(y.data(), s.data(), n);
    if (!(curvature > 1e-10)) return;
    scale = curvature / dot(y.data(), y.data(), n);
    if (size == 0) return;
    if (count == size) {
      first = row(1);
    } else {
      ++count;
    }
    const int64_t at = row(count - 1);
    std::copy(s.begin(), s.end(), steps + at * n), std::copy(y.begin(), y.end(), changes + at * n);
    inverse_curvatures[at] = 1.0 / curvature;
  }

  // Minus the inverse Hessian that the memory stands for, times the gradient: Nocedal & Wright, algorithm 7.4.
  void direction(const T* gradient, T* d) const {
    std::vector<double> shares(count);
    for (int64_t i = 0; i < n; ++i) d[i] = -gradient[i];
    for (int64_t pair = count; pair-- > 0;) {
      const int64_t at = row(pair);
      shares[pair] = inverse_curvatures[at] * dot(steps + at * n, d, n);
      add(d, -shares[pair], changes + at * n, n);
    }
    for (int64_t i = 0; i < n; ++i) d[i] *= T(scale);
    for (int64_t pair = 0; pair < count; ++pair) {
      const int64_t at = row(pair);
      add(d, shares[pair] - inverse_curvatures[at] * dot(changes + at * n, d, n), steps + at * n, n);
    }
  }
};

// A point of the objective along a direction: step length, value, derivative along it, gradient.
template <class T>
struct Point {
  double t, value, slope;
  std::vector<T> gradient;
};

// Which of two has the lower value, 0 or 1: the first of equal ones, never NaN beside a number.
template <class T>
int lower(const Point<T>& a, const Point<T>& b) {
  return a.value <= b.value || std::isnan(b.value) ? 0 : 1;
}

// Where the cubic through two points with their slopes is least, within bounds: Nocedal & Wright, eq. 3.59.
template <class T>
double cubic(const Point<T>& one, const Point<T>& other, double low, double high) {
  const Point<T>&a = one.t > other.t ? other : one, &b = one.t > other.t ? one : other;
  const bool finite =
      std::isfinite(a.value) && std::isfinite(b.value) && std::isfinite(a.slope) && std::isfinite(b.slope);
  if (a.t < b.t && finite) {
    const double d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t);
    const double square = d1 * d1 - a.slope * b.slope;
    if (square >= 0) {
      const double d2 = std::sqrt(square), below = b.slope - a.slope + 2 * d2;
      if (below != 0) return std::min(std::max(b.t - (b.t - a.t) * ((b.slope + d2 - d1) / below), low), high);
    }
  }
  return (low + high) / 2;
}

// Finds a step that satisfies the strong Wolfe conditions, or the best one: Nocedal & Wright, algorithms 3.5 (a
// bracket) and 3.6 (zoom). Evaluate: returns the objective at the vector as it is, and writes the gradient.
template <class T, class Evaluate>
class LineSearch {
 public:
  // d: the direction from where the vector is; width: its largest entry.
  LineSearch(T* vector, int64_t n, const T* d, double width, Evaluate& evaluate)
      : vector_(vector), n_(n), d_(d), width_(width), evaluate_(evaluate), origin_(vector, vector + n) {}

  // Moves the vector there. most: evaluations after the first one.
  Point<T> find(const Point<T>& start, double t, int64_t most) {
    const auto too_high = [&](const Point<T>& p) { return !(p.value <= start.value + kArmijo * p.t * start.slope); };
    const auto flat = [&](const Point<T>& p) { return std::abs(p.slope) <= -kCurvature * start.slope; };
    Point<T> last = start, point = evaluate(t);
    bool found = false;
    while (true) {
      if (more() >= most) {
        last = start;  // the last point was not looked at
        break;
      }
      if (too_high(point) || (more() > 1 && point.value >= last.value)) break;
      found = flat(point);
      if (found || point.slope >= 0) break;
      t = cubic(last, point, point.t + 0.01 * (point.t - last.t), 10 * point.t);
      last = std::move(point), point = evaluate(t);
    }
    if (found) return point;
    int low = lower(last, point);
    Point<T> bracket[2] = {std::move(last), std::move(point)};
    bool stuck = false;
    while (more() < most && std::abs(bracket[1].t - bracket[0].t) * width_ >= kNarrow) {
      const double left = std::min(bracket[0].t, bracket[1].t), right = std::max(bracket[0].t, bracket[1].t);
      const double margin = 0.1 * (right - left);
      t = cubic(bracket[0], bracket[1], left, right);
      const bool near = std::min(right - t, t - left) < margin;
      if (near && (stuck || t >= right || t <= left)) {  // twice in a row or at an end: away from it
        t = right - t < t - left ? right - margin : left + margin;
        stuck = false;
      } else {
        stuck = near;
      }
      point = evaluate(t);
      if (too_high(point) || point.value >= bracket[low].value) {
        bracket[1 - low] = std::move(point);
        low = lower(bracket[0], bracket[1]);  // not the same one where a lower value is still too high
        continue;
      }
      found = flat(point);
      if (!found && point.slope * (bracket[1 - low].t - bracket[low].t) >= 0) {
        bracket[1 - low] = std::move(bracket[low]);
      }
      bracket[low] = std::move(point);
      if (found) break;
    }
    if (at_ != bracket[low].t) move(bracket[low].t);
    return std::move(bracket[low]);
  }

  int64_t evaluations() const { return evaluations_; }

 private:
  static constexpr double kArmijo = 1e-4, kCurvature = 0.9;  // c1 and c2 of Nocedal & Wright, eq. 3.7
  static constexpr double kNarrow = 1e-9;  // a bracket that moves no number by more is not searched any further

  int64_t more() const { return evaluations_ - 1; }

  Point<T> evaluate(double t) {
    move(t);
    ++evaluations_;
    Point<T> point{t, 0.0, 0.0, std::vector<T>(n_)};
    point.value = evaluate_(point.gradient.data());
    point.slope = dot(point.gradient.data(), d_, n_);
    return point;
  }
  // For t = 0 to the origin whatever d is.
  void move(double t) {
    for (int64_t i = 0; i < n_; ++i) vector_[i] = t == 0 ? origin_[i] : origin_[i] + T(t) * d_[i];
    at_ = t;
  }

  T* const vector_;
  const int64_t n_;
  const T* const d_;
  const double width_;
  Evaluate& evaluate_;
  const std::vector<T> origin_;
  int64_t evaluations_ = 0;
  double at_ = 0.0;
};

struct Options {
  double lr, tolerance_grad, tolerance_change;
  int64_t max_iter, max_eval;
};

// What lies between iterations: the last direction, step length, and gradient and value before that step.
template <class T>
struct Progress {
  std::vector<T> d, gradient;
  double t = 0.0, value = 0.0;
  int64_t iterations = 0;  // ever taken
};

// Takes the iterations of one step of the optimizer from a vector, its value and gradient. Returns the number of
// evaluations, of which the first was made before.
template <class T, class Evaluate>
int64_t iterate(T* vector, Memory<T>& memory, const Options& options, double value, std::vector<T> gradient,
                Progress<T>& progress, Evaluate&& evaluate) {
  const int64_t n = memory.n;
  int64_t evaluations = 1;
  for (int64_t iteration = 0; iteration < options.max_iter; ++iteration) {
    if (largest(gradient.data(), n) <= options.tolerance_grad) break;
    double t = options.lr;
    if (++progress.iterations == 1) {
      memory.clear();
      double sum = 0.0;
      for (T number : gradient) sum += std::abs(double(number));
      t *= std::min(1.0, 1.0 / sum);
    } else {
      memory.store(gradient.data(), progress.gradient.data(), progress.d.data(), progress.t);
    }
    progress.d.resize(size_t(n));
    memory.direction(gradient.data(), progress.d.data());
    progress.t = t, progress.value = value, progress.gradient = gradient;
    const T* const d = progress.d.data();
    const double slope = dot(gradient.data(), d, n), width = largest(d, n);
    if (slope > -options.tolerance_change) break;
    LineSearch<T, std::remove_reference_t<Evaluate>> search(vector, n, d, width, evaluate);
    Point<T> point = search.find({0.0, value, slope, std::move(gradient)}, t, options.max_eval - evaluations);
    evaluations += search.evaluations();
    const double change = std::abs(point.value - value);
    value = point.value, gradient = std::move(point.gradient), progress.t = point.t;
    if (evaluations >= options.max_eval || change < options.tolerance_change) break;
    if (point.t * width <= options.tolerance_change) break;
  }
  return evaluations;
}

}  // namespace lbfgs
}  // namespace ops
}  // namespace kan
