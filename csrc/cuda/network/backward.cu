// All layers backward: the gradient of x, and the weights' without atomics on floating-point numbers.
#include "multiply.h"
#include "network.h"

namespace kan {
namespace cuda {
namespace {

// Adds the tile's rows to the sums of all weights of a layer. A column (i, o) is one thread's.
template <class T, int K>
KAN_DEVICE void add_gradients(const NetworkArgs& a, const NetworkLayerArgs& layer, int rows,
                              const NetworkTile<T>& tile) {
  const int order = K >= 0 ? K : a.order, out = layer.out;
  T* const splines = tile.sums + layer.parameters;
  T* const bases = splines + layer.splines();
  for (int n = thread_index(); n < layer.edges(); n += kNetworkThreads) {
    const int i = n / out, o = n % out;
    T* const column = splines + i * layer.functions * out + o;
    T base_sum = T(0);
    bool poisoned = false;
    for (int row = 0; row < rows; ++row) {
      const int p = row * layer.in + i;
      const T g = tile.y[row * out + o];
      KAN_UNROLL
      for (int j = 0; j <= order; ++j) column[(tile.window[p] + j) * out] += tile.values[j * tile.pairs + p] * g;
      if (a.base != kNoBase) base_sum += tile.values[(order + 1) * tile.pairs + p] * g;
      poisoned = poisoned || tile.x[p] != tile.x[p];
    }
    if (a.base != kNoBase) bases[n] += base_sum;
    if (!poisoned) continue;  // NaN times the zeros of all other functions
    for (int r = 0; r < layer.functions; ++r) column[r * out] = T(NAN);
  }
  if (!a.biased) return;
  T* const bias = bases + (a.base != kNoBase ? layer.edges() : 0);
  for (int o = thread_index(); o < out; o += kNetworkThreads) {
    T sum = T(0);
    for (int row = 0; row < rows; ++row) sum += tile.y[row * out + o];
    bias[o] += sum;
  }
}

// The cotangent of the layer's input, of one (row, i).
template <class T, int K>
KAN_DEVICE T input_gradient(const NetworkArgs& a, const NetworkLayerArgs& layer, const NetworkTile<T>& tile, int p) {
  const int order = K >= 0 ? K : a.order, out = layer.out, i = p % layer.in;
  const T* const splines = tile.parameters + layer.parameters + (i * layer.functions + tile.window[p]) * out;
  const T* const bases = tile.parameters + layer.parameters + layer.splines() + i * out;
  const T* const g = tile.y + p / layer.in * out;
  T sum = T(0), base_sum = T(0);  // apart: the base may be infinite, and inf - inf would be NaN
  for (int o = 0; o < out; ++o) {
    T slope = T(0);
    KAN_UNROLL
    for (int j = 0; j <= order; ++j) slope += tile.slopes[j * tile.pairs + p] * splines[j * out + o];
    sum += g[o] * slope;
    if (a.base != kNoBase) base_sum += g[o] * bases[o];
  }
  return a.base != kNoBase ? sum + tile.slopes[(order + 1) * tile.pairs + p] * base_sum : sum;
}

// The cotangent of a layer's outputs in tile.x, from that of its nodes in tile.y; hidden: where the tile's outputs are.
template <class T>
KAN_DEVICE void multiply_tile_backward(const NetworkArgs& a, const NetworkLayerArgs& layer, int rows,
                                       const NetworkTile<T>& tile, int64_t hidden) {
  for (int n = thread_index(); n < rows * layer.nodes; n += kNetworkThreads) {
    const int row = n / layer.nodes, node = n % layer.nodes, first = layer.first[node];
    const int at = row * layer.out + first;
    product_gradients<T>(
        layer.first[node + 1] - first, tile.y[n],
        [&](int64_t f) { return load_as<T>(a.hidden, a.dtype, hidden + at + f); },
        [&](T value) { return as_stored(value, a.dtype); }, [&](int64_t f, T value) { tile.x[at + f] = value; });
  }
}

// Stores the gradient of parameter n of a layer, its splines' first.
template <class T>
KAN_DEVICE void store_gradient(const NetworkArgs& a, const NetworkLayerArgs& layer, int n, T value) {
  if (n < layer.splines()) return store_as<T>(layer.d_spline, a.dtype, n, value);
  n -= layer.splines();
  if (a.base != kNoBase && n < layer.edges()) return store_as<T>(layer.d_base, a.dtype, n, value);
  store_as<T>(layer.d_bias, a.dtype, a.base != kNoBase ? n - layer.edges() : n, value);
}

template <class T, int K>
KAN_KERNEL(kNetworkThreads, 1)
network_backward_kernel(NetworkArgs a) {
  NetworkTile<T> tile(a, true);
  stage_parameters(a, tile.parameters);
  for (int n = thread_index(); n < a.parameters; n += kNetworkThreads) tile.sums[n] = T(0);
  const int n_out = a.layer[a.layers - 1].nodes;
  for (int64_t b0 = int64_t(block_index_x()) * a.rows; b0 < a.batch; b0 += a.blocks * a.rows) {
    const int rows = int(a.batch - b0 < a.rows ? a.batch - b0 : a.rows);
    int64_t hidden = 0;  // where what the layer returned begins
    for (int l = 0; l + 1 < a.layers; ++l) hidden += a.batch * a.layer[l].columns();
    for (int n = thread_index(); n < rows * n_out; n += kNetworkThreads) {
      tile.y[n] = load_as<T>(a.g, b0 + n / n_out, n % n_out);
    }
    for (int l = a.layers - 1; l >= 0; --l) {
      const NetworkLayerArgs& layer = a.layer[l];
      const bool input = l > 0 || a.input;
      if (layer.multiplied) {  // no barrier: g[n] is read, and then overwritten by x[n], in one thread alone
        multiply_tile_backward(a, layer, rows, tile, hidden + b0 * layer.out);
        T* const of_outputs = tile.x;
        tile.x = tile.y, tile.y = of_outputs;
      }
      const int64_t nodes = hidden + (b0 - a.batch) * layer.in;  // of the layer before
      for (int n = thread_index(); n < rows * layer.in; n += kNetworkThreads) {
        tile.x[n] = l > 0 ? load_as<T>(a.hidden, a.dtype, nodes + n) : load_as<T>(a.x, b0 + n / layer.in, n % layer.in);
      }
      hidden -= l > 0 ? a.batch * a.layer[l - 1].columns() : 0;
      sync_block();
      evaluate_tile<T, K>(a, layer, rows, tile, a.weight, input);
      sync_block();
      if (a.weight) add_gradients<T, K>(a, layer, rows, tile);
      if (!input) break;
      sync_block();  // x has been read: it makes room for its gradient
      for (int p = thread_index(); p < rows * layer.in; p += kNetworkThreads) {
        const T sum = input_gradient<T, K>(a, layer, tile, p);
        if (l == 0) store_as<T>(a.input, a.input_dtype, b0 * layer.in + p, sum);
        tile.x[p] = as_stored(sum, a.dtype);
      }
      sync_block();
      T* const cotangent = tile.x;
      tile.x = tile.y, tile.y = cotangent;
    }
    sync_block();
  }
  if (!a.weight) return;
  sync_block();

  T* const parts = static_cast<T*>(a.parts);
  if (a.blocks > 1) {
    for (int n = thread_index(); n < a.parameters; n += kNetworkThreads) {
      parts[block_index_x() * int64_t(a.parameters) + n] = tile.sums[n];
    }
    publish();
    sync_block();
    if (thread_index() == 0) *tile.window = take_ticket(a.arrived) + 1 == unsigned(a.blocks);
    sync_block();
    if (*tile.window == 0) return;
    publish();
  }
  for (int l = 0; l < a.layers; ++l) {
    const NetworkLayerArgs& layer = a.layer[l];
    const int end = l + 1 < a.layers ? a.layer[l + 1].parameters : a.parameters;
    for (int n = layer.parameters + thread_index(); n < end; n += kNetworkThreads) {
      T sum = a.blocks > 1 ? T(0) : tile.sums[n];
      for (int64_t block = 0; a.blocks > 1 && block < a.blocks; ++block) {
        sum += load_published(parts + block * a.parameters + n);
      }
      store_gradient(a, layer, n - layer.parameters, sum);
    }
  }
}

template <class T, int K>
struct Backward {
  static void run(const NetworkArgs& a, void* stream) {
    if (a.blocks > 1 && a.weight) zero_bytes("network_backward", a.arrived, sizeof(unsigned), stream);
    launch<NetworkArgs>("network_backward", network_backward_kernel<T, K>, {a.blocks, 1, 1}, kNetworkThreads,
                        int(NetworkTile<T>::bytes(a, true)), stream, a);
  }
};

}  // namespace

void network_backward_kernels(const NetworkArgs& a, void* stream) { run_network<Backward>(a, stream); }

}  // namespace cuda
}  // namespace kan
