// What the functions of ../device/ptx.cuh do on the CPU. A load or store stands here as one, so that the sanitizers and the
// traffic counter see it as the kernel's own; bookkeeping is in memory.cpp and threads.cpp, where they do not look.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

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

inline void copy_async_commit() { emulation::commit_copies(); }

template <int Pending>
inline void copy_async_wait() {
  emulation::wait_copies(Pending);
}

// ---- Arithmetic. -----------------------------------------------------------------------------------------------------------

inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

// ---- Clusters. -------------------------------------------------------------------------------------------------------------

inline unsigned cluster_rank() { return emulation::current->block->rank; }
inline unsigned cluster_size() { return emulation::grid->cluster; }
inline void cluster_arrive(Site site = Site::here()) { emulation::cluster_arrive(site); }
inline void cluster_wait(Site site = Site::here()) { emulation::cluster_wait(site); }
inline void cluster_sync(Site site = Site::here()) { ptx::cluster_arrive(site), ptx::cluster_wait(site); }

template <class T>
inline T* map_shared(T* p, unsigned rank, Site site = Site::here()) {
  return static_cast<T*>(emulation::map_shared(p, rank, site));
}

// ---- Waiting for other blocks. ---------------------------------------------------------------------------------------------

inline void add_release(unsigned* p, unsigned value) {
  emulation::order_release(p);
  __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}

inline unsigned load_acquire(const unsigned* p) {
  const unsigned value = __atomic_load_n(p, __ATOMIC_RELAXED);
  emulation::order_acquire(p);
  return value;
}

template <class Done>
inline void spin_until(Done done, Site site = Site::here()) {
  while (!done()) emulation::yield(site);
}

}  // namespace hetkern::ptx
