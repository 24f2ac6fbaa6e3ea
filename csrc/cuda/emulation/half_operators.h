// Arithmetic of half and bfloat16 as ptxas makes it: a product that feeds a sum is one fused operation.  (headers/cuda_fp16.h, cuda_bf16.h)
//
// A product is a number that still knows its factors; whoever stores it in a variable of its own type rounds it.
#pragma once
#include "cuda_words.h"

namespace hetkern::emulation {

template <class T>
T half_sum(T, T);
template <class T>
T half_product(T, T);
template <class T>
T half_quotient(T, T);
template <class T>
T half_negative(T);
template <class T>
T half_one();
template <class T>
T half_fused(T, T, T);

#if !defined(HETKERN_FMAD) || HETKERN_FMAD
template <class T>
struct Product : T {
  T first, second;
  Product(T value, T first, T second) : T(value), first(first), second(second) {}
};
#endif

}  // namespace hetkern::emulation

#define HETKERN_HALF_FUNCTION(R, name, A, B, value) \
  inline R name(const A& x, const B& y) { return value; }
#define HETKERN_FUSED ::hetkern::emulation::half_fused
#define HETKERN_MINUS ::hetkern::emulation::half_negative
#define HETKERN_HALF_PLAIN_SUMS(T, P)                                                                                \
  HETKERN_HALF_FUNCTION(T, hetkern_half_sum, T, T, ::hetkern::emulation::half_sum<T>(x, y))                          \
  HETKERN_HALF_FUNCTION(T, hetkern_half_difference, T, T, ::hetkern::emulation::half_sum<T>(x, HETKERN_MINUS<T>(y))) \
  HETKERN_HALF_FUNCTION(P, operator*, T, T, hetkern_half_product(x, y))                                              \
  HETKERN_HALF_FUNCTION(T, operator+, T, T, hetkern_half_sum(x, y))                                                  \
  HETKERN_HALF_FUNCTION(T, operator-, T, T, hetkern_half_difference(x, y))
#if !defined(HETKERN_FMAD) || HETKERN_FMAD
#define HETKERN_HALF_PRODUCT(T) using Product_of_##T = ::hetkern::emulation::Product<T>;
#define HETKERN_HALF_FUSED_SUMS(T, P, A, B, fused, other)                                              \
  HETKERN_HALF_FUNCTION(T, hetkern_half_sum, A, B, HETKERN_FUSED<T>(fused.first, fused.second, other)) \
  HETKERN_HALF_FUNCTION(T, operator+, A, B, hetkern_half_sum(x, y))                                    \
  HETKERN_HALF_FUNCTION(T, operator-, A, B, hetkern_half_difference(x, y))
#define HETKERN_HALF_SUMS_OF(T, P)                                                                                  \
  inline P hetkern_half_product(const T& x, const T& y) {                                                           \
    return {::hetkern::emulation::half_product<T>(x, y), x, y};                                                     \
  }                                                                                                                 \
  HETKERN_HALF_PLAIN_SUMS(T, P)                                                                                     \
  HETKERN_HALF_FUNCTION(T, hetkern_half_difference, P, T, HETKERN_FUSED<T>(x.first, x.second, HETKERN_MINUS<T>(y))) \
  HETKERN_HALF_FUNCTION(T, hetkern_half_difference, P, P, HETKERN_FUSED<T>(x.first, x.second, HETKERN_MINUS<T>(y))) \
  HETKERN_HALF_FUNCTION(T, hetkern_half_difference, T, P, HETKERN_FUSED<T>(HETKERN_MINUS<T>(y.first), y.second, x)) \
  HETKERN_HALF_FUSED_SUMS(T, P, P, T, x, y)                                                                         \
  HETKERN_HALF_FUSED_SUMS(T, P, T, P, y, x)                                                                         \
  HETKERN_HALF_FUSED_SUMS(T, P, P, P, x, y)                                                                         \
  inline P operator-(const P& x) { return {HETKERN_MINUS<T>(x), HETKERN_MINUS<T>(x.first), x.second}; }             \
  inline T& operator+=(T& x, const P& y) { return x = x + y; }                                                      \
  inline T& operator-=(T& x, const P& y) { return x = x - y; }
