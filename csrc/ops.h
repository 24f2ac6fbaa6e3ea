// What the families' host files offer to the table in ops.cpp.
#pragma once
#include <torch/csrc/stable/library.h>

#include "attention.h"
#include "cross_entropy.h"
#include "rnn.h"
#include "softmax.h"

namespace hetkern {

using StableLibrary = torch::stable::detail::StableLibrary;

using GetSoftmaxKernels = const SoftmaxKernels& (*)();
template <GetSoftmaxKernels kernels>
void serve_softmax(StableLibrary& m);

using GetCrossEntropyKernels = const CrossEntropyKernels& (*)();
template <GetCrossEntropyKernels kernels>
void serve_cross_entropy(StableLibrary& m);

using GetRnnKernels = const RnnKernels& (*)();
template <GetRnnKernels kernels>
void serve_rnn_gates(StableLibrary& m);
template <GetRnnKernels kernels>
void serve_rnn_sequence(StableLibrary& m);
void serve_rnn_layer(StableLibrary& m);  // the CPU's alone

using GetAttentionKernels = const AttentionKernels& (*)();
template <GetAttentionKernels kernels>
void serve_attention(StableLibrary& m);

}  // namespace hetkern
