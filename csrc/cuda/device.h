// What the ops need of the CUDA runtime and of the process, without its headers.
#pragma once

#include "kernels.h"

namespace kan {
namespace cuda {

// Makes a device current for the runtime that the kernels are linked to. Raises where there is none.
void set_device(int index);
// The major number of a device's compute capability, asked once a device.
int capability_major(int index);
// CUDA versions, 1000 major + 10 minor: what the driver speaks (0 without one), what the kernels were built with.
struct Versions {
  int driver = 0;
  int runtime = 0;
};
Versions versions();
// The path named by the environment's KAN_KERNELS_CUDA_PATH (auto, gather, dense). Raises on another name.
Path forced_path();

}  // namespace cuda
}  // namespace kan
