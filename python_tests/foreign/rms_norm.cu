// Row RMSNorm, forward and backward: a kernel from outside hetkern, tested with its kit.
//
//   r_i = 1 / sqrt(sum_j x_ij² / N + eps)          y_ij = x_ij r_i w_j
//   dx_ij = r_i (dy_ij w_j - x_ij r_i² sum_k dy_ik w_k x_ik / N)          dw_j = sum_i dy_ij x_ij r_i
//
// x, y, dy, dx: (M, N); w, dw: (N); r: (M); all float, row-major.
// Work:    one block a row; dw: one thread a column.
// Traffic: forward reads MN of x and of w and writes MN + M (the row stays on chip, as dy does in backward).
#include <cstdint>

#include "cuda/device/launch.cuh"

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

struct Shared {
  float partial[kWarps];
  float row[1];  // N of them
};

size_t shared_bytes(int64_t N) { return sizeof(Shared) + static_cast<size_t>(N) * sizeof(float); }

__device__ float block_sum(float v, float* partial) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += partial[i];
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    forward_kernel(const float* x, const float* w, float* y, float* r, int64_t N, float eps) {
  HETKERN_SHARED(Shared, s);
  const int64_t first = blockIdx.x * N;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < N; j += kThreads) {
    const float v = x[first + j];
    s.row[j] = v;
    sum += v * v;
  }
  const float scale = rsqrtf(block_sum(sum, s.partial) / N + eps);
  for (int64_t j = threadIdx.x; j < N; j += kThreads) y[first + j] = s.row[j] * scale * w[j];
  if (threadIdx.x == 0) r[blockIdx.x] = scale;
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* dy, const float* x, const float* w, const float* r, float* dx, int64_t N) {
  HETKERN_SHARED(Shared, s);
  const int64_t first = blockIdx.x * N;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < N; j += kThreads) {
    const float g = dy[first + j] * w[j];
    s.row[j] = g;
    sum += g * x[first + j];
  }
  const float scale = r[blockIdx.x];
  const float mean = block_sum(sum, s.partial) / N;
  for (int64_t j = threadIdx.x; j < N; j += kThreads)
    dx[first + j] = scale * (s.row[j] - x[first + j] * scale * scale * mean);
}

__global__ void __launch_bounds__(kThreads)
    weight_kernel(const float* dy, const float* x, const float* r, float* dw, int64_t M, int64_t N) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= N) return;
  float sum = 0;
  for (int64_t i = 0; i < M; ++i) sum += dy[i * N + j] * x[i * N + j] * r[i];
  dw[j] = sum;
}

}  // namespace

extern "C" void rms_norm_forward(const float* x, const float* w, float* y, float* r, int64_t M, int64_t N, float eps,
                                 void* stream) {
  HETKERN_LAUNCH(forward_kernel, M, kThreads, shared_bytes(N), stream, x, w, y, r, N, eps);
}

extern "C" void rms_norm_backward(const float* dy, const float* x, const float* w, const float* r, float* dx, float* dw,
                                  int64_t M, int64_t N, void* stream) {
  HETKERN_LAUNCH(backward_kernel, M, kThreads, shared_bytes(N), stream, dy, x, w, r, dx, N);
  HETKERN_LAUNCH(weight_kernel, (N + kThreads - 1) / kThreads, kThreads, 0, stream, dy, x, r, dw, M, N);
}
