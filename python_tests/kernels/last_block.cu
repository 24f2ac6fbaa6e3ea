// y[0] = sum of x[block][thread], taken by the block that comes last; bugs 1 to 3 are planted.        (test_emulation_last_block.py)
#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"

namespace {
using namespace hetkern;

constexpr int kThreads = 64;

struct Shared {
  bool last;
};

// partial: one float a thread of each block; counter: 0 before the launch and after it.
__global__ void __launch_bounds__(kThreads)
    last_block(const float* x, float* partial, float* y, unsigned* counter, int bug) {
  const auto meet = [] { ptx::cluster_size() > 1 ? ptx::cluster_sync() : __syncthreads(); };  // no matter which
  HETKERN_SHARED(Shared, s);
  const int t = threadIdx.x;
  partial[blockIdx.x * kThreads + t] = x[blockIdx.x * kThreads + t];
  if (bug != 1) meet();  // 1: only thread 0's store comes before its count
  if (t == 0) {
    unsigned before;
    if (bug == 2) {  // 2: an atomic that orders nothing
      before = atomicAdd(counter, 1u);
    } else if (bug == 3) {  // 3: what the others wrote is released and never acquired
      ptx::add_release(counter, 1);
      before = atomicAdd(counter, 0u) - 1;
    } else {
      before = ptx::add_acquire_release(counter, 1);
    }
    s.last = before == gridDim.x - 1;
  }
  meet();
  if (!s.last || t != 0) return;
  float sum = 0;
  for (int i = 0; i < static_cast<int>(gridDim.x) * kThreads; ++i) sum += partial[i];
  *y = sum;
  *counter = 0;
}

}  // namespace

extern "C" void sum(const float* x, float* partial, float* y, unsigned* counter, int blocks, int cluster, int bug,
                    void* stream) {
  HETKERN_LAUNCH_CLUSTER(last_block, cluster, blocks, kThreads, sizeof(Shared), stream, x, partial, y, counter, bug);
}
