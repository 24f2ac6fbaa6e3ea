# libhetkern_ops.so: one file for every torch from 2.11 on.
add_library(hetkern_ops SHARED
  csrc/ops.cpp csrc/attention.cpp csrc/softmax.cpp csrc/cross_entropy.cpp csrc/rnn_gates.cpp csrc/rnn_sequence.cpp csrc/rnn_layer.cpp csrc/rnn_steps.cpp csrc/facts.cpp
  csrc/common/operands.cpp csrc/common/output_memory.cpp csrc/common/row_view.cpp csrc/common/tensor.cpp)
target_link_libraries(hetkern_ops PRIVATE hetkern_flags torch_stable cpu_kernels cuda_kernels)
set_target_properties(hetkern_ops PROPERTIES CUDA_RUNTIME_LIBRARY Static)
if(NOT APPLE)
  # libtorch.so exports nothing, but pulls libtorch_cpu and, where present, libtorch_cuda.
  target_link_options(hetkern_ops PRIVATE "LINKER:--no-as-needed")
endif()
