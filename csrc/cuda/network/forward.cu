// All layers forward: every block a few rows.
#include "multiply.h"
#include "network.h"

namespace kan {
namespace cuda {
namespace {

// The nodes of a layer that multiplies, from its outputs in tile.y into tile.x, and to where they are returned.
template <class T>
KAN_DEVICE void multiply_tile(const NetworkArgs& a, const NetworkLayerArgs& layer, int rows, const NetworkTile<T>& tile,
                              void* to, int64_t at) {
  for (int n = thread_index(); n < rows * layer.nodes; n += kNetworkThreads) {
    const int row = n / layer.nodes, node = n % layer.nodes, first = layer.first[node];
    const T* const factors = tile.y + row * layer.out + first;
    const T product = product_of<T>(
        layer.first[node + 1] - first, [&](int64_t f) { return factors[f]; },
        [&](T value) { return as_stored(value, a.dtype); });
    store_as<T>(to, a.dtype, at + n, product);
    tile.x[n] = product;
  }
}

template <class T, int K>
KAN_KERNEL(kNetworkThreads, 1)
network_forward_kernel(NetworkArgs a) {
  const int order = K >= 0 ? K : a.order;
  NetworkTile<T> tile(a, false);
  const int64_t b0 = int64_t(block_index_x()) * a.rows;
  const int rows = int(a.batch - b0 < a.rows ? a.batch - b0 : a.rows);
  stage_parameters(a, tile.parameters);
  for (int n = thread_index(); n < rows * a.layer[0].in; n += kNetworkThreads) {
    tile.x[n] = load_as<T>(a.x, b0 + n / a.layer[0].in, n % a.layer[0].in);
  }
  int64_t hidden = 0;  // where what this layer returns begins
  for (int l = 0; l < a.layers; ++l) {
    const NetworkLayerArgs& layer = a.layer[l];
    const T* const splines = tile.parameters + layer.parameters;
    const T* const bases = splines + layer.splines();
    const T* const bias = bases + (a.base != kNoBase ? layer.edges() : 0);
    const bool last = l + 1 == a.layers;
    sync_block();
    evaluate_tile<T, K>(a, layer, rows, tile, true, false);
    sync_block();
    for (int n = thread_index(); n < rows * layer.out; n += kNetworkThreads) {
      const int row = n / layer.out, o = n % layer.out;
      T sum = T(0);
      for (int i = 0; i < layer.in; ++i) {
        const int p = row * layer.in + i;
        const T* coefficients = splines + (i * layer.functions + tile.window[p]) * layer.out + o;
        KAN_UNROLL
        for (int j = 0; j <= order; ++j) sum += tile.values[j * tile.pairs + p] * coefficients[j * layer.out];
        if (a.base != kNoBase) sum += tile.values[(order + 1) * tile.pairs + p] * bases[i * layer.out + o];
      }
      if (a.biased) sum += bias[o];
      const bool returned = last && !layer.multiplied;
      store_as<T>(returned ? a.y : a.hidden_out, a.dtype, (returned ? 0 : hidden) + b0 * layer.out + n, sum);
      tile.y[n] = as_stored(sum, a.dtype);
    }
    hidden += a.batch * layer.out;
    if (layer.multiplied) {
      sync_block();
      multiply_tile(a, layer, rows, tile, last ? a.y : a.hidden_out, (last ? 0 : hidden) + b0 * layer.nodes);
      hidden += a.batch * layer.nodes;
    } else {
      T* const handed_on = tile.y;
      tile.y = tile.x, tile.x = handed_on;
    }
  }
}

template <class T, int K>
struct Forward {
  static void run(const NetworkArgs& a, void* stream) {
    launch<NetworkArgs>("network_forward", network_forward_kernel<T, K>, {ceil_div(a.batch, a.rows), 1, 1},
                        kNetworkThreads, int(NetworkTile<T>::bytes(a, false)), stream, a);
  }
};

}  // namespace

void network_forward_kernels(const NetworkArgs& a, void* stream) { run_network<Forward>(a, stream); }

}  // namespace cuda
}  // namespace kan
