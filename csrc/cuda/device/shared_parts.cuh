// Dynamic shared memory that a kernel cuts into arrays of sizes that it learns when it runs.
//
//   hetkern::cuda::SharedParts parts;
//   float* row = parts.take<float>(n);          // one after another, each aligned for its type
//   float4* tile = parts.take<float4>(m);
//   int* places = parts.take<int>(k, 16);       // or to more bytes, where wider loads go through it
//
// Every thread takes the same parts in the same order, and the launch gives their bytes. For nvcc this is the addition of offsets
// that one writes by hand. The emulation knows from it where each array ends: under sanitize="address" they lie apart, and an
// index that leaves its own is out of bounds, as it is not in pointers cut by hand.
#pragma once
#include "launch.cuh"

namespace hetkern::cuda {

class SharedParts {
 public:
  // after: the bytes of a struct of HETKERN_SHARED that lies before them
  __device__ explicit SharedParts(size_t after = 0) : begin_(after) {}

#ifdef __CUDACC__
  template <class T>
  __device__ __forceinline__ T* take(size_t count, size_t alignment = alignof(T)) {
    extern __shared__ __align__(128) unsigned char hetkern_shared_memory[];
    begin_ = (begin_ + alignment - 1) / alignment * alignment;
    T* const part = reinterpret_cast<T*>(hetkern_shared_memory + begin_);
    begin_ += count * sizeof(T);
    return part;
  }
#else
  template <class T>
  T* take(size_t count, size_t alignment = alignof(T), emulation::Site site = emulation::Site::here()) {
    begin_ = (begin_ + alignment - 1) / alignment * alignment;
    T* const part = static_cast<T*>(emulation::shared_part(begin_, number_++, count * sizeof(T), site));
    begin_ += count * sizeof(T);
    return part;
  }

 private:
  unsigned number_ = 0;
#endif

 private:
  size_t begin_;  // of the next one
};

}  // namespace hetkern::cuda
