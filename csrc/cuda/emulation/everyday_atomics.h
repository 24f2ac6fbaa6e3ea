// Atomics for the types that CUDA has them for, and for no other: what nvcc refuses does not compile here.      (part of cuda_words.h)
#pragma once

namespace hetkern::emulation {

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
  HETKERN_ATOMIC_IS_MADE(p, true, true);
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
HETKERN_ATOMIC(atomicAnd, long long, old& value)
HETKERN_ATOMIC(atomicOr, long long, old | value)
HETKERN_ATOMIC(atomicXor, long long, old ^ value)
HETKERN_ATOMIC_UNSIGNED(atomicExch, value)
HETKERN_ATOMIC(atomicExch, float, value)
HETKERN_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
HETKERN_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef HETKERN_ATOMIC_UNSIGNED
#undef HETKERN_ATOMIC
#undef HETKERN_ATOMIC_AS

#define HETKERN_ATOMIC_CAS_AS(name, T)                                                                 \
  inline T name(T* p, T expected, T value) {                                                           \
    return hetkern::emulation::atomic_change(p, [&](T old) { return old == expected ? value : old; }); \
  }
#define HETKERN_ATOMIC_CAS(T)               \
  HETKERN_ATOMIC_CAS_AS(atomicCAS, T)       \
  HETKERN_ATOMIC_CAS_AS(atomicCAS_block, T) \
  HETKERN_ATOMIC_CAS_AS(atomicCAS_system, T)
HETKERN_ATOMIC_CAS(int)
HETKERN_ATOMIC_CAS(unsigned)
HETKERN_ATOMIC_CAS(unsigned long long)
#undef HETKERN_ATOMIC_CAS
#undef HETKERN_ATOMIC_CAS_AS
inline unsigned short atomicCAS(unsigned short* p, unsigned short expected, unsigned short value) {
  return hetkern::emulation::atomic_change_half(p, [&](unsigned short old) { return old == expected ? value : old; });
}

template <class T, std::enable_if_t<hetkern::emulation::is_half<T>, int> = 0>
inline T atomicAdd(T* p, T value) {
  return hetkern::emulation::atomic_change_half(
      p, [&](T old) { return T(static_cast<float>(old) + static_cast<float>(value)); });
}
// Of pairs and fours each element is atomic, the whole is not.
template <class T, std::enable_if_t<hetkern::emulation::is_half2<T>, int> = 0>
inline T atomicAdd(T* p, T value) {
  T old;
  old.x = atomicAdd(&p->x, value.x), old.y = atomicAdd(&p->y, value.y);
  return old;
}
inline float2 atomicAdd(float2* p, float2 value) {
  const float x = atomicAdd(&p->x, value.x);
  return {x, atomicAdd(&p->y, value.y)};
}
inline float4 atomicAdd(float4* p, float4 value) {
  const float x = atomicAdd(&p->x, value.x), y = atomicAdd(&p->y, value.y), z = atomicAdd(&p->z, value.z);
  return {x, y, z, atomicAdd(&p->w, value.w)};
}
