// Five small kernels, and bugs planted in them: bug 0 is the kernel as it should be.      (the test: test_emulation_planted.py)
#include <cstdint>

#include "cuda/device/check.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"

namespace {
using namespace hetkern;

constexpr int kThreads = 64;

struct Shared {
  alignas(16) float stage[kThreads][4];
  uint64_t barrier;
  float warp[kThreads / 32];
  float total;
};

// y[row] = sum of x[row], n of them.
__global__ void __launch_bounds__(kThreads) row_sums(const float* x, float* y, int n, int bug) {
  HETKERN_SHARED(Shared, s);
  const int t = threadIdx.x;
  x += int64_t{blockIdx.x} * n;
  float sum = 0;
  for (int i = t; i < n + (bug == 3 && blockIdx.x == gridDim.x - 1); i += kThreads) sum += x[i];  // 3: one too far
  if (bug == 4) sum += ptx::load_16(reinterpret_cast<const float4*>(x + 1)).x;                    // 4: misaligned
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (t % 32 == 0) s.warp[t / 32] = sum;
  if (bug != 1) __syncthreads();            // 1: missing
  if (bug == 2 && t < 32) __syncthreads();  // 2: one warp only
  if (t == 0) s.total = s.warp[0] + s.warp[1];
  __syncthreads();
  HETKERN_DEVICE_CHECK(bug != 5, "row %d: planted\n", static_cast<int>(blockIdx.x));
  if (t == 0) y[blockIdx.x] = s.total;
}

// y[t] = sum over tiles of what the neighbouring thread copied.
__global__ void __launch_bounds__(kThreads) staged_sums(const float* x, float* y, int tiles, int bug) {
  HETKERN_SHARED(Shared, s);
  const int t = threadIdx.x;
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    ptx::copy_async<16>(s.stage[t], x + (tile * kThreads + t) * 4);
    ptx::copy_async_commit();
    if (bug != 2) ptx::copy_async_wait<0>();  // 2: never waited for
    __syncthreads();
    for (float v : s.stage[(t + 1) % kThreads]) sum += v;
    if (bug != 1) __syncthreads();  // 1: the next copy overwrites what a neighbour still reads
  }
  y[t] = sum;
}

// The same by the copy engine.
__global__ void __launch_bounds__(kThreads) bulk_sums(const float* x, float* y, int tiles, int bug) {
  HETKERN_SHARED(Shared, s);
  const int t = threadIdx.x;
  if (t == 0) ptx::barrier_init(&s.barrier, 1);
  if (bug != 2) __syncthreads();  // 2: others may meet a barrier that is not there yet
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    if (t == 0) {
      ptx::barrier_arrive_expecting(&s.barrier, sizeof s.stage);
      ptx::copy_bulk(s.stage, x + tile * kThreads * 4, bug == 3 ? sizeof s.stage - 8 : sizeof s.stage, &s.barrier);
    }
    ptx::barrier_wait(&s.barrier, tile % 2);
    if (bug == 1) __syncthreads();  // 1: too early: the next copy overwrites what a neighbour still reads
    for (float v : s.stage[(t + 1) % kThreads]) sum += v;
    if (bug != 1) __syncthreads();
  }
  y[t] = sum;
}

// y[block] = sum of the cluster's x, one a block.
__global__ void __launch_bounds__(kThreads) cluster_sums(const float* x, float* y, int bug) {
  HETKERN_SHARED(Shared, s);
  if (bug == 2) ptx::cluster_sync();
  if (threadIdx.x == 0) s.total = x[blockIdx.x];
  if (bug != 1 && bug != 2) ptx::cluster_sync();  // 1: none before; 2: none between the write and the peers' reads
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned r = 0; r < ptx::cluster_size(); ++r) sum += *ptx::map_shared(&s.total, r);
    y[blockIdx.x] = sum;
  }
  if (bug != 3) ptx::cluster_sync();  // 3: a block leaves while peers read
}

// Each block writes n elements of its own, or shares the last one with the next block.
__global__ void __launch_bounds__(kThreads) fill(float* y, int n, int bug) {
  if (static_cast<int>(threadIdx.x) < n) y[blockIdx.x * (n - bug) + threadIdx.x] = 1;
}

}  // namespace

extern "C" void planted(int kernel, int bug, const float* x, float* y, int n, void* stream) {
  if (kernel == 0) HETKERN_LAUNCH(row_sums, 2, kThreads, sizeof(Shared), stream, x, y, n, bug);
  if (kernel == 1) HETKERN_LAUNCH(staged_sums, 1, kThreads, sizeof(Shared), stream, x, y, n, bug);
  if (kernel == 2) HETKERN_LAUNCH_CLUSTER(cluster_sums, 2, 4, kThreads, sizeof(Shared), stream, x, y, bug);
  if (kernel == 4) HETKERN_LAUNCH(bulk_sums, 1, kThreads, sizeof(Shared), stream, x, y, n, bug);
  if (kernel == 3) HETKERN_LAUNCH(fill, 3, kThreads, 0, stream, y, n, bug);
}
