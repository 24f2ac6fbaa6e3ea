// Races between blocks that meet barriers of their own, planted; and a launch of any size.      (the test: test_emulation_blocks.py)
#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"

namespace {
using namespace hetkern;

struct Shared {
  bool last;
};

// Thread `writer` of block 0 writes a number, thread `reader` of the last block reads it. Nothing orders the blocks.
__global__ void __launch_bounds__(1024) hand_over(float* x, float* y, int writer, int reader, int reading_block) {
  if (blockIdx.x == 0 && static_cast<int>(threadIdx.x) == writer) x[0] = 1;
  __syncthreads();
  if (static_cast<int>(blockIdx.x) == reading_block && static_cast<int>(threadIdx.x) == reader) y[0] = x[0];
}

// The last block takes the others' numbers; only bug 0 orders them.
__global__ void __launch_bounds__(64) last_block(float* partial, unsigned* counter, float* y, int bug) {
  HETKERN_SHARED(Shared, s);
  const unsigned t = threadIdx.x;
  if (t == 0) {
    partial[blockIdx.x] = blockIdx.x + 1;
    s.last = (bug ? atomicAdd(counter, 1u) : ptx::add_acquire_release(counter, 1)) == gridDim.x - 1;
  }
  __syncthreads();
  if (s.last && t < gridDim.x) y[t] = partial[t];
}

// A scan: each block waits for the one before it. Bug 1 raises the flag before the number that it announces.
__global__ void __launch_bounds__(64) look_back(unsigned* flag, float* prefix, float* y, int bug) {
  const unsigned b = blockIdx.x;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float before = 0;
  if (b > 0) {
    ptx::spin_until([&] { return ptx::load_acquire(flag + b - 1) != 0; });
    before = prefix[b - 1];
  }
  if (bug) ptx::add_release(flag + b, 1);
  prefix[b] = before + 1;
  if (!bug) ptx::add_release(flag + b, 1);
  y[b] = before;
}

// y[i] = y[i] + 1, by a thread for each i; bug 1: the last thread of a block takes the next block's first number as well.
__global__ void __launch_bounds__(1024) add_one(float* y, int n, int bug) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  __syncthreads();
  if (i < n) y[i] += 1;
  __syncthreads();
  if (bug && i + 1 < n && threadIdx.x + 1 == blockDim.x) y[i + 1] = 0;
}

}  // namespace

// kernel 3: launch after launch on the same numbers, which a stream orders; 4: each has more threads than the one before.
extern "C" void blocks(int kernel, float* x, unsigned* words, float* y, int blocks, int threads, int p, int q,
                       void* stream) {
  if (kernel == 0) HETKERN_LAUNCH(hand_over, blocks, threads, 0, stream, x, y, p, q, blocks - 1);
  if (kernel == 1) HETKERN_LAUNCH(last_block, blocks, 64, sizeof(Shared), stream, x, words, y, q);
  if (kernel == 2) HETKERN_LAUNCH(look_back, blocks, 64, 0, stream, words, x, y, q);
  for (int i = 0; kernel == 3 && i < p; ++i)
    HETKERN_LAUNCH(add_one, blocks, threads, 0, stream, y, blocks * threads, q);
  for (int n = 1; kernel == 4 && n <= blocks; n *= 2) HETKERN_LAUNCH(add_one, n, threads, 0, stream, y, n * threads, q);
}
