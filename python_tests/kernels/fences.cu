// What fences hand over, and what they do not.                                            (the test: test_emulation_fences.py)
#include "cuda/device/launch.cuh"

constexpr int kThreads = 64;

struct Last {
  bool is_last;
};

enum Sum { kGuide, kAllFence, kByPtx, kNoFence, kFenceTooLate, kStoredAfterFence, kNoBarrier, kOfBlock, kUncounted };

// y[0] = sum of x, taken by the block that comes last: CUDA's programming guide, "Memory Fence Functions".
__global__ void __launch_bounds__(kThreads) sum(const float* x, float* part, float* y, unsigned* count, int how) {
  HETKERN_SHARED(Last, s);
  const unsigned b = blockIdx.x, t = threadIdx.x;
  float* mine = part + b * kThreads;
  if (how != kStoredAfterFence) mine[t] = x[b * kThreads + t];
  if (how == kAllFence || how == kNoBarrier) __threadfence();
  if (how == kStoredAfterFence) {
    __threadfence();
    mine[t] = x[b * kThreads + t];
  }
  if (how != kNoBarrier) __syncthreads();
  if (t == 0) {
    if (how == kGuide) __threadfence();
    if (how == kByPtx) asm volatile("fence.acq_rel.gpu;" ::: "memory");
    if (how == kOfBlock) __threadfence_block();
    s.is_last = atomicInc(count, gridDim.x) == gridDim.x - 1;
    if (how == kFenceTooLate) __threadfence();
  }
  __syncthreads();
  if (!(how == kUncounted ? b == gridDim.x - 1 : s.is_last) || t) return;
  float all = 0;
  for (unsigned i = 0; i < gridDim.x * kThreads; ++i) all += part[i];
  y[0] = all;
  count[0] = 0;
}
extern "C" void go_sum(const float* x, float* part, float* y, unsigned* count, int how, void* stream) {
  HETKERN_LAUNCH(sum, 4, kThreads, sizeof(Last), stream, x, part, y, count, how);
}

enum Lock { kRight, kWithoutFence };

// A lock of compare and swap around a plain sum.
__global__ void __launch_bounds__(32) locked(int* lock, int* y, int how) {
  if (threadIdx.x) return;
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  if (how == kRight) __threadfence();
  *y += 1;
  if (how == kRight) __threadfence();
  atomicExch(lock, 0);
}
extern "C" void go_locked(int* lock, int* y, int how, void* stream) {
  HETKERN_LAUNCH(locked, 6, 32, 0, stream, lock, y, how);
}

// Block b takes what block b - 1 has left behind a volatile flag: a chained scan.
__global__ void __launch_bounds__(32) chained(const int* x, int* y, volatile int* ready, int how) {
  const int b = blockIdx.x;
  if (threadIdx.x) return;
  int before = 0;
  if (b) {
    while (ready[b - 1] == 0) {
    }
    if (how == kRight) __threadfence();
    before = y[b - 1];
  }
  y[b] = before + x[b];
  if (how == kRight) __threadfence();
  ready[b] = 1;
}
extern "C" void go_chained(const int* x, int* y, int* ready, int how, void* stream) {
  HETKERN_LAUNCH(chained, 6, 32, 0, stream, x, y, ready, how);
}

// Warp 1 takes what warp 0 has left, in one block.
__global__ void __launch_bounds__(64) of_block(int* data, int* flag, int* y, int how) {
  if (threadIdx.x == 0) {
    data[0] = 7;
    if (how == kRight) __threadfence_block();
    atomicExch(flag, 1);
  }
  if (threadIdx.x == 32) {
    while (atomicAdd(flag, 0) == 0) {
    }
    if (how == kRight) __threadfence_block();
    y[0] = data[0];
  }
}
extern "C" void go_of_block(int* data, int* flag, int* y, int how, void* stream) {
  HETKERN_LAUNCH(of_block, 1, 64, 0, stream, data, flag, y, how);
}
