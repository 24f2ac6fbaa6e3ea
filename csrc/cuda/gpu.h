// The current device's facts, asked once.
#pragma once
#include "plan.h"

namespace hetkern::cuda {
Gpu gpu();
}  // namespace hetkern::cuda
