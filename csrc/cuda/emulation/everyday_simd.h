// Bytes and halves of a word, each for itself: __vadd4 and its kin.                                    (part of cuda_words.h)
#pragma once

namespace hetkern::emulation {

// Part: int8_t, uint8_t, int16_t or uint16_t; `of` sees parts widened to int, and the low bits of its result count.
template <class Part, class Of>
inline unsigned by_parts(unsigned a, unsigned b, Of of) {
  unsigned result = 0;
  constexpr unsigned width = 8 * sizeof(Part), mask = (1u << width) - 1;
  for (unsigned at = 0; at < 32; at += width)
    result |= (static_cast<unsigned>(of(int{static_cast<Part>(a >> at)}, int{static_cast<Part>(b >> at)})) & mask)
              << at;
  return result;
}
template <class Part>
inline int clamped(int x) {
  constexpr int least = std::numeric_limits<Part>::min(), most = std::numeric_limits<Part>::max();
  return x < least ? least : x > most ? most : x;
}

}  // namespace hetkern::emulation

#define HETKERN_PARTS(name, Part, value)                                                   \
  inline unsigned name(unsigned a, unsigned b) {                                           \
    return ::hetkern::emulation::by_parts<Part>(a, b, [](int x, int y) { return value; }); \
  }
#define HETKERN_PARTS_OF(n, S, U)                                                              \
  HETKERN_PARTS(__vadd##n, U, x + y)                                                           \
  HETKERN_PARTS(__vsub##n, U, x - y)                                                           \
  HETKERN_PARTS(__vaddss##n, S, ::hetkern::emulation::clamped<S>(x + y))                       \
  HETKERN_PARTS(__vsubss##n, S, ::hetkern::emulation::clamped<S>(x - y))                       \
  HETKERN_PARTS(__vaddus##n, U, ::hetkern::emulation::clamped<U>(x + y))                       \
  HETKERN_PARTS(__vsubus##n, U, ::hetkern::emulation::clamped<U>(x - y))                       \
  HETKERN_PARTS(__vmaxs##n, S, x < y ? y : x)                                                  \
  HETKERN_PARTS(__vmins##n, S, y < x ? y : x)                                                  \
  HETKERN_PARTS(__vmaxu##n, U, x < y ? y : x)                                                  \
  HETKERN_PARTS(__vminu##n, U, y < x ? y : x)                                                  \
  HETKERN_PARTS(__vavgu##n, U, (x + y + 1) / 2)                                                \
  HETKERN_PARTS(__vabsdiffu##n, U, x < y ? y - x : x - y)                                      \
  HETKERN_PARTS(__vabsdiffs##n, S, x < y ? y - x : x - y)                                      \
  HETKERN_PARTS(__vhaddu##n, U, (x + y) / 2)                                                   \
  HETKERN_PARTS(__vcmples##n, S, x <= y ? -1 : 0)                                              \
  HETKERN_PARTS(__vcmpleu##n, U, x <= y ? -1 : 0)                                              \
  HETKERN_PARTS(__vseteq##n, U, x == y)                                                        \
  HETKERN_PARTS(__vsetne##n, U, x != y)                                                        \
  HETKERN_PARTS(__vsetgts##n, S, x > y)                                                        \
  HETKERN_PARTS(__vsetgtu##n, U, x > y)                                                        \
  HETKERN_PARTS(__vsetges##n, S, x >= y)                                                       \
  HETKERN_PARTS(__vsetgeu##n, U, x >= y)                                                       \
  HETKERN_PARTS(__vsetlts##n, S, x < y)                                                        \
  HETKERN_PARTS(__vsetltu##n, U, x < y)                                                        \
  HETKERN_PARTS(__vsetles##n, S, x <= y)                                                       \
  HETKERN_PARTS(__vsetleu##n, U, x <= y)                                                       \
  HETKERN_PARTS(__vcmpeq##n, U, x == y ? -1 : 0)                                               \
  HETKERN_PARTS(__vcmpne##n, U, x != y ? -1 : 0)                                               \
  HETKERN_PARTS(__vcmpgts##n, S, x > y ? -1 : 0)                                               \
  HETKERN_PARTS(__vcmpgtu##n, U, x > y ? -1 : 0)                                               \
  HETKERN_PARTS(__vcmpges##n, S, x >= y ? -1 : 0)                                              \
  HETKERN_PARTS(__vcmpgeu##n, U, x >= y ? -1 : 0)                                              \
  HETKERN_PARTS(__vcmplts##n, S, x < y ? -1 : 0)                                               \
  HETKERN_PARTS(__vcmpltu##n, U, x < y ? -1 : 0)                                               \
  inline unsigned __vneg##n(unsigned a) { return __vsub##n(0, a); }                            \
  inline unsigned __vabs##n(unsigned a) {                                                      \
    return ::hetkern::emulation::by_parts<S>(a, a, [](int x, int) { return x < 0 ? -x : x; }); \
  }
HETKERN_PARTS_OF(2, int16_t, uint16_t)
HETKERN_PARTS_OF(4, int8_t, uint8_t)
#undef HETKERN_PARTS_OF
#undef HETKERN_PARTS
// Sums of absolute differences.
inline unsigned __vsadu4(unsigned a, unsigned b) {
  const unsigned d = __vabsdiffu4(a, b);
  return (d & 0xff) + (d >> 8 & 0xff) + (d >> 16 & 0xff) + (d >> 24);
}
inline unsigned __vsads4(unsigned a, unsigned b) { return __vsadu4(a ^ 0x80808080u, b ^ 0x80808080u); }
inline unsigned __vsadu2(unsigned a, unsigned b) {
  const unsigned d = __vabsdiffu2(a, b);
  return (d & 0xffff) + (d >> 16);
}
inline unsigned __vsads2(unsigned a, unsigned b) { return __vsadu2(a ^ 0x80008000u, b ^ 0x80008000u); }
