// The mean squared error of a KAN, the penalty of its edges, and the gradient of both, in one call.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kan_network.h"
#include "squared_error.h"

namespace kan {
namespace ops {

// l1 sum(v) + entropy H(v / sum(v)) of the sizes v of a layer's edges: arXiv 2404.19756, eq. 2.20, and as the plain
// form has it, _engine/penalties.py: an edge of size 0 adds 0. slopes: `scale` times its gradient.
template <class T>
double edge_penalty(const T* sizes, int64_t edges, double l1, double entropy, double scale, T* slopes) {
  double sum = 0.0, value = 0.0, mean = 0.0;
  for (int64_t e = 0; e < edges; ++e) sum += sizes[e];
  const double inverse = 1.0 / std::max(sum, double(std::numeric_limits<T>::min()));
  for (int64_t e = 0; e < edges && entropy != 0.0; ++e) {
    const double share = sizes[e] * inverse;
    if (share == 0.0) continue;
    const double log = std::log(share);
    value -= share * log, mean -= share * (log + 1.0);
  }
  for (int64_t e = 0; e < edges; ++e) {
    double slope = l1;
    if (entropy != 0.0) {
      const double share = sizes[e] * inverse;
      slope += entropy * (inverse * ((share == 0.0 ? 0.0 : -(std::log(share) + 1.0)) - mean));
    }
    slopes[e] = T(scale * slope);
  }
  return l1 * sum + entropy * value;
}

// The sizes of all layers' edges, their penalty and its gradient, in float32 or float64: from the passes of the layers
// over the data where their kernels can, or from passes of their own.
template <class Device>
class EdgePenalties {
 public:
  using Network = typename NetworkFamily<Device>::Network;

  // lamb: of the penalty in the sum that has the gradient; 0: there is no penalty. between, weights: what lies between
  // the layers, and where the gradients of their weights go.
  EdgePenalties(const Network& network, const Tensor& like, double lamb, const char* between,
                const std::vector<void*>& weights)
      : network_(network), like_(like), lamb_(lamb), between_(between), weights_(weights) {
    if (lamb == 0.0) return;
    const DType dtype = network.layers[0].layer.weight_dtype;
    check((dtype == DType::f32 || dtype == DType::f64) && dtype_of(network.x, "x") == dtype,
          "a penalty needs float32 or float64 weights, and x of their dtype");
    for (const Products& products : network.products) check(!products.any(), "a penalty needs layers without products");
    for (const LayerTensors& tensors : network.layers) {
      const Layer& layer = tensors.layer;
      const int64_t edges = layer.in_features * layer.out_features;
      in_pass_.push_back(cpu::kernels().takes_sizes(layer));
      sums_.emplace_back(new double[size_t(in_pass_.back() ? edges : 0)]);
      slopes_.push_back(empty(like, {edges}));
    }
  }

  void before(size_t n, ForwardArgs& args) const {
    if (lamb_ != 0.0 && in_pass_[n]) args.sizes = sums_[n].get();
  }
  void before(size_t n, BackwardArgs& args) const {
    if (lamb_ != 0.0 && in_pass_[n]) args.size_slopes = slopes_[n].const_data_ptr();
  }
  void after(size_t n, Tensor& dx) const {
    if (lamb_ != 0.0 && !in_pass_[n]) add_gradient(n, dx);
  }

  // Between the passes. penalty: one number.
  void evaluate(double l1, double entropy, void* penalty) {
    with_type(network_.layers[0].layer.weight_dtype, [&](auto type) {
      using T = decltype(type);
      double sum = 0.0;
      if constexpr (std::is_floating_point_v<T>) {
        for (size_t n = 0; n < slopes_.size(); ++n) {
          const Layer& layer = network_.layers[n].layer;
          const int64_t edges = layer.in_features * layer.out_features;
          T* const sizes = static_cast<T*>(slopes_[n].mutable_data_ptr());
          if (in_pass_[n]) {
            for (int64_t e = 0; e < edges; ++e) sizes[e] = T(sums_[n][e] / double(layer.batch));
          } else {
            cpu::EdgeL1Args args;
            args.layer = layer, args.x = network_.input(n, between_), args.mean = sizes;
            cpu::kernels().edge_l1(args, executor());
          }
          // the kernels of edges divide by the rows
          sum += edge_penalty(sizes, edges, l1, entropy, in_pass_[n] ? lamb_ / double(layer.batch) : lamb_, sizes);
        }
      }
      *static_cast<T*>(penalty) = T(sum);
    });
  }

