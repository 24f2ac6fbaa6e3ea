// Words of CUDA's mathematical library and its rounded arithmetic that C++ has not.                    (part of cuda_words.h)
#pragma once
#include <cfenv>

// ---- Arithmetic and conversions in a direction: _rz, _ru and _rd. ----------------------------------------------------------

namespace hetkern::emulation {

// Operands and result go through memory, so that nothing moves out of the direction.
template <class T>
inline T kept(T x) {
  volatile T there = x;
  return there;
}
template <class Of>
inline auto in_direction(int direction, Of of) {
  const int before = std::fegetround();
  std::fesetround(direction);
  const auto result = kept(of());
  std::fesetround(before);
  return result;
}

}  // namespace hetkern::emulation

#define HETKERN_DIRECTED_2(name, way, T, op)                                          \
  inline T name(T x, T y) {                                                           \
    using hetkern::emulation::kept;                                                   \
    return hetkern::emulation::in_direction(way, [=] { return kept(x) op kept(y); }); \
  }
#define HETKERN_DIRECTED_1(name, way, T, From, value)                 \
  inline T name(From from) {                                          \
    return hetkern::emulation::in_direction(way, [=] {                \
      [[maybe_unused]] const auto x = hetkern::emulation::kept(from); \
      return static_cast<T>(value);                                   \
    });                                                               \
  }
#define HETKERN_DIRECTED_FMA(name, way, T)                                                             \
  inline T name(T x, T y, T z) {                                                                       \
    using hetkern::emulation::kept;                                                                    \
    return hetkern::emulation::in_direction(way, [=] { return std::fma(kept(x), kept(y), kept(z)); }); \
  }
