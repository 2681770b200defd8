// The names of csrc/cuda/warp.h on the CPU, for tests: blocks run one after another, every thread of a block by itself.
//
// Two ways of running threads: one operating-system thread each (what ThreadSanitizer can judge), or fibers that run
// one at a time from barrier to barrier, warp after warp, in rising or falling order (quick; where a barrier is
// missing, one of the orders reads poison). Shared memory starts as bytes 0xff in a heap block of exactly the asked
// size. Asynchronous copies happen when their thread waits for them and not before. A barrier that part of the threads
// never reach is an error, not a hang.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define KAN_DEVICE inline
#define KAN_DEVICE_CALL __attribute__((noinline))
#define KAN_ROLLED
#ifndef KAN_PLAIN_ORDER
#define KAN_PLAIN_ORDER 2
#endif
#define KAN_KERNEL(threads, blocks) void

namespace kan {
namespace cuda {

struct Grid {
  int64_t x, y, z;
};

namespace host {

struct Copy {
  void* to;
  const void* from;
  int bytes;
  int group;
};

constexpr int kMaxThreads = 512, kMaxCopies = 4096;

// What one CUDA thread knows of itself.
struct Self {
  int thread = 0;
  int block[3] = {0, 0, 0};
  unsigned char* shared = nullptr;
  int committed = 0, done = 0, copies = 0;
  Copy queue[kMaxCopies];
};
extern thread_local Self* self;

// Asynchronous copies may land at any time between their issue and the wait: here at the wait, or all at issue.
extern bool copies_land_early;
inline void land(const Copy& c) {
  unsigned char piece[16] = {};
  if (c.bytes > 0) std::memcpy(piece, c.from, size_t(c.bytes));
  std::memcpy(c.to, piece, 16);
}

// What the lanes of a warp show one another: each writes its own words, all meet, each reads what it needs.
struct Exchange {
  uint32_t word[32][8];
  const void* pointer[32];
};
Exchange& exchange();

// Barriers; `what` must be the same in all threads that meet, or the program ends with a message.
void meet_block(const char* what);
void meet_warp(const char* what);
[[noreturn]] void fail(const char* what);

using Body = void (*)(void* context);
void run_blocks(const char* name, Body body, void* context, Grid grid, int threads, int shared_bytes);

}  // namespace host

KAN_DEVICE int thread_index() { return host::self->thread; }
KAN_DEVICE int lane_index() { return host::self->thread & 31; }
KAN_DEVICE int warp_index() { return host::self->thread >> 5; }
KAN_DEVICE int block_index_x() { return host::self->block[0]; }
KAN_DEVICE int block_index_y() { return host::self->block[1]; }
KAN_DEVICE int block_index_z() { return host::self->block[2]; }
KAN_DEVICE unsigned char* shared_memory() { return host::self->shared; }
KAN_DEVICE void sync_block() { host::meet_block("sync_block"); }
KAN_DEVICE void sync_warp() { host::meet_warp("sync_warp"); }

KAN_DEVICE void keep_order() {}
using SharedAddress = const unsigned char*;
KAN_DEVICE SharedAddress shared_address(const void* address) { return static_cast<SharedAddress>(address); }
KAN_DEVICE SharedAddress keep(const void* address) { return shared_address(address); }

KAN_DEVICE bool any_in_warp(bool mine) {
  host::Exchange& e = host::exchange();
  e.word[lane_index()][0] = mine;
  host::meet_warp("any_in_warp");
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any = any || e.word[lane][0] != 0;
  host::meet_warp("any_in_warp");
  return any;
}

KAN_DEVICE void publish() {}  // blocks run one after another
KAN_DEVICE unsigned take_ticket(unsigned* counter) { return (*counter)++; }
template <class T>
KAN_DEVICE T load_published(const T* from) {
  return *from;
}

KAN_DEVICE void copy_async(const void* shared, const void* from, int bytes) {
  void* to = const_cast<void*>(shared);
  host::Self& s = *host::self;
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) host::fail("copy_async: shared address is not a multiple of 16");
  if (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0) host::fail("copy_async: global address");
  if (s.copies == host::kMaxCopies) host::fail("copy_async: too many copies under way");
  const host::Copy copy{to, from, bytes, s.committed};
  if (host::copies_land_early) {
    host::land(copy);
  } else {
    s.queue[s.copies++] = copy;
  }
}
KAN_DEVICE void commit_copies() { ++host::self->committed; }
template <int N>
KAN_DEVICE void wait_copies() {
  host::Self& s = *host::self;
  int kept = 0;
  for (int n = 0; n < s.copies; ++n) {
    const host::Copy& c = s.queue[n];
    if (c.group >= s.committed - N) {
      s.queue[kept++] = c;
      continue;
    }
    host::land(c);
  }
  s.copies = kept;
}

namespace host {

// Row j of matrix q is named by lane 8 q + j.
inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("load_matrices: address is not a multiple of 16");
  Exchange& e = exchange();
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  e.pointer[lane] = row;
  meet_warp(transposed ? "load_matrices_transposed" : "load_matrices");
  const auto at = [&](int q, int j, int column) {
    return uint32_t(static_cast<const uint16_t*>(e.pointer[8 * q + j])[column]);
  };
  for (int q = 0; q < 4; ++q) {
    r[q] = transposed ? at(q, 2 * t, g) | at(q, 2 * t + 1, g) << 16 : at(q, g, 2 * t) | at(q, g, 2 * t + 1) << 16;
  }
  meet_warp("load_matrices");
}

float from_bf16(uint16_t bits);
float from_f16(uint16_t bits);
uint16_t to_bf16(float value);
uint16_t to_f16(float value);

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// d += a b on 16 x Depth and Depth x 8, summed in double: rounding is the test's tolerance, not its subject.
template <int Depth, class Element>
void mma(const char* what, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Element element) {
  Exchange& e = exchange();
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  for (int n = 0; n < 4; ++n) e.word[lane][n] = a[n];
  e.word[lane][4] = b0, e.word[lane][5] = b1;
  meet_warp(what);
  constexpr int half = Depth / 2, per_word = Depth / 8;  // columns of one register, numbers in it
  for (int n = 0; n < 4; ++n) {
    const int row = g + (n & 2 ? 8 : 0), column = 2 * t + (n & 1);
    double sum = d[n];
    for (int k = 0; k < Depth; ++k) {
      const int owner = k % half / per_word, part = k % per_word, upper = k / half;
      const uint32_t left = e.word[4 * (row % 8) + owner][(row >= 8 ? 1 : 0) + 2 * upper];
      const uint32_t right = e.word[4 * column + owner][4 + upper];
      sum += double(element(left, part)) * double(element(right, part));
    }
    d[n] = float(sum);
  }
  meet_warp(what);
}

}  // namespace host

