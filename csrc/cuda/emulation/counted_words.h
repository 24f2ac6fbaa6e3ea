// Comes before all else where memory traffic is counted (-include): __half2 and __nv_bfloat162 are words of four bytes.
//
// What CUDA's headers do with them by a word on a GPU they do field by field on the CPU, so that each half would be a request of
// its own. They ask NV_IF_ELSE_TARGET which of the two to do.
#pragma once
#if __has_include(<nv/target>)
#include <nv/target>

#include "traffic.h"

#pragma push_macro("NV_IF_ELSE_TARGET")
#undef NV_IF_ELSE_TARGET
#define NV_IF_ELSE_TARGET(condition, on_gpu, ...)                        \
  {                                                                      \
    const ::hetkern::emulation::traffic::OneWord hetkern_emulation_word; \
    _NV_REMOVE_PAREN(__VA_ARGS__)                                        \
  }
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#pragma pop_macro("NV_IF_ELSE_TARGET")
#endif
