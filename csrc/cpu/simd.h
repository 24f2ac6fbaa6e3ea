// Vectors over GCC's and Clang's vector extensions. The only file with instruction-set intrinsics, gemm.h aside.
//
// Compiled once per instruction set; everything is in an anonymous namespace, so that no copy of one level is linked into another.
// Fused multiply-adds are written out and contraction is off: a formula has the same bits wherever it is inlined.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hetkern::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class E, int bytes = kVectorBytes>
struct VectorOf {
  typedef E type __attribute__((vector_size(bytes)));
};
template <class A>
using Vec = typename VectorOf<A>::type;  // A: float or double
template <class A>
struct Bits {
  typedef int32_t type;
};
template <>
struct Bits<double> {
  typedef int64_t type;
};
template <class A>
using Mask = Vec<typename Bits<A>::type>;  // all ones or zero a lane
template <class A>
constexpr int W = kVectorBytes / static_cast<int>(sizeof(A));  // lanes

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <class A>
constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();

template <class A>
inline Vec<A> splat(A a) {
  return a - Vec<A>{};
}

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// a b + c, rounded once where the instruction set has it.
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// The larger, and b where either is NaN.
inline Vec<float> max(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
inline Vec<double> max(Vec<double> a, Vec<double> b) { return a > b ? a : b; }

// Lane i of a mask as bit i.
inline uint32_t lane_bits(Mask<float> mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(bit_cast<__m128>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W<float>; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}
inline uint32_t lane_bits(Mask<double> mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi64_mask(bit_cast<__m512i>(mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W<double>; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

// The lanes of v above a bound. Compilers take a mask's bits by way of a vector.
inline uint32_t lanes_above(Vec<float> v, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(v, splat(bound), _CMP_GT_OQ);
#else
  return lane_bits(v > bound);
#endif
}
inline uint32_t lanes_above(Vec<double> v, double bound) { return lane_bits(v > bound); }

// ---- Loads and stores: every element type to and from vectors of A. -------------------------------------------------------

template <class A, class T>
struct Packed;  // the memory image of W<A> elements of T
template <class A>
struct Packed<A, A> {
  Vec<A> v;
  Vec<A> unpack() const { return v; }
  static Packed pack(Vec<A> a) { return {a}; }
};
// 16 bits to 32 and back, of which the upper half is dropped. GCC 12's own conversion takes a vector apart first.
using Shorts = VectorOf<uint16_t, kVectorBytes / 2>::type;
inline Vec<uint32_t> widen(Shorts v) {
#if defined(__AVX512F__)
  return bit_cast<Vec<uint32_t>>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(v)));
#elif defined(__AVX2__)
  return bit_cast<Vec<uint32_t>>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(v)));
#else
  return __builtin_convertvector(v, Vec<uint32_t>);
#endif
}
inline Shorts narrow(Vec<uint32_t> v) {
#if defined(__AVX512F__)
  return bit_cast<Shorts>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(v)));
#else
  return __builtin_convertvector(v, Shorts);
#endif
}

template <>
struct Packed<float, bf16> {
  Shorts v;
  Vec<float> unpack() const { return bit_cast<Vec<float>>(widen(v) << 16); }
  static Vec<uint32_t> rounded(Vec<uint32_t> u) { return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }  // ties to even
  static Packed pack(Vec<float> a) {
    const Vec<uint32_t> u = bit_cast<Vec<uint32_t>>(a), nan = (u >> 16) | 0x40;
    return {narrow(a == a ? rounded(u) : nan)};
  }
  // What was computed from bf16 alone: the lower half of its NaNs is 0, so that rounding leaves them NaN.
  static Packed pack_own(Vec<float> a) { return {narrow(rounded(bit_cast<Vec<uint32_t>>(a)))}; }
};
template <>
struct Packed<float, f16> {
  Shorts v;
#if defined(__AVX512F__)
  Vec<float> unpack() const { return _mm512_cvtph_ps(bit_cast<__m256i>(v)); }
  static Packed pack(Vec<float> a) { return {bit_cast<Shorts>(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT))}; }
#elif defined(__F16C__)
  Vec<float> unpack() const { return _mm256_cvtph_ps(bit_cast<__m128i>(v)); }
  static Packed pack(Vec<float> a) { return {bit_cast<Shorts>(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT))}; }
