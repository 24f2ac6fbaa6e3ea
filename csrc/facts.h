// What hetkern._C tells of this library. No torch and no pybind11 in it.
#pragma once
#include <string>
#include <vector>

#include "attention.h"
#include "cross_entropy.h"
#include "rnn.h"
#include "softmax.h"

#define HETKERN_EXPORT __attribute__((visibility("default")))

namespace hetkern {

HETKERN_EXPORT std::string compiler();
HETKERN_EXPORT std::string why_no_cuda();              // empty: its kernels are in this library
HETKERN_EXPORT std::vector<std::string> isa_levels();  // that this processor can run, lowest first
HETKERN_EXPORT std::string isa_in_force();
HETKERN_EXPORT std::string clamp_isa(const std::string& most);  // the level then in force
HETKERN_EXPORT int threads();
HETKERN_EXPORT std::string bf16_product();                               // "fma" or "dot", in force
HETKERN_EXPORT std::string set_bf16_product(const std::string& wanted);  // the one then in force

// The CPU's plans; a size of 0 stands for this machine's own.
struct AnyMachine {
  int threads;
  int64_t l2_bytes;
};
HETKERN_EXPORT SoftmaxPlan softmax_plan_cpu(const SoftmaxShape& shape, const AnyMachine& machine);
HETKERN_EXPORT CrossEntropyPlan cross_entropy_plan_cpu(const CrossEntropyShape& shape, const AnyMachine& machine);
HETKERN_EXPORT RnnPlan rnn_plan_cpu(const RnnShape& shape, const AnyMachine& machine);
HETKERN_EXPORT AttentionPlan attention_plan_cpu(const AttentionShape& shape, const AnyMachine& machine);

// A GPU's plans; a capability (10 major + minor) or size of 0 stands for the current one's own, or an H100's where there is none.
struct AnyGpu {
  int capability, processors;
  int64_t shared_bytes;
};
HETKERN_EXPORT SoftmaxPlan softmax_plan_cuda(const SoftmaxShape& shape, const AnyGpu& gpu);
HETKERN_EXPORT CrossEntropyPlan cross_entropy_plan_cuda(const CrossEntropyShape& shape, const AnyGpu& gpu);
HETKERN_EXPORT RnnPlan rnn_plan_cuda(const RnnShape& shape, const AnyGpu& gpu);
HETKERN_EXPORT AttentionPlan attention_plan_cuda(const AttentionShape& shape, const AnyGpu& gpu);

}  // namespace hetkern
