// Reads beside others' atomics, and who is in a race with them.                            (the test: test_emulation_reads.py)
#include "cuda/device/launch.cuh"

enum Reads { kPlain, kCached, kUncached, kVolatile, kAsmCached, kAsmVolatile, kAsmRelaxed, kPair };

__device__ int read(int* p, int how) {
  int x = 0;
  switch (how) {
    case kPlain:
      return *p;
    case kCached:
      return __ldcg(p);
    case kUncached:
      return __ldcv(p);
    case kVolatile:
      return *static_cast<volatile int*>(p);
    case kAsmCached:
      asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
      return x;
    case kAsmVolatile:
      asm volatile("ld.volatile.global.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
      return x;
    case kAsmRelaxed:
      asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
      return x;
    default:
      return __ldcg(reinterpret_cast<const int2*>(p)).x;
  }
}

// Adds 1 for each thread, by a loop that begins with a read of its own.
__global__ void __launch_bounds__(64) added(int* p, int how) {
  int old = read(p, how), seen;
  do {
    seen = old;
    old = atomicCAS(p, seen, seen + 1);
  } while (seen != old);
}

// Another block's plain store beside the read.
__global__ void __launch_bounds__(64) stored(int* p, int* y, int how) {
  if (blockIdx.x == 0) p[0] = 1;
  if (blockIdx.x == 1 && threadIdx.x == 0) y[0] = read(p, how);
}

// A flag without anything that it announces.
__global__ void __launch_bounds__(64) flagged(volatile int* p, int* y) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 1) *p = 1;
  if (blockIdx.x == 0) {
    while (*p == 0) {
    }
    y[0] = 7;
  }
}

// A warp's sum as it was written before warps' threads went their own ways, without __syncwarp.
__global__ void __launch_bounds__(32) synchronous(const int* x, int* y) {
  struct Shared {
    int sums[64];
  };
  HETKERN_SHARED(Shared, s);
  volatile int* sums = s.sums;
  const unsigned t = threadIdx.x;
  sums[t] = x[t], sums[t + 32] = 0;
  for (int step = 16; step; step /= 2) sums[t] += sums[t + step];
  if (t == 0) y[0] = sums[0];
}

extern "C" void go_added(int* p, int how, void* stream) { HETKERN_LAUNCH(added, 2, 32, 0, stream, p, how); }
extern "C" void go_stored(int* p, int* y, int how, void* stream) { HETKERN_LAUNCH(stored, 2, 1, 0, stream, p, y, how); }
extern "C" void go_flagged(int* p, int* y, void* stream) { HETKERN_LAUNCH(flagged, 2, 32, 0, stream, p, y); }
extern "C" void go_synchronous(const int* x, int* y, void* stream) {
  HETKERN_LAUNCH(synchronous, 1, 32, 256, stream, x, y);
}
