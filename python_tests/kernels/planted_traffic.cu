// Kernels that move n x n floats well, and badly: bug 0 is the good one.                  (the test: test_emulation_traffic.py)
#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"

namespace {
using namespace hetkern;

constexpr int kTile = 32;

struct Shared {
  float tile[kTile * (kTile + 1)];
};

struct MatricesShared {
  alignas(16) float tile[kTile * (kTile + 4)];
  uint64_t barrier;
};

__global__ void __launch_bounds__(128) copy(const float4* x, float4* y) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  ptx::store_16_streaming(y + i, ptx::load_16_once(x + i));
}

__global__ void __launch_bounds__(128) copy_by_columns(const float* x, float* y, int n) {
  for (int i = blockIdx.x; i < n; i += gridDim.x)
    for (int row = threadIdx.x; row < n; row += 128) y[row * n + i] = x[row * n + i];
}

// One tile; pitch 33 keeps the lanes of a column in different banks, 32 does not.
__global__ void __launch_bounds__(kTile* kTile) transpose(const float* x, float* y, int pitch) {
  HETKERN_SHARED(Shared, s);
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  s.tile[row * pitch + column] = x[row * kTile + column];
  __syncthreads();
  y[row * kTile + column] = s.tile[column * pitch + row];
}

__global__ void __launch_bounds__(128) copy_reading_twice(const float4* x, float4* y) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  const float largest = ptx::load_16(x + i).x;
  float4 v = ptx::load_16(x + i);
  v.x = fminf(v.x, largest);
  ptx::store_16_streaming(y + i, v);
}

// A warp copies by the copy engine, then takes the tile as 16-bit matrices: rows of 128 bytes lie in the same banks, unless
// 16 bytes are left free after each.
__global__ void __launch_bounds__(32) matrices(const float* x, float* y, int pitch) {
  HETKERN_SHARED(MatricesShared, s);
  const int lane = threadIdx.x;
  if (lane == 0) {
    ptx::barrier_init(&s.barrier, 1);
    ptx::barrier_arrive_expecting(&s.barrier, kTile * kTile * 4);
    for (int row = 0; row < kTile; ++row) ptx::copy_bulk(s.tile + row * pitch, x + row * kTile, kTile * 4, &s.barrier);
  }
  __syncthreads();
  ptx::barrier_wait(&s.barrier, 0);
  for (int part = 0; part < 8; ++part) {
    uint32_t r[4];
    ptx::load_matrices(r, s.tile + lane * pitch + part * 4);
    for (int m = 0; m < 4; ++m)
      y[(m * 8 + lane / 4) * kTile + part * 4 + lane % 4] = reinterpret_cast<const float&>(r[m]);
  }
}

// Pairs of 16-bit numbers are words of 4 bytes; a number at a time they are two requests, of every other number.
template <class Pair>
__global__ void __launch_bounds__(128) copy_pairs(const Pair* x, Pair* y) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  const Pair v = x[i];
  y[i] = v;
}

__global__ void __launch_bounds__(128) copy_halves(const __half* x, __half* y) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  const __half low = x[2 * i], high = x[2 * i + 1];
  y[2 * i] = low, y[2 * i + 1] = high;
}

// Three floats are no more aligned than one: three requests, of every third float.
__global__ void __launch_bounds__(128) copy_threes(const float* x, float* y, int n) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  if (3 * i + 2 < n) reinterpret_cast<float3*>(y)[i] = reinterpret_cast<const float3*>(x)[i];
  if (i < n % 3) y[n - 1 - i] = x[n - 1 - i];
}

// Fields of an aligned pack, taken with nothing between, are one access of 16 bytes; a plain pointer's elements are four.
struct alignas(16) Pack {
  float v[4];
};
__global__ void __launch_bounds__(128) copy_packs(const Pack* x, Pack* y, int apart) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  float v[4];
  if (apart == 2) {
    for (int j = 0; j < 4; ++j) v[j] = x[i].v[j], __syncthreads();
  } else {
    v[0] = x[i].v[0], v[1] = x[i].v[1], v[2] = x[i].v[2], v[3] = x[i].v[3];
  }
  y[i].v[0] = v[0], y[i].v[1] = v[1], y[i].v[2] = v[2], y[i].v[3] = v[3];
}
__global__ void __launch_bounds__(128) copy_four(const float* x, float* y) {
  const int i = 4 * (blockIdx.x * 128 + threadIdx.x);
  const float a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
  y[i] = a, y[i + 1] = b, y[i + 2] = c, y[i + 3] = d;
}

