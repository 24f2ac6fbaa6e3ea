// What the families' host files offer to the table in ops.cpp.
#pragma once
#include <torch/csrc/stable/library.h>

#include "softmax.h"

namespace hetkern {

using StableLibrary = torch::stable::detail::StableLibrary;

using GetSoftmaxKernels = const SoftmaxKernels& (*)();
template <GetSoftmaxKernels kernels>
void serve_softmax(StableLibrary& m);

}  // namespace hetkern
