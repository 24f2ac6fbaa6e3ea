// Arithmetic and conversions of inline PTX, each for any type that its instruction takes.                        (part of inline_ptx.h)
//
// Products and sums that carry no rounding may be fused, as ptxas may. Approximate functions are the exact ones.
#pragma once

namespace hetkern::emulation::inline_ptx {

// ---- Arithmetic of integers. -----------------------------------------------------------------------------------------------

template <class T>
inline T shl(T x, uint32_t by) {
  return by < sizeof(T) * 8 ? static_cast<T>(static_cast<std::make_unsigned_t<T>>(x) << by) : T{};
}
template <class T>
inline T shr(T x, uint32_t by) {
  constexpr uint32_t kMost = sizeof(T) * 8 - 1;
  return by <= kMost ? static_cast<T>(x >> by) : std::is_signed_v<T> ? static_cast<T>(x >> kMost) : T{};
}
template <class T>
inline auto wide_product(T a, T b) {
  if constexpr (sizeof(T) == 2)
    return static_cast<std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>(int64_t{a} * int64_t{b});
  else
    return std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>{a} * b;
}
template <class T>
inline T high_product(T a, T b) {
  if constexpr (sizeof(T) == 8)
    return static_cast<T>(std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>{a} * b >> 64);
  else
    return static_cast<T>(wide_product(a, b) >> (sizeof(T) * 8));
}
template <class T>
inline T low_product(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
inline T divided(T a, T b) {  // by zero: all bits
  using U = std::make_unsigned_t<T>;
  if (b == 0) return static_cast<T>(~U{});
  if (std::is_signed_v<T> && b == static_cast<T>(~U{})) return static_cast<T>(U{} - static_cast<U>(a));
  return static_cast<T>(a / b);
}
template <class T>
inline T remainder(T a, T b) {
  return b == 0 ? a : static_cast<T>(a - low_product(divided(a, b), b));
}
template <class T>
inline T field(T x, uint32_t start, uint32_t length) {  // bfe
  constexpr unsigned kBits = sizeof(T) * 8;
  start &= 255, length &= 255;
  if (length == 0) return 0;
  const unsigned last = start + length - 1 < kBits ? start + length - 1 : kBits - 1;
  const bool negative = std::is_signed_v<T> && x >> last & 1;
  T result = 0;
  for (unsigned i = 0; i < kBits; ++i) {
    const bool inside = i < length && start + i < kBits;
    if (inside ? x >> (start + i) & 1 : negative) result = static_cast<T>(result | shl(T{1}, i));
  }
  return result;
}
template <class T>
inline T inserted(T field, T x, uint32_t start, uint32_t length) {  // bfi
  start &= 255, length &= 255;
  for (unsigned i = 0; i < length && start + i < sizeof(T) * 8; ++i)
    x = static_cast<T>((x & ~shl(T{1}, start + i)) | shl(static_cast<T>(field >> i & 1), start + i));
  return x;
}
template <class T>
inline uint32_t leading_zeros(T x) {
  uint32_t n = 0;
  while (n < sizeof(T) * 8 && !(x >> (sizeof(T) * 8 - 1 - n) & 1)) ++n;
  return n;
}
template <class T>
inline T reversed(T x) {
  T result = 0;
  for (unsigned i = 0; i < sizeof(T) * 8; ++i) result = static_cast<T>(result << 1 | (x >> i & 1));
  return result;
}
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (unsigned row = 0; row < 8; ++row)
    if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return result;
}
inline uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const uint32_t which = selector >> 4 * i & 15, byte = both >> 8 * (which & 7) & 255;
    result |= (which & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return result;
}
template <class A, class B>
inline uint32_t dot4(uint32_t a, uint32_t b, uint32_t sum) {
  for (unsigned i = 0; i < 4; ++i)
    sum += static_cast<uint32_t>(int{static_cast<A>(a >> 8 * i)} * int{static_cast<B>(b >> 8 * i)});
  return sum;
}

// ---- Arithmetic of floating numbers. ---------------------------------------------------------------------------------------

template <class T>
inline T rounded(T x) {  // that the compiler fuses with nothing
  if constexpr (std::is_floating_point_v<T>) asm("" : "+x"(x));
  return x;
}
template <class T>
inline T flushed(T x) {
  if constexpr (std::is_same_v<T, float>) return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
  return x;
}
template <class T>
inline T saturated(T x) {
  return x >= T{1} ? T{1} : x > T{} ? x : T{};
}
// Exact but for one rounding: by a double whose last bit tells whether there was more.
inline double to_odd(double a, double b) {
  const double sum = a + b, of_b = sum - a, error = (a - (sum - of_b)) + (b - of_b);
  uint64_t bits;
  __builtin_memcpy(&bits, &sum, 8);
  if (error == 0 || !std::isfinite(sum) || bits & 1) return sum;
  bits += (error > 0) == (sum > 0) ? 1 : -1;
  double odd;
  __builtin_memcpy(&odd, &bits, 8);
  return odd;
}
template <class T>
inline T add(T a, T b) {
  if constexpr (is_short<T>)
    return T(to_odd(static_cast<double>(a), static_cast<double>(b)));
  else
    return a + b;
}
template <class T>
inline T mul(T a, T b) {
  if constexpr (is_short<T>)
    return T(static_cast<double>(a) * static_cast<double>(b));
  else
    return a * b;
}
template <class T>
inline T fused(T a, T b, T c) {
  if constexpr (is_short<T>)
    return T(to_odd(rounded(static_cast<double>(a) * static_cast<double>(b)), static_cast<double>(c)));
  else
    return std::fma(a, b, c);
}
template <class T>
inline T quotient(T a, T b) {
  return a / b;
}
template <class T>
inline T negated(T x) {
  if constexpr (is_short<T>)
    return {static_cast<uint16_t>(x.bits ^ 0x8000)};
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(std::make_unsigned_t<T>{} - static_cast<std::make_unsigned_t<T>>(x));
  else
    return -x;
}
template <class T>
inline T absolute(T x) {
  if constexpr (is_short<T>)
    return {static_cast<uint16_t>(x.bits & 0x7fff)};
  else if constexpr (std::is_integral_v<T>)
    return x < T{} ? negated(x) : x;
  else
    return std::fabs(x);
}
template <class T>
inline T sub(T a, T b) {
  if constexpr (is_short<T>)
    return add(a, negated(b));
  else
    return a - b;
}
// -0 below +0; a NaN is dropped, or stays.
template <class T>
inline T largest(T a, T b, bool keep_nan) {
  if constexpr (is_float<T>) {
    const auto x = static_cast<double>(a), y = static_cast<double>(b);
    if (std::isnan(x) || std::isnan(y)) {
      if (keep_nan || (std::isnan(x) && std::isnan(y))) return T(std::numeric_limits<double>::quiet_NaN());
      return std::isnan(x) ? b : a;
    }
    return x > y || (x == y && !std::signbit(x)) ? a : b;
  } else {
    return a < b ? b : a;
  }
}
template <class T>
inline T smallest(T a, T b, bool keep_nan) {
  if constexpr (is_float<T>)
    return negated(largest(negated(a), negated(b), keep_nan));
  else
    return b < a ? b : a;
}
template <class T, class F>
inline T applied(T x, F f) {
  if constexpr (std::is_same_v<T, double>)
    return f(x);
  else
    return static_cast<T>(f(static_cast<double>(x)));
}

// Both halves of 32 bits.
template <class T>
inline uint32_t packed(T low, T high) {
  return low.bits | uint32_t{high.bits} << 16;
}
template <class T, class F, class... R>
inline uint32_t pairwise(F f, R... r) {
  return packed(f(T(static_cast<uint16_t>(r))...), f(T(static_cast<uint16_t>(r >> 16))...));
}

// For comparisons.
template <class T>
inline auto plain(T x) {
  if constexpr (is_short<T>)
    return static_cast<double>(x);
  else
    return x;
}
template <class T>
inline bool unordered(T a, T b) {
  return a != a || b != b;
}

// ---- Conversions. ----------------------------------------------------------------------------------------------------------

enum class Way { nearest, zero, down, up };

inline double whole(double x, Way way) {
  return way == Way::nearest ? std::nearbyint(x)
         : way == Way::zero  ? std::trunc(x)
         : way == Way::down  ? std::floor(x)
                             : std::ceil(x);
}
template <class To, class From>
inline To number(From x, Way way, bool to_whole, bool saturate) {
  if constexpr (is_float<To> && std::is_integral_v<From>) {
    if constexpr (is_short<To>)
      return To(static_cast<double>(x));
    else
      return static_cast<To>(x);
  } else if constexpr (is_float<To>) {
    auto exact = static_cast<double>(x);
    if (to_whole) exact = whole(exact, way);
    if (saturate) exact = saturated(exact);
    if constexpr (is_short<To>) return To::from(exact, way == Way::zero && !to_whole);
    const To nearest = static_cast<To>(exact);
    if constexpr (std::is_same_v<To, float>)
      if (way == Way::zero && !to_whole && std::fabs(nearest) > std::fabs(exact)) return std::nextafter(nearest, 0.0f);
    return nearest;
  } else if constexpr (is_float<From>) {
    constexpr int kBits = sizeof(To) * 8 - std::is_signed_v<To>;
    const double exact = whole(static_cast<double>(x), way);
    if (std::isnan(exact)) {
      constexpr bool kLowest = std::is_same_v<From, double> || sizeof(To) == 8;
      return kLowest ? static_cast<To>(std::make_unsigned_t<To>{1} << (sizeof(To) * 8 - 1)) : To{};
    }
    if (exact >= std::ldexp(1.0, kBits)) return std::numeric_limits<To>::max();
    if (exact < static_cast<double>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    return static_cast<To>(exact);
  } else {
    if (saturate) {
      const __int128 value = x, most = std::numeric_limits<To>::max(), least = std::numeric_limits<To>::min();
      return static_cast<To>(value > most ? most : value < least ? least : value);
    }
    return static_cast<To>(x);
  }
}
inline uint32_t to_tf32(uint32_t bits) {  // to nearest, halves away from zero
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

}  // namespace hetkern::emulation::inline_ptx
