// CUDA's own, with the operators of ../half_operators.h.
#pragma once
#include <cuda_fp16.h>  // as CUDA's own does
#define HETKERN_PLAIN_HALF_NAMES
#include "../half_names.h"
#define __CUDA_NO_BFLOAT16_OPERATORS__
#define __CUDA_NO_BFLOAT162_OPERATORS__
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_bf16.h>
#pragma pop_macro("__CUDA_ARCH__")
#undef __CUDA_NO_BFLOAT16_OPERATORS__
#undef __CUDA_NO_BFLOAT162_OPERATORS__

#include "../half_operators.h"

HETKERN_HALF_OPERATORS(__nv_bfloat16)
HETKERN_HALF_OPERATORS(__nv_bfloat162)
HETKERN_HALF_ONE(__nv_bfloat16)
HETKERN_HALF_PAIR(__nv_bfloat162)

#include "../half_names.h"
