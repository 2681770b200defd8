// The CUDA kernels' interface: raw device pointers and a stream in, no torch, no CUDA header. Arguments are those of
// the CPU kernels. A blocking is made from the shapes alone, so the same shapes always give the same bits; it says how
// many bytes of workspace the run needs. Nothing here waits for the device.
#pragma once

#include <cstdint>

#include "layer.h"

namespace kan {
namespace cuda {

enum class Path : int { automatic, gather, dense };

struct Options {
  // gather always runs; asking for dense where it cannot run raises. Of a basis of full support: dense is
  // matrix units, gather is ordinary multiply-adds, and automatic is the first wherever it can be.
  Path path = Path::automatic;
  bool tf32 = false;         // float32 products may be rounded to TF32
  int capability_major = 8;  // of the device, for the cost model
};

// Why the dense path cannot run an operation with derivatives up to `derivative`, or null.
const char* dense_reason(const SplineLayer& layer, int derivative);
// What an edge costs on either path, in cycles of one multiprocessor: see cost.cu.
struct Cost {
  double dense, gather;
};
Cost cost(const SplineLayer& layer, const Options& options);
// The same of a basis of full support: on matrix units (dense; taken wherever full_support_matrix_reason has nothing
// against it), and with ordinary multiply-adds.
Cost full_support_cost(const Layer& layer, const Options& options);
const char* full_support_matrix_reason(const Layer& layer, int derivative);
// Why tiles would be mostly padding, or null.
const char* too_small(const SplineLayer& layer);
// The path that `automatic` means.
Path choose(const SplineLayer& layer, int derivative, const Options& options);

int64_t forward_workspace(const ForwardArgs& args, const Options& options);
void forward(const ForwardArgs& args, const Options& options, void* workspace, void* stream);

int64_t backward_workspace(const BackwardArgs& args, const Options& options);
void backward(const BackwardArgs& args, const Options& options, void* workspace, void* stream);

// A network in one launch: why it is not, or null. The workspace of the backward pass is its own.
const char* network_reason(const NetworkForwardArgs& args, const Options& options);
const char* network_reason(const NetworkBackwardArgs& args, const Options& options);
void network_forward(const NetworkForwardArgs& args, void* stream);
int64_t network_backward_workspace(const NetworkBackwardArgs& args);
void network_backward(const NetworkBackwardArgs& args, void* workspace, void* stream);

// nodes (rows, p.nodes()) of outputs (rows, p.outputs()), and back the cotangent of the outputs; all contiguous but g.
void multiply(const Products& p, DType dtype, int64_t rows, const void* outputs, void* nodes, void* stream);
void multiply_backward(const Products& p, int64_t rows, const void* outputs, const MatrixView& g, void* cotangent,
                       void* stream);

}  // namespace cuda
}  // namespace kan
