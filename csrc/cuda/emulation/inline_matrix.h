// ldmatrix, stmatrix, movmatrix and mma of inline PTX: a warp's small matrices.                               (part of inline_ptx.h)
//
// Which lane holds what: PTX ISA, "Matrix Fragments for mma.m8n8k4" and those after it. Products are exact, and sums too but for
// their last rounding: a GPU truncates more. Integers wrap or saturate, as asked.
#pragma once

namespace hetkern::emulation::inline_ptx {

// All lanes' registers, lane by lane.
template <class R, unsigned n>
inline void of_all_lanes(const R (&mine)[n], R (&all)[32][n], const char* what, Site site) {
  if (gather(~0u, mine, all, sizeof mine, site) != ~0u) fail(site, "%s wants all 32 lanes of a warp", what);
}

// The row of a matrix is named by one lane, which loads it in one access; other lanes' addresses are not looked at.
template <unsigned n>
inline void load_matrices(uint32_t (&to)[n], const void* row, bool transposed, Site site = Site::here()) {
  const unsigned lane = current->lane;
  ptx::Bytes16 mine{};
  if (lane < 8 * n) {
    check_aligned(row, 16, site);
    check_shared(row, 16, "ldmatrix", site);
    mine = *static_cast<const ptx::Bytes16*>(row);
  }
  uint16_t all[32][8];
  if (gather(~0u, &mine, all, 16, site) != ~0u) fail(site, "ldmatrix wants all 32 lanes of a warp");
  for (unsigned matrix = 0; matrix < n; ++matrix) {
    const unsigned i = lane / 4, k = lane % 4 * 2;
    const auto& rows = all + matrix * 8;
    to[matrix] = transposed ? rows[k][i] | uint32_t{rows[k + 1][i]} << 16 : rows[i][k] | uint32_t{rows[i][k + 1]} << 16;
  }
}

inline uint32_t half_of(uint32_t pair, unsigned which) { return pair >> 16 * which & 0xffff; }

template <unsigned n>
inline void store_matrices(void* row, const uint32_t (&from)[n], bool transposed, Site site = Site::here()) {
  uint32_t all[32][n];
  of_all_lanes(from, all, "stmatrix", site);
  const unsigned lane = current->lane, i = lane % 8, matrix = lane / 8;
  if (matrix >= n) return;
  check_aligned(row, 16, site);
  check_shared(row, 16, "stmatrix", site);
  uint16_t mine[8];
  for (unsigned k = 0; k < 8; ++k)
    mine[k] = static_cast<uint16_t>(transposed ? half_of(all[k * 4 + i / 2][matrix], i % 2)
                                               : half_of(all[i * 4 + k / 2][matrix], k % 2));
  ptx::Bytes16 bytes;
  __builtin_memcpy(&bytes, mine, 16);
  *static_cast<ptx::Bytes16*>(row) = bytes;
}

inline uint32_t transposed(uint32_t mine, Site site = Site::here()) {  // movmatrix
  const uint32_t from[1] = {mine};
  uint32_t all[32][1];
  of_all_lanes(from, all, "movmatrix", site);
  const unsigned i = current->lane / 4, k = current->lane % 4 * 2;
  return half_of(all[k * 4 + i / 2][0], i % 2) | half_of(all[(k + 1) * 4 + i / 2][0], i % 2) << 16;
}

// ---- Elements. -------------------------------------------------------------------------------------------------------------

struct Tf32;
struct E4M3;
struct E5M2;
struct S4;
struct U4;
template <class E>
struct Element {
  static constexpr unsigned kBits = sizeof(E) * 8;
  static auto of(Bits<sizeof(E)> bits) {
    if constexpr (std::is_integral_v<E>)
      return int{as<E>(bits)};
    else
      return static_cast<double>(as<E>(bits));
  }
};
template <>
struct Element<Tf32> {
  static constexpr unsigned kBits = 32;
  static double of(uint32_t bits) { return as<float>(bits & ~0x1fffu); }
};
template <>
struct Element<E4M3> {
  static constexpr unsigned kBits = 8;
  static double of(uint8_t bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    const double size = (bits & 127) == 127 ? std::numeric_limits<double>::quiet_NaN()
                        : exponent          ? std::ldexp(8 + fraction, exponent - 10)
                                            : std::ldexp(fraction, -9);
    return bits & 128 ? -size : size;
  }
};
template <>
struct Element<E5M2> {
  static constexpr unsigned kBits = 8;
  static double of(uint8_t bits) { return static_cast<double>(F16(static_cast<uint16_t>(bits << 8))); }
};
template <>
struct Element<S4> {
  static constexpr unsigned kBits = 4;
  static int of(uint8_t bits) { return (bits & 15) - (bits & 8 ? 16 : 0); }
};
template <>
struct Element<U4> {
  static constexpr unsigned kBits = 4;
  static int of(uint8_t bits) { return bits & 15; }
};

// Of a lane's registers the one of that number: `packed` of them lie in each.
template <class E, class R, unsigned n>
inline auto element(const R (&registers)[n], unsigned i) {
  constexpr unsigned kBits = Element<E>::kBits, kPacked = sizeof(R) * 8 / kBits;
  const R bits = registers[i / kPacked] >> kBits * (i % kPacked);
  return Element<E>::of(static_cast<Bits<(kBits + 7) / 8>>(bits));
}
template <class E, class R, unsigned n>
inline void put(R (&registers)[n], unsigned i, E value) {
  constexpr unsigned kBits = sizeof(E) * 8, kPacked = sizeof(R) * 8 / kBits;
  Bits<sizeof(E)> bits;
  set(bits, value);
  const unsigned shift = kBits * (i % kPacked);
  if (shift == 0) registers[i / kPacked] = 0;
  registers[i / kPacked] |= static_cast<R>(static_cast<R>(bits) << shift);
}

template <class C, bool saturate, class Sum>
inline C finished(Sum sum) {
  if constexpr (std::is_integral_v<C>)
    return saturate ? number<C>(sum, Way::zero, false, true) : static_cast<C>(static_cast<uint32_t>(sum));
  else
    return static_cast<C>(sum);
}

// ---- mma. ------------------------------------------------------------------------------------------------------------------

template <int M, int K, class A, class B, class C, bool saturate, class R, unsigned sums, unsigned na, unsigned nb>
inline void mma(R (&d)[sums], const R (&a)[na], const R (&b)[nb], const R (&c)[sums], Site site = Site::here()) {
  constexpr unsigned kRegister = sizeof(R) * 8, kPacked = kRegister / Element<A>::kBits;
  constexpr unsigned kSums = M * 8 / 32;
  static_assert(
      na * 32 * kPacked == M * K && nb * 32 * kPacked == 8 * K && sums * kRegister == kSums * Element<C>::kBits,
      "an mma has other numbers of registers");
  R left[32][na], right[32][nb];
  of_all_lanes(a, left, "mma", site), of_all_lanes(b, right, "mma", site);
  const unsigned lane = current->lane;
  R result[sums];
  for (unsigned i = 0; i < kSums; ++i) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    std::conditional_t<std::is_integral_v<C>, int64_t, double> sum = element<C>(c, i);
    for (unsigned k = 0; k < K; ++k) {
      const unsigned member = k % (4 * kPacked) / kPacked, group = k / (4 * kPacked);
      const unsigned of_a = M == 16 ? 2 * group + i / 2 : group;
      const auto x = element<A>(left[row * 4 + member], of_a * kPacked + k % kPacked);
      const auto y = element<B>(right[column * 4 + member], group * kPacked + k % kPacked);
      if constexpr (std::is_integral_v<C>)
        sum += int64_t{x} * y;
      else
        sum = std::fma(x, y, sum);
    }
    put(result, i, finished<C, saturate>(sum));
  }
  for (unsigned i = 0; i < sums; ++i) d[i] = result[i];
}

