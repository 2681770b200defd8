#include "device.h"

#include <cuda_runtime_api.h>

#include <atomic>
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

Versions versions() {
  Versions v;
  if (cudaDriverGetVersion(&v.driver) != cudaSuccess || cudaRuntimeGetVersion(&v.runtime) != cudaSuccess) {
    cudaGetLastError();
    throw std::runtime_error("kan_kernels: cannot read the versions of the CUDA driver and runtime");
  }
  return v;
}

int capability_major(int index) {
  constexpr int kKnown = 64;
  static std::atomic<int> known[kKnown];
  if (index < kKnown && known[index]) return known[index];
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess) {
    cudaGetLastError();
    throw std::runtime_error("kan_kernels: cannot read the compute capability of CUDA device " + std::to_string(index));
  }
  if (index < kKnown) known[index] = major;
  return major;
}

Path forced_path() {
  const char* const value = std::getenv("KAN_KERNELS_CUDA_PATH");
  const std::string name = value ? value : "";
  if (name == "" || name == "auto") return Path::automatic;
  if (name == "gather") return Path::gather;
  if (name == "dense") return Path::dense;
  throw std::runtime_error("kan_kernels: KAN_KERNELS_CUDA_PATH is \"" + name + "\", expected auto, gather or dense");
}

}  // namespace cuda
}  // namespace kan
