// What hetkern._C tells of this library. No torch and no pybind11 in it.
#pragma once
#include <string>
#include <vector>

#include "cross_entropy.h"
#include "softmax.h"

#define HETKERN_EXPORT __attribute__((visibility("default")))

namespace hetkern {

HETKERN_EXPORT std::string compiler();
HETKERN_EXPORT bool with_cuda();
HETKERN_EXPORT std::vector<std::string> isa_levels();  // that this processor can run, lowest first
HETKERN_EXPORT std::string isa_in_force();
HETKERN_EXPORT std::string clamp_isa(const std::string& most);  // the level then in force
HETKERN_EXPORT int threads();

// The CPU's plans; a size of 0 stands for this machine's own.
struct AnyMachine {
  int threads;
  int64_t l2_bytes;
};
HETKERN_EXPORT SoftmaxPlan softmax_plan_cpu(const SoftmaxShape& shape, const AnyMachine& machine);
HETKERN_EXPORT CrossEntropyPlan cross_entropy_plan_cpu(const CrossEntropyShape& shape, const AnyMachine& machine);

}  // namespace hetkern
