// All layers of a KAN in one call, and their gradients, once for every device. Where a device has no kernel for the
// whole, they are the kernels of kan_linear with nothing of torch between them: every number is that of the layers one
// by one.
#pragma once

#include <iterator>
#include <utility>
#include <vector>

#include "kan_linear.h"
#include "products.h"

namespace kan {
namespace ops {

using Tensors = std::vector<Tensor>;
using Numbers = std::vector<int64_t>;

template <class Device>
struct NetworkFamily {
  // tensors: of every layer the spline_weights, the base_weights where there is a base, the biases or none, the grids.
  // products: see products_of. Returns y (batch, nodes of the last layer), and hidden: what lies between the layers,
  // (batch, width) behind one another, before a layer's nodes its outputs where they are multiplied, for the backward
  // pass.
  static std::tuple<Tensor, Tensor> kan_network(const Tensor& x, Tensors tensors, int64_t layers, int64_t order,
                                                int64_t base, Numbers products) {
    const Network network(x, tensors, layers, order, base, products);
    Tensor hidden = empty(tensors[0], {network.hidden_size()});
    Tensor y = empty(tensors[0], {x.size(0), network.nodes()});
    forward(network, static_cast<char*>(hidden.mutable_data_ptr()), y);
    return {y, hidden};
  }

  // Returns dx, empty unless asked for, and behind it the gradients of all tensors but the grids, if asked for.
  static Tensors kan_network_backward(const Tensor& x, const Tensor& hidden, Tensors tensors, int64_t layers,
                                      const Tensor& g, int64_t order, int64_t base, bool need_x, bool need_weight,
                                      Numbers products) {
    const Network network(x, tensors, layers, order, base, products);
    const size_t count = network.layers.size();
    network.device.check(hidden, "hidden"), network.device.check(g, "g");
    check_shape(hidden, "hidden", {network.hidden_size()});
    check(hidden.scalar_type() == tensors[0].scalar_type() && hidden.is_contiguous(),
          "hidden must be what kan_network returned");
    check(g.scalar_type() == tensors[0].scalar_type(), "g must have the weights' dtype");
    const char* between = static_cast<const char*>(hidden.const_data_ptr());
    Tensors made(1);
    Gradients gradients;
    for (size_t n = 0; need_weight && n < network.kinds * count; ++n) {
      const Layer& layer = network.layers[n % count].layer;
      made.push_back(n < count ? empty(g, {layer.in_features, layer.functions, layer.out_features})
                               : empty(g, {layer.in_features, layer.out_features}));
      gradients.weights.push_back(made.back().mutable_data_ptr());
    }
    made[0] = backward(network, between, g, need_x, gradients);
    std::move(gradients.biases.begin(), gradients.biases.end(), std::back_inserter(made));
    return made;
  }

  // The layers, checked: an error says which.
  struct Network {
    const Tensor& x;
    const Device device;
    const std::vector<Products> products;
    std::vector<LayerTensors> layers;
    size_t kinds;  // of tensors with gradients, without the bias
    bool biased;

    Network(const Tensor& x, const Tensors& tensors, int64_t layers_in, int64_t order, int64_t base,
            const Numbers& products_in)
        : x(x), device(x), products(products_of(products_in, counted(tensors, layers_in, base))) {
      const size_t count = products.size();
      kinds = kinds_of(base);
      check_matrix(x, "x");
      biased = tensors.size() == (kinds + 2) * count;
      layers.reserve(count);
      for (size_t n = 0; n < count; ++n) {
        of_layer(n, [&] { add(n, &tensors[n], count, order, base); });
      }
    }

    static size_t kinds_of(int64_t base) { return 1 + (base != kNoBase); }

    // The number of layers, of which there are tensors: before anything of that size is made.
    static size_t counted(const Tensors& tensors, int64_t layers, int64_t base) {
      const int64_t kinds = int64_t(kinds_of(base)), given = int64_t(tensors.size());
      const bool fits =
          layers > 0 && layers <= given && (given == (kinds + 2) * layers || given == (kinds + 1) * layers);
      kan::ops::check(fits, "tensors: got ", given, " for ", layers, " layers, expected ", kinds + 1, " or ", kinds + 2,
                      " for each");
      return size_t(layers);
    }

