// Twins of the instructions that move memory: cached loads, asynchronous copies, the copy engine and its barriers.   (part of ptx_twins.h)
#pragma once
#include <cstdint>

#include "bulk.h"
#include "memory.h"
#include "threads.h"

namespace hetkern::ptx {

using emulation::Site;

// ---- Global memory. --------------------------------------------------------------------------------------------------------

// One access of 16 bytes: a compiler may take a struct apart.
typedef unsigned Bytes16 __attribute__((vector_size(16), may_alias));

template <class V>
inline V load_16(const V* p, Site site = Site::here()) {
  static_assert(sizeof(V) == 16 && alignof(V) >= 16, "16 aligned bytes");
  emulation::check_aligned(p, 16, site);
  const Bytes16 bytes = *reinterpret_cast<const Bytes16*>(p);
  V value;
  __builtin_memcpy(&value, &bytes, 16);
  return value;
}

template <class V>
inline V load_16_once(const V* p, Site site = Site::here()) {
  return load_16(p, site);
}

template <class V>
inline void store_16_streaming(V* p, V value, Site site = Site::here()) {
  static_assert(sizeof(V) == 16 && alignof(V) >= 16, "16 aligned bytes");
  emulation::check_aligned(p, 16, site);
  Bytes16 bytes;
  __builtin_memcpy(&bytes, &value, 16);
  *reinterpret_cast<Bytes16*>(p) = bytes;
}

// ---- Asynchronous copies. --------------------------------------------------------------------------------------------------

template <int Bytes>
inline void copy_async(void* shared, const void* global, int source_bytes = Bytes, Site site = Site::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  typedef unsigned Value __attribute__((vector_size(Bytes), may_alias));
  emulation::check_copy_async(shared, global, Bytes, static_cast<unsigned>(source_bytes), site);
  Value value{};
  if (source_bytes == Bytes)
    value = *static_cast<const Value*>(global);
  else
    for (int i = 0; i < source_bytes; ++i)
      reinterpret_cast<unsigned char*>(&value)[i] = static_cast<const unsigned char*>(global)[i];
  *static_cast<Value*>(shared) = ~Value{};  // NaN
  emulation::begin_copy_async(shared, &value, Bytes, site);
}

// Of a size that only the call knows; `what` is its name in a message.
inline void copy_async_of(void* shared, const void* global, size_t bytes, int source_bytes, const char* what,
                          Site site = Site::here()) {
  if (bytes == 4)
    copy_async<4>(shared, global, source_bytes, site);
  else if (bytes == 8)
    copy_async<8>(shared, global, source_bytes, site);
  else if (bytes == 16)
    copy_async<16>(shared, global, source_bytes, site);
  else
    emulation::fail(site, "%s of %zu bytes: wanted 4, 8 or 16", what, bytes);
}

inline void copy_async_commit() { emulation::commit_copies(); }

template <int Pending>
inline void copy_async_wait() {
  emulation::wait_copies(Pending);
}

// ---- Bulk copies and their barriers. ---------------------------------------------------------------------------------------

// The barrier's word is written by init and read by the others, so that TSan sees a missing __syncthreads between.
inline void barrier_init(uint64_t* barrier, unsigned arrivals, Site site = Site::here()) {
  emulation::check_barrier(barrier, site);
  *barrier = 0;
  emulation::barrier_init(barrier, arrivals, site);
}

inline void barrier_arrive_expecting(uint64_t* barrier, unsigned bytes, Site site = Site::here()) {
  emulation::check_barrier(barrier, site);
  (void)__atomic_load_n(barrier, __ATOMIC_RELAXED);
  emulation::barrier_arrive(barrier, bytes, site);
}

inline void barrier_arrive(uint64_t* barrier, Site site = Site::here()) { barrier_arrive_expecting(barrier, 0, site); }

inline void barrier_wait(uint64_t* barrier, unsigned parity, Site site = Site::here()) {
  emulation::check_barrier(barrier, site);
  (void)__atomic_load_n(barrier, __ATOMIC_RELAXED);
  while (!emulation::barrier_passed(barrier, parity, site)) emulation::yield(site);
}

// One request for all bytes, as the copy engine makes it; they come when the barrier is waited for.
inline void copy_bulk(void* shared, const void* global, unsigned bytes, uint64_t* barrier, Site site = Site::here()) {
  emulation::check_copy_bulk(shared, global, bytes, barrier, site);
  emulation::begin_copy_bulk(shared, global, bytes, barrier, site);
}

}  // namespace hetkern::ptx
