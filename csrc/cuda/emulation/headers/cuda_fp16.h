// CUDA's own, with the operators of ../half_operators.h.
#pragma once
#include "../cuda_words.h"
#define HETKERN_PLAIN_HALF_NAMES
#include "../half_names.h"
#define __CUDA_NO_HALF_OPERATORS__
#define __CUDA_NO_HALF2_OPERATORS__
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_fp16.h>
#pragma pop_macro("__CUDA_ARCH__")
#undef __CUDA_NO_HALF_OPERATORS__
#undef __CUDA_NO_HALF2_OPERATORS__

#include "../half_operators.h"

HETKERN_HALF_OPERATORS(__half)
HETKERN_HALF_OPERATORS(__half2)
HETKERN_HALF_ONE(__half)
HETKERN_HALF_PAIR(__half2)

#include "../half_names.h"
