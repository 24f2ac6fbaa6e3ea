// CUDA's classes beside the plain words: wmma, groups by a label, cuda::barrier and cuda::pipeline; and words that a file brings.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <mma.h>

#include <cstdint>
#include <cuda/barrier>
#include <cuda/pipeline>

#include "cuda/device/launch.cuh"

// As headers do that other compilers read as well.
#ifndef __CUDACC__
inline int max(int a, int b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x) + 1000; }
#endif

namespace {

namespace cg = cooperative_groups;
namespace wmma = nvcuda::wmma;

template <class T, class V, class D, int M, int N, int K>
__device__ void multiply(const V* a, const V* b, const D* c, D* d) {
  wmma::fragment<wmma::matrix_a, M, N, K, T, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, M, N, K, T, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, M, N, K, D> sum;
  wmma::load_matrix_sync(left, a, K);
  wmma::load_matrix_sync(right, b, K);
  wmma::load_matrix_sync(sum, c, N, wmma::mem_row_major);
  for (int i = 0; i < sum.num_elements; ++i) sum.x[i] *= 2;
  wmma::mma_sync(sum, left, right, sum);
  wmma::store_matrix_sync(d, sum, M, wmma::mem_col_major);
}
template <class T, class V, class D, int M, int N, int K>
__global__ void __launch_bounds__(32) multiply_kernel(const V* a, const V* b, const D* c, D* d) {
  multiply<T, V, D, M, N, K>(a, b, c, d);
}

// What is positive of x, in any order: the lanes that run together take their places by one addition.
__global__ void __launch_bounds__(64) filtered_kernel(const float* x, float* y, int* count, bool by_group) {
  const float mine = x[threadIdx.x];
  if (!(mine > 0)) return;
  int place = 0;
  if (by_group) {
    const cg::coalesced_group together = cg::coalesced_threads();
    if (together.thread_rank() == 0) place = atomicAdd(count, static_cast<int>(together.size()));
    place = together.shfl(place, 0) + static_cast<int>(together.thread_rank());
  } else {
    const unsigned lanes = __activemask(), first = __ffs(lanes) - 1, lane = threadIdx.x % 32;
    if (lane == first) place = atomicAdd(count, __popc(lanes));
    place = __shfl_sync(lanes, place, first) + __popc(lanes & ((1u << lane) - 1));
  }
  y[place] = mine;
}
// A warp's sum that takes the mask for all its lanes.
__global__ void __launch_bounds__(32) believed_kernel(const float* x, float* y) {
  float sum = x[threadIdx.x];
  for (int step = 16; step; step /= 2) sum += __shfl_down_sync(__activemask(), sum, step);
  if (threadIdx.x == 0) y[0] = sum;
}

struct Pair {
  double first;
  int second;
};

__global__ void __launch_bounds__(64) labels_kernel(const int* label, int* y, int n) {
  const cg::thread_block_tile<32> tile = cg::tiled_partition<32>(cg::this_thread_block());
  const int i = threadIdx.x;
  const cg::coalesced_group alike = cg::labeled_partition(tile, label[i]);
  int* const mine = y + i * 6;
  mine[0] = alike.thread_rank(), mine[1] = alike.size();
  mine[2] = cg::reduce(alike, i, cg::plus<int>());
  mine[3] = alike.shfl_up(i, 1);
  mine[4] = alike.ballot(i % 2);
  const auto odd = cg::binary_partition(tile, label[i] & 1);
  const Pair from = tile.shfl(Pair{label[i] + 0.5, i}, 3);
  mine[5] = static_cast<int>(odd.size()) + (from.second % 32 == 3 ? static_cast<int>(2 * from.first) * 100 : -1);
}

struct Shared {
  cuda::barrier<cuda::thread_scope_block> full;
  float4 row[16];
};

// Each row is turned round, by way of shared memory; how: barrier, or pipeline of two stages.
template <bool by_barrier>
__global__ void __launch_bounds__(16) turned_kernel(const float4* x, float4* y, int rows, bool wait) {
  HETKERN_SHARED(Shared, s);
  if (threadIdx.x == 0) init(&s.full, blockDim.x);
  __syncthreads();
  cuda::pipeline<cuda::thread_scope_thread> pipe = cuda::make_pipeline();
  const int i = threadIdx.x;
  for (int row = 0; row < rows; ++row) {
    if (by_barrier) {
      cuda::memcpy_async(&s.row[i], &x[row * 16 + i], sizeof(float4), s.full);
      auto token = s.full.arrive();
      if (wait) s.full.wait(std::move(token));
      y[row * 16 + i] = s.row[15 - i];
      s.full.arrive_and_wait();
    } else {
      pipe.producer_acquire();
      cuda::memcpy_async(&s.row[i], &x[row * 16 + i], cuda::aligned_size_t<16>(sizeof(float4)), pipe);
      pipe.producer_commit();
      if (wait) pipe.consumer_wait();
      __syncthreads();
      y[row * 16 + i] = s.row[15 - i];
      pipe.consumer_release();
      __syncthreads();
    }
  }
}

__global__ void __launch_bounds__(32) brought_kernel(float* y) {
  y[0] = rsqrtf(4.0f);
  y[1] = static_cast<float>(max(3, 5)) + max(1.5f, 2.0f) + static_cast<float>(max(7u, 1));
}

}  // namespace

