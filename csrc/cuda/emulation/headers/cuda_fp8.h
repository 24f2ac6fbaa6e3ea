// CUDA's own, after half and bfloat16 as the emulation has them.
#pragma once
#include <cuda_bf16.h>
#define HETKERN_PLAIN_HALF_NAMES
#include "../half_names.h"
#include_next <cuda_fp8.h>

#include "../half_names.h"
