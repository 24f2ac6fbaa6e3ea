// Memory of the device for a program without torch: a GPU's under nvcc, the process's own in the emulation.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device/launch.cuh"

namespace hetkern::gpu_day {

#ifdef __CUDACC__
inline void check(const char* what, cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
// Waits for what was launched, and throws what went wrong in it.
inline void finish() { check("kernel", cudaDeviceSynchronize()); }
#else
inline void finish() {}
#endif

// Host values on the device; 256-byte aligned, with nothing behind its last byte that a checker would let pass.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& host) : size_(host.size()) {
#ifdef __CUDACC__
    check("cudaMalloc", cudaMalloc(&data_, bytes() + (size_ == 0)));
    check("cudaMemcpy", cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice));
#else
    if (posix_memalign(&data_, 256, bytes() + (size_ == 0))) throw std::bad_alloc();
    if (size_) std::memcpy(data_, host.data(), bytes());
#endif
  }
  Buffer(size_t size, unsigned char byte) : Buffer(filled(size, byte)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
#ifdef __CUDACC__
    cudaFree(data_);
#else
    std::free(data_);
#endif
  }
  T* data() const { return static_cast<T*>(data_); }
  size_t size() const { return size_; }

  std::vector<T> read() const {
    finish();
    std::vector<T> host(size_);
#ifdef __CUDACC__
    check("cudaMemcpy", cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost));
#else
    if (size_) std::memcpy(host.data(), data_, bytes());
#endif
    return host;
  }

 private:
  static std::vector<T> filled(size_t size, unsigned char byte) {
    std::vector<T> host(size);
    if (size) std::memset(static_cast<void*>(host.data()), byte, size * sizeof(T));
    return host;
  }
  size_t bytes() const { return size_ * sizeof(T); }
  size_t size_;
  void* data_ = nullptr;
};

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const uint32_t mixed = static_cast<uint32_t>(((state_ >> 18) ^ state_) >> 27);
    const uint32_t turn = static_cast<uint32_t>(state_ >> 59);
    return (mixed >> turn) | (mixed << ((32 - turn) & 31));
  }
  double unit() { return bits() * 0x1p-32; }  // in [0, 1)

 private:
  uint64_t state_;
};

}  // namespace hetkern::gpu_day
