// What hetkern._C tells of this library. No torch and no pybind11 in it.
#pragma once
#include <string>
#include <vector>

#include "softmax.h"

#define HETKERN_EXPORT __attribute__((visibility("default")))

namespace hetkern {

HETKERN_EXPORT std::string compiler();
HETKERN_EXPORT bool with_cuda();
HETKERN_EXPORT std::vector<std::string> isa_levels();          // that this processor can run, lowest first
HETKERN_EXPORT std::string isa_in_force();
HETKERN_EXPORT std::string clamp_isa(const std::string& most); // the level then in force
HETKERN_EXPORT int threads();
HETKERN_EXPORT SoftmaxPlan softmax_plan_cpu(const SoftmaxShape& shape, int threads, int64_t l2_bytes, int64_t l3_bytes);   // 0: this machine's

}  // namespace hetkern