extern "C" void halves(const __half* a, const __half* b, const float* c, float* d, void* stream) {
  HETKERN_LAUNCH((multiply_kernel<__half, __half, float, 16, 16, 16>), 1, 32, 0, stream, a, b, c, d);
}
extern "C" void bfloats(const __nv_bfloat16* a, const __nv_bfloat16* b, const float* c, float* d, void* stream) {
  HETKERN_LAUNCH((multiply_kernel<__nv_bfloat16, __nv_bfloat16, float, 32, 8, 16>), 1, 32, 0, stream, a, b, c, d);
}
extern "C" void tf32s(const float* a, const float* b, const float* c, float* d, void* stream) {
  HETKERN_LAUNCH((multiply_kernel<wmma::precision::tf32, float, float, 16, 16, 8>), 1, 32, 0, stream, a, b, c, d);
}
extern "C" void bytes(const int8_t* a, const int8_t* b, const int* c, int* d, void* stream) {
  HETKERN_LAUNCH((multiply_kernel<int8_t, int8_t, int, 16, 16, 16>), 1, 32, 0, stream, a, b, c, d);
}
extern "C" void doubles(const double* a, const double* b, const double* c, double* d, int threads, void* stream) {
  HETKERN_LAUNCH((multiply_kernel<double, double, double, 8, 8, 4>), 1, threads, 0, stream, a, b, c, d);
}
extern "C" void labels(const int* label, int* y, int n, void* stream) {
  HETKERN_LAUNCH(labels_kernel, 1, n, 0, stream, label, y, n);
}
extern "C" void turned(const float* x, float* y, int rows, bool by_barrier, bool wait, void* stream) {
  const auto* from = reinterpret_cast<const float4*>(x);
  auto* to = reinterpret_cast<float4*>(y);
  if (by_barrier)
    HETKERN_LAUNCH((turned_kernel<true>), 1, 16, sizeof(Shared), stream, from, to, rows, wait);
  else
    HETKERN_LAUNCH((turned_kernel<false>), 1, 16, sizeof(Shared), stream, from, to, rows, wait);
}
extern "C" void filtered(const float* x, float* y, int* count, bool by_group, void* stream) {
  HETKERN_LAUNCH(filtered_kernel, 1, 64, 0, stream, x, y, count, by_group);
}
extern "C" void believed(const float* x, float* y, void* stream) {
  HETKERN_LAUNCH(believed_kernel, 1, 32, 0, stream, x, y);
}
extern "C" void brought(float* y, void* stream) { HETKERN_LAUNCH(brought_kernel, 1, 1, 0, stream, y); }
