// Small networks in one launch: a block takes some rows through all layers, and back.
//
// The parameters of all layers lie in shared memory, converted, and so does what a layer hands on. A thread evaluates
// the basis of one (row, input) after the other, then adds up one (row, output) after the other. Going back, each
// column (input, output) of a weight gradient belongs to one thread, so no sum needs an atomic; the last block to
// arrive adds the blocks' sums in their order.
#pragma once

#include "cuda/evaluate.h"

namespace kan {
namespace cuda {

constexpr int kNetworkThreads = 128;
constexpr int kNetworkLayers = 8;
constexpr int kNetworkWidth = 64;
constexpr int kNetworkRows = 16;  // of one tile, at most

struct NetworkLayerArgs {
  const void *spline_weight = nullptr, *base_weight = nullptr, *bias = nullptr, *grid = nullptr;
  void *d_spline = nullptr, *d_base = nullptr, *d_bias = nullptr;
  int in = 0, out = 0, functions = 0;
  int parameters = 0;  // where its own begin: those of the splines, of the base, the bias
  int nodes = 0;       // that the next layer reads
  bool multiplied = false;
  uint8_t first[kNetworkWidth + 1] = {};  // output of each node, if they are multiplied, and the end

  // Of `hidden`, a row: the outputs if they are multiplied, and the nodes.
  KAN_HD int columns() const { return multiplied ? out + nodes : nodes; }
  KAN_HD int splines() const { return in * functions * out; }
  KAN_HD int edges() const { return in * out; }
};

struct NetworkArgs {
  NetworkLayerArgs layer[kNetworkLayers];
  int layers = 0, order = 0, base = 0;
  bool biased = false;
  int rows = 0, width = 0;  // of a tile; the widest layer
  int parameters = 0;       // of all layers
  int64_t batch = 0, blocks = 1;
  DType dtype = DType::f32;  // of weights and of all that lies between the layers
  MatrixView x, g;
  const void* hidden = nullptr;
  void *hidden_out = nullptr, *y = nullptr;
  void* input = nullptr;
  DType input_dtype = DType::f32;
  bool weight = false;  // whether weights need gradients
  unsigned* arrived = nullptr;
  void* parts = nullptr;  // [blocks][parameters] in the compute type
};

// What a block keeps in shared memory.
template <class T>
struct NetworkTile {
  T *parameters, *sums, *x, *y, *values, *slopes;
  int* window;
  int pairs;  // between the values of one function and of the next

  KAN_DEVICE NetworkTile(const NetworkArgs& a, bool backward) : pairs(a.rows * a.width) {
    const int values_size = (a.order + 2) * pairs;
    parameters = reinterpret_cast<T*>(shared_memory());
    sums = parameters + a.parameters;
    x = sums + (backward ? a.parameters : 0);
    y = x + pairs;
    values = y + pairs;
    slopes = values + values_size;
    window = reinterpret_cast<int*>(slopes + (backward ? values_size : 0));
  }
  static int64_t bytes(const NetworkArgs& a, bool backward) {
    const int64_t pairs = a.rows * a.width, evaluated = (a.order + 2) * pairs;
    return int64_t(sizeof(T)) * ((backward ? 2 : 1) * (a.parameters + evaluated) + 2 * pairs) + 4 * pairs;
  }
};

// A number as it is stored, which the layer behind reads.
template <class T>
KAN_DEVICE T as_stored(T value, DType dtype) {
  if (dtype == DType::bf16) return T(bits_as_float(pack_bf16(float(value), 0.0f) << 16));
  if (dtype == DType::f16) return T(f16_to_float(uint16_t(pack_f16(float(value), 0.0f))));
  return value;
}

template <class T>
KAN_DEVICE void stage_parameters(const NetworkArgs& a, T* to) {
  for (int l = 0; l < a.layers; ++l) {
    const NetworkLayerArgs& layer = a.layer[l];
    T* own = to + layer.parameters;
    for (int n = thread_index(); n < layer.splines(); n += kNetworkThreads) {
      own[n] = load_as<T>(layer.spline_weight, a.dtype, n);
    }
    own += layer.splines();
    if (a.base != kNoBase) {
      for (int n = thread_index(); n < layer.edges(); n += kNetworkThreads) {
        own[n] = load_as<T>(layer.base_weight, a.dtype, n);
      }
      own += layer.edges();
    }
    if (!layer.bias) continue;
    for (int n = thread_index(); n < layer.out; n += kNetworkThreads) own[n] = load_as<T>(layer.bias, a.dtype, n);
  }
}

// values[j * pairs + p] of the pair p = row * in + i, the base last; of the first derivative in slopes; either if
// asked.
template <class T, int K>
KAN_DEVICE void evaluate_tile(const NetworkArgs& a, const NetworkLayerArgs& layer, int rows, const NetworkTile<T>& tile,
                              bool values, bool slopes) {
  const int order = K >= 0 ? K : a.order, n_knots = layer.functions + order + 1;
  for (int p = thread_index(); p < rows * layer.in; p += kNetworkThreads) {
    const T* knots = static_cast<const T*>(layer.grid) + p % layer.in * n_knots;
    const T x = tile.x[p];
    const Place<T> place = locate(knots, n_knots, x);
    tile.window[p] = place.unit == T(1) ? scalar::window_of_cell(place.cell, order, layer.functions - order) : 0;
    if (values) {
      write_values_any<T, K>(order, knots, n_knots, x, place, T(1), 0, tile.values + p, tile.pairs);
      if (a.base != kNoBase) tile.values[(order + 1) * tile.pairs + p] = base_value<T>(x, a.base, 0);
    }
    if (slopes) {
      write_values_any<T, K>(order, knots, n_knots, x, place, T(1), 1, tile.slopes + p, tile.pairs);
      if (a.base != kNoBase) tile.slopes[(order + 1) * tile.pairs + p] = base_value<T>(x, a.base, 1);
    }
  }
}

// Kernels of any dtype and order: K < 0 is one known at run time.
template <template <class, int> class Kernel>
void run_network(const NetworkArgs& a, void* stream) {
  if (a.dtype == DType::f64) {
    return a.order == 3 ? Kernel<double, 3>::run(a, stream) : Kernel<double, -1>::run(a, stream);
  }
  if (a.order == 3) return Kernel<float, 3>::run(a, stream);
  Kernel<float, -1>::run(a, stream);
}

void network_forward_kernels(const NetworkArgs& a, void* stream);
void network_backward_kernels(const NetworkArgs& a, void* stream);

}  // namespace cuda
}  // namespace kan
