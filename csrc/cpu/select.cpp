// Chooses the instruction set at run time. Compiled for the baseline only.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace kan {
namespace cpu {

#ifdef KAN_HAVE_BASELINE  // but for a build of one instruction set
extern const KernelTable kTable_baseline;
#endif
#ifdef KAN_HAVE_AVX2
extern const KernelTable kTable_avx2;
#endif
#ifdef KAN_HAVE_AVX512
extern const KernelTable kTable_avx512;
#endif

namespace {

struct Candidate {
  const KernelTable* table;
  bool (*runs)();
};

const Candidate kCandidates[] = {
#ifdef KAN_HAVE_AVX512
    {&kTable_avx512,
     [] {
       return bool(__builtin_cpu_supports("avx512f")) && bool(__builtin_cpu_supports("avx512dq")) &&
              bool(__builtin_cpu_supports("avx512bw")) && bool(__builtin_cpu_supports("avx512vl")) &&
              bool(__builtin_cpu_supports("fma"));
     }},
#endif
#ifdef KAN_HAVE_AVX2
    {&kTable_avx2, [] { return bool(__builtin_cpu_supports("avx2")) && bool(__builtin_cpu_supports("fma")); }},
#endif
#ifdef KAN_HAVE_BASELINE
    {&kTable_baseline, [] { return true; }},
#endif
};

const KernelTable& choose() {
  const char* forced = std::getenv("KAN_KERNELS_CPU_ISA");
  if (forced && *forced) {
    if (const KernelTable* table = kernels_for(forced)) return *table;
    std::string names;
    for (const char* const* name = compiled_isas(); *name; ++name) names += std::string(" ") + *name;
    throw std::runtime_error("KAN_KERNELS_CPU_ISA is \"" + std::string(forced) +
                             "\", which this build lacks or this machine cannot run; compiled in:" + names);
  }
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs()) return *candidate.table;
  }
  throw std::runtime_error("this machine runs none of the instruction sets that were compiled in");
}

}  // namespace

const KernelTable* kernels_for(const char* isa) {
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(isa, candidate.table->name) == 0) return candidate.runs() ? candidate.table : nullptr;
  }
  return nullptr;
}

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

const char* const* compiled_isas() {
  static const char* const names[] = {
#ifdef KAN_HAVE_AVX512
      "avx512",
#endif
#ifdef KAN_HAVE_AVX2
      "avx2",
#endif
#ifdef KAN_HAVE_BASELINE
      "baseline",
#endif
      nullptr};
  return names;
}

}  // namespace cpu
}  // namespace kan
