// The table: which kernels serve which family on which device.  (schemas: hetkern/ops/*.py)
#include "ops.h"

using namespace hetkern;

STABLE_TORCH_LIBRARY_IMPL(hetkern, CPU, m) {
  serve_softmax<cpu::softmax_kernels>(m);
  serve_cross_entropy<cpu::cross_entropy_kernels>(m);
  serve_rnn_gates<cpu::rnn_kernels>(m);
  serve_rnn_sequence<cpu::rnn_kernels>(m);
  serve_rnn_layer(m);
  serve_attention<cpu::attention_kernels>(m);
}

#ifdef HETKERN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hetkern, CUDA, m) {
  serve_softmax<cuda::softmax_kernels>(m);
  serve_cross_entropy<cuda::cross_entropy_kernels>(m);
  serve_rnn_gates<cuda::rnn_kernels>(m);
  serve_rnn_sequence<cuda::rnn_kernels>(m);
  serve_attention<cuda::attention_kernels>(m);
}
#endif