#define HETKERN_HALF_SUMS(T) \
  HETKERN_HALF_PRODUCT(T)    \
  HETKERN_HALF_SUMS_OF(T, Product_of_##T)
#else
#define HETKERN_HALF_SUMS(T)                                                                                    \
  inline T hetkern_half_product(const T& x, const T& y) { return ::hetkern::emulation::half_product<T>(x, y); } \
  HETKERN_HALF_PLAIN_SUMS(T, T)
#endif

#define HETKERN_HALF_OPERATORS(T)                                                                     \
  HETKERN_HALF_SUMS(T)                                                                                \
  inline T operator/(const T& x, const T& y) { return ::hetkern::emulation::half_quotient<T>(x, y); } \
  inline T operator+(const T& x) { return x; }                                                        \
  inline T operator-(const T& x) { return ::hetkern::emulation::half_negative<T>(x); }                \
  inline T& operator+=(T& x, const T& y) { return x = x + y; }                                        \
  inline T& operator-=(T& x, const T& y) { return x = x - y; }                                        \
  inline T& operator*=(T& x, const T& y) { return x = x * y; }                                        \
  inline T& operator/=(T& x, const T& y) { return x = x / y; }                                        \
  inline T& operator++(T& x) { return x = x + ::hetkern::emulation::half_one<T>(); }                  \
  inline T& operator--(T& x) { return x = x - ::hetkern::emulation::half_one<T>(); }                  \
  inline T operator++(T& x, int) {                                                                    \
    const T before = x;                                                                               \
    ++x;                                                                                              \
    return before;                                                                                    \
  }                                                                                                   \
  inline T operator--(T& x, int) {                                                                    \
    const T before = x;                                                                               \
    --x;                                                                                              \
    return before;                                                                                    \
  }

// Comparisons are ordered: false where one is NaN, and != is not.
#define HETKERN_HALF_COMPARED(T, op) \
  inline bool operator op(const T& x, const T& y) { return static_cast<float>(x) op static_cast<float>(y); }
#define HETKERN_HALF_ONE(T)    \
  HETKERN_HALF_COMPARED(T, ==) \
  HETKERN_HALF_COMPARED(T, !=) \
  HETKERN_HALF_COMPARED(T, <)  \
  HETKERN_HALF_COMPARED(T, >)  \
  HETKERN_HALF_COMPARED(T, <=) \
  HETKERN_HALF_COMPARED(T, >=)
#define HETKERN_HALF_BOTH_COMPARED(T, op) \
  inline bool operator op(const T& x, const T& y) { return x.x op y.x && x.y op y.y; }
#define HETKERN_HALF_PAIR(T)        \
  HETKERN_HALF_BOTH_COMPARED(T, ==) \
  HETKERN_HALF_BOTH_COMPARED(T, !=) \
  HETKERN_HALF_BOTH_COMPARED(T, <)  \
  HETKERN_HALF_BOTH_COMPARED(T, >)  \
  HETKERN_HALF_BOTH_COMPARED(T, <=) \
  HETKERN_HALF_BOTH_COMPARED(T, >=)

namespace hetkern::emulation {

template <class T>
inline T half_sum(T x, T y) {  // by value: a pair is one access of its memory
  if constexpr (is_half<T>)
    return T(static_cast<float>(x) + static_cast<float>(y));
  else
    return T(half_sum(x.x, y.x), half_sum(x.y, y.y));
}
template <class T>
inline T half_product(T x, T y) {  // by value: a pair is one access of its memory
  if constexpr (is_half<T>)
    return T(static_cast<float>(x) * static_cast<float>(y));
  else
    return T(half_product(x.x, y.x), half_product(x.y, y.y));
}
template <class T>
inline T half_quotient(T x, T y) {  // by value: a pair is one access of its memory
  if constexpr (is_half<T>)
    return T(static_cast<float>(x) / static_cast<float>(y));
  else
    return T(half_quotient(x.x, y.x), half_quotient(x.y, y.y));
}
template <class T>
inline T half_negative(T x) {
  if constexpr (is_half<T>)
    return same_bits<T>(static_cast<uint16_t>(same_bits<uint16_t>(x) ^ 0x8000));
  else
    return T(half_negative(x.x), half_negative(x.y));
}
template <class T>
inline T half_one() {
  if constexpr (is_half<T>)
    return T(1.0f);
  else
    return T(half_one<decltype(T::x)>(), half_one<decltype(T::x)>());
}
template <class T>
inline T half_fused(T x, T y, T z) {
  if constexpr (is_half<T>)
    return __hfma(x, y, z);
  else
    return T(__hfma(x.x, y.x, z.x), __hfma(x.y, y.y, z.y));
}

}  // namespace hetkern::emulation