// A warp's lanes take 16 bytes each of 16 rows, twice, after a barrier that the last of them leaves first. Rows of 80 bytes keep 8
// lanes in different banks, rows of 64 do not.
__global__ void __launch_bounds__(32) copy_by_rows(const float4* x, float4* y, int pitch) {
  HETKERN_SHARED(MatricesShared, s);
  float4* const mine = reinterpret_cast<float4*>(s.tile) + threadIdx.x % 16 * pitch + threadIdx.x / 16;
  for (int i = threadIdx.x; i < kTile * kTile / 4; i += 32) {
    *mine = x[i];
    __syncthreads();
    const float4 v = *mine;
    __syncthreads();
    y[i] = v;
  }
}

// The lanes want 32 words of 4 banks: each bank's 8 words of 8 blocks' memories, or all of one block's.
__global__ void __launch_bounds__(kTile) ask_peers(const float* x, float* y, int one_peer) {
  HETKERN_SHARED(Shared, s);
  constexpr int kBlocks = 8;
  const int lane = threadIdx.x, block = blockIdx.x;
  for (int row = 0; row < kTile; ++row) s.tile[row * kTile + lane] = x[row * kTile + lane];
  ptx::cluster_sync();
  const Shared* const peer = ptx::map_shared(&s, (one_peer ? block : lane + block) % kBlocks);
  for (int row = lane % kBlocks; row < kTile; row += kBlocks) {
    const int at = row * kTile + block * 4 + lane / kBlocks;
    y[at] = peer->tile[at];
  }
  ptx::cluster_sync();  // nobody leaves while others read his memory
}

}  // namespace

extern "C" void planted_traffic(int kernel, int bug, const float* x, float* y, int n, void* stream) {
  const auto* const from = reinterpret_cast<const float4*>(x);
  auto* const to = reinterpret_cast<float4*>(y);
  if (kernel == 1) {
    HETKERN_LAUNCH(transpose, 1, kTile * kTile, sizeof(Shared), stream, x, y, bug ? 32 : 33);
  } else if (kernel == 2) {
    HETKERN_LAUNCH(matrices, 1, 32, sizeof(MatricesShared), stream, x, y, bug ? 32 : 36);
  } else if (kernel == 3) {
    HETKERN_LAUNCH_CLUSTER(ask_peers, 8, 8, kTile, sizeof(Shared), stream, x, y, bug);
  } else if (kernel == 4) {
    const auto n_blocks = n * n / 128;
    if (bug == 0)
      HETKERN_LAUNCH(copy_pairs<__nv_bfloat162>, n_blocks, 128, 0, stream, (const __nv_bfloat162*)x,
                     (__nv_bfloat162*)y);
    if (bug == 1) HETKERN_LAUNCH(copy_halves, n_blocks, 128, 0, stream, (const __half*)x, (__half*)y);
    if (bug == 2) HETKERN_LAUNCH(copy_pairs<__half2>, n_blocks, 128, 0, stream, (const __half2*)x, (__half2*)y);
  } else if (kernel == 5) {
    HETKERN_LAUNCH(copy_threes, n * n / 384 + 1, 128, 0, stream, x, y, n * n);
  } else if (kernel == 6) {
    HETKERN_LAUNCH(copy_by_rows, 1, 32, sizeof(MatricesShared), stream, from, to, bug ? 4 : 5);
  } else if (kernel == 7) {
    if (bug == 1)
      HETKERN_LAUNCH(copy_four, n * n / 512, 128, 0, stream, x, y);
    else
      HETKERN_LAUNCH(copy_packs, n * n / 512, 128, 0, stream, (const Pack*)x, (Pack*)y, bug);
  } else if (bug == 0) {
    HETKERN_LAUNCH(copy, n * n / 512, 128, 0, stream, from, to);
  } else if (bug == 1) {
    HETKERN_LAUNCH(copy_by_columns, 4, 128, 0, stream, x, y, n);
  } else {
    HETKERN_LAUNCH(copy_reading_twice, n * n / 512, 128, 0, stream, from, to);
  }
}
