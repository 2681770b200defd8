// Everything in the kernels that is not plain C++: thread indices, barriers, votes, asynchronous copies, matrix
// instructions, 16-bit conversions, launches. The tests put another warp_host.h behind the same names (tests/cuda_host)
// and so run the very same kernels on the CPU.
//
// Fragments of one warp, for lane = 4 g + t (g = 0..7, t = 0..3):
//   mma_bf16, mma_f16 (16x8x16)  a: words {row g, cols 2t 2t+1} {row g+8, same} {row g, cols 2t+8 2t+9} {row g+8, same}
//                                b: words {rows 2t 2t+1, col g} {rows 2t+8 2t+9, col g}
//   mma_tf32 (16x8x8)            a: {g, t} {g+8, t} {g, t+4} {g+8, t+4};  b: {t, g} {t+4, g}
//   all                          d: {g, 2t} {g, 2t+1} {g+8, 2t} {g+8, 2t+1}
//   load_matrices (4 of 8x8)     lane 8 q + j names row j of matrix q; lane 4 g + t receives {row g, cols 2t 2t+1} of
//                                each, or {rows 2t 2t+1, col g} if transposed
#pragma once

#include <cstdint>

#include "basis/config.h"

#if !defined(__CUDACC__)
#include "warp_host.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define KAN_DEVICE __device__ __forceinline__
#define KAN_DEVICE_CALL __device__ __noinline__  // rare paths: not worth a copy in every kernel
#define KAN_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

#define KAN_ROLLED _Pragma("unroll 1")

// The least spline order for which the forward kernel has a loop of its own for uniform knots: as the registers allow,
// nothing may spill. With 4 it has none.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#define KAN_PLAIN_ORDER 2
#elif __CUDA_ARCH__ < 1000
#define KAN_PLAIN_ORDER 3
#else
#define KAN_PLAIN_ORDER 4
#endif

namespace kan {
namespace cuda {

KAN_DEVICE int thread_index() { return int(threadIdx.x); }
KAN_DEVICE int lane_index() { return int(threadIdx.x) & 31; }
KAN_DEVICE int warp_index() { return int(threadIdx.x) >> 5; }
KAN_DEVICE int block_index_x() { return int(blockIdx.x); }
KAN_DEVICE int block_index_y() { return int(blockIdx.y); }
KAN_DEVICE int block_index_z() { return int(blockIdx.z); }

KAN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

KAN_DEVICE void sync_block() { __syncthreads(); }
KAN_DEVICE void sync_warp() { __syncwarp(); }
KAN_DEVICE bool any_in_warp(bool mine) { return __any_sync(0xffffffffu, mine); }

// What blocks tell one another: publish() makes this thread's writes visible to whoever takes a later ticket;
// load_published reads what other blocks wrote, past this processor's own cache.
KAN_DEVICE void publish() { __threadfence(); }
KAN_DEVICE unsigned take_ticket(unsigned* counter) { return atomicAdd(counter, 1u); }
template <class T>
KAN_DEVICE T load_published(const T* from) {
  return __ldcg(from);
}

// Memory accesses are not moved across: keeps the compiler from loading far ahead into registers that it lacks.
KAN_DEVICE void keep_order() { asm volatile("" ::: "memory"); }

// An address in shared memory, in one register. keep() has the compiler hold it there, where it would compute it anew
// at every use.
using SharedAddress = uint32_t;
KAN_DEVICE SharedAddress shared_address(const void* address) { return uint32_t(__cvta_generic_to_shared(address)); }
KAN_DEVICE SharedAddress keep(const void* address) {
  SharedAddress kept = shared_address(address);
  asm volatile("" : "+r"(kept));
  return kept;
}

// 16 bytes from global to shared memory, in the background; the last 16 - bytes of them become zero.
KAN_DEVICE void copy_async(SharedAddress to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
KAN_DEVICE void copy_async(void* to, const void* from, int bytes) { copy_async(shared_address(to), from, bytes); }
KAN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most N of this thread's committed groups are under way.
template <int N>
KAN_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

KAN_DEVICE void load_matrices(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
KAN_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices(r, shared_address(row)); }
KAN_DEVICE void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
KAN_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  load_matrices_transposed(r, shared_address(row));
}

KAN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KAN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KAN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// float32 rounded to TF32's 10 bits of fraction, as the bits of a float32.
KAN_DEVICE uint32_t round_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
}
KAN_DEVICE float bits_as_float(uint32_t bits) { return __uint_as_float(bits); }
KAN_DEVICE uint32_t float_as_bits(float value) { return __float_as_uint(value); }

// The sum rounded down, and a number held to [0, 1], where NaN becomes 0.
KAN_DEVICE float add_down(float a, float b) { return __fadd_rd(a, b); }
KAN_DEVICE float saturate(float value) { return __saturatef(value); }

KAN_DEVICE uint32_t least(uint32_t a, uint32_t b) { return min(a, b); }

// Bytes 0..7 are low's and high's; byte n of the result is the one that selector's digit n names, in base 16. A digit
// of 8 or more gives the sign bit of byte digit - 8, eight times.
KAN_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t word;
  asm("prmt.b32 %0, %1, %2, %3;\n" : "=r"(word) : "r"(low), "r"(high), "r"(selector));
  return word;
}