#else
  // Half's exponent bias is 15 against 127: a product by 2^112 moves it, denormals included.
  Vec<float> unpack() const {
    const Vec<uint32_t> h = widen(v);
    const Vec<uint32_t> magnitude = (h & 0x7fff) << 13;
    const Vec<uint32_t> finite = bit_cast<Vec<uint32_t>>(bit_cast<Vec<float>>(magnitude) * 0x1p112f);
    const Vec<uint32_t> bits = magnitude >= (0x7c00u << 13) ? (magnitude | 0x7f800000) : finite;
    return bit_cast<Vec<float>>(bits | (h & 0x8000) << 16);
  }
  static Packed pack(Vec<float> a) {
    const Vec<uint32_t> u = bit_cast<Vec<uint32_t>>(a), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    const Vec<uint32_t> normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Vec<uint32_t> tiny =
        bit_cast<Vec<uint32_t>>(bit_cast<Vec<float>>(magnitude) + 0.5f) - (126u << 23);  // the sum rounds at 2^-24
    Vec<uint32_t> half = magnitude < (113u << 23) ? tiny : normal;
    half = magnitude >= 0x477ff000u ? (half & 0) + 0x7c00 : half;  // 65520 and above
    half = magnitude > 0x7f800000u ? (half & 0) + 0x7e00 : half;
    return {narrow(half | sign)};
  }
#endif
};

template <class A, class T>
inline Vec<A> load(const T* from) {
  Packed<A, T> packed;
  std::memcpy(&packed, from, sizeof(packed));
  return packed.unpack();
}

template <class V>
inline V load_vector(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// The first n lanes of a vector.
template <class A>
inline Mask<A> first_lanes(int64_t n) {
  alignas(kVectorBytes) static constexpr
      typename Bits<A>::type kLane[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load_vector<Mask<A>>(kLane) < Mask<A>{} + static_cast<typename Bits<A>::type>(n);
}
template <class A>
inline Vec<A> keep_lanes(Vec<A> v, int64_t n, A rest) {
  return first_lanes<A>(n) ? v : splat(rest);
}

// The first n elements of a vector's memory image, zeros after them. Masked by an instruction where there is one.
template <class A, class T>
inline Packed<A, T> load_image(const T* from, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto lanes = static_cast<uint32_t>((uint64_t{1} << n) - 1);
  if constexpr (sizeof(T) == 8) return bit_cast<Packed<A, T>>(_mm512_maskz_loadu_epi64(lanes, from));
  if constexpr (sizeof(T) == 4) return bit_cast<Packed<A, T>>(_mm512_maskz_loadu_epi32(lanes, from));
  if constexpr (sizeof(T) == 2) return bit_cast<Packed<A, T>>(_mm256_maskz_loadu_epi16(lanes, from));
#endif
  T image[W<A>] = {};
  for (int64_t i = 0; i < n; ++i) image[i] = from[i];
  return bit_cast<Packed<A, T>>(image);
}
template <class A, class T>
inline void store_image(T* to, const Packed<A, T>& packed, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto lanes = static_cast<uint32_t>((uint64_t{1} << n) - 1);
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_epi64(to, lanes, bit_cast<__m512i>(packed));
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_epi32(to, lanes, bit_cast<__m512i>(packed));
  if constexpr (sizeof(T) == 2) return _mm256_mask_storeu_epi16(to, lanes, bit_cast<__m256i>(packed));
#endif
  T image[W<A>];
  std::memcpy(image, &packed, sizeof(image));
  for (int64_t i = 0; i < n; ++i) to[i] = image[i];
}

// The first n lanes; the others are `rest`.
template <class A, class T>
inline Vec<A> load_some(const T* from, int64_t n, A rest) {
  const Vec<A> v = load_image<A>(from, n).unpack();
  return rest == A(0) ? v : keep_lanes<A>(v, n, rest);
}

template <class A, class T>
inline void store(T* to, Vec<A> v) {
  const auto packed = Packed<A, T>::pack(v);
  std::memcpy(to, &packed, sizeof(packed));
}

// The same, of numbers that were computed from Ts alone.
template <class A, class T>
inline void store_own(T* to, Vec<A> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    const auto packed = Packed<A, T>::pack_own(v);
    std::memcpy(to, &packed, sizeof(packed));
  } else {
    store<A>(to, v);
  }
}

template <class A, class T>
inline void store_some(T* to, Vec<A> v, int64_t n) {
  store_image<A>(to, Packed<A, T>::pack(v), n);
}

// Asks for memory that is read, or written, soon; any address will do.
inline void prefetch(const void* at) { __builtin_prefetch(at); }
inline void prefetch_to_write(const void* at) { __builtin_prefetch(at, 1); }

template <class A, class T>
inline A get(const T* from) {
  return load_some<A>(from, 1, A(0))[0];
}
template <>
inline float get<float, float>(const float* from) {
  return *from;
}
template <>
inline double get<double, double>(const double* from) {
  return *from;
}

// ---- exp and tanh. --------------------------------------------------------------------------------------------------------

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2.
struct Exponential {
  Vec<float> n, less_1;   // exp(r) - 1
  Vec<int32_t> exponent;  // n, in the low bits
};
inline Exponential exponential(Vec<float> x) {
  const Vec<float> shifter = splat(0x1.8p23f);
  const Vec<float> shifted = fma(x, splat(0x1.715476p0f), shifter), n = shifted - shifter;
  Vec<float> r = fma(n, splat(-0x1.62e4p-1f), x);  // ln 2 in two parts, the first short enough that n times it is exact
  r = fma(n, splat(-0x1.7f7d1cp-20f), r);
  Vec<float> q = splat(0.001381454f);  // (exp(r) - 1 - r) / r^2, minimax, relative error of exp 3e-9
  q = fma(q, r, splat(0.0083687451f));
  q = fma(q, r, splat(0.0416683908f));
  q = fma(q, r, splat(0.166665204f));
  q = fma(q, r, splat(0.4999999343f));
  return {n, fma(q, r * r, r), bit_cast<Vec<int32_t>>(shifted)};
}

#if defined(__AVX512F__)
// p 2^n, and 0 where x is below the logarithm of the smallest normal number: a denormal result takes a hundred cycles, and so
// would every masked score.
inline Vec<float> scaled(Vec<float> p, Vec<float> n, Vec<float> x) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, splat(-87.0f), _CMP_NLT_UQ), p, n);
}
inline Vec<double> scaled(Vec<double> p, Vec<double> n, Vec<double> x) {
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, splat(-708.0), _CMP_NLT_UQ), p, n);
}
#endif

