// The kernels' interface for ctypes: plain integers and pointers.
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "multiply.h"
#include "warp_host.h"

namespace {

using namespace kan;

struct View {
  const void* data;
  int64_t dtype, row_stride, col_stride;
  MatrixView get() const { return {data, DType(dtype), row_stride, col_stride}; }
};

// One call of any of the four operations, as tests/cuda_host/__init__.py lays it out.
struct Call {
  int64_t batch, in_features, out_features, functions, order, base, weight_dtype, basis, feature_stride, out_stride;
  const void *grid, *spline_weight, *base_weight, *bias;
  View x, row_scale, g;
  int64_t derivative, input_derivative;
  void *y, *input, *d_spline, *d_base;
  int64_t path, tf32;

  Layer layer() const {
    if (basis < 0 || basis >= kBasisCount) throw std::runtime_error("no such basis");  // as the ops say
    Layer l;
    l.batch = batch, l.in_features = in_features, l.out_features = out_features;
    l.functions = int(functions), l.order = int(order), l.base = int(base);
    l.weight_dtype = DType(weight_dtype);
    l.basis = int(basis), l.feature_stride = feature_stride, l.out_stride = out_stride;
    l.grid = grid, l.spline_weight = spline_weight, l.base_weight = base_weight;
    return l;
  }
};

// Bytes 0xff: a sum that is read before it is written is NaN.
std::unique_ptr<unsigned char[]> poisoned(int64_t bytes) {
  std::unique_ptr<unsigned char[]> block(new unsigned char[size_t(bytes)]);
  for (int64_t n = 0; n < bytes; ++n) block[size_t(n)] = 0xff;
  return block;
}

}  // namespace

extern "C" int kan_cuda_host_call(const Call* c) {
  try {
    const cuda::Options options{cuda::Path(c->path), c->tf32 != 0};
    if (c->y) {
      ForwardArgs a;
      a.layer = c->layer();
      a.x = c->x.get(), a.row_scale = c->row_scale.get();
      a.bias = c->bias, a.derivative = int(c->derivative), a.y = c->y;
      const auto workspace = poisoned(cuda::forward_workspace(a, options));
      cuda::forward(a, options, workspace.get(), nullptr);
    } else {
      BackwardArgs a;
      a.layer = c->layer();
      a.x = c->x.get(), a.row_scale = c->row_scale.get(), a.g = c->g.get();
      a.weight_derivative = int(c->derivative), a.input_derivative = int(c->input_derivative);
      a.input = c->input, a.d_spline = c->d_spline, a.d_base = c->d_base;
      const auto workspace = poisoned(cuda::backward_workspace(a, options));
      cuda::backward(a, options, workspace.get(), nullptr);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

// One call of a network, forward (y) or backward, as tests/cuda_host/networks.py lays it out.
namespace {
constexpr int kMost = 9;  // one more than a launch takes
struct NetworkCall {
  int64_t count, order, base, batch, weight_dtype, path, in[kMost], out[kMost], functions[kMost];
  const void *grid[kMost], *spline_weight[kMost], *base_weight[kMost], *bias[kMost];
  void *d_spline[kMost], *d_base[kMost], *d_bias[kMost];
  View x, g;
  void *hidden, *y, *input;
  int64_t sums[kMost], groups[kMost], arities[kMost][64];  // nodes that are multiplied; no groups: none
};

template <class Args, class Call>
std::string run_network(const Args& args, const cuda::Options& options, const Call& call) {
  const char* const reason = cuda::network_reason(args, options);
  if (!reason) call();
  return reason ? reason : "";
}
}  // namespace

extern "C" int64_t kan_cuda_host_network_size() { return sizeof(NetworkCall); }

// Why one launch does not serve, or "".
extern "C" const char* kan_cuda_host_network(const NetworkCall* c) {
  static std::string reason;
  SplineLayer layers[kMost];
  for (int l = 0; l < c->count; ++l) {
    SplineLayer& layer = layers[l];
    layer.batch = c->batch, layer.in_features = c->in[l], layer.out_features = c->out[l];
    layer.functions = int(c->functions[l]), layer.order = int(c->order), layer.base = int(c->base);
    layer.weight_dtype = DType(c->weight_dtype);
    layer.grid = c->grid[l], layer.spline_weight = c->spline_weight[l], layer.base_weight = c->base_weight[l];
  }
  const cuda::Options options{cuda::Path(c->path)};
  Products products[kMost];
  for (int l = 0; l < c->count; ++l) {
    products[l] = {c->sums[l], {c->arities[l], c->arities[l] + c->groups[l]}};
  }
  if (c->y) {
    NetworkForwardArgs a;
    a.products = products;
    a.layers = layers, a.biases = c->bias, a.count = int(c->count);
    a.x = c->x.get(), a.hidden = c->hidden, a.y = c->y;
    reason = run_network(a, options, [&] { cuda::network_forward(a, nullptr); });
  } else {
    NetworkBackwardArgs a;
    a.products = products;
    a.layers = layers, a.count = int(c->count);
    a.x = c->x.get(), a.g = c->g.get(), a.hidden = c->hidden, a.input = c->input;
    if (c->d_spline[0]) a.d_spline = c->d_spline;
    if (c->d_base[0]) a.d_base = c->d_base;
    if (c->d_bias[0]) a.d_bias = c->d_bias;
    reason = run_network(a, options, [&] {
      const auto workspace = poisoned(cuda::network_backward_workspace(a));
      cuda::network_backward(a, workspace.get(), nullptr);
    });
  }
  return reason.c_str();
}

// The products of one layer: the nodes of outputs, or with g the cotangent of the outputs.
extern "C" void kan_cuda_host_multiply(int64_t sums, int64_t groups, const int64_t* arities, int64_t dtype,
                                       int64_t rows, const void* outputs, const View* g, void* to) {
  const Products products{sums, {arities, arities + groups}};
  if (g->data) return cuda::multiply_backward(products, rows, outputs, g->get(), to, nullptr);
  cuda::multiply(products, DType(dtype), rows, outputs, to, nullptr);
}

// Kernels that are wrong, for the test of the emulator itself.
namespace {
struct Nothing {
  int fault;
};
void faulty(Nothing a) {
  if (a.fault == 0 && kan::cuda::thread_index() < 16) kan::cuda::sync_block();
  if (a.fault == 1) kan::cuda::lane_index() < 16 ? kan::cuda::sync_warp() : void(kan::cuda::any_in_warp(true));
}
}  // namespace

extern "C" void kan_cuda_host_fault(int fault) {
  kan::cuda::launch<Nothing>("faulty", faulty, {1, 1, 1}, 64, 16, nullptr, {fault});
}
