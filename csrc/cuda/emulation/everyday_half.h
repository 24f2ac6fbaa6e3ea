// Arithmetic of __half, __nv_bfloat16 and their pairs: one rounding, from float or double.              (part of cuda_words.h)
//
// Templates, so that __half stays unknown where the file does not include cuda_fp16.h, as under nvcc.
#pragma once

namespace hetkern::emulation {
template <class T>
struct Product;  // of two numbers, not rounded yet: half_operators.h
template <class T>
struct RoundedTo {
  using type = T;
};
template <class T>
struct RoundedTo<Product<T>> {
  using type = T;
};
template <class T>
using rounded = typename RoundedTo<T>::type;
}  // namespace hetkern::emulation

// Functions of numbers x of the type T, which a product of two is as well.
#define HETKERN_OF_TYPE(is, Argument)                                        \
  template <class Argument, class T = hetkern::emulation::rounded<Argument>, \
            std::enable_if_t<hetkern::emulation::is<T>, int> = 0>
#define HETKERN_HALF HETKERN_OF_TYPE(is_half, Number)
#define HETKERN_HALF2 HETKERN_OF_TYPE(is_half2, Number)
#define HETKERN_FUSED(is)                                                                                      \
  template <class X, class Y, class Z, class T = hetkern::emulation::rounded<X>,                               \
            std::enable_if_t<hetkern::emulation::is<T> && std::is_same_v<T, hetkern::emulation::rounded<Y>> && \
                                 std::is_same_v<T, hetkern::emulation::rounded<Z>>,                            \
                             int> = 0>

// A fused product and sum rounds once: the double is made odd where it is not exact, and then rounds as the exact value would.
HETKERN_FUSED(is_half) inline T __hfma(const X& x, const Y& y, const Z& z) {
  const double a = static_cast<float>(x), b = static_cast<float>(y), c = static_cast<float>(z);
  const double product = a * b, sum = product + c;  // the product is exact
  const double part = sum - product, lost = (product - (sum - part)) + (c - part);
  double odd = sum;
  if (lost != 0 && std::isfinite(sum) && !(hetkern::emulation::same_bits<uint64_t>(sum) & 1))
    odd = std::nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
  const float nearest = static_cast<float>(odd);
  float single = nearest;  // the same from double to float
  if (std::isfinite(nearest) && nearest != odd && !(hetkern::emulation::same_bits<uint32_t>(nearest) & 1))
    single = std::nextafter(nearest, odd > nearest ? INFINITY : -INFINITY);
  return T(single);
}
// .relu and .sat of what was rounded: a NaN of relu stays, one of sat is 0.
#define HETKERN_FUSED_AND(name, cut)                                                    \
  HETKERN_FUSED(is_half) inline T __hfma_##name(const X& x, const Y& y, const Z& z) {   \
    const T value = __hfma(x, y, z);                                                    \
    const float v = static_cast<float>(value);                                          \
    return cut;                                                                         \
  }                                                                                     \
  HETKERN_FUSED(is_half2) inline T __hfma2_##name(const X& x, const Y& y, const Z& z) { \
    T result;                                                                           \
    result.x = __hfma_##name(x.x, y.x, z.x), result.y = __hfma_##name(x.y, y.y, z.y);   \
    return result;                                                                      \
  }
HETKERN_FUSED_AND(relu, v <= 0 ? T(0.0f) : value)
HETKERN_FUSED_AND(sat, !(v > 0) ? T(0.0f) : v > 1 ? T(1.0f) : value)
#undef HETKERN_FUSED_AND
#define HETKERN_TO_INTEGER(Int, word)                                                  \
  HETKERN_HALF inline Int __half2##word(const Number& x) {                             \
    return hetkern::emulation::to_integer<Int>(std::nearbyint(static_cast<float>(x))); \
  }                                                                                    \
  HETKERN_HALF inline Int __bfloat162##word(const Number& x) { return __half2##word(x); }
