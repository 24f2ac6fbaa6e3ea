// Atomics for the types that CUDA has them for, and for no other: what nvcc refuses does not compile here.      (part of cuda_words.h)
#pragma once

struct __half;  // complete where the file includes cuda_fp16.h, as under nvcc
struct __half2;
struct __nv_bfloat16;
struct __nv_bfloat162;

namespace hetkern::emulation {

template <class T, class... These>
constexpr bool is_one_of = (std::is_same_v<T, These> || ...);
template <class T>
constexpr bool is_half = is_one_of<T, __half, __nv_bfloat16>;
template <class T>
constexpr bool is_half2 = is_one_of<T, __half2, __nv_bfloat162>;

// Two bytes, within the word of four that holds them.
template <class T, class Change>
inline T atomic_change_half(T* p, Change change) {
  auto* const bits = reinterpret_cast<uint16_t*>(p);
  uint16_t before = __atomic_load_n(bits, __ATOMIC_RELAXED), after;
  T old;
  do {
    std::memcpy(static_cast<void*>(&old), &before, sizeof old);
    const T changed = change(old);
    std::memcpy(&after, &changed, sizeof after);
  } while (!__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace hetkern::emulation

#define HETKERN_ATOMIC_AS(name, suffix, T, changed)                                                               \
  inline T name##suffix(T* p, T value) {                                                                          \
    return hetkern::emulation::atomic_change(p, [&]([[maybe_unused]] T old) { return static_cast<T>(changed); }); \
  }
#define HETKERN_ATOMIC(name, T, changed)      \
  HETKERN_ATOMIC_AS(name, , T, changed)       \
  HETKERN_ATOMIC_AS(name, _block, T, changed) \
  HETKERN_ATOMIC_AS(name, _system, T, changed)
#define HETKERN_ATOMIC_UNSIGNED(name, changed) \
  HETKERN_ATOMIC(name, int, changed)           \
  HETKERN_ATOMIC(name, unsigned, changed)      \
  HETKERN_ATOMIC(name, unsigned long long, changed)

HETKERN_ATOMIC_UNSIGNED(atomicAdd, old + value)
HETKERN_ATOMIC(atomicAdd, float, old + value)
HETKERN_ATOMIC(atomicAdd, double, old + value)
HETKERN_ATOMIC(atomicSub, int, old - value)
HETKERN_ATOMIC(atomicSub, unsigned, old - value)
HETKERN_ATOMIC_UNSIGNED(atomicMax, old < value ? value : old)
HETKERN_ATOMIC(atomicMax, long long, old < value ? value : old)
HETKERN_ATOMIC_UNSIGNED(atomicMin, value < old ? value : old)
HETKERN_ATOMIC(atomicMin, long long, value < old ? value : old)
HETKERN_ATOMIC_UNSIGNED(atomicAnd, old& value)
HETKERN_ATOMIC_UNSIGNED(atomicOr, old | value)
HETKERN_ATOMIC_UNSIGNED(atomicXor, old ^ value)
HETKERN_ATOMIC_UNSIGNED(atomicExch, value)
HETKERN_ATOMIC(atomicExch, float, value)
HETKERN_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
HETKERN_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef HETKERN_ATOMIC_UNSIGNED
#undef HETKERN_ATOMIC
#undef HETKERN_ATOMIC_AS

#define HETKERN_ATOMIC_CAS(T)                                                                          \
  inline T atomicCAS(T* p, T expected, T value) {                                                      \
    return hetkern::emulation::atomic_change(p, [&](T old) { return old == expected ? value : old; }); \
  }
HETKERN_ATOMIC_CAS(int)
HETKERN_ATOMIC_CAS(unsigned)
HETKERN_ATOMIC_CAS(unsigned long long)
#undef HETKERN_ATOMIC_CAS

template <class T, std::enable_if_t<hetkern::emulation::is_half<T>, int> = 0>
inline T atomicAdd(T* p, T value) {
  return hetkern::emulation::atomic_change_half(
      p, [&](T old) { return T(static_cast<float>(old) + static_cast<float>(value)); });
}