 private:
  // Adds the gradient of the n-th layer's penalty to those of its weights, and to dx if n > 0.
  void add_gradient(size_t n, Tensor& dx) const {
    cpu::EdgeL1BackwardArgs args;
    args.layer = network_.layers[n].layer, args.x = network_.input(n, between_);
    args.g = slopes_[n].const_data_ptr();
    const Layer& layer = args.layer;
    const int64_t edges = layer.in_features * layer.out_features, inputs = layer.batch * layer.in_features;
    Tensor d_spline = empty(like_, {edges * layer.functions}), d_base = empty(like_, {edges});
    Tensor d_input = empty(like_, {n == 0 ? 0 : inputs});
    args.d_spline = d_spline.mutable_data_ptr();
    if (layer.base != kNoBase) args.d_base = d_base.mutable_data_ptr();
    if (n != 0) args.dx = d_input.mutable_data_ptr();
    cpu::kernels().edge_l1_backward(args, executor());
    add(args.d_spline, edges * layer.functions, weights_[n]);
    if (layer.base != kNoBase) add(args.d_base, edges, weights_[network_.layers.size() + n]);
    if (n != 0) add(args.dx, inputs, dx.mutable_data_ptr());
  }

  void add(const void* from, int64_t numbers, void* to) const {
    with_type(network_.layers[0].layer.weight_dtype, [&](auto type) {
      using T = decltype(type);
      for (int64_t n = 0; n < numbers; ++n) static_cast<T*>(to)[n] += static_cast<const T*>(from)[n];
    });
  }

  const Network& network_;
  const Tensor& like_;
  const double lamb_;
  const char* const between_;
  const std::vector<void*>& weights_;
  // of each layer:
  std::vector<bool> in_pass_;
  std::vector<std::unique_ptr<double[]>> sums_;  // of |phi| over the rows
  Tensors slopes_;
};

// Returns the size of a vector that is made of a part for each tensor, which begin at these places.
inline int64_t checked_places(const Numbers& places, const Tensors& tensors) {
  std::vector<std::pair<int64_t, int64_t>> parts;
  for (size_t n = 0; n < places.size(); ++n) parts.emplace_back(places[n], tensors[n].numel());
  std::sort(parts.begin(), parts.end());
  int64_t end = 0;
  for (const auto& [place, numbers] : parts) {
    check(place == end, "places: got ", place, ", where the parts before it end at ", end);
    end += numbers;
  }
  return end;
}

// The base's values that the forward passes of small layers keep for the backward ones, and those of x for all passes.
template <class Device>
class KeptBases {
 public:
  KeptBases(const typename NetworkFamily<Device>::Network& network, const Tensor& like) {
    for (const LayerTensors& tensors : network.layers) {
      const Layer& layer = tensors.layer;
      const int64_t rows = cpu::kernels().kept_base_rows(layer);
      const int64_t size = layer.weight_dtype == DType::f64 ? sizeof(double) : sizeof(float);
      keeps_.push_back(rows > 0);
      values_.push_back(empty(like, {2 * layer.in_features * rows * size / int64_t(like.element_size())}));
    }
  }

  void before(size_t n, ForwardArgs& args) const {
    if (!keeps_[n]) return;
    args.kept_base = values_[n].mutable_data_ptr(), args.base_is_kept = n == 0 && again_;
  }
  void before(size_t n, BackwardArgs& args) const {
    if (keeps_[n]) args.kept_base = values_[n].const_data_ptr();
  }
  void end() { again_ = true; }

