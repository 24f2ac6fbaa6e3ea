// Each case writes what a CUDA word gives thread by thread: what the twins must agree with.         (test_emulation_words.py)
#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"

namespace {
using namespace hetkern;

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xffffffffu;

struct Shared {
  int counts[kThreads];
  alignas(16) float copied[kThreads][2];
};

__global__ void __launch_bounds__(kThreads) words(float* y, const float* x, unsigned* counter, int which) {
  HETKERN_SHARED(Shared, s);
  const int t = threadIdx.x, lane = t % 32;
  float result = -1;
  switch (which) {
    case 0:
      result = __shfl_xor_sync(kAll, t, 5);
      break;
    case 1:
      result = __shfl_down_sync(kAll, t, 3, 8);
      break;
    case 2:
      result = __shfl_up_sync(kAll, t, 1);
      break;
    case 3:
      result = __shfl_sync(kAll, t, 2, 16);
      break;
    case 4:
      result = __popc(__ballot_sync(kAll, lane % 3 == 0));
      break;
    case 5:
      result = __any_sync(kAll, t == 40) + 2 * __all_sync(kAll, t < 32);
      break;
    case 6:
      result = __syncthreads_count(t % 4 == 0) + 100 * __syncthreads_and(t < 63) + 200 * __syncthreads_or(t == 7);
      break;
    case 7:  // atomics
      s.counts[t] = 0;
      __syncthreads();
      atomicAdd(&s.counts[t % 4], t);
      atomicMax(&s.counts[4 + t % 4], t);
      if (t == 0) atomicCAS(&s.counts[8], 0, 5);
      __syncthreads();
      result = s.counts[t];
      break;
    case 8:  // the second warp waits for the first
      if (t < 32) {
        s.copied[t][0] = 3 * t;
        ptx::add_release(counter, 1);
      } else {
        ptx::spin_until([&] { return ptx::load_acquire(counter) >= 32; });
        result = s.copied[t - 32][0];
      }
      break;
    case 9:  // the second half of the eight bytes is zeros
      ptx::copy_async<8>(s.copied[t], x + 2 * t, 4);
      ptx::copy_async_commit();
      ptx::copy_async_wait<0>();
      result = s.copied[t][0] + 100 * s.copied[t][1];
      break;
    case 10:
      result = ptx::exp2_approximate(-2.0f * t);
      break;
    case 11:
      result = s.copied[t][0];
      break;  // never written
    case 12:
      ptx::spin_until([&] { return ptx::load_acquire(counter) > 0; });
      break;
    case 13:
      if (t == 0) return;
      __syncthreads();
      break;
    case 14:
      if (t < 31) __syncwarp();
      break;
  }
  y[t] = result;
}

}  // namespace

extern "C" void run_words(float* y, const float* x, unsigned* counter, int which, int shared_bytes, void* stream) {
  HETKERN_LAUNCH(words, 1, kThreads, shared_bytes ? shared_bytes : sizeof(Shared), stream, y, x, counter, which);
}
