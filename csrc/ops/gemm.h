// torch's own GEMM, for kernels on raw pointers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstdlib>
#include <cstring>

#include "checks.h"

// MKL's, where torch has it: threads of the calling thread's products, 0 for the usual; returns what was set before.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));

namespace kan {
namespace ops {

// In a parallel region MKL runs on one thread, and yet cuts a product for all: other bits for other numbers of threads.
class OneThread {
 public:
  OneThread() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// A tensor over memory that somebody else owns.
inline Tensor borrow(const void* data, DType dtype, int64_t rows, int64_t columns, int64_t row_stride,
                     int64_t col_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, col_stride};
  const int32_t type = dtype == DType::f64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(const_cast<void*>(data), 2, sizes, strides, 0, type,
                                                                   aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// `Executor::gemm`, on the calling thread.
inline void gemm(const MatrixView& a, const MatrixView& b, const cpu::MatrixTarget& c, int64_t rows, int64_t columns,
                 int64_t depth, bool add) {
  const OneThread one_thread;
  const Tensor left = borrow(a.data, a.dtype, rows, depth, a.row_stride, a.col_stride);
  const Tensor right = borrow(b.data, b.dtype, depth, columns, b.row_stride, b.col_stride);
  const Tensor out = borrow(c.data, c.dtype, rows, columns, c.row_stride, c.col_stride);
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), add ? 1.0 : 0.0, 1.0));
}

inline cpu::Executor with_gemm() {
  // `python -m benchmarks paths` measures what the path gains
  static const bool off = std::getenv("KAN_KERNELS_OFF") && std::strstr(std::getenv("KAN_KERNELS_OFF"), "gemm");
  cpu::Executor made = executor();
  if (!off) made.gemm = gemm;
  return made;
}

}  // namespace ops
}  // namespace kan
