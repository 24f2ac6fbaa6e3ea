// A sequence step by step, driven from the host: one product by torch and one kernel a step.           (bodies: rnn_steps.cpp)
#pragma once
#include "common/tensor.h"
#include "rnn.h"

namespace hetkern {

// `like`: any tensor of p's device and storage dtype. The stream is that device's current one.
void run_steps(const SequenceForward& p, const RnnKernels& kernels, const Tensor& like, void* stream);
void run_steps_backward(const SequenceBackward& p, const RnnKernels& kernels, const Tensor& like, void* stream);

}  // namespace hetkern
