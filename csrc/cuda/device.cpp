#include "device.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kan {
namespace cuda {

void set_device(int index) {
  const cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error("kan_kernels: cannot use CUDA device " + std::to_string(index) + ": " +
                           cudaGetErrorString(error) +
                           (error == cudaErrorInsufficientDriver ? "; update the NVIDIA driver" : ""));
}

Path forced_path() {
  static const Path path = [] {
    const char* const value = std::getenv("KAN_KERNELS_CUDA_PATH");
    const std::string name = value ? value : "";
    if (name == "" || name == "auto") return Path::automatic;
    if (name == "gather") return Path::gather;
    if (name == "dense") return Path::dense;
    throw std::runtime_error("kan_kernels: KAN_KERNELS_CUDA_PATH is \"" + name + "\", expected auto, gather or dense");
  }();
  return path;
}

}  // namespace cuda
}  // namespace kan
