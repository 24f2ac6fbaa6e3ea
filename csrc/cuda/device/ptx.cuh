// Every PTX instruction that our kernels name, each behind a function; their twins for the emulation: ../emulation/ptx_twins.h.
// The section of NVIDIA's "PTX ISA" manual stands at each.
#pragma once
#include "launch.cuh"

#ifndef __CUDACC__
#include "../emulation/ptx_twins.h"
#else

namespace hetkern::ptx {

// ---- Global memory, 16 bytes at a time. V: any 16 plain bytes, such as uint4 or a struct of eight halves. -----------------

// Data Movement and Conversion Instructions: ld.
template <class V>
__device__ __forceinline__ V load_16(const V* p) {
  static_assert(sizeof(V) == 16 && alignof(V) >= 16, "16 aligned bytes");
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(p)
               : "memory");
  return reinterpret_cast<V&>(r);
}

// What is read once and written by nobody while the kernel runs: past L1.  Data Movement …: ld.global.nc, cache eviction priority.
template <class V>
__device__ __forceinline__ V load_16_once(const V* p) {
  static_assert(sizeof(V) == 16 && alignof(V) >= 16, "16 aligned bytes");
  uint4 r;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(p));
  return reinterpret_cast<V&>(r);
}

// What nobody reads again soon.  Data Movement and Conversion Instructions: st, cache operator .cs.
template <class V>
__device__ __forceinline__ void store_16_streaming(V* p, V value) {
  static_assert(sizeof(V) == 16 && alignof(V) >= 16, "16 aligned bytes");
  const uint4 r = reinterpret_cast<const uint4&>(value);
  asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w) : "memory");
}

// ---- Asynchronous copies, global to shared (sm_80). ------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies source_bytes and fills up to Bytes with zeros; 16 go past L1.  Asynchronous Data Movement Instructions: cp.async.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
}

// Asynchronous Data Movement Instructions: cp.async.commit_group.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most Pending of this thread's groups are under way; other threads need a barrier after it.
// Asynchronous Data Movement Instructions: cp.async.wait_group.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- Arithmetic. -----------------------------------------------------------------------------------------------------------

// 2^x within 2 ulp; subnormals are 0.  Floating Point Instructions: ex2.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Clusters (sm_90): blocks that run together and read one another's shared memory. --------------------------------------
// A kernel that uses them compiles for older GPUs too, where it traps if it is launched.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HETKERN_SM90(...) __trap()
#else
#define HETKERN_SM90(...) __VA_ARGS__
#endif

// This block's rank in its cluster.  Special Registers: %cluster_ctarank.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned r = 0;
  HETKERN_SM90(asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)));
  return r;
}

// Blocks in the cluster.  Special Registers: %cluster_nctarank.
__device__ __forceinline__ unsigned cluster_size() {
  unsigned r = 1;
  HETKERN_SM90(asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r)));
  return r;
}

// The first half of a barrier of all the cluster's threads: what this thread wrote before it is seen after the others' wait.
// Parallel Synchronization and Communication Instructions: barrier.cluster.
__device__ __forceinline__ void cluster_arrive() {
  HETKERN_SM90(asm volatile("barrier.cluster.arrive.release.aligned;" :: : "memory"));
}

// The second half, once after each arrive.
__device__ __forceinline__ void cluster_wait() {
  HETKERN_SM90(asm volatile("barrier.cluster.wait.acquire.aligned;" :: : "memory"));
}

__device__ __forceinline__ void cluster_sync() { cluster_arrive(), cluster_wait(); }

// Where the block of that rank keeps what p is in this block: to be read and written as any pointer, after a cluster barrier
// and before another one that keeps its owner from leaving.  Data Movement and Conversion Instructions: mapa.
template <class T>
__device__ __forceinline__ T* map_shared(T* p, unsigned rank) {
  uint64_t r = 0;
  HETKERN_SM90(asm volatile("mapa.u64 %0, %1, %2;" : "=l"(r) : "l"(p), "r"(rank)));
  return reinterpret_cast<T*>(r);
}

#undef HETKERN_SM90

// ---- Waiting for other blocks. ---------------------------------------------------------------------------------------------

// *p += value; what this thread wrote before is seen by whoever reads the sum with load_acquire.
// Parallel Synchronization and Communication Instructions: red.
__device__ __forceinline__ void add_release(unsigned* p, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// Data Movement and Conversion Instructions: ld, .acquire.
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned r;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
  return r;
}

// Waits until done(), which reads with load_acquire. The blocks waited for must be resident.
template <class Done>
__device__ __forceinline__ void spin_until(Done done) {
  while (!done()) {
  }
}

}  // namespace hetkern::ptx
#endif
