// What kernels from outside do every day: each launcher is a claim of test_emulation_everyday.py.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include <cassert>
#include <cstdio>

#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/shared_parts.cuh"

namespace cg = cooperative_groups;

namespace {

// ---- Values. ---------------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(64) casts(const float* x, int* i, unsigned* u, long long* l, unsigned char* c) {
  const int t = threadIdx.x;
  i[t] = static_cast<int>(x[t]), u[t] = static_cast<unsigned>(x[t]), l[t] = static_cast<long long>(x[t]);
  c[t] = static_cast<unsigned char>(x[t]);
}

__global__ void fused(const float* x, float* y, const __half* h, __half* g) {
  const float product = x[0] * x[1];
  y[0] = product + x[2], y[1] = x[2] - x[0] * x[1], y[2] = __fadd_rn(__fmul_rn(x[0], x[1]), x[2]);
  g[0] = h[0] * h[0] + h[1], g[1] = __hadd(__hmul(h[0], h[0]), h[1]), g[2] = __hadd(__hmul_rn(h[0], h[0]), h[1]);
  const __half2 pair(h[0], h[0]), other(h[1], h[1]), sums = pair * pair + other;
  g[3] = sums.y;
  __half sum = h[1];
  sum += h[0] * h[0];
  g[4] = sum;
}

// Of lane t: xor by 16 in groups of 16, where only an earlier group is there to take from; down by 33, which is down by 1.
__global__ void widths(int* y) {
  y[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 16, 16);
  y[32 + threadIdx.x] = __shfl_down_sync(~0u, static_cast<int>(threadIdx.x), 33);
}

__global__ void groups(float* y, int* n) {
  const auto block = cg::this_thread_block();
  const auto tile = cg::tiled_partition<16>(block);
  const cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
  const unsigned t = block.thread_rank();
  y[t] = cg::reduce(tile, static_cast<float>(t), cg::plus<float>());
  n[t] = cg::inclusive_scan(cg::tiled_partition<8>(warp), 1) + 100 * warp.meta_group_rank();
  block.sync();
}

// One value a word: each is compared with what the manual says of it.
__global__ void functions(const float* x, double* y) {
  const float a = x[threadIdx.x];
  double* to = y + 16 * threadIdx.x;
  *to++ = erfinvf(a), *to++ = erfcinv(1.0 - a), *to++ = normcdfinvf((1 + a) / 2), *to++ = erfcxf(30 * a);
  *to++ = rcbrtf(a) + 0 * lgammaf(a), *to++ = rhypotf(a, 2), *to++ = norm3df(a, 1, 2), *to++ = norm4d(a, 1, 2, 3);
  *to++ = __fadd_rz(1, a * 1e-9f), *to++ = __fadd_ru(1, 1e-9f), *to++ = __fmul_rd(a, 3.1f), *to++ = __fmaf_rz(a, a, 1);
  *to++ = __frcp_ru(3), *to++ = __int2float_rz(0x7fffffff), *to++ = __ull2float_ru(~0ull - 1),
  *to++ = __double2float_rd(0.1);
}
__global__ void integers(int a, int b, unsigned* y) {
  *y++ = __sad(a, b, 1), *y++ = __usad(a, b, 1), *y++ = __rhadd(a, b), *y++ = __uhadd(a, b), *y++ = umin(a, b);
  *y++ = static_cast<unsigned>(llmin(a, b)), *y++ = __dp2a_lo(a, b, 1), *y++ = __dp2a_hi(a, b, 1),
  *y++ = __fns(b, 0, 2);
  *y++ = __vimax3_s32(a, b, 0), *y++ = __viaddmax_s32(a, b, 3), *y++ = __vseteq4(a, 0xff00ff03), *y++ = __vsads4(a, b);
  *y++ = __vhaddu4(a, b), *y++ = __vabsdiffs2(a, b);
}
__global__ void pairs(__half2* h, __nv_bfloat162* b, float4* f, unsigned short* s) {
  const unsigned lane = threadIdx.x;
  __half2 mine(__int2half_rn(lane), __half(1.0f));
  for (int o = 16; o; o /= 2) mine += __shfl_xor_sync(~0u, mine, o);
  if (lane == 0) h[0] = mine, h[1] = __hfma2_relu(mine, mine, __float2half2_rn(-2e3f)), h[2] = h2floor(h2tanh(mine));
  atomicAdd(h + 3, __half2(__half(1.0f), __half(2.0f)));
  atomicAdd(b, __floats2bfloat162_rn(2, 4));
  atomicAdd(f, make_float4(1, 2, 3, 4));
  unsigned short old = *s, seen;  // a counter of 16 bits, as a kernel without such an atomic keeps it
  while ((seen = atomicCAS(s, old, old + 1)) != old) old = seen;
}

