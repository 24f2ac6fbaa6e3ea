// What inline PTX in other people's kernels becomes: hetkern/testing/emulation/inline_ptx.py turns each asm statement into calls of these.
//
// A register is an unsigned integer of its size, and what an instruction takes it for is a type: as<float>(r).
// Arithmetic: inline_arithmetic.h; matrices: inline_matrix.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "memory_twins.h"
#include "short_floats.h"

namespace hetkern::emulation::inline_ptx {

// ---- Operands and registers. -----------------------------------------------------------------------------------------------

template <size_t bytes>
using Bits =
    std::conditional_t<bytes == 8, uint64_t,
                       std::conditional_t<bytes == 4, uint32_t, std::conditional_t<bytes == 2, uint16_t, uint8_t>>>;

// As nvcc, which takes an operand of its constraint's size alone.
template <size_t bytes, class T>
inline Bits<bytes> in(T value) {
  static_assert(std::is_scalar_v<T> && sizeof(T) == bytes, "an operand's type is not its constraint's size");
  Bits<bytes> bits;
  __builtin_memcpy(&bits, &value, bytes);
  return bits;
}
template <class T, class R>
inline void out(T& to, R bits) {
  static_assert(std::is_scalar_v<T> && sizeof(T) == sizeof(R), "an operand's type is not its constraint's size");
  std::remove_cv_t<T> value;
  __builtin_memcpy(&value, &bits, sizeof value);
  to = value;
}

using emulation::BF16;
using emulation::F16;
template <class T>
constexpr bool is_short = std::is_same_v<T, F16> || std::is_same_v<T, BF16>;
template <class T>
constexpr bool is_float = std::is_floating_point_v<T> || is_short<T>;

template <class T, class R>
inline T as(R bits) {
  static_assert(sizeof(T) <= sizeof(R), "a register is smaller than the instruction's type");
  T value;
  __builtin_memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}
template <class R, class T>
inline void set(R& to, T value) {
  static_assert(sizeof(T) <= sizeof(R), "a register is smaller than the instruction's type");
  if constexpr (std::is_integral_v<T>) {
    to = static_cast<R>(value);
  } else {
    Bits<sizeof(T)> bits;
    __builtin_memcpy(&bits, static_cast<const void*>(&value), sizeof bits);
    to = bits;
  }
}
inline void set(bool& to, bool value) { to = value; }

// ---- Addresses. ------------------------------------------------------------------------------------------------------------

// A shared address is the distance from the begin of the block's shared memory.
inline uint32_t to_shared(const void* p, Site site = Site::here()) {
  const auto distance = static_cast<const char*>(p) - current->block->shared;
  if (distance != static_cast<int32_t>(distance))
    fail(site, "a shared address is asked for of %p, which is not in this block's shared memory", p);
  return static_cast<uint32_t>(distance);
}
template <class R>
inline char* from_shared(R address) {
  return current->block->shared + static_cast<int32_t>(address);
}
template <class R>
inline char* from_generic(R address) {
  static_assert(sizeof(R) == 8, "a generic or a global address has 64 bits");
  return reinterpret_cast<char*>(address);
}

template <class T, unsigned n>
inline void load(const void* p, T (&to)[n], Site site = Site::here()) {
  typedef T Value __attribute__((vector_size(n * sizeof(T)), may_alias));
  check_aligned(p, n * sizeof(T), site);
  const Value value = *static_cast<const Value*>(p);
  __builtin_memcpy(to, &value, sizeof value);
}
template <class T, unsigned n>
inline void load_from_memory(const void* p, T (&to)[n], Site site = Site::here()) {
  struct Values {
    T each[n];
  };
  check_aligned(p, sizeof(Values), site);
  const Values values = read_from_memory<Values>(p);
  __builtin_memcpy(to, &values, sizeof values);
}
template <class T, unsigned n>
inline void store(void* p, const T (&from)[n], Site site = Site::here()) {
  typedef T Value __attribute__((vector_size(n * sizeof(T)), may_alias));
  check_aligned(p, n * sizeof(T), site);
  Value value;
  __builtin_memcpy(&value, from, sizeof value);
  *static_cast<Value*>(p) = value;
}
template <class T>
inline T load_atomic(const void* p, bool acquire, Site site = Site::here()) {
  check_aligned(p, sizeof(T), site);
  const T value = __atomic_load_n(static_cast<const T*>(p), __ATOMIC_RELAXED);
  if (acquire) order_acquire(p);
  HETKERN_ATOMIC_IS_MADE(p, true, false);
  polled(p);
  return value;
}
template <class T>
inline void store_atomic(void* p, T value, bool release, Site site = Site::here()) {
  check_aligned(p, sizeof(T), site);
  if (release) order_release(p);
  __atomic_store_n(static_cast<T*>(p), value, __ATOMIC_RELAXED);
  HETKERN_ATOMIC_IS_MADE(p, false, true);
}
// By one of atomicAdd and its kin.
template <class T, class Change>
inline T atomic(void* p, bool acquire, bool release, Change change, Site site = Site::here()) {
  check_aligned(p, sizeof(T), site);
  const T before = change(static_cast<T*>(p));
  if (release) order_release(p);
  if (acquire) order_acquire(p);
  return before;
}

// ---- Threads. --------------------------------------------------------------------------------------------------------------

enum class Shuffle { up, down, bfly, idx };
inline uint32_t shuffle(Shuffle how, uint32_t value, uint32_t by, uint32_t clamp, uint32_t mask, bool& inside,
                        Site site = Site::here()) {
  const uint32_t lane = current->lane, segment = clamp >> 8 & 31;
  const int first = static_cast<int>(lane & segment), last = first | static_cast<int>(clamp & 31 & ~segment);
  const int at = static_cast<int>(lane), step = static_cast<int>(by & 31);
  const int from = how == Shuffle::up     ? at - step
                   : how == Shuffle::down ? at + step
                   : how == Shuffle::bfly ? at ^ step
                                          : first | (step & ~static_cast<int>(segment));
  inside = how == Shuffle::up ? from >= last : from <= last;
  uint32_t taken;
  exchange(mask, &value, &taken, 4, inside ? static_cast<unsigned>(from) : lane, site);
  return taken;
}
inline void whole_block(uint32_t barrier, Site site = Site::here()) {
  if (barrier != 0) fail(site, "bar.sync %u: the emulation knows barrier 0 of all threads alone", barrier);
  block_barrier(site);
}

}  // namespace hetkern::emulation::inline_ptx

inline size_t __cvta_generic_to_shared(const void* p,
                                       hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::inline_ptx::to_shared(p, site);
}
inline void* __cvta_shared_to_generic(size_t address) { return hetkern::emulation::inline_ptx::from_shared(address); }
inline size_t __cvta_generic_to_global(const void* p) { return reinterpret_cast<size_t>(p); }
inline void* __cvta_global_to_generic(size_t address) { return reinterpret_cast<void*>(address); }

#include "inline_arithmetic.h"
#include "inline_matrix.h"
