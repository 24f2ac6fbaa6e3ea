// Launching kernels and their shared memory: what a kernel needs beyond plain CUDA words, for nvcc and for the emulation.
//
//   HETKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//   HETKERN_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, stream, arguments...)
//   HETKERN_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, arguments...)
//   HETKERN_SHARED(Struct, name)
//
// A template-id is put in parentheses: HETKERN_LAUNCH((row_kernel<float, 4>), ...). A launch is checked and throws a
// std::runtime_error that names the kernel. HETKERN_SHARED declares `Struct& name` on the block's dynamic shared memory, aligned
// to 128 bytes; the launch gives at least sizeof(Struct), more if the struct's last array goes on past its end.
// Nothing else names shared memory or launches: no static or extern __shared__, no <<<>>>. (the emulation: ../emulation)
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "../emulation/cuda_words.h"
#endif

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace hetkern::cuda {

// Blocks of a launch. A count is checked before it becomes 32 bits.
struct GridSize {
  dim3 blocks;
  GridSize(dim3 any) : blocks(any) {}
  template <class Count, class = std::enable_if_t<std::is_integral<Count>::value>>
  GridSize(Count count) : blocks(static_cast<unsigned>(count)) {
    if (count < Count(1) || static_cast<uint64_t>(count) > 0x7fffffffu)
      throw std::runtime_error("grid: wanted 1 to 2^31 - 1 blocks, got " + std::to_string(count));
  }
};

#ifdef __CUDACC__
inline void check_launch(const char* kernel, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that nobody else meets this error again
  throw std::runtime_error(std::string("hetkern: launch of ") + kernel + ": " + cudaGetErrorString(status));
}

// cluster: neighbouring blocks along x that may read one another's shared memory; 1: none.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned cluster, bool cooperative, GridSize grid,
            dim3 block, size_t shared_bytes, void* stream, Arguments&&... arguments) {
  if (shared_bytes > 48 * 1024)  // more must be asked for
    check_launch(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes)));
  if (cluster > 8) check_launch(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute how{};
  if (cooperative) {
    how.id = cudaLaunchAttributeCooperative, how.val.cooperative = 1;
  } else {
    how.id = cudaLaunchAttributeClusterDimension;
    how.val.clusterDim.x = cluster, how.val.clusterDim.y = 1, how.val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks, config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes, config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &how, config.numAttrs = cluster > 1 || cooperative ? 1 : 0;
  check_launch(name, cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

#define HETKERN_SHARED(Struct, name)                                                      \
  extern __shared__ __align__(128) unsigned char hetkern_shared_memory[];                 \
  static_assert(alignof(Struct) <= 128, "dynamic shared memory is aligned to 128 bytes"); \
  Struct& name = *reinterpret_cast<Struct*>(hetkern_shared_memory)
#else
template <class... Parameters, class Stream, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned cluster, bool cooperative, GridSize grid,
            dim3 block, size_t shared_bytes, Stream, Arguments&&... arguments) {
  constexpr bool stream = std::is_convertible_v<Stream, void*> || std::is_same_v<Stream, int>;
  static_assert(stream,
                "HETKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...): where is the stream?");
  static_assert(sizeof...(Arguments) == sizeof...(Parameters),
                "HETKERN_LAUNCH: the kernel has another number of parameters");
  if constexpr (stream && sizeof...(Arguments) == sizeof...(Parameters))
    emulation::launch(name, kernel, cluster, cooperative, grid.blocks, block, shared_bytes,
                      std::forward<Arguments>(arguments)...);
}

#define HETKERN_SHARED(Struct, name)                                                      \
  static_assert(alignof(Struct) <= 128, "dynamic shared memory is aligned to 128 bytes"); \
  Struct& name = *static_cast<Struct*>(::hetkern::emulation::shared_memory(sizeof(Struct)))
#endif

// The dots begin with the stream, so that a kernel without parameters needs no comma.
#define HETKERN_LAUNCH(kernel, grid, block, shared_bytes, ...) \
  ::hetkern::cuda::launch(#kernel, kernel, 1, false, grid, block, shared_bytes, __VA_ARGS__)
#define HETKERN_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, ...) \
  ::hetkern::cuda::launch(#kernel, kernel, cluster, false, grid, block, shared_bytes, __VA_ARGS__)
#define HETKERN_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, ...) \
  ::hetkern::cuda::launch(#kernel, kernel, 1, true, grid, block, shared_bytes, __VA_ARGS__)

}  // namespace hetkern::cuda
