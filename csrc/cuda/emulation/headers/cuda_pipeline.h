// CUDA's primitives for copies to shared memory that go on beside the thread: cp.async by other names.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// These need those.
#include "../ptx_twins.h"

// The last `zeros` of the bytes become 0.
inline void __pipeline_memcpy_async(void* shared, const void* global, size_t bytes, size_t zeros = 0,
                                    hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  namespace ptx = hetkern::ptx;
  const int taken = static_cast<int>(bytes - zeros);
  if (zeros > bytes) hetkern::emulation::fail(site, "__pipeline_memcpy_async: %zu zeros in %zu bytes", zeros, bytes);
  ptx::copy_async_of(shared, global, bytes, taken, "__pipeline_memcpy_async", site);
}
inline void __pipeline_commit() { hetkern::ptx::copy_async_commit(); }
inline void __pipeline_wait_prior(size_t pending) { hetkern::emulation::wait_copies(static_cast<unsigned>(pending)); }
