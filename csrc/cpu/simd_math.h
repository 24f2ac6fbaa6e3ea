// exp, expm1, log1p and tanh of vectors, and what their error is.                       (measured: python_tests/test_simd.py)
#pragma once
#include "simd.h"

namespace hetkern::cpu {
namespace {

// Doubles for what is computed once a row, or added up over many.
inline Vec<double> doubles(HalfFloats v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(v);
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(v);
#else
  return __builtin_convertvector(v, Vec<double>);
#endif
}
template <int half>
inline Vec<double> doubles(Vec<float> v) {
  HalfFloats part[2];
  std::memcpy(part, &v, sizeof(v));
  return doubles(part[half]);
}
// W<double> numbers, as doubles.
inline Vec<double> load_doubles(const float* from) { return doubles(load_vector<HalfFloats>(from)); }
inline Vec<double> load_doubles(const double* from) { return load_vector<Vec<double>>(from); }

// f of the lanes as doubles, rounded to A once.
template <class A, class F, class... Vectors>
inline Vec<A> in_double(const F& f, Vectors... v) {
  if constexpr (std::is_same_v<A, double>) {
    return f(v...);
  } else {
    const HalfFloats part[2] = {__builtin_convertvector(f(doubles<0>(v)...), HalfFloats),
                                __builtin_convertvector(f(doubles<1>(v)...), HalfFloats)};
    return bit_cast<Vec<float>>(part);
  }
}

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

// exp(x) for x <= 0 without AVX-512's scaling, error below 1.4 ulp; 0 below -87. The shifter's sum ends in the biased exponent of
// 2^n, which is one shift away: no clamp, no second factor, no infinity.
inline Vec<float> exp_to_one(Vec<float> x) {
  const Vec<float> shifter = splat(0x1.8p23f + 127.0f);
  const Vec<float> shifted = fma(x, splat(0x1.715476p0f), shifter), n = shifted - shifter;
  Vec<float> r = fma(n, splat(-0x1.62e4p-1f), x);  // as in `exponential`, whose polynomial this is
  r = fma(n, splat(-0x1.7f7d1cp-20f), r);
  Vec<float> p = fma(splat(0.001381454f), r, splat(0.0083687451f));
  p = fma(p, r, splat(0.0416683908f));
  p = fma(p, r, splat(0.166665204f));
  p = fma(p, r, splat(0.4999999343f));
  p = fma(p, r, splat(1.0f));
  const Vec<float> e = fma(p, r, splat(1.0f)) * bit_cast<Vec<float>>(bit_cast<Vec<int32_t>>(shifted) << 23);
  return x < -87.0f ? Vec<float>{} : e;  // NaN passes
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
  return exp_to_one(x);
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

// exp(x) - 1 for x <= 0. Error below 1 ulp.
inline Vec<float> expm1_nonpositive(Vec<float> x) {
  x = max(splat(-80.0f), x);  // NaN passes; 2^n stays normal
  const Exponential of = exponential(x);
  const Vec<float> power = bit_cast<Vec<float>>((of.exponent << 23) + (127 << 23));
  return fma(power, of.less_1, power - 1.0f);
}
inline Vec<double> expm1_nonpositive(Vec<double> x) {  // float64 is for proofs, not for speed
  for (int i = 0; i < W<double>; ++i) x[i] = std::expm1(x[i]);
  return x;
}
template <class A>
inline A expm1_one(A x) {
  if constexpr (std::is_same_v<A, double>) return std::expm1(x);
  return static_cast<A>(expm1_nonpositive(splat(x))[0]);
}

// log(1 + s), s >= 0, error below 1.1 ulp: less than s itself has, a sum of exponentials. 1 + s = 2^k (1 + f), within a factor
// of sqrt 2 of 2^k; log(1 + f) = f - (h - r (h + R)), h = f^2 / 2, r = f / (2 + f), R = 2 r^2 / 3 + 2 r^4 / 5 + …
// V: a vector of float, or one: the same bits.
template <class V, class U>
inline V log1p_of_sum(V s) {
  const V y = 1.0f + s;
  const U bits = bit_cast<U>(y), k = (bits - 0x3f3504f3u) >> 23;  // the bits of sqrt(1 / 2)
  const V power = bit_cast<V>(k | 0x4b000000u) - 0x1p23f, least = bit_cast<V>((127 - k) << 23);  // k and 2^-k
  // What 1 + s rounded away is all in f, or small beside log 2.
  const V f = k == 0 ? s : bit_cast<V>(bits - (k << 23)) - 1.0f;
  const V lost = k == 0 ? V{} : (s - (y - 1.0f)) * least;
  const V h = f * f * 0.5f, r = f / (2.0f + f), r2 = r * r;
  V q = fma(r2, V{} + 2.0f / 9, V{} + 2.0f / 7);
  q = fma(q, r2, V{} + 2.0f / 5), q = fma(q, r2, V{} + 2.0f / 3);
  const V small = fma(r, fma(q, r2, h), fma(power, V{} - 0x1.05c61p-29f, fma(-lost, f, lost)));
  const V log = fma(power, V{} + 0x1.62e43p-1f, f - (h - small));
  return s == s ? log : s;
}
inline Vec<float> log1p(Vec<float> s) { return log1p_of_sum<Vec<float>, Vec<uint32_t>>(s); }
inline Vec<double> log1p(Vec<double> s) {  // float64 is for proofs, not for speed
  for (int i = 0; i < W<double>; ++i) s[i] = std::log1p(s[i]);
  return s;
}
// The same of doubles that are sums of two As, for what computes in doubles.
template <class A>
inline Vec<double> log1p_to(Vec<double> s) {
  if constexpr (std::is_same_v<A, double>) return log1p(s);
  using HalfBits = VectorOf<uint32_t, kVectorBytes / 2>::type;
  return doubles(log1p_of_sum<HalfFloats, HalfBits>(__builtin_convertvector(s, HalfFloats)));
}
template <class A>
inline A log1p_one(double s) {
  if constexpr (std::is_same_v<A, double>) return std::log1p(s);
  return log1p_of_sum<float, uint32_t>(static_cast<float>(s));
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