    // at: the layer's first tensor; the others lie `count` apart.
    void add(size_t n, const Tensor* at, size_t count, int64_t order, int64_t base) {
      const Tensor& spline_weight = *at;
      kan::ops::check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
      OptionalTensor base_weight;
      if (base != kNoBase) base_weight = *(at += count);
      const DType dtype = dtype_of(spline_weight, "spline_weight");
      const int64_t out = spline_weight.size(2);
      device.check(spline_weight, "spline_weight"), device.check(base_weight, "base_weight");
      OptionalTensor bias;
      if (biased) bias = *(at += count);
      device.check(bias, "bias");
      const Tensor& grid = *(at += count);
      device.check(grid, "grid");
      const int64_t in = n == 0 ? x.size(1) : nodes(n - 1);
      const DType x_dtype = n == 0 ? dtype_of(x, "x") : layers[n - 1].layer.weight_dtype;
      kan::ops::check(n == 0 || x_dtype == dtype, "spline_weight must have the dtype of the layer before it");
      layers.emplace_back(x.size(0), in, x_dtype, grid, out, dtype, spline_functions(grid, order), order, base,
                          kBSpline);
      layers[n].set_weights(spline_weight, base_weight), layers[n].set_bias(bias);
      if (!products[n].any()) return;
      kan::ops::check(products[n].outputs() == out, "products has ", products[n].outputs(), " outputs, expected ", out);
    }

    std::vector<SplineLayer> plain_layers() const {
      std::vector<SplineLayer> plain;
      plain.reserve(layers.size());
      for (const LayerTensors& layer : layers) plain.push_back(layer.layer);
      return plain;
    }

    template <class Call>
    static void of_layer(size_t n, const Call& call) {
      try {
        call();
      } catch (const std::runtime_error& error) {
        throw std::runtime_error("layers[" + std::to_string(n) + "]: " + error.what());
      }
    }
    template <class Args>
    void run(size_t n, const Args& args) const {
      of_layer(n, [&] { device.run(args); });
    }

    int64_t nodes() const { return nodes(layers.size() - 1); }
    int64_t nodes(size_t n) const { return products[n].any() ? products[n].nodes() : layers[n].layer.out_features; }
    // Numbers of `hidden` before the n-th layer's, its outputs and its nodes.
    int64_t hidden_before(size_t n) const {
      int64_t columns = 0;
      for (size_t l = 0; l < n; ++l) columns += (products[l].any() ? products[l].outputs() : 0) + nodes(l);
      return columns * x.size(0);
    }
    int64_t hidden_size() const {
      const size_t last = layers.size() - 1;
      return hidden_before(last) + (products[last].any() ? products[last].outputs() * x.size(0) : 0);
    }
    // Where the outputs of the n-th layer are, if they are multiplied.
    template <class Byte>
    Byte* outputs(Byte* between, size_t n) const {
      return between + hidden_before(n) * int64_t(layers[0].spline_weight->element_size());
    }
    // Where those are that the n-th layer reads, n > 0.
    template <class Byte>
    Byte* at(Byte* between, size_t n) const {
      const int64_t size = int64_t(layers[0].spline_weight->element_size());
      return outputs(between, n - 1) + (products[n - 1].any() ? products[n - 1].outputs() * x.size(0) * size : 0);
    }
    void multiplied(size_t n, const void* outputs, void* nodes) const {
      if (products[n].any()) device.multiply(products[n], layers[n].layer.weight_dtype, x.size(0), outputs, nodes);
    }
    // The cotangent of the n-th layer's outputs from that of its nodes.
    Tensor of_outputs(size_t n, const void* outputs, const Tensor& g) const {
      Tensor made = empty(g, {x.size(0), products[n].outputs()});
      device.multiply_backward(products[n], x.size(0), outputs, view(g, "g", x.size(0), products[n].nodes()),
                               made.mutable_data_ptr());
      return made;
    }
    MatrixView input(size_t n, const char* between) const {
      const Layer& layer = layers[n].layer;
      if (n == 0) return view(x, "x", x.size(0), layer.in_features);
      return {at(between, n), layer.weight_dtype, layer.in_features, 1};
    }
  };

  // What takes part in the calls of single layers: nothing.
  struct NoPart {
    void before(size_t, ForwardArgs&) const {}
    void before(size_t, BackwardArgs&) const {}
    void after(size_t, Tensor&) const {}  // the gradients of the n-th layer, and its dx, are there
  };

  template <class Part = NoPart>
  static void forward(const Network& network, char* between, Tensor& y, const Part& part = {}) {
    if constexpr (Device::kNetworks) {
      if (forward_whole(network, between, y)) return;
    }
    const size_t last = network.layers.size() - 1;
    for (size_t n = 0; n <= last; ++n) {
      ForwardArgs args;
      args.layer = network.layers[n].layer;
      args.x = network.input(n, between);
      args.bias = network.layers[n].bias_data();
      void* const nodes = n == last ? y.mutable_data_ptr() : network.at(between, n + 1);
      args.y = network.products[n].any() ? network.outputs(between, n) : nodes;
      part.before(n, args);
      network.run(n, args);
      network.multiplied(n, args.y, nodes);
    }
  }

