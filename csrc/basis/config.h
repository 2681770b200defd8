// Macros that let one header serve host vectors, host scalars and device scalars.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define KAN_HD __host__ __device__ __forceinline__
#else
#define KAN_HD inline __attribute__((always_inline))
#endif

// Each instruction set is compiled from the same source: its symbols must never be merged with another's.
#ifndef KAN_ISA
#define KAN_ISA scalar
#endif

#if defined(KAN_UNROLL)  // set from outside: tests that compile a lot and run little ask for none
#elif defined(__CUDACC__)
#define KAN_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define KAN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KAN_UNROLL _Pragma("GCC unroll 16")
#endif

namespace kan {

constexpr int kMaxOrder = 10;         // of B-splines, k
constexpr int kMaxDerivative = 32;    // derivative order m
constexpr int kMaxFunctions = 256;    // of a basis of full support
constexpr int kMaxFrequencies = 512;  // of the Fourier basis, two functions each

enum Base : int { kNoBase = 0, kSilu = 1, kIdentity = 2 };

}  // namespace kan
