// Every PTX instruction that a kernel may name, each behind a function; their twins for the emulation: ../emulation/ptx_twins.h.
// The section of NVIDIA's "PTX ISA" manual stands at each.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"

#ifndef __CUDACC__
#include "../emulation/ptx_twins.h"
#else

// What a new instruction's wrapper holds: a kernel that uses it compiles for older GPUs too, where it traps if it is launched.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HETKERN_SM90(...) __trap()
#else
#define HETKERN_SM90(...) __VA_ARGS__
#endif

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

// ---- Bulk copies by the copy engine, and the barriers that count their bytes (sm_90). --------------------------------------

// A barrier lies in shared memory. A phase ends when `arrivals` threads have arrived and the bytes they expect have come; then
// the next one begins. One thread initialises it, and a __syncthreads follows.
// Parallel Synchronization and Communication Instructions: mbarrier.init, fence.proxy.async.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned arrivals) {
  HETKERN_SM90(asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n fence.proxy.async.shared::cta;" ::"r"(shared_address(barrier)),
      "r"(arrivals) : "memory"));
}

// Arrives; what this thread did before is seen by whoever waits for the phase.  …: mbarrier.arrive.
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  HETKERN_SM90(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory"));
}

// Arrives, and the phase also waits for so many bytes.  …: mbarrier.arrive, .expect_tx.
__device__ __forceinline__ void barrier_arrive_expecting(uint64_t* barrier, unsigned bytes) {
  HETKERN_SM90(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                            "r"(bytes) : "memory"));
}

// Waits until the phase of that parity has ended: 0 for the first, third, …  …: mbarrier.try_wait.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  HETKERN_SM90(
      uint32_t done = 0; while (!done) asm volatile(
          "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(
              done) : "r"(shared_address(barrier)),
          "r"(parity) : "memory"));
}

// One thread's request; the copy engine takes a multiple of 16 bytes between addresses that are multiples of 16, and tells the
// barrier.  Asynchronous Data Movement Instructions: cp.async.bulk.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, unsigned bytes, uint64_t* barrier) {
  HETKERN_SM90(
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       shared_address(shared)),
                   "l"(global), "r"(bytes), "r"(shared_address(barrier)) : "memory"));
}

// ---- Matrices: a warp's. ---------------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements. Lane l brings the address of row l mod 8 of matrix l / 8, a multiple of 16, and gets
// elements 2 (l mod 4) and the next of row l / 4 of each (transposed: of column l / 4).
// Warp-level Matrix Instructions: ldmatrix.
template <bool transposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a b, 16x16 by 8x16 (n by k), in the fragments of load_matrices. X: __nv_bfloat16 or __half; sums are float.
// Warp-level Matrix Instructions: mma, m16n8k16.
template <class X>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<X, __nv_bfloat16> || std::is_same_v<X, __half>, "bfloat16 or half");
  if constexpr (std::is_same_v<X, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Arithmetic. -----------------------------------------------------------------------------------------------------------

// 2^x within 2 ulp; subnormals are 0.  Floating Point Instructions: ex2.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Clusters (sm_90): blocks that run together and read one another's shared memory. --------------------------------------

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

// ---- Waiting for other blocks. ---------------------------------------------------------------------------------------------

// *p += value; what this thread wrote before is seen by whoever reads the sum with load_acquire.
// Parallel Synchronization and Communication Instructions: red.
__device__ __forceinline__ void add_release(unsigned* p, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// *p += value, and what *p was before it; what others wrote before they added is seen after it too. Of n blocks that add 1 to a
// zero, the last to come gets n - 1, and may read what all of them have written.
// Parallel Synchronization and Communication Instructions: atom.
__device__ __forceinline__ unsigned add_acquire_release(unsigned* p, unsigned value) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(value) : "memory");
  return before;
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

#undef HETKERN_SM90
#endif
