// Runs the threads of a block: as operating-system threads, or as fibers. See warp_host.h.
#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "warp_host.h"

namespace kan {
namespace cuda {
namespace host {

thread_local Self* self = nullptr;
bool copies_land_early = false;

namespace {

constexpr int kRising = 0, kFalling = 1, kThreads = 2, kEarly = 3;  // modes; the last is rising, with early copies
constexpr size_t kStack = 128 * 1024;

// All threads of a group wait here for one another. `what` of the first is compared with that of the others.
struct Meeting {
  int members = 0;
  std::atomic<int> arrived{0};
  std::atomic<uint32_t> generation{0};
  std::atomic<const char*> what{nullptr};
};

struct Block {
  const char* name = "";
  Body body = nullptr;
  void* context = nullptr;
  int threads = 0;
  std::vector<Self> selves = std::vector<Self>(kMaxThreads);
  Meeting block, warps[kMaxThreads / 32];
  Exchange exchanges[kMaxThreads / 32];
};

Block& block() {
  static Block it;
  return it;
}
int mode = kRising;
int launches = 0;
std::map<std::string, int64_t> blocks_of;  // of the last launch of each name

// ---- fibers --------------------------------------------------------------------------------------------------------
struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf at;
  bool started = false, finished = false;
};
std::vector<Fiber>& fibers() {
  static std::vector<Fiber> all(kMaxThreads);
  return all;
}
jmp_buf scheduler;
int running = 0;
long progress = 0;  // barriers passed and fibers finished

void fiber_main() {
  block().body(block().context);
  fibers()[size_t(running)].finished = true;
  ++progress;
  _longjmp(scheduler, 1);
}

void yield() {
  if (_setjmp(fibers()[size_t(running)].at) == 0) _longjmp(scheduler, 1);
}

void resume(int index) {
  Fiber& fiber = fibers()[size_t(index)];
  running = index;
  self = &block().selves[size_t(index)];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

// One warp after another, each as far as it comes: what it needs of the others without a barrier is not there yet.
void run_fibers(int threads) {
  for (int n = 0; n < threads; ++n) fibers()[size_t(n)].started = fibers()[size_t(n)].finished = false;
  const auto in_order = [](int n, int count) { return mode == kFalling ? count - 1 - n : n; };
  for (int left = threads; left > 0;) {
    const long before = progress;
    left = 0;
    for (int w = 0; w < threads / 32; ++w) {
      int unfinished = 0;
      for (long passed = progress - 1; passed != progress;) {
        passed = progress;
        unfinished = 0;
        for (int n = 0; n < 32; ++n) {
          const int index = 32 * in_order(w, threads / 32) + in_order(n, 32);
          if (!fibers()[size_t(index)].finished) resume(index);
          unfinished += !fibers()[size_t(index)].finished;
        }
      }
      left += unfinished;
    }
    if (left > 0 && progress == before) fail("some threads wait at a barrier that the others never reach");
  }
}

void meet(Meeting& m, const char* what) {
  const uint32_t generation = m.generation.load();
  const int order = m.arrived.fetch_add(1);
  if (order == 0) {
    m.what.store(what);
  } else if (mode != kThreads && std::strcmp(m.what.load(), what) != 0) {
    fail("threads of one group meet at different instructions");
  }
  if (order + 1 == m.members) {
    m.arrived.store(0);
    if (mode != kThreads) ++progress;
    m.generation.fetch_add(1);
    m.generation.notify_all();
    return;
  }
  if (mode == kThreads) {
    m.generation.wait(generation);
  } else {
    while (m.generation.load() == generation) yield();
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "cuda_host: kernel %s, thread %d: %s\n", block().name, self ? self->thread : -1, what);
  std::abort();
}

Exchange& exchange() { return block().exchanges[self->thread / 32]; }
void meet_block(const char* what) { meet(block().block, what); }
void meet_warp(const char* what) { meet(block().warps[self->thread / 32], what); }

void run_blocks(const char* name, Body body, void* context, Grid grid, int threads, int shared_bytes) {
  ++launches;
  blocks_of[name] = grid.x * grid.y * grid.z;
  Block& b = block();
  b.name = name, b.body = body, b.context = context, b.threads = threads;
  self = nullptr;
  if (threads < 32 || threads > kMaxThreads || threads % 32) fail("bad number of threads");
  if (shared_bytes > 99 * 1024) fail("more shared memory than the smallest architecture has");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) fail("bad grid");
  b.block.members = threads;
  for (int w = 0; w < threads / 32; ++w) b.warps[w].members = 32;
  for (int64_t n = 0; n < grid.x * grid.y * grid.z; ++n) {
    const std::unique_ptr<unsigned char[]> shared(new unsigned char[size_t(shared_bytes)]);
    std::memset(shared.get(), 0xff, size_t(shared_bytes));
    for (int t = 0; t < threads; ++t) {
      Self& s = b.selves[size_t(t)];
      s.thread = t, s.shared = shared.get();
      s.committed = s.done = s.copies = 0;
      s.block[0] = int(n % grid.x), s.block[1] = int(n / grid.x % grid.y), s.block[2] = int(n / grid.x / grid.y);
    }
    if (mode == kThreads) {
      std::vector<std::thread> pool;
      for (int t = 0; t < threads; ++t) {
        pool.emplace_back([&b, t] {
          self = &b.selves[size_t(t)];
          b.body(b.context);
        });
      }
      for (std::thread& thread : pool) thread.join();
    } else {
      run_fibers(threads);
    }
    self = nullptr;
  }
}

float from_bf16(uint16_t bits) { return as_float(uint32_t(bits) << 16); }
uint16_t to_bf16(float value) {
  const uint32_t u = as_bits(value);
  if (value != value) return 0x7fff;
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
float from_f16(uint16_t h) {
  const float sign = h & 0x8000 ? -1.0f : 1.0f;
  const int exponent = h >> 10 & 31, fraction = h & 0x3ff;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24));
}
uint16_t to_f16(float value) {
  if (value != value) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  if (magnitude >= 65520.0f) return uint16_t(sign | 0x7c00);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int scale = exponent < -13 ? 24 : 11 - exponent;  // units of the last place, subnormals included
  const int units = int(std::nearbyint(std::ldexp(magnitude, scale)));
  return exponent < -13 ? uint16_t(sign | units) : uint16_t(sign | (units + ((exponent + 14 - 1) << 10)));
}

}  // namespace host
}  // namespace cuda
}  // namespace kan

// Kernels that were launched so far.
extern "C" int kan_cuda_host_launches() { return kan::cuda::host::launches; }

// Blocks of the last launch of a name, 0 if there was none.
extern "C" int64_t kan_cuda_host_blocks(const char* name) { return kan::cuda::host::blocks_of[name]; }

extern "C" void kan_cuda_host_mode(int new_mode) {
  using namespace kan::cuda::host;
  copies_land_early = new_mode == kEarly;
  mode = copies_land_early ? kRising : new_mode;
}