// Error below 1.5 ulp; 0 below -87 (double: -708).
inline Vec<float> exp(Vec<float> x) {
#if defined(__AVX512F__)
  const Exponential of = exponential(x);
  return scaled(of.less_1 + 1.0f, of.n, x);
#else
  x = max(splat(-104.0f), x);  // NaN passes
  const Exponential of = exponential(x);
  const Vec<float> p = of.less_1 + 1.0f;
  const Vec<float> half = bit_cast<Vec<float>>((of.exponent << 23) + (126 << 23));  // 2^(n-1): in range up to exp(88.7)
  const Vec<float> e = (p * half) * 2.0f;
  const Vec<float> low = x < -87.0f ? Vec<float>{} : e;
  return x > 89.0f ? splat(kInfinity<float>) : low;
#endif
}

// exp(x) for x <= 0, at four fifths of the cost where a register can be a table: exp(x) = 2^n T[i] exp(r), with n + i / 16
// = round(16 x / ln 2) / 16 and |r| <= ln 2 / 32; error below 1.6 ulp.
inline Vec<float> exp_nonpositive(Vec<float> x) {
#if defined(__AVX512F__)
  alignas(64) static constexpr float kSixteenths[16] = {
      // 2^(i/16)
      1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
      1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.7562521f,  1.83400809f, 1.91520656f};
  const Vec<float> shifter = splat(0x1.8p19f);  // the sum rounds to sixteenths, and its last bits are i
  const Vec<float> shifted = fma(x, splat(0x1.715476p0f), shifter), n = shifted - shifter;
  Vec<float> r = fma(n, splat(-0x1.62e43p-1f), x);
  r = fma(n, splat(0x1.05c61p-29f), r);
  const Vec<float> power = _mm512_permutexvar_ps(bit_cast<__m512i>(shifted), load<float>(kSixteenths));
  const Vec<float> p = fma(fma(r, splat(0.1666666f), splat(0.5f)) * r, r, r);
  return scaled(fma(power, p, power), n, x);  // by 2 to the whole part of n
#else
  return exp(x);
#endif
}

