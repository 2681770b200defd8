// When a network takes one launch, and how it is cut.
#include "cuda/gather/gather.h"
#include "cuda/kernels.h"
#include "cuda/parts.h"
#include "multiply.h"
#include "network.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kLeastRows = 4;               // of a tile: with fewer a block would copy parameters more than use them
constexpr int64_t kBlocks = 128;            // wanted at least, where there are rows for them
constexpr int64_t kMostBlocks = 512;        // whose sums the last one adds up
constexpr int64_t kAddedNumbers = 1 << 19;  // that the last block adds up, at most
constexpr int64_t kMatrixEdges = 1 << 21;   // (row, edge)s from which matrix units gain more than launches cost
constexpr int64_t kCounterBytes = 16;       // in front of the parts

int64_t tile_bytes(const NetworkArgs& a, bool backward) {
  return a.dtype == DType::f64 ? NetworkTile<double>::bytes(a, backward) : NetworkTile<float>::bytes(a, backward);
}

// The layers and how rows are cut; rows = 0 if they do not fit.
NetworkArgs network_args(const SplineLayer* layers, const Products* products, int count, const void* const* biases,
                         bool biased, bool backward) {
  NetworkArgs a;
  a.layers = count, a.order = layers[0].order, a.base = layers[0].base;
  a.biased = biased;
  a.batch = layers[0].batch, a.dtype = layers[0].weight_dtype;
  for (int l = 0; l < count; ++l) {
    NetworkLayerArgs& to = a.layer[l];
    const SplineLayer& from = layers[l];
    to.spline_weight = from.spline_weight, to.base_weight = from.base_weight, to.grid = from.grid;
    to.bias = biases ? biases[l] : nullptr;
    to.in = int(from.in_features), to.out = int(from.out_features), to.functions = from.functions;
    to.parameters = a.parameters;
    to.multiplied = products && products[l].any(), to.nodes = to.multiplied ? int(products[l].nodes()) : to.out;
    if (to.multiplied) {
      products[l].of_runs([&](int64_t node, int64_t output, int64_t nodes, int64_t arity) {
        for (int64_t n = 0; n <= nodes; ++n) to.first[node + n] = uint8_t(output + n * arity);
      });
    }
    const int64_t own = int64_t(to.edges()) * (to.functions + (a.base != kNoBase)) + (biased ? to.out : 0);
    if (own > kSharedLimit - a.parameters) return a;  // with rows = 0: not even as many bytes as numbers
    a.parameters += int(own);
    a.width = to.in > a.width ? to.in : a.width;
    a.width = to.out > a.width ? to.out : a.width;
  }
  a.rows = kNetworkRows;
  while (a.rows > kLeastRows && a.batch / a.rows < kBlocks) a.rows /= 2;
  while (a.rows > kLeastRows && tile_bytes(a, backward) > kSharedLimit) a.rows /= 2;
  if (tile_bytes(a, backward) > kSharedLimit) a.rows = 0;
  return a;
}

NetworkArgs network_args(const NetworkForwardArgs& args) {
  const bool biased = args.biases && args.biases[0];
  NetworkArgs a = network_args(args.layers, args.products, args.count, args.biases, biased, false);
  a.x = args.x, a.hidden_out = args.hidden, a.y = args.y;
  return a;
}

NetworkArgs network_args(const NetworkBackwardArgs& args) {
  NetworkArgs a = network_args(args.layers, args.products, args.count, nullptr, args.d_bias != nullptr, true);
  a.x = args.x, a.g = args.g, a.hidden = args.hidden;
  a.input = args.input, a.input_dtype = args.x.dtype;
  a.weight = args.d_spline != nullptr;
  for (int l = 0; a.weight && l < args.count; ++l) {
    a.layer[l].d_spline = args.d_spline[l];
    a.layer[l].d_base = args.d_base ? args.d_base[l] : nullptr;
    a.layer[l].d_bias = args.d_bias ? args.d_bias[l] : nullptr;
  }
  if (a.rows == 0) return a;
  const int64_t tiles = ceil_div(a.batch, a.rows), affordable = kAddedNumbers / a.parameters;
  const int64_t most = affordable < 8 ? 8 : affordable < kMostBlocks ? affordable : kMostBlocks;
  a.blocks = a.weight && tiles > most ? most : tiles;
  return a;
}

const char* reason(const SplineLayer* layers, int count, const Options& options) {
  if (options.path != Path::automatic) return "another path was asked for";
  if (count > kNetworkLayers) return "there are more than 8 layers";
  int64_t edges = 0;
  bool matrix = false;
  for (int l = 0; l < count; ++l) {
    const SplineLayer& layer = layers[l];
    if (layer.batch == 0 || layer.in_features == 0 || layer.out_features == 0) return "a tensor is empty";
    if (layer.in_features > kNetworkWidth || layer.out_features > kNetworkWidth) return "a layer is wider than 64";
    edges += layer.in_features * layer.out_features;
    matrix = matrix || choose(layer, 1, options) == Path::dense;
  }
  if (matrix && edges * layers[0].batch > kMatrixEdges) return "matrix units gain more than launches cost";
  return nullptr;
}

const char* too_large(const NetworkArgs& a) {
  return a.rows == 0 ? "the parameters do not fit in shared memory" : nullptr;
}

}  // namespace

const char* network_reason(const NetworkForwardArgs& args, const Options& options) {
  if (const char* const why = reason(args.layers, args.count, options)) return why;
  return too_large(network_args(args));
}

const char* network_reason(const NetworkBackwardArgs& args, const Options& options) {
  if (const char* const why = reason(args.layers, args.count, options)) return why;
  return too_large(network_args(args));
}

void network_forward(const NetworkForwardArgs& args, void* stream) {
  network_forward_kernels(network_args(args), stream);
}

int64_t network_backward_workspace(const NetworkBackwardArgs& args) {
  const NetworkArgs a = network_args(args);
  if (!a.weight || a.blocks == 1) return 0;
  return kCounterBytes + a.blocks * a.parameters * size_of(compute_type(args.layers[0]));
}

void network_backward(const NetworkBackwardArgs& args, void* workspace, void* stream) {
  NetworkArgs a = network_args(args);
  a.arrived = static_cast<unsigned*>(workspace);
  a.parts = workspace ? static_cast<unsigned char*>(workspace) + kCounterBytes : nullptr;
  network_backward_kernels(a, stream);
}

}  // namespace cuda
}  // namespace kan
