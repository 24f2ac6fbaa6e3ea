// The table of the emulated library: the CUDA kernels serve CPU tensors, in a namespace of their own.   (for tests; ../../ops.cpp)
#include "../../ops.h"

using namespace hetkern;

STABLE_TORCH_LIBRARY_IMPL(hetkern_emulated, CPU, m) {
#if __has_include("../softmax.cu")
  serve_softmax<cuda::softmax_kernels>(m);
#endif
#if __has_include("../cross_entropy.cu")
  serve_cross_entropy<cuda::cross_entropy_kernels>(m);
#endif
  (void)m;
}
