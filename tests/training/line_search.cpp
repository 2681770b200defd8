// The line search of csrc/ops/lbfgs.h along one number, for test_line_search.py.
#include "../../csrc/ops/lbfgs.h"

namespace {

using Function = double (*)(double x, double* slope);

}  // namespace

// numbers: x, then t, value, slope and gradient of the step that was found. Returns the number of evaluations.
extern "C" int64_t line_search(Function function, double d, double width, double value, double slope, double t,
                               int64_t most, double* numbers) {
  const auto evaluate = [&](double* gradient) { return function(numbers[0], gradient); };
  kan::ops::lbfgs::LineSearch<double, decltype(evaluate)> search(numbers, 1, &d, width, evaluate);
  const auto found = search.find({0.0, value, slope, {slope}}, t, most);
  numbers[1] = found.t, numbers[2] = found.value, numbers[3] = found.slope, numbers[4] = found.gradient[0];
  return search.evaluations();
}
