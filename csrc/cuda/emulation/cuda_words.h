// Plain CUDA words for a C++ compiler: a kernel file that includes device/launch.cuh reads the same under nvcc and here.
//
// A word that is not here does not compile, by name. hetkern/testing/emulation/refused.py says before the compiler what is refused on
// purpose, and why.
#pragma once
#include <assert.h>  // this and the next ones nvcc includes in every file
#include <cuda_runtime.h>
#include <math.h>  // abs, isnan and their kin at global scope, by the argument's type
#include <stdio.h>
#include <stdlib.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>  // clock
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "memory.h"
#include "threads.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
#undef __align__
#define __global__ __attribute__((unused))
#define __device__
#define __host__
#define __shared__ the_emulation_has_dynamic_shared_memory_only_use_HETKERN_SHARED
#define __constant__ __attribute__((unused))
#define __forceinline__ inline
#define __noinline__  // the standard library writes __attribute__((__noinline__))
#ifdef HETKERN_MARKS  // hetkern/testing/emulation/rewriting.py puts a check into the kernel
#define __launch_bounds__(...) hetkern_launch_bounds(__VA_ARGS__)
#else
#define __launch_bounds__(...)
#endif
#define __cluster_dims__(...) give_the_cluster_to_HETKERN_LAUNCH_CLUSTER
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// Of the thread that runs. Not macros: launch configurations have members of these names.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace hetkern::emulation {

// Of the first argument of __launch_bounds__.
template <class Most, class... Others>
inline void within_bounds(Most most, Others...) {
  const unsigned threads = grid->threads.x * grid->threads.y * grid->threads.z;
  if (threads > static_cast<unsigned>(most))
    fail({}, "launch of %u threads a block, and the kernel's __launch_bounds__ allow %u: CUDA refuses it", threads,
         static_cast<unsigned>(most));
}

}  // namespace hetkern::emulation

// ---- Barriers, votes and shuffles. -----------------------------------------------------------------------------------------

inline void __syncthreads(hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  hetkern::emulation::block_barrier(site);
}
inline int __syncthreads_and(int mine, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::block_barrier(site, hetkern::emulation::Vote::all, mine != 0);
}
inline int __syncthreads_or(int mine, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::block_barrier(site, hetkern::emulation::Vote::any, mine != 0);
}
inline int __syncthreads_count(int mine, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::block_barrier(site, hetkern::emulation::Vote::count, mine != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  hetkern::emulation::warp_barrier(mask, site);
}
inline unsigned __ballot_sync(unsigned mask, int mine,
                              hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::ballot(mask, mine != 0, site);
}
inline int __any_sync(unsigned mask, int mine, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::ballot(mask, mine != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int mine, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return hetkern::emulation::ballot(mask, mine == 0, site) == 0;
}

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

// What CUDA's own overloads make of a value: they take numbers of 4 and 8 bytes and halves.
template <class T>
auto shuffled(T value) {
  if constexpr (std::is_arithmetic_v<T> && sizeof(T) < 4)
    return static_cast<int>(value);
  else if constexpr (std::is_enum_v<T>)
    return static_cast<std::underlying_type_t<T>>(value);
  else
    return value;
}
template <class T>
using Shuffled = decltype(shuffled(std::declval<T>()));

// PTX's shfl: `last` is the last lane (for up: the first one) that may be taken from; past it a lane takes its own value.
template <class T>
inline T shuffle(unsigned mask, T value, int source, bool inside, Site site) {
  static_assert(sizeof(T) <= 8 && (std::is_trivially_copyable_v<T> || is_half2<T>),
                "CUDA's shuffles take numbers of up to eight bytes");
  T taken;
  exchange(mask, &value, &taken, sizeof(T), inside ? static_cast<unsigned>(source) : current->lane, site);
  return taken;
}

}  // namespace hetkern::emulation

template <class T>
inline hetkern::emulation::Shuffled<T> __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                                                   hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  const int group = static_cast<int>(hetkern::emulation::current->lane) & -width;
  return hetkern::emulation::shuffle(mask, hetkern::emulation::shuffled(value), group | (lane & (width - 1)), true,
                                     site);
}
template <class T>
inline hetkern::emulation::Shuffled<T> __shfl_xor_sync(
    unsigned mask, T value, int bits, int width = 32,
    hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  // A lane of an earlier group may be taken from, one of a later group not.
  const int lane = static_cast<int>(hetkern::emulation::current->lane), source = lane ^ (bits & 31);
  return hetkern::emulation::shuffle(mask, hetkern::emulation::shuffled(value), source, source <= (lane | (width - 1)),
                                     site);
}
template <class T>
inline hetkern::emulation::Shuffled<T> __shfl_down_sync(
    unsigned mask, T value, unsigned by, int width = 32,
    hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  const int lane = static_cast<int>(hetkern::emulation::current->lane), source = lane + static_cast<int>(by & 31);
  return hetkern::emulation::shuffle(mask, hetkern::emulation::shuffled(value), source, source <= (lane | (width - 1)),
                                     site);
}
template <class T>
inline hetkern::emulation::Shuffled<T> __shfl_up_sync(
    unsigned mask, T value, unsigned by, int width = 32,
    hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  const int lane = static_cast<int>(hetkern::emulation::current->lane), source = lane - static_cast<int>(by & 31);
  return hetkern::emulation::shuffle(mask, hetkern::emulation::shuffled(value), source, source >= (lane & -width),
                                     site);
}