  // Where the gradients of spline_weights and base_weights go, none if they are not asked for; those of the biases.
  struct Gradients {
    std::vector<void*> weights;
    Tensors biases;

    bool asked() const { return !weights.empty(); }
  };

  // Returns dx, empty unless asked for.
  template <class Part = NoPart>
  static Tensor backward(const Network& network, const char* between, const Tensor& g, bool need_x,
                         Gradients& gradients, const Part& part = {}) {
    if constexpr (Device::kNetworks) {
      Tensor dx;
      if (backward_whole(network, between, g, need_x, gradients, dx)) return dx;
    }
    const size_t count = network.layers.size();
    const Tensor& x = network.x;
    if (gradients.asked() && network.biased) gradients.biases.resize(count);
    Tensor cotangent = g;
    for (size_t n = count; n-- > 0;) {
      const Layer& layer = network.layers[n].layer;
      if (network.products[n].any()) cotangent = network.of_outputs(n, network.outputs(between, n), cotangent);
      BackwardArgs args;
      args.layer = layer;
      args.x = network.input(n, between);
      args.g = view(cotangent, "g", x.size(0), layer.out_features);
      const bool need_input = n != 0 || need_x;
      const Tensor& like = n == 0 ? x : g;
      Tensor dx = need_input ? empty(like, {x.size(0), layer.in_features}) : empty(like, {0});
      if (need_input) args.input = dx.mutable_data_ptr();
      if (gradients.asked()) {
        args.d_spline = gradients.weights[n];
        if (network.kinds > 1) args.d_base = gradients.weights[count + n];
        if (network.biased) gradients.biases[n] = sum_of_rows(cotangent);
      }
      part.before(n, args);
      if (need_input || gradients.asked()) network.run(n, args);
      part.after(n, dx);
      cotangent = dx;
    }
    return cotangent;
  }

 private:
  // Runs the device's kernel for the whole, where it has one for these layers.
  static bool forward_whole(const Network& network, char* between, Tensor& y) {
    const std::vector<SplineLayer> plain = network.plain_layers();
    std::vector<const void*> biases;
    for (const LayerTensors& layer : network.layers) biases.push_back(layer.bias_data());
    NetworkForwardArgs whole;
    whole.layers = plain.data(), whole.biases = biases.data(), whole.count = int(plain.size());
    whole.products = network.products.data();
    whole.x = network.input(0, between), whole.hidden = between, whole.y = y.mutable_data_ptr();
    if (!network.device.has_network(whole)) return false;
    network.device.run_network(whole);
    return true;
  }

  // The same backward; makes dx, and what the layers one by one do not need.
  static bool backward_whole(const Network& network, const char* between, const Tensor& g, bool need_x,
                             Gradients& gradients, Tensor& dx) {
    const size_t count = network.layers.size();
    const std::vector<SplineLayer> plain = network.plain_layers();
    NetworkBackwardArgs whole;
    whole.layers = plain.data(), whole.products = network.products.data(), whole.count = int(count);
    whole.x = network.input(0, between), whole.hidden = between;
    whole.g = view(g, "g", network.x.size(0), network.nodes());
    if (!network.device.has_network(whole)) return false;
    std::vector<void*> biases;
    for (size_t n = 0; gradients.asked() && network.biased && n < count; ++n) {
      gradients.biases.push_back(empty(g, {plain[n].out_features}));
      biases.push_back(gradients.biases[n].mutable_data_ptr());
    }
    if (gradients.asked()) whole.d_spline = gradients.weights.data();
    if (gradients.asked() && network.kinds > 1) whole.d_base = gradients.weights.data() + count;
    if (!biases.empty()) whole.d_bias = biases.data();
    dx = need_x ? empty(network.x, {network.x.size(0), network.x.size(1)}) : empty(network.x, {0});
    if (need_x) whole.input = dx.mutable_data_ptr();
    if (need_x || gradients.asked()) network.device.run_network(whole);
    return true;
  }

  static Tensor sum_of_rows(const Tensor& g) {
    const int64_t rows = 0;
    return torch::stable::sum(g, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1));
  }
};

template <class Device, class Library>
void register_network(Library& m) {
  using Ops = NetworkFamily<Device>;
  m.impl("kan_network", TORCH_BOX(&Ops::kan_network));
  m.impl("kan_network_backward", TORCH_BOX(&Ops::kan_network_backward));
}

}  // namespace ops
}  // namespace kan
