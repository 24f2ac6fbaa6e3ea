#include "isa.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "parallel.h"

namespace hetkern::cpu {
namespace {

Isa detect() {
#ifdef HETKERN_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
#endif
#ifdef HETKERN_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return kLeastBuilt;
}

Isa at_most(Isa most) {
  const Isa level = most < best_isa() ? most : best_isa();
  return level < kLeastBuilt ? kLeastBuilt : level;
}

Isa from_environment() {
  const char* wanted = std::getenv("HETKERN_ISA");
  for (const Isa level : {Isa::base, Isa::avx2})
    if (wanted && std::strcmp(wanted, name_of(level)) == 0) return at_most(level);
  return best_isa();
}

std::atomic<Isa>& in_force() {
  static std::atomic<Isa> value{from_environment()};
  return value;
}

int64_t cache_bytes(int name, int64_t otherwise) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

}  // namespace

Isa best_isa() {
  static const Isa best = detect();
  return best;
}
Isa isa() { return in_force().load(std::memory_order_relaxed); }
void clamp_isa(Isa most) { in_force().store(at_most(most), std::memory_order_relaxed); }

Machine machine() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t l2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20);
#else
  static const int64_t l2 = 1 << 20;
#endif
  return {num_threads(), l2};
}

}  // namespace hetkern::cpu
