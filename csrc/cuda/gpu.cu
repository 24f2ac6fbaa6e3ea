// The current device's facts, asked once each.
#include <atomic>
#include <cstdlib>

#include "device/launch.cuh"
#include "gpu.h"

namespace hetkern::cuda {

#ifdef __CUDACC__
Gpu gpu() {
  constexpr int kDevices = 64;
  static std::atomic<const Gpu*> known[kDevices];
  int device = 0;
  check_launch("gpu", cudaGetDevice(&device));
  const bool remembered = device < kDevices;
  if (remembered)
    if (const Gpu* const gpu = known[device].load(std::memory_order_acquire)) return *gpu;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_launch("gpu", cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  Gpu gpu;
  gpu.capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  gpu.processors = ask(cudaDevAttrMultiProcessorCount);
  gpu.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (remembered) known[device].store(new Gpu(gpu), std::memory_order_release);  // for the life of the process
  return gpu;
}
#else
// The emulated device: an H100, unless a test says otherwise.
Gpu gpu() {
  Gpu gpu;
  if (const char* const value = std::getenv("HETKERN_EMULATED_CAPABILITY")) gpu.capability = std::atoi(value);
  if (const char* const value = std::getenv("HETKERN_EMULATED_SHARED_BYTES")) gpu.shared_bytes = std::atoi(value);
  return gpu;
}
#endif

}  // namespace hetkern::cuda
