// One bug for each tool: planted memcheck | racecheck | synccheck. The tool must report it, or it is blind.
#include <cstdio>

#include "device_memory.h"

namespace {

constexpr int kThreads = 128;
struct Shared {
  unsigned v[kThreads];
};

// The last thread writes behind the end.
__global__ void __launch_bounds__(kThreads) out_of_bounds_kernel(unsigned* out) { out[threadIdx.x + 1] = threadIdx.x; }

// Reads another warp's element without waiting for it.
__global__ void __launch_bounds__(kThreads) race_kernel(unsigned* out) {
  HETKERN_SHARED(Shared, s);
  s.v[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s.v[(threadIdx.x + 32) % kThreads];
}

// The halves of each warp wait at barriers of their own.
__global__ void __launch_bounds__(kThreads) divergent_kernel(unsigned* out) {
  out[threadIdx.x] = threadIdx.x;
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
    out[threadIdx.x] += 1;
  } else {
    __syncthreads();
  }
}

}  // namespace

int main(int count, char** words) {
  const std::string bug = count > 1 ? words[1] : "";
  try {
    const hetkern::gpu_day::Buffer<unsigned> out(kThreads, 0);
    if (bug == "memcheck") HETKERN_LAUNCH(out_of_bounds_kernel, 1, kThreads, 0, nullptr, out.data());
    if (bug == "racecheck") HETKERN_LAUNCH(race_kernel, 1, kThreads, sizeof(Shared), nullptr, out.data());
    if (bug == "synccheck") HETKERN_LAUNCH(divergent_kernel, 1, kThreads, 0, nullptr, out.data());
    hetkern::gpu_day::finish();
  } catch (const std::exception& e) {
    std::printf("caught %s\n", e.what());
    return 1;
  }
  std::printf("planted %s ran\n", bug.c_str());
  return 0;
}
