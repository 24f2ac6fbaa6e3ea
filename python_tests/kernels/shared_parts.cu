// Shared memory cut into arrays by hand and by name: test_emulation_everyday.py.
#include "cuda/device/shared_parts.cuh"

namespace {

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

}  // namespace

extern "C" void go(const float* x, float* y, int n, int over, int bytes, void* stream) {
  HETKERN_LAUNCH(reversed, 2, n, bytes, stream, x, y, n, over);
}
