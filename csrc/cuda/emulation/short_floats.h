// 16-bit floats as their bits, for files that include neither cuda_fp16.h nor cuda_bf16.h: inline PTX, textures.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

namespace hetkern::emulation {

template <int kFraction>
struct Short {
  uint16_t bits;
  static constexpr int kExponents = 15 - kFraction, kBias = (1 << (kExponents - 1)) - 1;
  explicit operator double() const {
    const int exponent = bits >> kFraction & ((1 << kExponents) - 1), fraction = bits & ((1 << kFraction) - 1);
    const double size = exponent == (1 << kExponents) - 1 ? fraction ? std::numeric_limits<double>::quiet_NaN()
                                                                     : std::numeric_limits<double>::infinity()
                        : exponent ? std::ldexp(1.0 + std::ldexp(fraction, -kFraction), exponent - kBias)
                                   : std::ldexp(fraction, 1 - kBias - kFraction);
    return bits >> 15 ? -size : size;
  }
  explicit operator float() const { return static_cast<float>(static_cast<double>(*this)); }
  // To nearest even, or toward zero.
  static Short from(double x, bool cut = false) {
    const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
    const uint16_t infinite = ((1 << kExponents) - 1) << kFraction;
    if (std::isnan(x)) return {uint16_t{0x7fff}};
    x = std::fabs(x);
    if (std::isinf(x)) return {static_cast<uint16_t>(sign | infinite)};
    int exponent = x > 0 ? std::ilogb(x) : 1 - kBias;
    if (exponent < 1 - kBias) exponent = 1 - kBias;
    const double scaled = std::ldexp(x, kFraction - exponent),
                 whole = cut ? std::trunc(scaled) : std::nearbyint(scaled);
    const auto number = static_cast<int64_t>(whole) + (int64_t{exponent + kBias - 1} << kFraction);
    const int64_t most = cut ? infinite - 1 : infinite;
    return {static_cast<uint16_t>(sign | (number > most ? most : number))};
  }
  explicit Short(double x) : bits(from(x).bits) {}
  constexpr Short(uint16_t b) : bits(b) {}
  Short() = default;
};
using F16 = Short<10>;
using BF16 = Short<7>;

}  // namespace hetkern::emulation