KAN_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) { host::load_matrices(r, row, false); }
KAN_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) { host::load_matrices(r, row, true); }

KAN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  host::mma<16>("mma_bf16", d, a, b0, b1,
                [](uint32_t word, int part) { return host::from_bf16(uint16_t(word >> 16 * part)); });
}
KAN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  host::mma<16>("mma_f16", d, a, b0, b1,
                [](uint32_t word, int part) { return host::from_f16(uint16_t(word >> 16 * part)); });
}
// The hardware ignores the 13 lowest bits of a TF32 operand.
KAN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  host::mma<8>("mma_tf32", d, a, b0, b1, [](uint32_t word, int) { return host::as_float(word & 0xffffe000u); });
}

// Round to nearest, ties away from zero.
KAN_DEVICE uint32_t round_tf32(float value) {
  const uint32_t bits = host::as_bits(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & 0x7fffffu) ? bits | 0x400000u : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}
KAN_DEVICE float bits_as_float(uint32_t bits) { return host::as_float(bits); }
KAN_DEVICE uint32_t float_as_bits(float value) { return host::as_bits(value); }
KAN_DEVICE float add_down(float a, float b) {
  const float sum = a + b;
  return double(sum) > double(a) + double(b) ? std::nextafter(sum, -INFINITY) : sum;
}
KAN_DEVICE float saturate(float value) { return value > 0.0f ? value < 1.0f ? value : 1.0f : 0.0f; }
KAN_DEVICE uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
KAN_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t word = 0;
  for (int n = 0; n < 4; ++n) {
    const uint32_t digit = selector >> 4 * n & 15, byte = uint32_t(bytes >> 8 * (digit & 7)) & 255;
    word |= (digit < 8 ? byte : byte & 128 ? 255u : 0u) << 8 * n;
  }
  return word;
}
KAN_DEVICE void load_16_bytes(uint32_t (&word)[4], const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) host::fail("load_16_bytes: address is not a multiple of 16");
  std::memcpy(word, from, 16);
}
KAN_DEVICE void store_16_bytes(void* to, const uint32_t (&word)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) host::fail("store_16_bytes: address is not a multiple of 16");
  std::memcpy(to, word, 16);
}
template <int N>
KAN_DEVICE void load_shared(uint32_t (&word)[N], const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % (4 * N) != 0) host::fail("load_shared: address");
  std::memcpy(word, from, 4 * N);
}
KAN_DEVICE float quick_exp(float x) { return std::exp(x); }
KAN_DEVICE float quick_reciprocal(float x) { return 1.0f / x; }
KAN_DEVICE uint32_t pack_bf16(float low, float high) {
  return uint32_t(host::to_bf16(low)) | uint32_t(host::to_bf16(high)) << 16;
}
KAN_DEVICE uint32_t pack_f16(float low, float high) {
  return uint32_t(host::to_f16(low)) | uint32_t(host::to_f16(high)) << 16;
}
KAN_DEVICE float f16_to_float(uint16_t bits) { return host::from_f16(bits); }

inline void zero_bytes(const char*, void* data, size_t bytes, void*) { std::memset(data, 0, bytes); }

// Runs the kernel to its end; `stream` is not looked at.
template <class Args>
void launch(const char* name, void (*kernel)(Args), Grid grid, int threads, int shared_bytes, void*, Args args) {
  struct Call {
    void (*kernel)(Args);
    Args args;
  } call{kernel, args};
  host::run_blocks(
      name,
      [](void* context) {
        const Call& c = *static_cast<Call*>(context);
        c.kernel(c.args);
      },
      &call, grid, threads, shared_bytes);
}

}  // namespace cuda
}  // namespace kan
