// Stores and loads outside of the memory that a kernel was given, planted.               (the test: test_emulation_overruns.py)
#include <cuda_runtime.h>

#include "cuda/device/launch.cuh"

__global__ void __launch_bounds__(1) store(float* y, int i) { y[i] = 3; }
__global__ void __launch_bounds__(1) load(const float* x, float* y, int i) { y[0] = x[i]; }
__global__ void __launch_bounds__(32) shared(float* y, int i) {
  struct Shared {
    float sums[25];
  };
  HETKERN_SHARED(Shared, s);
  if (threadIdx.x < 25) s.sums[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 3) s.sums[i] = 2;
  __syncthreads();
  if (threadIdx.x == 0) y[0] = s.sums[24];
}
__global__ void __launch_bounds__(1) local(float* y, int n) {
  float kept[8];
  for (int i = 0; i < n; ++i) kept[i] = y[i];
  float sum = 0;
  for (int i = 7; i >= 0; --i) sum = sum * kept[i] + y[i];
  y[0] = sum;
}

extern "C" void go_store(float* y, int i, void* stream) { HETKERN_LAUNCH(store, 1, 1, 0, stream, y, i); }
extern "C" void go_load(const float* x, float* y, int i, void* stream) {
  HETKERN_LAUNCH(load, 1, 1, 0, stream, x, y, i);
}
extern "C" void go_shared(float* y, int i, void* stream) { HETKERN_LAUNCH(shared, 2, 32, 100, stream, y, i); }
extern "C" void go_local(float* y, int n, void* stream) { HETKERN_LAUNCH(local, 1, 1, 0, stream, y, n); }
extern "C" void go_own(int i, void* stream) {
  float* mine = nullptr;
  cudaMalloc(&mine, 4096);
  HETKERN_LAUNCH(store, 1, 1, 0, stream, mine, i);
  cudaFree(mine);
}