struct Copied {
  float4 a[32];
};
__global__ void piped(const float* x, float* y, int waits) {
  HETKERN_SHARED(Copied, s);
  const int t = threadIdx.x;
  __pipeline_memcpy_async(&s.a[t], x + 4 * t, 16, t == 31 ? 8 : 0);
  __pipeline_commit();
  if (waits) __pipeline_wait_prior(0);
  __syncthreads();
  y[t] = s.a[31 - t].x + s.a[31 - t].w;
}

struct Head {
  int n;
};

// Reverses x through the second of three arrays. over: how far an index of the first goes past its end.
__global__ void reversed(const float* x, float* y, int n, int over) {
  HETKERN_SHARED(Head, head);
  hetkern::cuda::SharedParts parts(sizeof(Head));
  float* const first = parts.take<float>(n);
  float* const second = parts.take<float>(n, 16);
  unsigned char* const last = parts.take<unsigned char>(n);
  const int t = threadIdx.x;
  if (t == 0) head.n = n;
  first[t] = 1, second[t] = x[t], last[t] = 3;
  __syncthreads();
  if (t == 0 && over) first[n - 1 + over] = 7;
  __syncthreads();
  y[blockIdx.x * n + t] = second[head.n - 1 - t] * first[t] + last[n - 1 - t];
}

// ---- Threads that have returned, lanes that take no part. ------------------------------------------------------------------

// A sum of the first n lanes: what comes from the others is not used. which: 1, it is; 2, by a maximum that hides NaN.
__global__ void part(const float* x, float* y, int n, int which) {
  const int lane = threadIdx.x;
  if (lane >= n) return;
  float v = x[lane];
  for (int o = 16; o; o >>= 1) {
    const float w = __shfl_down_sync(~0u, v, o);
    if (which == 2)
      v = max(v, w);
    else if (which == 1 || lane + o < n)
      v += w;
  }
  if (lane == 0) y[0] = v;
}

struct Row {
  int s[64];
};
// which: 1, what nobody has written is used, where it is not NaN
__global__ void unwritten(int* y, int which) {
  HETKERN_SHARED(Row, s);
  if (threadIdx.x < 32) s.s[threadIdx.x] = 5;
  __syncthreads();
  const int v = s.s[threadIdx.x];
  y[threadIdx.x] = threadIdx.x < 32 ? v : which && v > 5 ? 2 : 1;
}

// Blocks that number themselves, from 0 on in a process's first launch alone.
__device__ unsigned numbered_blocks = 0;
__global__ void numbered(int* y) {
  HETKERN_SHARED(Row, s);
  if (threadIdx.x == 0) s.s[0] = static_cast<int>(atomicAdd(&numbered_blocks, 1u));
  __syncthreads();
  y[s.s[0]] = s.s[0];
}

// Lanes that store to one place, one a warp. which: 1 and 2, one lane of a warp stores another value; 3, the warps share the place
__global__ void one_place(int* y, int which) {
  HETKERN_SHARED(Row, s);
  const unsigned warp = threadIdx.x / 32, other = which == 1 ? 7 : which == 2 ? 63 : 64;
  s.s[which == 3 ? 0 : warp] = threadIdx.x == other ? 6 : 5;
  __syncthreads();
  y[threadIdx.x] = s.s[warp];
}

// The second warp stores and returns, for which the barrier does not wait. which: 1, its stores are read before the barrier
__global__ void returned(int* y, int which) {
  HETKERN_SHARED(Row, s);
  s.s[threadIdx.x] = 5;
  if (threadIdx.x >= 32) return;
  const int early = which ? s.s[threadIdx.x + 32] : 0;
  __syncthreads();
  y[threadIdx.x] = s.s[threadIdx.x + 32] + early;
}

// ---- Waiting. --------------------------------------------------------------------------------------------------------------

__global__ void meet(float* a, float* b, unsigned* counter, int how) {
  a[blockIdx.x * 32 + threadIdx.x] = blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(counter, 1u);
    if (how == 0)
      while (*(volatile unsigned*)counter < gridDim.x) {
      }
    if (how == 1)
      while (atomicAdd(counter, 0u) < gridDim.x) {
      }
    if (how == 2)
      while (hetkern::ptx::load_acquire(counter) < gridDim.x) {
      }
    if (how == 3)
      while (*(volatile unsigned*)counter <= gridDim.x) {
      }  // which never comes
  }
  __syncthreads();
  b[blockIdx.x * 32 + threadIdx.x] = a[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x];
}

__global__ void whole_grid(float* a, float* b) {
  const auto grid = cg::this_grid();
  a[grid.thread_rank()] = grid.thread_rank();
  grid.sync();
  b[grid.thread_rank()] = a[grid.size() - 1 - grid.thread_rank()];
}

// ---- Faults. ---------------------------------------------------------------------------------------------------------------

__global__ void fault(const float* x, int* y, int which) {
  if (threadIdx.x != 3) return;
  if (which == 0) y[1] = y[1] / y[0];
  if (which == 1) y[1] = x[0] > 0;
  if (which == 2) assert(y[0] > 0);
  if (which == 3) y[int64_t{1} << 40] = 1;
}

