// The table of the emulated library: the CUDA kernels serve CPU tensors, in a namespace of their own.   (for tests; ../../ops.cpp)
#include "../../ops.h"

using namespace hetkern;

STABLE_TORCH_LIBRARY_IMPL(hetkern_emulated, CPU, m) {
  serve_softmax<cuda::softmax_kernels>(m);
  serve_cross_entropy<cuda::cross_entropy_kernels>(m);
  serve_rnn_gates<cuda::rnn_kernels>(m);
  serve_rnn_sequence<cuda::rnn_kernels>(m);
  serve_attention<cuda::attention_kernels>(m);
}