// mma.m8n8k4 of half: four products at once, each of the eight lanes 4 q to 4 q + 3 and those 16 further on.
template <bool rows_a, bool rows_b, class C, class D, unsigned sums, unsigned nc>
inline void mma_884(uint32_t (&d)[sums], const uint32_t (&a)[2], const uint32_t (&b)[2], const uint32_t (&c)[nc],
                    Site site = Site::here()) {
  static_assert(sums * 32 == 8 * sizeof(D) * 8 && nc * 32 == 8 * sizeof(C) * 8,
                "an mma has other numbers of registers");
  uint32_t left[32][2], right[32][2];
  of_all_lanes(a, left, "mma", site), of_all_lanes(b, right, "mma", site);
  const unsigned lane = current->lane, first = lane & 12;
  // What the lane of that place in its eight holds of a line of four or eight.
  const auto lane_of = [&](unsigned place) { return first + place % 4 + place / 4 * 16; };
  uint32_t result[sums];
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned half = lane / 16 * 4;
    const auto row = [&](bool wide) { return (wide ? (lane & 1) + (i & 2) : lane % 4) + half; };
    const auto column = [&](bool wide) { return wide ? (i & 4) + (lane & 2) + (i & 1) : i; };
    constexpr bool kWide = sizeof(D) == 4;
    static_assert(sizeof(C) == sizeof(D), "sums of one kind");
    const unsigned m = row(kWide), n = column(kWide);
    double sum = element<C>(c, i);
    for (unsigned k = 0; k < 4; ++k) {
      const double x = rows_a ? element<F16>(left[lane_of(m)], k) : element<F16>(left[lane_of(m / 4 * 4 + k)], m % 4);
      const double y = rows_b ? element<F16>(right[lane_of(n / 4 * 4 + k)], n % 4) : element<F16>(right[lane_of(n)], k);
      sum = std::fma(x, y, sum);
    }
    put(result, i, static_cast<D>(sum));
  }
  for (unsigned i = 0; i < sums; ++i) d[i] = result[i];
}

}  // namespace hetkern::emulation::inline_ptx