// 16 bytes from or to an address that is a multiple of 16; from shared memory 16, 8 or 4.
KAN_DEVICE void load_16_bytes(uint32_t (&word)[4], const void* from) {
  const uint4 all = *static_cast<const uint4*>(from);
  word[0] = all.x, word[1] = all.y, word[2] = all.z, word[3] = all.w;
}
KAN_DEVICE void store_16_bytes(void* to, const uint32_t (&word)[4]) {
  *static_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
}
KAN_DEVICE void load_shared(uint32_t (&word)[1], SharedAddress from) {
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(word[0]) : "r"(from) : "memory");
}
KAN_DEVICE void load_shared(uint32_t (&word)[2], SharedAddress from) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];\n" : "=r"(word[0]), "=r"(word[1]) : "r"(from) : "memory");
}
KAN_DEVICE void load_shared(uint32_t (&word)[4], SharedAddress from) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(from)
               : "memory");
}

// exp(x) and 1/x to 16 bits or more, for results that are rounded to 11 or fewer; results below 2^-126 are 0.
KAN_DEVICE float quick_exp(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x * 1.44269504f));
  return result;
}
KAN_DEVICE float quick_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

KAN_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
KAN_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
KAN_DEVICE float f16_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(value) : "h"(bits));
  return value;
}

inline void check_launch(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call of anybody would report it again
  const char* remedy = "";
  if (error == cudaErrorNoKernelImageForDevice)
    remedy = "; build kan_kernels with TORCH_CUDA_ARCH_LIST naming this GPU";
  if (error == cudaErrorInsufficientDriver) remedy = "; update the NVIDIA driver";
  throw std::runtime_error(std::string("kan_kernels: CUDA kernel ") + name + ": " + cudaGetErrorString(error) + remedy);
}

struct Grid {
  int64_t x, y, z;
};

// Of blocks along y and z there are fewer than 2^16.
inline void check_grid(const char* name, const Grid& grid) {
  constexpr int64_t most = 65535;
  if (grid.y <= most && grid.z <= most) return;
  throw std::runtime_error(
      std::string("kan_kernels: CUDA kernel ") + name +
      ": the layer is too wide for its grid of blocks; split its features, or use backend 'triton'");
}

// Queues kernel(args) on a stream. Raises with the kernel's name if it cannot be launched.
template <class Args>
void launch(const char* name, void (*kernel)(Args), Grid grid, int threads, int shared_bytes, void* stream, Args args) {
  check_grid(name, grid);
  if (shared_bytes > 48 * 1024) {
    check_launch(name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  void* pointers[] = {&args};
  check_launch(name,
               cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                                dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)), dim3(unsigned(threads)),
                                pointers, size_t(shared_bytes), static_cast<cudaStream_t>(stream)));
}

// Queues zeros.
inline void zero_bytes(const char* name, void* data, size_t bytes, void* stream) {
  check_launch(name, cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)));
}

}  // namespace cuda
}  // namespace kan

#endif