#define HETKERN_DIRECTED(suffix, way)                                                        \
  HETKERN_DIRECTED_2(__fadd_##suffix, way, float, +)                                         \
  HETKERN_DIRECTED_2(__fsub_##suffix, way, float, -)                                         \
  HETKERN_DIRECTED_2(__fmul_##suffix, way, float, *)                                         \
  HETKERN_DIRECTED_2(__fdiv_##suffix, way, float, /)                                         \
  HETKERN_DIRECTED_2(__dadd_##suffix, way, double, +)                                        \
  HETKERN_DIRECTED_2(__dsub_##suffix, way, double, -)                                        \
  HETKERN_DIRECTED_2(__dmul_##suffix, way, double, *)                                        \
  HETKERN_DIRECTED_2(__ddiv_##suffix, way, double, /)                                        \
  HETKERN_DIRECTED_FMA(__fmaf_##suffix, way, float)                                          \
  HETKERN_DIRECTED_FMA(__fma_##suffix, way, double)                                          \
  HETKERN_DIRECTED_1(__fsqrt_##suffix, way, float, float, std::sqrt(x))                      \
  HETKERN_DIRECTED_1(__dsqrt_##suffix, way, double, double, std::sqrt(x))                    \
  HETKERN_DIRECTED_1(__frcp_##suffix, way, float, float, 1.0f / x)                           \
  HETKERN_DIRECTED_1(__drcp_##suffix, way, double, double, 1.0 / x)                          \
  HETKERN_DIRECTED_1(__int2float_##suffix, way, float, int, x)                               \
  HETKERN_DIRECTED_1(__uint2float_##suffix, way, float, unsigned, static_cast<long long>(x)) \
  HETKERN_DIRECTED_1(__ll2float_##suffix, way, float, long long, x)                          \
  HETKERN_DIRECTED_1(__ull2float_##suffix, way, float, unsigned long long, x)                \
  HETKERN_DIRECTED_1(__ll2double_##suffix, way, double, long long, x)                        \
  HETKERN_DIRECTED_1(__ull2double_##suffix, way, double, unsigned long long, x)              \
  HETKERN_DIRECTED_1(__double2float_##suffix, way, float, double, x)
HETKERN_DIRECTED(rz, FE_TOWARDZERO)
HETKERN_DIRECTED(ru, FE_UPWARD)
HETKERN_DIRECTED(rd, FE_DOWNWARD)
#undef HETKERN_DIRECTED
#undef HETKERN_DIRECTED_FMA
#undef HETKERN_DIRECTED_1
#undef HETKERN_DIRECTED_2
inline double __drcp_rn(double x) { return 1.0 / x; }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline int __double2hiint(double x) {
  return static_cast<int>(hetkern::emulation::same_bits<unsigned long long>(x) >> 32);
}
inline int __double2loint(double x) { return static_cast<int>(hetkern::emulation::same_bits<unsigned long long>(x)); }
inline double __hiloint2double(int high, int low) {
  return hetkern::emulation::same_bits<double>(static_cast<unsigned long long>(static_cast<unsigned>(high)) << 32 |
                                               static_cast<unsigned>(low));
}

// ---- Functions, in long double and rounded once. ---------------------------------------------------------------------------

namespace hetkern::emulation {

constexpr long double pi_ = 3.14159265358979323846264338327950288L;

// erfc(y) = z for z in (0, 1], by Newton's method on log erfc, which is nearly a parabola.
inline long double inverse_of_erfc(long double z) {
  const long double w = std::log(z * (2 - z)), t = 2 / (pi_ * 0.147L) + w / 2;
  long double y = std::sqrt(std::fmax(0.0L, std::sqrt(t * t - w / 0.147L) - t));
  for (int i = 0; i < 6; ++i) {
    const long double c = std::erfc(y);
    y += (std::log(c) - std::log(z)) * c * std::sqrt(pi_) / 2 * std::exp(y * y);
  }
  return y;
}
// erf(y) = x for x in [0, 1/2].
inline long double inverse_of_erf(long double x) {
  long double y = x * std::sqrt(pi_) / 2;
  for (int i = 0; i < 6; ++i) y -= (std::erf(y) - x) * std::sqrt(pi_) / 2 * std::exp(y * y);
  return y;
}
inline long double erfc_inverse(long double z) {
  if (!(z >= 0 && z <= 2)) return NAN;
  if (z == 0 || z == 2) return z == 0 ? INFINITY : -INFINITY;
  if (z > 0.5L && z < 1.5L) return std::copysign(inverse_of_erf(std::fabs(1 - z)), 1 - z);
  return z < 1 ? inverse_of_erfc(z) : -inverse_of_erfc(2 - z);
}
inline long double erf_inverse(long double x) {
  const long double a = std::fabs(x);
  return std::copysign(a <= 0.5L ? inverse_of_erf(a) : erfc_inverse(1 - a), x);
}
inline long double normal_inverse(long double p) { return -std::sqrt(2.0L) * erfc_inverse(2 * p); }
inline long double scaled_erfc(long double x) {
  if (x < 26) return std::exp(x * x) * std::erfc(x);
  long double term = 1, sum = 1;
  for (int k = 1; k < 9; ++k) sum += term *= -(2 * k - 1) / (2 * x * x);
  return sum / (x * std::sqrt(pi_));
}
inline long double norm_of(int n, const long double* p) {
  long double largest = 0, sum = 0;
  for (int i = 0; i < n; ++i) largest = std::isnan(p[i]) ? p[i] : std::fmax(largest, std::fabs(p[i]));
  for (int i = 0; i < n; ++i)
    if (std::isinf(p[i])) return INFINITY;
  if (!(largest > 0)) return largest;
  for (int i = 0; i < n; ++i) sum += p[i] / largest * (p[i] / largest);
  return largest * std::sqrt(sum);
}
template <class... T>
inline long double norm_of_these(T... x) {
  const long double all[] = {static_cast<long double>(x)...};
  return norm_of(sizeof...(x), all);
}
template <class T>
inline long double norm_of_array(int n, const T* p) {
  long double sum = 0;
  for (int i = 0; i < n; ++i) sum = norm_of_these(sum, p[i]);
  return sum;
}

}  // namespace hetkern::emulation

#define HETKERN_OF_ONE(name, value)    \
  inline double name(double y) {       \
    const long double x = y;           \
    return static_cast<double>(value); \
  }                                    \
  inline float name##f(float y) {      \
    const long double x = y;           \
    return static_cast<float>(value);  \
  }
HETKERN_OF_ONE(erfinv, hetkern::emulation::erf_inverse(x))
HETKERN_OF_ONE(erfcinv, hetkern::emulation::erfc_inverse(x))
HETKERN_OF_ONE(normcdfinv, hetkern::emulation::normal_inverse(x))
HETKERN_OF_ONE(erfcx, hetkern::emulation::scaled_erfc(x))
HETKERN_OF_ONE(rcbrt, 1 / std::cbrt(x))
#undef HETKERN_OF_ONE
#define HETKERN_NORM(T, f)                                                                                         \
  inline T rhypot##f(T x, T y) { return static_cast<T>(1 / hetkern::emulation::norm_of_these(x, y)); }             \
  inline T norm3d##f(T x, T y, T z) { return static_cast<T>(hetkern::emulation::norm_of_these(x, y, z)); }         \
  inline T rnorm3d##f(T x, T y, T z) { return static_cast<T>(1 / hetkern::emulation::norm_of_these(x, y, z)); }    \
  inline T norm4d##f(T x, T y, T z, T w) { return static_cast<T>(hetkern::emulation::norm_of_these(x, y, z, w)); } \
  inline T rnorm4d##f(T x, T y, T z, T w) {                                                                        \
    return static_cast<T>(1 / hetkern::emulation::norm_of_these(x, y, z, w));                                      \
  }                                                                                                                \
  inline T norm##f(int n, const T* p) { return static_cast<T>(hetkern::emulation::norm_of_array(n, p)); }          \
  inline T rnorm##f(int n, const T* p) { return static_cast<T>(1 / hetkern::emulation::norm_of_array(n, p)); }     \
  inline void sincospi##f(T x, T* s, T* c) { *s = sinpi##f(x), *c = cospi##f(x); }
HETKERN_NORM(float, f)
HETKERN_NORM(double, )
#undef HETKERN_NORM
inline float fdividef(float x, float y) { return x / y; }

// The C library's leaves the sign in a variable of the whole process.
inline double hetkern_lgamma(double x) {
  int sign;
  return ::lgamma_r(x, &sign);
}
inline float hetkern_lgamma(float x) {
  int sign;
  return ::lgammaf_r(x, &sign);
}
inline float hetkern_lgammaf(float x) { return hetkern_lgamma(x); }
namespace std {
using ::hetkern_lgamma;
using ::hetkern_lgammaf;
}  // namespace std
#define lgamma hetkern_lgamma
#define lgammaf hetkern_lgammaf
