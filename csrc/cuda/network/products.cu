// Products between the layers of a network that takes more than one launch.
#include "cuda/kernels.h"
#include "multiply.h"
#include "network.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 16384;

// Neighbouring nodes with the same number of factors.
struct RunArgs {
  int64_t rows = 0, first_node = 0, first_output = 0, count = 0, arity = 0;
  int64_t outputs_stride = 0, nodes_stride = 0;
  DType dtype = DType::f32;
  const void* outputs = nullptr;
  void* to = nullptr;  // the nodes, or the cotangent of the outputs
  MatrixView g;        // that of the nodes
  int64_t stride = 0;  // threads of the launch
};

// call(row, node of the run, first output of the node as an element of the matrix)
template <class Call>
KAN_DEVICE void of_nodes(const RunArgs& a, const Call& call) {
  for (int64_t e = int64_t(block_index_x()) * kThreads + thread_index(); e < a.rows * a.count; e += a.stride) {
    const int64_t row = e / a.count, node = e % a.count;
    call(row, node, row * a.outputs_stride + a.first_output + node * a.arity);
  }
}

template <class T>
KAN_KERNEL(kThreads, 1)
multiply_kernel(RunArgs a) {
  of_nodes(a, [&](int64_t row, int64_t node, int64_t at) {
    const T product = product_of<T>(
        a.arity, [&](int64_t n) { return load_as<T>(a.outputs, a.dtype, at + n); },
        [&](T value) { return as_stored(value, a.dtype); });
    store_as<T>(a.to, a.dtype, row * a.nodes_stride + a.first_node + node, product);
  });
}

template <class T>
KAN_KERNEL(kThreads, 1)
multiply_backward_kernel(RunArgs a) {
  of_nodes(a, [&](int64_t row, int64_t node, int64_t at) {
    product_gradients<T>(
        a.arity, load_as<T>(a.g, row, a.first_node + node),
        [&](int64_t n) { return load_as<T>(a.outputs, a.dtype, at + n); },
        [&](T value) { return as_stored(value, a.dtype); },
        [&](int64_t n, T value) { store_as<T>(a.to, a.dtype, at + n, value); });
  });
}

template <class Kernel>
void run(const char* name, const Products& p, RunArgs a, Kernel kernel, void* stream) {
  a.outputs_stride = p.outputs(), a.nodes_stride = p.nodes();
  p.of_runs([&](int64_t node, int64_t output, int64_t count, int64_t arity) {
    a.first_node = node, a.first_output = output, a.count = count, a.arity = arity;
    const int64_t blocks = ceil_div(a.rows * count, kThreads);
    if (blocks == 0) return;
    const Grid grid{blocks < kMostBlocks ? blocks : kMostBlocks, 1, 1};
    a.stride = grid.x * kThreads;
    launch<RunArgs>(name, kernel, grid, kThreads, 0, stream, a);
  });
}

}  // namespace

void multiply(const Products& p, DType dtype, int64_t rows, const void* outputs, void* nodes, void* stream) {
  RunArgs a;
  a.rows = rows, a.dtype = dtype, a.outputs = outputs, a.to = nodes;
  run("multiply", p, a, dtype == DType::f64 ? multiply_kernel<double> : multiply_kernel<float>, stream);
}

void multiply_backward(const Products& p, int64_t rows, const void* outputs, const MatrixView& g, void* cotangent,
                       void* stream) {
  RunArgs a;
  a.rows = rows, a.dtype = g.dtype, a.outputs = outputs, a.g = g, a.to = cotangent;
  const auto kernel = g.dtype == DType::f64 ? multiply_backward_kernel<double> : multiply_backward_kernel<float>;
  run("multiply_backward", p, a, kernel, stream);
}

}  // namespace cuda
}  // namespace kan
