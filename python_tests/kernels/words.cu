// Each case writes what a CUDA word gives thread by thread: what the twins must agree with.         (test_emulation_words.py)
#include <cstring>

#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"

namespace {
using namespace hetkern;

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xffffffffu;

struct Shared {
  int counts[kThreads];
  alignas(16) float copied[kThreads][2];
  alignas(16) uint16_t matrices[2][16][8];  // a: columns 0 to 7, then 8 to 15
  uint64_t barrier[2];
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
    case 15: {  // each half of the block copies 64 floats in two requests; the other one waits for it, twice
      const int half = t / 32;
      if (t == 0) ptx::barrier_init(&s.barrier[0], 1), ptx::barrier_init(&s.barrier[1], 1);
      __syncthreads();
      for (int phase = 0; phase < 2; ++phase) {
        if (lane == 0) {
          ptx::barrier_arrive_expecting(&s.barrier[half], 256);
          for (int i = 0; i < 32; i += 16)
            ptx::copy_bulk(s.copied[32 * half + i], x + 64 * half + 2 * i, 128, &s.barrier[half]);
        }
        ptx::barrier_wait(&s.barrier[1 - half], phase);
        result = s.copied[63 - t][1];
        __syncthreads();
      }
      break;
    }
    case 16:
    case 17: {  // a_ij = i + j / 16 as bfloat16's or half's bits are made of small numbers; lane l gives elements of four matrices
      for (int i = t; i < 256; i += kThreads) s.matrices[i / 128][i / 8 % 16][i % 8] = i;
      __syncthreads();
      uint32_t r[4];
      const uint16_t* const row = s.matrices[lane / 16][lane % 16];
      which == 16 ? ptx::load_matrices(r, row) : ptx::load_matrices<true>(r, row);
      result = 0;
      for (int m = 0; m < 4; ++m)
        result += (m + 1) * (static_cast<int>(r[m] & 0xffff) + 2 * static_cast<int>(r[m] >> 16));
      break;
    }
    case 18:
    case 19: {  // a_ik = i - k, b_kj = k + 2 j: of small integers every product and sum is exact
      const int i = lane / 4, k = lane % 4 * 2;
      float d[4] = {1, 1, 1, 1};
      uint32_t a[4], b[2];
      const auto two = [&](float low, float high) {
        uint16_t bits[2];
        if (which == 18) {
          const __nv_bfloat16 v[2] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
          memcpy(bits, v, 4);
        } else {
          const __half v[2] = {__float2half_rn(low), __float2half_rn(high)};
          memcpy(bits, v, 4);
        }
        return bits[0] | static_cast<uint32_t>(bits[1]) << 16;
      };
      for (int m = 0; m < 4; ++m) {
        const int row = i + m % 2 * 8, depth = k + m / 2 * 8;
        a[m] = two(row - depth, row - depth - 1);
        if (m < 2) b[m] = two(k + m * 8 + 2 * i, k + m * 8 + 1 + 2 * i);
      }
      which == 18 ? ptx::multiply_add<__nv_bfloat16>(d, a, b) : ptx::multiply_add<__half>(d, a, b);
      result = d[0] + 3 * d[1] + 5 * d[2] + 7 * d[3];
      break;
    }
    case 20:  // a bulk copy that nobody waits for
      if (t == 0) {
        ptx::barrier_init(&s.barrier[0], 1);
        ptx::barrier_arrive_expecting(&s.barrier[0], 512);
        ptx::copy_bulk(s.copied, x, 512, &s.barrier[0]);
      }
      __syncthreads();
      result = s.copied[t][0];
      break;
    case 21:  // fewer bytes come than are expected
      if (t == 0) {
        ptx::barrier_init(&s.barrier[0], 1);
        ptx::barrier_arrive_expecting(&s.barrier[0], 512);
        ptx::copy_bulk(s.copied, x, 256, &s.barrier[0]);
      }
      __syncthreads();
      ptx::barrier_wait(&s.barrier[0], 0);
      break;
    case 22:
      if (t == 0) ptx::barrier_init(&s.barrier[0], 2);
      __syncthreads();
      ptx::barrier_arrive(&s.barrier[0]);
      if (t % 2 == 0) ptx::barrier_arrive(&s.barrier[0]);
      if (t == 0) ptx::barrier_arrive_expecting(&s.barrier[0], 16), ptx::barrier_arrive(&s.barrier[0]);
      if (t == 0) ptx::barrier_arrive(&s.barrier[0]);
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