// exp(x) for x <= 0, error below 1.4 ulp; `coarse`: 2^-18, which is what a row of 16-bit numbers needs that is divided by its
// sum. 2^t, t = x / ln 2, with a polynomial for the fraction of t.
template <bool coarse>
inline Vec<float> exp_of_share(Vec<float> x) {
#if defined(__AVX512DQ__)
  const Vec<float> t = x * splat(0x1.715476p0f);
  Vec<float> r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);  // t - floor(t), and 0 of -inf
  Vec<float> p;
  if constexpr (coarse) {
    p = fma(splat(0.013426684f), r, splat(0.052242473f));
    p = fma(p, r, splat(0.2412802f));
    p = fma(p, r, splat(0.69304484f));
  } else {
    r += fma(x, splat(0x1.4ae0cp-26f), fma(x, splat(0x1.715476p0f), -t));  // what the product rounded away
    p = fma(splat(0.00021612915f), r, splat(0.0012467847f));
    p = fma(p, r, splat(0.009675452f));
    p = fma(p, r, splat(0.05548528f));
    p = fma(p, r, splat(0.24022931f));
    p = fma(p, r, splat(0.69314706f));
  }
  return scaled(fma(p, r, splat(1.0f)), t, x);  // by 2 to the floor of t
#else
  return exp(x);
#endif
}

inline Vec<double> exp(Vec<double> x) {
#if !defined(__AVX512F__)
  x = max(splat(-746.0), x);
#endif
  const Vec<double> shifter = splat(0x1.8p52);
  const Vec<double> shifted = fma(x, splat(0x1.71547652b82fep0), shifter), n = shifted - shifter;
  Vec<double> r = fma(n, splat(-0x1.62e42fefap-1), x);
  r = fma(n, splat(-0x1.cf79abc9e3b39p-40), r);
  Vec<double> q = splat(1.0 / 6227020800.0);  // Taylor to r^13: 4e-18 at the end of the range
  constexpr double inverse_factorials[] = {
      1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
  for (const double c : inverse_factorials) q = fma(q, r, splat(c));
  const Vec<double> p = fma(q, r * r, r) + 1.0;
#if defined(__AVX512F__)
  return scaled(p, n, x);
#else
  const Vec<int64_t> exponent = bit_cast<Vec<int64_t>>(shifted) << 52;
  const Vec<double> half = bit_cast<Vec<double>>(exponent + (int64_t{1022} << 52));
  const Vec<double> e = (p * half) * 2.0;
  const Vec<double> low = x < -708.0 ? Vec<double>{} : e;
  return x > 710.0 ? splat(kInfinity<double>) : low;
#endif
}

inline Vec<double> exp_nonpositive(Vec<double> x) { return exp(x); }
template <bool coarse>
inline Vec<double> exp_of_share(Vec<double> x) {
  return exp(x);
}

template <class A>
inline A exp_one(A x) {
  return exp(splat(x))[0];
}

// Odd polynomial up to 0.625; above, 1 - 2 / (e + 1) with e = exp(2|x|) in two parts, the quotient corrected by what its
// rounding left: a softcap multiplies the error. Below 1.2 ulp.
inline Vec<float> tanh(Vec<float> x) {
  const Vec<float> x2 = x * x;
  Vec<float> p = splat(-0.0057170439f);
  p = fma(p, x2, splat(0.0206505862f));
  p = fma(p, x2, splat(-0.0537434977f));
  p = fma(p, x2, splat(0.1333149128f));
  p = fma(p, x2, splat(-0.3333328393f));
  const Vec<float> near_zero = fma(p, x2 * x, x);
  const Vec<uint32_t> sign = bit_cast<Vec<uint32_t>>(x) & 0x80000000u;
  const Vec<float> magnitude = bit_cast<Vec<float>>(bit_cast<Vec<uint32_t>>(x) & 0x7fffffffu);
  const Exponential of = exponential(magnitude > 10.0f ? splat(20.0f) : 2.0f * magnitude);
  const Vec<float> scale = bit_cast<Vec<float>>((of.exponent << 23) + (127 << 23));
  const Vec<float> p_high = 1.0f + of.less_1, p_low = of.less_1 - (p_high - 1.0f);
  const Vec<float> e = p_high * scale, q = 2.0f / (e + 1.0f);
  const Vec<float> left = fma(-q, e, 2.0f - q) - q * (p_low * scale);  // 2 - q (e + 1)
  const Vec<float> far = 1.0f - fma(left * q, splat(0.5f), q);
  return magnitude < 0.625f ? near_zero : bit_cast<Vec<float>>(bit_cast<Vec<uint32_t>>(far) | sign);
}
inline Vec<double> tanh(Vec<double> x) {  // float64 is for proofs, not for speed
  for (int i = 0; i < W<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

}  // namespace
}  // namespace hetkern::cpu
