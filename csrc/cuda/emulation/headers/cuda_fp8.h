// CUDA's own, after half and bfloat16 as the emulation has them.
#pragma once
#include <cuda_bf16.h>
#define HETKERN_PLAIN_HALF_NAMES
#include "../half_names.h"
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_fp8.h>
#pragma pop_macro("__CUDA_ARCH__")

#include "../half_names.h"
