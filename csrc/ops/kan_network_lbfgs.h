// A step of LBFGS on the mean squared error of a KAN, and the penalty of its edges, in one call.
#pragma once

#include <limits>
#include <tuple>
#include <utility>

#include "kan_network_error.h"
#include "lbfgs_memory.h"

namespace kan {
namespace ops {

// previous, d, first, count, iterations, evaluations, inverse_scale, t, the value before the last iteration, and the
// last one that was seen
using NetworkStep = std::tuple<Tensor, Tensor, int64_t, int64_t, int64_t, int64_t, double, double, double, double>;

// What LBFGS knows before the step and after it.
struct LbfgsTensors {
  Tensor vector;
  OptionalTensor read, mask;
  Tensor gradient;
  OptionalTensor previous, d;
  LbfgsMemory memory;

  void check_all(int64_t n, DType dtype) const {
    check(dtype == DType::f32 || dtype == DType::f64, "vector must be float32 or float64");
    memory.check_all(n, dtype);
    check(read.has_value() == mask.has_value(), "read and mask belong together");
    check(previous.has_value() == d.has_value(), "previous and d belong together");
    const auto fits = [&](const Tensor& t, const char* name) {
      check_shape(t, name, {n});
      check(dtype_of(t, name) == dtype && t.is_contiguous(), name, " must be contiguous, of the vector's dtype");
    };
    fits(vector, "vector"), fits(gradient, "gradient");
    if (mask) fits(*read, "read"), fits(*mask, "mask");
    if (d) fits(*previous, "previous"), fits(*d, "d");
  }
};

template <class T>
T* numbers(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* numbers(const OptionalTensor& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}
template <class T>
Tensor of_numbers(const std::vector<T>& from, const Tensor& like) {
  Tensor made = empty(like, {int64_t(from.size())});
  std::copy(from.begin(), from.end(), numbers<T>(made));
  return made;
}

// What LBFGS sees: `scale` times the error and lamb times the penalty; the line search backs off from inf, not from
// NaN.
template <class T, class Device>
class ScaledError {
 public:
  ScaledError(NetworkError<Device>& error, LbfgsTensors& at, double lamb, double scale)
      : error_(error),
        lamb_(T(lamb)),
        scale_(scale),
        n_(error.size()),
        vector_(numbers<T>(at.vector)),
        mask_(numbers<T>(at.mask)),
        read_(mask_ ? numbers<T>(*at.read) : vector_) {
    const Numbers& places = error.places();
    for (size_t n = 0; n < places.size(); ++n) {
      const Tensor& part = error.tensors()[n];
      check(part.const_data_ptr() == read_ + places[n] && part.is_contiguous(), "tensors must be the parts of ",
            mask_ ? "read" : "vector");
    }
  }

  double operator()(T* gradient) {
    for (int64_t i = 0; mask_ && i < n_; ++i) read_[i] = vector_[i] * mask_[i];
    T error, penalty;
    error_.evaluate(&error, &penalty, gradient);
    for (int64_t i = 0; mask_ && i < n_; ++i) gradient[i] *= mask_[i];
    for (int64_t i = 0; scale_ != 1.0 && i < n_; ++i) gradient[i] *= T(scale_);
    const T total = lamb_ == 0 ? error : error + lamb_ * penalty;
    latest_ = double(total) * scale_;
    if (std::isnan(latest_)) return std::numeric_limits<double>::infinity();
    return std::max(latest_, double(std::numeric_limits<T>::lowest()));
  }
  double latest() const { return latest_; }

 private:
  NetworkError<Device>& error_;
  const T lamb_;
  const double scale_;
  const int64_t n_;
  T* const vector_;
  const T* const mask_;
  T* const read_;
  double latest_ = 0.0;
};

// Takes the iterations of a step of LBFGS on kan_network_error, `scale` times, from the vector of all parameters, and
// its value and gradient. The tensors are parts of the vector or, with a mask, of `read`, where vector times mask is
// written to. pairs, inverse_curvatures, first, count, inverse_scale: what is stored, as lbfgs_direction has it.
// previous, d, t: those of the last iteration, where `iterations` were taken before.
template <class Device>
NetworkStep kan_network_lbfgs(const Tensor& x, const Tensor& target, Tensors tensors, int64_t layers, int64_t order,
                              int64_t base, Numbers products, Numbers places, double lamb, double l1, double entropy,
                              Tensor vector, OptionalTensor read, OptionalTensor mask, double scale, double value,
                              const Tensor& gradient, Tensor pairs, Tensor inverse_curvatures, int64_t first,
                              int64_t count, double inverse_scale, int64_t iterations, OptionalTensor previous,
                              OptionalTensor d, double t, double lr, int64_t max_iter, int64_t max_eval,
                              double tolerance_grad, double tolerance_change) {
  NetworkError<Device> error(x, target, std::move(tensors), layers, order, base, products, std::move(places), lamb, l1,
                             entropy);
  const int64_t n = error.size();
  LbfgsTensors at{vector, read, mask, gradient, previous, d, {pairs, inverse_curvatures, first, count, inverse_scale}};
  at.check_all(n, error.dtype());
  check(iterations == 0 || d.has_value(), "previous and d: got none after ", iterations, " iterations");
  NetworkStep made;
  with_type(error.dtype(), [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_floating_point_v<T>) {
      const auto copied = [&](const OptionalTensor& of) {
        const T* const from = numbers<T>(of);
        return from ? std::vector<T>(from, from + n) : std::vector<T>();
      };
      lbfgs::Memory<T> memory = at.memory.template rings<T>();
      lbfgs::Progress<T> progress{copied(at.d), copied(at.previous), t, value, iterations};
      ScaledError<T, Device> evaluate(error, at, lamb, scale);
      const int64_t evaluations =
          lbfgs::iterate(numbers<T>(at.vector), memory, {lr, tolerance_grad, tolerance_change, max_iter, max_eval},
                         value, copied(at.gradient), progress, evaluate);
      made = {of_numbers(progress.gradient, vector),
              of_numbers(progress.d, vector),
              memory.first,
              memory.count,
              progress.iterations,
              evaluations,
              memory.scale,
              progress.t,
              progress.value,
              evaluate.latest()};
    }
  });
  return made;
}

}  // namespace ops
}  // namespace kan