__global__ void __launch_bounds__(32) bounded(float* x) { x[threadIdx.x] = 1; }

__global__ void shifted(const float* x, float* y, int64_t by) { y[threadIdx.x] = x[threadIdx.x + by]; }

// Each row of q and k lies beside the other's in one packed tensor. step: 1, q's index goes on into k.
__global__ void packed(const float* q, const float* k, float* y, int stride, int step) {
  const int i = blockIdx.x * stride + threadIdx.x;
  y[blockIdx.x * 32 + threadIdx.x] = q[i + 32 * step] * k[i];
}

__global__ void told(int n) {
  if (threadIdx.x == 0) printf("heard %d\n", n);
}

// Whose instance is no pointer yet where the runtime is asked about it.
template <class T>
__global__ void either(T*) {}
template <class T, int N>
__global__ void either(T*, int) {}

}  // namespace

extern "C" {

void go_casts(const float* x, int* i, unsigned* u, int64_t* l, unsigned char* c, int n, cudaStream_t stream) {
  HETKERN_LAUNCH(casts, 1, n, 0, stream, x, i, u, reinterpret_cast<long long*>(l), c);
}
void go_fused(const float* x, float* y, const __half* h, __half* g, void* stream) {
  HETKERN_LAUNCH(fused, 1, 1, 0, stream, x, y, h, g);
}
void go_functions(const float* x, double* y, int n, void* stream) { HETKERN_LAUNCH(functions, 1, n, 0, stream, x, y); }
void go_integers(int a, int b, unsigned* y, void* stream) { HETKERN_LAUNCH(integers, 1, 1, 0, stream, a, b, y); }
void go_pairs(__half* h, __nv_bfloat16* b, float* f, unsigned short* s, void* stream) {
  HETKERN_LAUNCH(pairs, 1, 32, 0, stream, reinterpret_cast<__half2*>(h), reinterpret_cast<__nv_bfloat162*>(b),
                 reinterpret_cast<float4*>(f), s);
}
void go_piped(const float* x, float* y, int waits, void* stream) {
  HETKERN_LAUNCH(piped, 1, 32, sizeof(Copied), stream, x, y, waits);
}
void go_reversed(const float* x, float* y, int n, int over, int bytes, void* stream) {
  HETKERN_LAUNCH(reversed, 2, n, bytes, stream, x, y, n, over);
}
void go_widths(int* y, void* stream) { HETKERN_LAUNCH(widths, 1, 32, 0, stream, y); }
void go_groups(float* y, int* n, void* stream) { HETKERN_LAUNCH(groups, 1, 64, 0, stream, y, n); }
void go_part(const float* x, float* y, int n, int which, void* stream) {
  HETKERN_LAUNCH(part, 1, 32, 0, stream, x, y, n, which);
}
void go_unwritten(int* y, int which, void* stream) { HETKERN_LAUNCH(unwritten, 1, 64, sizeof(Row), stream, y, which); }
void go_numbered(int* y, void* stream) { HETKERN_LAUNCH(numbered, 4, 32, sizeof(Row), stream, y); }
void go_one_place(int* y, int which, void* stream) { HETKERN_LAUNCH(one_place, 1, 64, sizeof(Row), stream, y, which); }
void go_returned(int* y, int which, void* stream) { HETKERN_LAUNCH(returned, 1, 64, sizeof(Row), stream, y, which); }
void go_meet(float* a, float* b, unsigned* counter, int blocks, int how, cudaStream_t stream) {
  cudaMemsetAsync(counter, 0, 4, stream);
  cudaFuncSetAttribute(either<float>, cudaFuncAttributeMaxDynamicSharedMemorySize, 1024);
  HETKERN_LAUNCH(meet, blocks, 32, 0, stream, a, b, counter, how);
}
void go_whole_grid(float* a, float* b, int blocks, int cooperative, void* stream) {
  if (cooperative)
    HETKERN_LAUNCH_COOPERATIVE(whole_grid, blocks, 32, 0, stream, a, b);
  else
    HETKERN_LAUNCH(whole_grid, blocks, 32, 0, stream, a, b);
}
void go_fault(const float* x, int* y, int which, void* stream) { HETKERN_LAUNCH(fault, 1, 32, 0, stream, x, y, which); }
void go_bounded(float* x, int threads, void* stream) { HETKERN_LAUNCH(bounded, 1, threads, 0, stream, x); }
void go_shifted(const float* x, float* y, int64_t by, void* stream) {
  HETKERN_LAUNCH(shifted, 1, 128, 0, stream, x, y, by);
}
void go_packed(const float* q, const float* k, float* y, int stride, int step, void* stream) {
  HETKERN_LAUNCH(packed, 4, 32, 0, stream, q, k, y, stride, step);
}
void go_told(int n, void* stream) { HETKERN_LAUNCH(told, 1, 32, 0, stream, n); }
void go_host_fault(float* x, void*) { x[0] = 1; }
}
