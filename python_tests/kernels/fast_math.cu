// What -use_fast_math changes: test_emulation_everyday.py.
#include "cuda/device/launch.cuh"

namespace {

__global__ void fast(const float* x, float* y) {
  y[0] = x[0] * 3, y[1] = x[1] * x[2], y[2] = expf(x[3]), y[3] = powf(x[3], 2.5f), y[4] = log10f(x[3]);
  y[5] = __fdividef(x[3], 1.5e38f), y[6] = x[3] / 1.5e38f;
}

}  // namespace

extern "C" void go(const float* x, float* y, void* stream) { HETKERN_LAUNCH(fast, 1, 1, 0, stream, x, y); }
