// CUDA's runtime, as far as launchers use it around their kernels: memory, streams, attributes. The device is an H100; everything is
// done when the call returns, and launches throw, so that no error is left behind.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "fenced.h"

extern "C" {

#define HETKERN_RUNTIME(name, ...) __attribute__((visibility("hidden"))) cudaError_t CUDARTAPI name(__VA_ARGS__)

HETKERN_RUNTIME(cudaGetLastError, ) { return cudaSuccess; }
HETKERN_RUNTIME(cudaPeekAtLastError, ) { return cudaSuccess; }
HETKERN_RUNTIME(cudaDeviceSynchronize, ) { return cudaSuccess; }
HETKERN_RUNTIME(cudaStreamSynchronize, cudaStream_t) { return cudaSuccess; }
HETKERN_RUNTIME(cudaStreamCreate, cudaStream_t* s) { return *s = nullptr, cudaSuccess; }
HETKERN_RUNTIME(cudaStreamDestroy, cudaStream_t) { return cudaSuccess; }
HETKERN_RUNTIME(cudaEventCreate, cudaEvent_t* e) { return *e = nullptr, cudaSuccess; }
HETKERN_RUNTIME(cudaEventDestroy, cudaEvent_t) { return cudaSuccess; }
HETKERN_RUNTIME(cudaEventRecord, cudaEvent_t, cudaStream_t) { return cudaSuccess; }
HETKERN_RUNTIME(cudaEventSynchronize, cudaEvent_t) { return cudaSuccess; }
HETKERN_RUNTIME(cudaGetDevice, int* d) { return *d = 0, cudaSuccess; }
HETKERN_RUNTIME(cudaSetDevice, int d) { return d == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
HETKERN_RUNTIME(cudaGetDeviceCount, int* n) { return *n = 1, cudaSuccess; }
HETKERN_RUNTIME(cudaFuncSetAttribute, const void*, cudaFuncAttribute, int) { return cudaSuccess; }
HETKERN_RUNTIME(cudaFuncSetCacheConfig, const void*, cudaFuncCache) { return cudaSuccess; }

HETKERN_RUNTIME(cudaMemset, void* p, int value, size_t n) { return std::memset(p, value, n), cudaSuccess; }
HETKERN_RUNTIME(cudaMemsetAsync, void* p, int value, size_t n, cudaStream_t) { return cudaMemset(p, value, n); }
HETKERN_RUNTIME(cudaMemcpy, void* to, const void* from, size_t n, cudaMemcpyKind) {
  return std::memmove(to, from, n), cudaSuccess;
}
HETKERN_RUNTIME(cudaMemcpyAsync, void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, n, kind);
}
HETKERN_RUNTIME(cudaMemcpyToSymbol, const void* to, const void* from, size_t n, size_t at, cudaMemcpyKind kind) {
  return cudaMemcpy(const_cast<char*>(static_cast<const char*>(to)) + at, from, n, kind);
}
HETKERN_RUNTIME(cudaMemcpyToSymbolAsync, const void* to, const void* from, size_t n, size_t at, cudaMemcpyKind kind,
                cudaStream_t) {
  return cudaMemcpyToSymbol(to, from, n, at, kind);
}
HETKERN_RUNTIME(cudaMemcpyFromSymbol, void* to, const void* from, size_t n, size_t at, cudaMemcpyKind kind) {
  return cudaMemcpy(to, static_cast<const char*>(from) + at, n, kind);
}
HETKERN_RUNTIME(cudaGetSymbolAddress, void** p, const void* symbol) {
  return *p = const_cast<void*>(symbol), cudaSuccess;
}
HETKERN_RUNTIME(cudaMalloc, void** p, size_t n) {
#ifdef HETKERN_EMULATION_PLAIN
  if (!(*p = hetkern::emulation::fenced::take(n, 256))) return cudaErrorMemoryAllocation;
#else
  if (posix_memalign(p, 256, n + (n == 0))) return cudaErrorMemoryAllocation;
#endif
  std::memset(*p, 0xff, n);  // NaN: a GPU's is whatever was there
  return cudaSuccess;
}
HETKERN_RUNTIME(cudaMallocAsync, void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
HETKERN_RUNTIME(cudaFree, void* p) {
#ifdef HETKERN_EMULATION_PLAIN
  return !p || hetkern::emulation::fenced::give_back(static_cast<char*>(p)) ? cudaSuccess : cudaErrorInvalidValue;
#else
  return std::free(p), cudaSuccess;
#endif
}
HETKERN_RUNTIME(cudaFreeAsync, void* p, cudaStream_t) { return cudaFree(p); }

HETKERN_RUNTIME(cudaDeviceGetAttribute, int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 132, cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return *value = 1024, cudaSuccess;
    case cudaDevAttrMaxBlockDimZ:
      return *value = 64, cudaSuccess;
    case cudaDevAttrMaxGridDimX:
      return *value = 0x7fffffff, cudaSuccess;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return *value = 65535, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = 32, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = 48 << 10, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = 227 << 10, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = 228 << 10, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = 2048, cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return *value = 32, cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return *value = 65536, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      return *value = 1, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = 50 << 20, cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

#undef cudaGetDeviceProperties
HETKERN_RUNTIME(cudaGetDeviceProperties, cudaDeviceProp* p, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *p = {};
  std::strcpy(p->name, "hetkern's emulation of an H100");
  p->major = 9, p->multiProcessorCount = 132, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->sharedMemPerMultiprocessor = 228 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->l2CacheSize = 50 << 20, p->cooperativeLaunch = 1;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalGlobalMem = size_t{80} << 30;
  return cudaSuccess;
}

__attribute__((visibility("hidden"))) const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulated runtime";
}
__attribute__((visibility("hidden"))) const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorUnknown";
}
}