 private:
  std::vector<bool> keeps_;
  Tensors values_;
  bool again_ = false;
};

// What has the arguments of kan_network_error, and is evaluated as often as only the tensors' numbers change.
template <class Device>
class NetworkError {
 public:
  NetworkError(const Tensor& x, const Tensor& target, Tensors tensors, int64_t layers, int64_t order, int64_t base,
               const Numbers& products, Numbers places, double lamb, double l1, double entropy)
      : x_(x),
        target_(target),
        tensors_(std::move(tensors)),
        network_(x_, tensors_, layers, order, base, products),
        places_(std::move(places)),
        l1_(l1),
        entropy_(entropy),
        gradients_{std::vector<void*>(network_.kinds * network_.layers.size()), {}},
        size_(checked_size()),
        wanted_(view(target_, "target", rows(), network_.nodes())),
        hidden_(empty(tensors_[0], {network_.hidden_size()})),
        y_(empty(tensors_[0], {rows(), network_.nodes()})),
        penalties_(network_, tensors_[0], lamb, between(), gradients_.weights),
        bases_(network_, tensors_[0]) {
    check(wanted_.dtype == dtype(), "target must have the weights' dtype");
  }
  NetworkError(const NetworkError&) = delete;

  DType dtype() const { return network_.layers[0].layer.weight_dtype; }
  const Tensors& tensors() const { return tensors_; }
  // How many numbers the gradient has, and where the part of each tensor with a gradient begins.
  int64_t size() const { return size_; }
  const Numbers& places() const { return places_; }

  // error, penalty: one number of the weights' dtype. gradient: all parts, of error + lamb penalty.
  void evaluate(void* error, void* penalty, void* gradient) {
    const auto at = [&](size_t n) {
      return static_cast<char*>(gradient) + places_[n] * int64_t(tensors_[0].element_size());
    };
    for (size_t n = 0; n < gradients_.weights.size(); ++n) gradients_.weights[n] = at(n);
    const Parts parts{penalties_, bases_};
    Family::forward(network_, between(), y_, parts);
    penalties_.evaluate(l1_, entropy_, penalty);
    squared_error(wanted_, rows(), network_.nodes(), y_.mutable_data_ptr(), error);
    Family::backward(network_, between(), y_, false, gradients_, parts);
    bases_.end();
    for (size_t n = 0; n < gradients_.biases.size(); ++n) {
      const Tensor& bias = gradients_.biases[n];
      std::memcpy(at(gradients_.weights.size() + n), bias.const_data_ptr(), size_t(bias.numel()) * bias.element_size());
    }
  }

 private:
  using Family = NetworkFamily<Device>;

  struct Parts {
    const EdgePenalties<Device>& penalties;
    const KeptBases<Device>& bases;

    template <class Args>
    void before(size_t n, Args& args) const {
      penalties.before(n, args), bases.before(n, args);
    }
    void after(size_t n, Tensor& dx) const { penalties.after(n, dx); }
  };

  int64_t rows() const { return x_.size(0); }
  char* between() { return static_cast<char*>(hidden_.mutable_data_ptr()); }
  int64_t checked_size() const {
    const size_t count = tensors_.size() - network_.layers.size();
    check(places_.size() == count, "places: got ", places_.size(), ", expected one for each of ", count, " tensors");
    return checked_places(places_, tensors_);
  }

  const Tensor x_, target_;
  const Tensors tensors_;
  const typename Family::Network network_;
  const Numbers places_;
  const double l1_, entropy_;
  typename Family::Gradients gradients_;
  const int64_t size_;
  const MatrixView wanted_;
  Tensor hidden_, y_;
  EdgePenalties<Device> penalties_;
  KeptBases<Device> bases_;
};

// Returns the mean of (y - target)^2 over all numbers of y, the penalty of the layers' edges (see edge_penalty), and
// the gradient of error + lamb penalty by all tensors but the grids, in one vector, where each begins at its place.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> kan_network_error(const Tensor& x, const Tensor& target, Tensors tensors,
                                                     int64_t layers, int64_t order, int64_t base, Numbers products,
                                                     Numbers places, double lamb, double l1, double entropy) {
  NetworkError<Device> of(x, target, std::move(tensors), layers, order, base, products, std::move(places), lamb, l1,
                          entropy);
  const Tensor& like = of.tensors()[0];
  Tensor gradient = empty(like, {of.size()}), error = empty(like, {}), penalty = empty(like, {});
  of.evaluate(error.mutable_data_ptr(), penalty.mutable_data_ptr(), gradient.mutable_data_ptr());
  return {error, penalty, gradient};
}

}  // namespace ops
}  // namespace kan
