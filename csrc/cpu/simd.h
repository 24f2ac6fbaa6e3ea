// Vectors over GCC's and Clang's vector extensions. The only file with instruction-set intrinsics, simd_math.h aside.
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
using HalfFloats = VectorOf<float, kVectorBytes / 2>::type;
inline HalfFloats fma(HalfFloats a, HalfFloats b, HalfFloats c) {
#if defined(__AVX512F__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
inline float fma(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// The lower words of each pair, times b: 64 bits of product.
inline Vec<uint64_t> multiply_low_words(Vec<uint64_t> a, uint32_t b) {
  const Vec<uint64_t> by = Vec<uint64_t>{} + b;
#if defined(__AVX512F__)
  return bit_cast<Vec<uint64_t>>(_mm512_mul_epu32(bit_cast<__m512i>(a), bit_cast<__m512i>(by)));
#elif defined(__AVX2__)
  return bit_cast<Vec<uint64_t>>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(by)));
#elif defined(__SSE2__)
  return bit_cast<Vec<uint64_t>>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(by)));
#else
  return (a & 0xffffffffu) * by;
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

// Some lanes of a vector: a mask register where there is one, since compilers take a mask there by way of a vector.
template <class A>
struct Picked {
#if defined(__AVX512DQ__)
  uint32_t lanes;
#else
  Mask<A> lanes;
#endif
};
#if defined(__AVX512DQ__)
inline Picked<float> picked_equal(Vec<float> a, Vec<float> b) { return {_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)}; }
inline Picked<double> picked_equal(Vec<double> a, Vec<double> b) { return {_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ)}; }
// Where v is above the bound and beside it is a finite number.
inline Picked<float> picked_above(Vec<float> v, float bound, Vec<float> beside) {
  const auto above = _mm512_cmp_ps_mask(v, splat(bound), _CMP_GT_OQ);
  return {_mm512_mask_cmp_ps_mask(above, _mm512_abs_ps(beside), splat(kInfinity<float>), _CMP_LT_OQ)};
}
inline Picked<double> picked_above(Vec<double> v, double bound, Vec<double> beside) {
  const auto above = _mm512_cmp_pd_mask(v, splat(bound), _CMP_GT_OQ);
  return {_mm512_mask_cmp_pd_mask(above, _mm512_abs_pd(beside), splat(kInfinity<double>), _CMP_LT_OQ)};
}
inline Vec<float> only(Picked<float> p, Vec<float> v) {
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(p.lanes), v);
}
inline Vec<double> only(Picked<double> p, Vec<double> v) {
  return _mm512_maskz_mov_pd(static_cast<__mmask8>(p.lanes), v);
}
template <class V, class A>
inline V without(Picked<A> p, V v) {
  return only(Picked<A>{~p.lanes}, v);
}
template <class A>
inline int how_many(Picked<A> p) {
  return __builtin_popcount(p.lanes);
}
#else
template <class V, class A = std::remove_cv_t<std::remove_reference_t<decltype(V{}[0])>>>
inline Picked<A> picked_equal(V a, V b) {
  return {a == b};
}
template <class V, class A>
inline Picked<A> picked_above(V v, A bound, V beside) {
  return {(v > bound) & (beside < kInfinity<A>)&(beside > -kInfinity<A>)};
}
template <class V, class A>
inline V only(Picked<A> p, V v) {
  return bit_cast<V>(bit_cast<Mask<A>>(v) & p.lanes);
}
template <class V, class A>
inline V without(Picked<A> p, V v) {
  return bit_cast<V>(bit_cast<Mask<A>>(v) & ~p.lanes);
}
template <class A>
inline int how_many(Picked<A> p) {
  return __builtin_popcount(lane_bits(p.lanes));
}
#endif

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

}  // namespace
}  // namespace hetkern::cpu
