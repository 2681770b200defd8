// The CUDA kernels' interface: raw device pointers and a stream in, no torch, no CUDA header. Arguments are those of
// the CPU kernels. A plan is made from the shapes alone, so the same shapes always give the same bits; it says how many
// bytes of workspace the run needs. Nothing here waits for the device.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace kan {
namespace cuda {

enum class Path : int { automatic, gather, dense };

struct Options {
  // gather always runs; asking for dense where it cannot run raises. Of a basis that reaches everywhere: dense is
  // matrix units, gather is ordinary multiply-adds, and automatic is the first wherever it can be.
  Path path = Path::automatic;
  bool tf32 = false;         // float32 products may be rounded to TF32
  int capability_major = 8;  // of the device, for the cost model
};

// Why the dense path cannot run an operation with derivatives up to `derivative`, or null.
const char* dense_reason(const cpu::SplineLayer& layer, int derivative);
// What an edge costs on either path, in cycles of one multiprocessor: see cost.cu.
struct Cost {
  double dense, gather;
};
Cost cost(const cpu::SplineLayer& layer, const Options& options);
// The same of a basis that reaches everywhere: on matrix units (dense; taken wherever global_matrix_reason has nothing
// against it), and with ordinary multiply-adds.
Cost global_cost(const cpu::Layer& layer, const Options& options);
const char* global_matrix_reason(const cpu::Layer& layer, int derivative);
// Why tiles would be mostly padding, or null.
const char* too_small(const cpu::SplineLayer& layer);
// The path that `automatic` means.
Path choose(const cpu::SplineLayer& layer, int derivative, const Options& options);

int64_t forward_workspace(const cpu::ForwardArgs& args, const Options& options);
void forward(const cpu::ForwardArgs& args, const Options& options, void* workspace, void* stream);

int64_t backward_workspace(const cpu::BackwardArgs& args, const Options& options);
void backward(const cpu::BackwardArgs& args, const Options& options, void* workspace, void* stream);

}  // namespace cuda
}  // namespace kan