HETKERN_TO_INTEGER(int, int_rn)
HETKERN_TO_INTEGER(unsigned, uint_rn)
HETKERN_TO_INTEGER(short, short_rn)
HETKERN_TO_INTEGER(unsigned short, ushort_rn)
HETKERN_TO_INTEGER(long long, ll_rn)
HETKERN_TO_INTEGER(unsigned long long, ull_rn)
#undef HETKERN_TO_INTEGER
#define HETKERN_HALF_FUNCTION(name, value)         \
  HETKERN_HALF inline T name(const Number& half) { \
    const float x = static_cast<float>(half);      \
    return T(static_cast<float>(value));           \
  }
HETKERN_HALF_FUNCTION(hexp, std::exp(x))
HETKERN_HALF_FUNCTION(hexp2, std::exp2(x))
HETKERN_HALF_FUNCTION(hlog, std::log(x))
HETKERN_HALF_FUNCTION(hlog2, std::log2(x))
HETKERN_HALF_FUNCTION(hexp10, std::exp2(x * 3.321928094887362))
HETKERN_HALF_FUNCTION(hlog10, std::log10(x))
HETKERN_HALF_FUNCTION(htanh_approx, std::tanh(x))
HETKERN_HALF_FUNCTION(hsqrt, std::sqrt(x))
HETKERN_HALF_FUNCTION(hrsqrt, 1.0f / std::sqrt(x))
HETKERN_HALF_FUNCTION(hrcp, 1.0f / x)
HETKERN_HALF_FUNCTION(hsin, std::sin(x))
HETKERN_HALF_FUNCTION(hcos, std::cos(x))
HETKERN_HALF_FUNCTION(htanh, std::tanh(x))
HETKERN_HALF_FUNCTION(hfloor, std::floor(x))
HETKERN_HALF_FUNCTION(hceil, std::ceil(x))
HETKERN_HALF_FUNCTION(htrunc, std::trunc(x))
HETKERN_HALF_FUNCTION(hrint, std::nearbyint(x))
#undef HETKERN_HALF_FUNCTION
HETKERN_FUSED(is_half2) inline T __hfma2(const X& x, const Y& y, const Z& z) {
  T result;
  result.x = __hfma(x.x, y.x, z.x), result.y = __hfma(x.y, y.y, z.y);
  return result;
}
#define HETKERN_HALF2_FUNCTION(name, one)           \
  HETKERN_HALF2 inline T name(const Number& both) { \
    T result;                                       \
    result.x = one(both.x), result.y = one(both.y); \
    return result;                                  \
  }
HETKERN_HALF2_FUNCTION(h2exp, hexp)
HETKERN_HALF2_FUNCTION(h2exp2, hexp2)
HETKERN_HALF2_FUNCTION(h2exp10, hexp10)
HETKERN_HALF2_FUNCTION(h2log, hlog)
HETKERN_HALF2_FUNCTION(h2log2, hlog2)
HETKERN_HALF2_FUNCTION(h2log10, hlog10)
HETKERN_HALF2_FUNCTION(h2sin, hsin)
HETKERN_HALF2_FUNCTION(h2cos, hcos)
HETKERN_HALF2_FUNCTION(h2tanh, htanh)
HETKERN_HALF2_FUNCTION(h2tanh_approx, htanh)
HETKERN_HALF2_FUNCTION(h2floor, hfloor)
HETKERN_HALF2_FUNCTION(h2ceil, hceil)
HETKERN_HALF2_FUNCTION(h2trunc, htrunc)
HETKERN_HALF2_FUNCTION(h2rint, hrint)
HETKERN_HALF2_FUNCTION(h2sqrt, hsqrt)
HETKERN_HALF2_FUNCTION(h2rsqrt, hrsqrt)
HETKERN_HALF2_FUNCTION(h2rcp, hrcp)
#undef HETKERN_HALF2_FUNCTION
#undef HETKERN_HALF2
#undef HETKERN_HALF
#undef HETKERN_FUSED
#undef HETKERN_OF_TYPE
