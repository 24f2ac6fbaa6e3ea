// What the functions of ../device/ptx.cuh do on the CPU. A load or store stands here as one, so that the sanitizers and the
// traffic counter see it as the kernel's own; bookkeeping is in memory.cpp, bulk.cpp and threads.cpp, where they do not look.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "memory_twins.h"

namespace hetkern::ptx {

// ---- Matrices. -------------------------------------------------------------------------------------------------------------

// Each lane loads the row that it names, in one access, and hands it round.
template <bool transposed = false>
inline void load_matrices(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  emulation::check_aligned(row, 16, site);
  emulation::check_shared(row, 16, "ldmatrix", site);
  const Bytes16 mine = *static_cast<const Bytes16*>(row);
  const unsigned lane = emulation::current->lane, i = lane / 4, k = lane % 4 * 2;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t first[8], second[8];
    emulation::exchange(~0u, &mine, first, 16, matrix * 8 + (transposed ? k : i), site);
    emulation::exchange(~0u, &mine, second, 16, matrix * 8 + (transposed ? k + 1 : i), site);
    const uint32_t low = first[transposed ? i : k], high = second[transposed ? i : k + 1];
    r[matrix] = low | high << 16;
  }
}

inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float as_float(__half x) { return __half2float(x); }

// Lane 4 i + k holds rows i and i + 8 of a, column i of b, at depths 2 k, 2 k + 1 and 8 more. The sum is exact, but for its
// last rounding: a GPU truncates more.
template <class X>
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  static_assert(std::is_same_v<X, __nv_bfloat16> || std::is_same_v<X, __half>, "bfloat16 or half");
  struct Rows {
    X at[2][2][2];  // depth / 8, row / 8, depth mod 2
  };
  struct Column {
    X at[2][2];
  };
  const unsigned lane = emulation::current->lane;
  double sum[4] = {d[0], d[1], d[2], d[3]};
  for (unsigned k = 0; k < 4; ++k) {
    Rows rows;
    emulation::exchange(~0u, a, &rows, sizeof rows, lane / 4 * 4 + k, site);
    for (unsigned n = 0; n < 2; ++n) {
      Column column;
      emulation::exchange(~0u, b, &column, sizeof column, (lane % 4 * 2 + n) * 4 + k, site);
      for (int half = 0; half < 2; ++half)
        for (int row = 0; row < 2; ++row)
          for (int depth = 0; depth < 2; ++depth)
            sum[row * 2 + n] += double{as_float(rows.at[half][row][depth])} * as_float(column.at[half][depth]);
    }
  }
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(sum[i]);
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
  __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
  emulation::order_release(p);  // the addition too comes before what is acquired from it; no thread runs in between
}

inline unsigned add_acquire_release(unsigned* p, unsigned value) {
  const unsigned before = __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
  emulation::order_release(p);
  emulation::order_acquire(p);
  return before;
}

inline unsigned load_acquire(const unsigned* p) {
  const unsigned value = __atomic_load_n(p, __ATOMIC_RELAXED);
  emulation::order_acquire(p);
  emulation::polled(p);
  return value;
}

template <class Done>
inline void spin_until(Done done, Site site = Site::here()) {
  while (!done()) emulation::yield(site);
}

}  // namespace hetkern::ptx
