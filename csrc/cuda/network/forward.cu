// All layers forward: every block a few rows.
#include "network.h"

namespace kan {
namespace cuda {
namespace {

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
      const int64_t at = hidden + (b0 + row) * layer.out + o;
      store_as<T>(last ? a.y : a.hidden_out, a.dtype, last ? (b0 + row) * layer.out + o : at, sum);
      tile.y[n] = as_stored(sum, a.dtype);
    }
    hidden += a.batch * layer.out;
    T* const handed_on = tile.y;
    tile.y = tile.x, tile.x = handed_on;
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