// ---- Atomics: they order nothing but themselves, and what a fence stands before. -------------------------------------------

inline void __threadfence() { hetkern::emulation::fence(hetkern::emulation::Scope::device); }
inline void __threadfence_system() { hetkern::emulation::fence(hetkern::emulation::Scope::device); }
inline void __threadfence_block() { hetkern::emulation::fence(hetkern::emulation::Scope::block); }
#ifdef __SANITIZE_THREAD__
#define HETKERN_ATOMIC_IS_MADE(p, reads, writes) ::hetkern::emulation::atomic_is_made(p, reads, writes)
#else
#define HETKERN_ATOMIC_IS_MADE(p, reads, writes) (void)0
#endif

namespace hetkern::emulation {

template <class T, class Change>
inline T atomic_change(T* p, Change change) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits), "atomics of 4 and 8 bytes");
  auto* const bits = reinterpret_cast<Bits*>(p);
  Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED), after;
  T old;
  do {
    std::memcpy(&old, &before, sizeof old);
    const T changed = change(old);
    std::memcpy(&after, &changed, sizeof after);
  } while (!__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  HETKERN_ATOMIC_IS_MADE(p, true, true);
  if (after == before) polled(p);
  return old;
}

// The plain read at the begin of a loop of atomicCAS.  (hetkern/testing/emulation/rewriting.py)
template <class T>
inline std::remove_cv_t<T> read_to_compare(T* p) {
  if constexpr (std::is_floating_point_v<T>) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    const Bits bits = __atomic_load_n(reinterpret_cast<const Bits*>(p), __ATOMIC_RELAXED);
    std::remove_cv_t<T> value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  } else if constexpr (std::is_integral_v<T>) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
  } else {
    return *p;
  }
}

}  // namespace hetkern::emulation

#include "everyday_atomics.h"

// ---- Arithmetic. Approximate functions are built as nvcc builds them, of exact ones: a product that is rounded on the way to
// an exponential grows with its argument there, too. --------------------------------------------------------------------------

inline float __expf(float x) { return std::exp2(x * 1.4426950216f); }
inline float __logf(float x) { return std::log2(x) * 0.69314718f; }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float x, float y) {  // 0 where 1 / y would be subnormal
  const float size = std::fabs(y);
  return size > 0x1p126f && size <= 3.402823466e38f ? x * std::copysign(0.0f, y) : x / y;
}
inline float __frcp_rn(float x) { return 1.0f / x; }
namespace hetkern::emulation {
// A result that the compiler fuses with nothing.
template <class T>
inline T alone(T x) {
  asm("" : "+x"(x));
  return x;
}
}  // namespace hetkern::emulation
inline float __fadd_rn(float x, float y) { return hetkern::emulation::alone(x + y); }
inline float __fmul_rn(float x, float y) { return hetkern::emulation::alone(x * y); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return hetkern::emulation::alone(x + y); }
inline double __dmul_rn(double x, double y) { return hetkern::emulation::alone(x * y); }
template <int = 0>  // a file's own goes first, as of min and max
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
namespace hetkern::emulation {

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

}  // namespace hetkern::emulation

inline int __float_as_int(float x) { return hetkern::emulation::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return hetkern::emulation::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return hetkern::emulation::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return hetkern::emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return hetkern::emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return hetkern::emulation::same_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

#include "everyday_simd.h"
// ---- The runtime's templates, which nvcc alone has: a template's instance is no pointer yet. ---------------------------------

template <class... Parameters>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... Parameters>
inline cudaError_t cudaFuncSetCacheConfig(void (*kernel)(Parameters...), cudaFuncCache config) {
  return cudaFuncSetCacheConfig(reinterpret_cast<const void*>(kernel), config);
}

#include "everyday_words.h"
// These need those.
#include "everyday_half.h"
#include "everyday_math.h"
#include "textures.h"
#ifdef HETKERN_MARKS  // hetkern/testing/emulation/inline_asm.py writes calls of these
#include "inline_ptx.h"
#endif

// For what kernels ask of it. CUDA's own headers, which would turn to PTX, are read without. (headers/)
#ifdef HETKERN_CUDA_ARCH
#define __CUDA_ARCH__ HETKERN_CUDA_ARCH
#endif

// -use_fast_math, as nvcc has it; subnormals are flushed where the launcher is called. (foreign.cpp)
#ifdef HETKERN_FAST_MATH
#define sinf(...) __sinf(__VA_ARGS__)
#define cosf(...) __cosf(__VA_ARGS__)
#define tanf(...) __tanf(__VA_ARGS__)
#define sincosf(...) __sincosf(__VA_ARGS__)
#define expf(...) __expf(__VA_ARGS__)
#define exp10f(...) __exp10f(__VA_ARGS__)
#define logf(...) __logf(__VA_ARGS__)
#define log2f(...) __log2f(__VA_ARGS__)
#define log10f(...) __log10f(__VA_ARGS__)
#define powf(...) __powf(__VA_ARGS__)
#endif
