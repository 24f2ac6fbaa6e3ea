// Words that most public kernels use: loads with hints, bits, warp reductions, intrinsics.    (part of cuda_words.h)
#pragma once

// ---- min and max: of floats a NaN on either side is dropped; mixed types as CUDA mixes them. -------------------------------
// Templates, since files bring their own for compilers that are not nvcc: theirs is taken then, and is no second definition.

#define HETKERN_FLOAT_MIN_MAX(R, A, B)                      \
  template <int = 0>                                        \
  inline R min(A a, B b) {                                  \
    return std::fmin(static_cast<R>(a), static_cast<R>(b)); \
  }                                                         \
  template <int = 0>                                        \
  inline R max(A a, B b) {                                  \
    return std::fmax(static_cast<R>(a), static_cast<R>(b)); \
  }
HETKERN_FLOAT_MIN_MAX(float, float, float)
HETKERN_FLOAT_MIN_MAX(double, double, double)
HETKERN_FLOAT_MIN_MAX(double, float, double)
HETKERN_FLOAT_MIN_MAX(double, double, float)
#undef HETKERN_FLOAT_MIN_MAX
#define HETKERN_MIN_MAX(R, A, B)                                                          \
  template <int = 0>                                                                      \
  constexpr R min(A a, B b) {                                                             \
    return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }                                                                                       \
  template <int = 0>                                                                      \
  constexpr R max(A a, B b) {                                                             \
    return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(b) : static_cast<R>(a); \
  }
#define HETKERN_MIN_MAX_OF(S, U) \
  HETKERN_MIN_MAX(S, S, S)       \
  HETKERN_MIN_MAX(U, U, U)       \
  HETKERN_MIN_MAX(U, S, U)       \
  HETKERN_MIN_MAX(U, U, S)
HETKERN_MIN_MAX_OF(int, unsigned)
HETKERN_MIN_MAX_OF(long, unsigned long)
HETKERN_MIN_MAX_OF(long long, unsigned long long)
#undef HETKERN_MIN_MAX_OF
#undef HETKERN_MIN_MAX
inline unsigned umin(unsigned a, unsigned b) { return min(a, b); }
inline unsigned umax(unsigned a, unsigned b) { return max(a, b); }
inline long long llmin(long long a, long long b) { return min(a, b); }
inline long long llmax(long long a, long long b) { return max(a, b); }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return min(a, b); }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return max(a, b); }

// ---- Loads and stores with a cache hint. -----------------------------------------------------------------------------------

namespace hetkern::emulation {
template <class T>
constexpr bool has_hints = is_half<T> || is_half2<T> ||
                           is_one_of<T, char, signed char, short, int, long, long long, unsigned char, unsigned short,
                                     unsigned, unsigned long, unsigned long long, float, double> ||
                           is_one_of<T, char2, char4, short2, short4, int2, int4, longlong2, uchar2, uchar4, ushort2,
                                     ushort4, uint2, uint4, ulonglong2, float2, float4, double2>;

// One volatile access, as of a number.
template <class T>
inline T read_from_memory(const void* p) {
  using Word = std::conditional_t<
      sizeof(T) == 1, uint8_t,
      std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;
  constexpr size_t kWords = sizeof(T) / sizeof(Word);
  typedef Word Bits __attribute__((vector_size(kWords * sizeof(Word)), may_alias));
  const Bits bits = *static_cast<const volatile Bits*>(p);
  T value;
  __builtin_memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}
}  // namespace hetkern::emulation
#define HETKERN_HINT(T) \
  static_assert(::hetkern::emulation::has_hints<T>, "nvcc has this word for numbers and for their vectors of 2 and 4")
#define HETKERN_LOAD(name)    \
  template <class T>          \
  inline T name(const T* p) { \
    HETKERN_HINT(T);          \
    return *p;                \
  }
HETKERN_LOAD(__ldg)
HETKERN_LOAD(__ldca)
HETKERN_LOAD(__ldcs)
HETKERN_LOAD(__ldlu)
#undef HETKERN_LOAD
// Past the first cache: what other blocks' atomics have made of it.
#define HETKERN_LOAD(name)                             \
  template <class T>                                   \
  inline T name(const T* p) {                          \
    HETKERN_HINT(T);                                   \
    return hetkern::emulation::read_from_memory<T>(p); \
  }
HETKERN_LOAD(__ldcg)
HETKERN_LOAD(__ldcv)
#undef HETKERN_LOAD
#define HETKERN_STORE(name)                             \
  template <class T>                                    \
  inline void name(T* p, std::common_type_t<T> value) { \
    HETKERN_HINT(T);                                    \
    *p = value;                                         \
  }
HETKERN_STORE(__stwb)
HETKERN_STORE(__stcg)
HETKERN_STORE(__stcs)
HETKERN_STORE(__stwt)
#undef HETKERN_STORE
#undef HETKERN_HINT

// ---- Bits and integers. ----------------------------------------------------------------------------------------------------

inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline int __mul24(int a, int b) {  // the low 24 bits with their sign
  const auto low = [](int x) { return static_cast<int>(static_cast<unsigned>(x) << 8) >> 8; };
  return static_cast<int>(static_cast<uint32_t>(int64_t{low(a)} * low(b)));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned y = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned chosen = selector >> 4 * i;
    y |= static_cast<unsigned>(bytes >> 8 * (chosen & 7) & 0xff) << 8 * i;
  }
  return y;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (by & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned by) {
  return by >= 32 ? low : __funnelshift_l(low, high, by);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned by) {
  return by >= 32 ? high : __funnelshift_r(low, high, by);
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i)
    sum = static_cast<int>(static_cast<unsigned>(sum) +
                           static_cast<unsigned>(static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i)));
  return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int i = 0; i < 4; ++i) sum += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
  return sum;
}

#define HETKERN_DP2A(T, Half, Byte)                                                                                \
  inline T __dp2a_lo(T a, T b, T sum) {                                                                            \
    for (int i = 0; i < 2; ++i)                                                                                    \
      sum = static_cast<T>(static_cast<unsigned>(sum) +                                                            \
                           static_cast<unsigned>(static_cast<Half>(a >> 16 * i) * static_cast<Byte>(b >> 8 * i))); \
    return sum;                                                                                                    \
  }                                                                                                                \
  inline T __dp2a_hi(T a, T b, T sum) { return __dp2a_lo(a, static_cast<T>(b >> 16), sum); }
HETKERN_DP2A(int, int16_t, int8_t)
HETKERN_DP2A(unsigned, uint16_t, uint8_t)
#undef HETKERN_DP2A
inline unsigned __usad(unsigned a, unsigned b, unsigned sum) { return (a < b ? b - a : a - b) + sum; }
inline unsigned __sad(int a, int b, unsigned sum) {
  return (a < b ? static_cast<unsigned>(b) - static_cast<unsigned>(a)
                : static_cast<unsigned>(a) - static_cast<unsigned>(b)) +
         sum;
}
// Averages, without an overflow. (A file that includes cuda_fp16.h has the half's __hadd.)
inline int __hadd(int a, int b) { return static_cast<int>((int64_t{a} + b) >> 1); }
inline int __rhadd(int a, int b) { return static_cast<int>((int64_t{a} + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} + b + 1) >> 1); }
#define HETKERN_OF_THREE(S, s)                                                                         \
  inline S __vimax3_##s(S a, S b, S c) { return max(max(a, b), c); }                                   \
  inline S __vimin3_##s(S a, S b, S c) { return min(min(a, b), c); }                                   \
  inline S __viaddmax_##s(S a, S b, S c) { return max(static_cast<S>(unsigned(a) + unsigned(b)), c); } \
  inline S __viaddmin_##s(S a, S b, S c) { return min(static_cast<S>(unsigned(a) + unsigned(b)), c); }
HETKERN_OF_THREE(int, s32)
HETKERN_OF_THREE(unsigned, u32)
#undef HETKERN_OF_THREE
inline int __vimax_s32_relu(int a, int b) { return max(max(a, b), 0); }
inline int __vimin_s32_relu(int a, int b) { return max(min(a, b), 0); }
// The place of the n-th set bit from `base` on, upwards or downwards; ~0 if there is none.
inline unsigned __fns(unsigned mask, unsigned base, int n) {
  if (n == 0) return mask >> base & 1 ? base : ~0u;
  for (int at = static_cast<int>(base), left = n < 0 ? -n : n; at >= 0 && at < 32; at += n < 0 ? -1 : 1)
    if (mask >> at & 1 && --left == 0) return static_cast<unsigned>(at);
  return ~0u;
}

// ---- Warps. ----------------------------------------------------------------------------------------------------------------

namespace hetkern::emulation {

// Folds what the lanes of mask bring, in the order of the lanes.
template <class T, class Fold>
inline T reduce(unsigned mask, T value, Fold fold, Site site) {
  T all[32], result = value;
  const unsigned present = gather(mask, &value, all, sizeof value, site);
  bool first = true;
  for (int lane = 0; lane < 32; ++lane)
    if (present >> lane & 1) result = first ? all[lane] : fold(result, all[lane]), first = false;
  return result;
}

// The lanes that bring the same value, and those that are there.
template <class T>
inline unsigned matching(unsigned mask, T value, unsigned& present, Site site) {
  T all[32];
  present = gather(mask, &value, all, sizeof value, site);
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (present >> lane & 1) same |= static_cast<unsigned>(std::memcmp(&all[lane], &value, sizeof value) == 0) << lane;
  return same;
}

}  // namespace hetkern::emulation

// The lanes that run together with this one: which those are only a GPU decides, and CUDA promises none but the calling one. What a
// kernel gets wrong by taking them for all shows so.
inline unsigned __activemask() { return 1u << hetkern::emulation::current->lane; }
inline int __uni_sync(unsigned mask, int mine, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  return __all_sync(mask, mine, site) || !__any_sync(mask, mine, site);
}

#define HETKERN_REDUCE(name, T, folded)                                                                     \
  inline T name(unsigned mask, T value, hetkern::emulation::Site site = hetkern::emulation::Site::here()) { \
    return hetkern::emulation::reduce(mask, value, [](T a, T b) { return static_cast<T>(folded); }, site);  \
  }
