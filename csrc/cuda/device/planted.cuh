// Bugs planted on purpose, so that a test can show that each sanitizer still sees (the CPU's: cpu/planted.h). The emulated library
// of a sanitizer build has them, switched on by HETKERN_PLANT; elsewhere planted() is the constant false.
#pragma once
#include "launch.cuh"

#if defined(HETKERN_PLANTED_BUGS) && !defined(__CUDACC__)
#include <cstdlib>
#include <cstring>
#endif

namespace hetkern::cuda {

enum class Bug { out_of_bounds, misaligned, race };

#if defined(HETKERN_PLANTED_BUGS) && !defined(__CUDACC__)
inline bool planted(Bug bug) {
  const char* const names[] = {"out_of_bounds", "misaligned", "race"};
  const char* const wanted = std::getenv("HETKERN_PLANT");
  return wanted && !std::strcmp(wanted, names[static_cast<int>(bug)]);
}
#else
__host__ __device__ constexpr bool planted(Bug) { return false; }
#endif

}  // namespace hetkern::cuda