HETKERN_REDUCE(__reduce_add_sync, unsigned, a + b)
HETKERN_REDUCE(__reduce_add_sync, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
HETKERN_REDUCE(__reduce_min_sync, unsigned, min(a, b))
HETKERN_REDUCE(__reduce_min_sync, int, min(a, b))
HETKERN_REDUCE(__reduce_max_sync, unsigned, max(a, b))
HETKERN_REDUCE(__reduce_max_sync, int, max(a, b))
HETKERN_REDUCE(__reduce_and_sync, unsigned, a& b)
HETKERN_REDUCE(__reduce_or_sync, unsigned, a | b)
HETKERN_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef HETKERN_REDUCE

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value,
                                 hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  unsigned present;
  return hetkern::emulation::matching(mask, value, present, site);
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* all,
                                 hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  unsigned present;
  *all = hetkern::emulation::matching(mask, value, present, site) == present;
  return *all ? present : 0;
}

// ---- Intrinsics: the approximate ones of exact functions. ----------------------------------------------------------------------

inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __exp10f(float x) { return std::exp2(x * 3.3219280949f); }
inline float __log10f(float x) { return std::log2(x) * 0.30103f; }
inline float __powf(float x, float y) { return std::exp2(y * std::log2(x)); }
inline void __sincosf(float x, float* s, float* c) { *s = std::sin(x), *c = std::cos(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }  // of NaN 0
inline float __fsub_rn(float x, float y) { return hetkern::emulation::alone(x - y); }
inline double __dsub_rn(double x, double y) { return hetkern::emulation::alone(x - y); }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float normcdff(float x) { return static_cast<float>(std::erfc(-static_cast<double>(x) * M_SQRT1_2) / 2); }
inline double normcdf(double x) { return std::erfc(-x * M_SQRT1_2) / 2; }
inline double cospi(double x) {  // reduced exactly, and exact at the multiples of a half
  const double y = std::fabs(std::fmod(x, 2.0)), r = y > 1 ? 2 - y : y;
  return r == 0.5 ? 0.0 : r > 0.5 ? -std::cos((1 - r) * M_PI) : std::cos(r * M_PI);
}
inline double sinpi(double x) {
  const double y = std::fmod(x, 2.0), a = std::fabs(y), r = a > 1 ? a - 1 : a;
  if (std::isfinite(x) && r == 0) return std::copysign(0.0, x);
  const double s = std::sin((r > 0.5 ? 1 - r : r) * M_PI);
  return (y < 0) != (a > 1) ? -s : s;
}
inline float cospif(float x) { return static_cast<float>(cospi(x)); }
inline float sinpif(float x) { return static_cast<float>(sinpi(x)); }

namespace hetkern::emulation {

// cvt.rni and its kin: saturates; NaN is 0 in 32 bits and the lowest number in 64.
template <class Int>
inline Int to_integer(double rounded) {
  using Limits = std::numeric_limits<Int>;
  if (rounded != rounded) return sizeof(Int) == 8 ? static_cast<Int>(1ull << 63) : 0;
  if (rounded <= static_cast<double>(Limits::min())) return Limits::min();
  if (rounded >= static_cast<double>(Limits::max())) return Limits::max();
  return static_cast<Int>(rounded);
}

}  // namespace hetkern::emulation

#define HETKERN_CONVERT(word, F, Int)                                                                               \
  inline Int word##_rn(F x) { return hetkern::emulation::to_integer<Int>(std::nearbyint(static_cast<double>(x))); } \
  inline Int word##_rz(F x) { return hetkern::emulation::to_integer<Int>(std::trunc(static_cast<double>(x))); }     \
  inline Int word##_rd(F x) { return hetkern::emulation::to_integer<Int>(std::floor(static_cast<double>(x))); }     \
  inline Int word##_ru(F x) { return hetkern::emulation::to_integer<Int>(std::ceil(static_cast<double>(x))); }
HETKERN_CONVERT(__float2int, float, int)
HETKERN_CONVERT(__float2uint, float, unsigned)
HETKERN_CONVERT(__float2ll, float, long long)
HETKERN_CONVERT(__float2ull, float, unsigned long long)
HETKERN_CONVERT(__double2int, double, int)
HETKERN_CONVERT(__double2uint, double, unsigned)
HETKERN_CONVERT(__double2ll, double, long long)
HETKERN_CONVERT(__double2ull, double, unsigned long long)
#undef HETKERN_CONVERT
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

[[noreturn]] inline void __trap(hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  hetkern::emulation::abandon_launch(std::make_exception_ptr(
      std::runtime_error(std::string("__trap at ") + site.file + ":" + std::to_string(site.line))));
}
inline void __nanosleep(unsigned, hetkern::emulation::Site site = hetkern::emulation::Site::here()) {
  hetkern::emulation::yield(site);
}
inline long long clock64() { return static_cast<long long>(__builtin_ia32_rdtsc()); }
#define __builtin_assume(condition) static_cast<void>(0)
