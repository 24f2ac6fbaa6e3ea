// Philox4x32-10, a vector of counters at a time: the numbers of hetkern/ops/philox.py.
//
// Source: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include "simd.h"

namespace hetkern::cpu {
namespace {

struct Words {
  Vec<uint32_t> of[4];
  static Vec<uint32_t> all(uint32_t word) { return Vec<uint32_t>{} + word; }
};

// Upper and lower words of a times b.
inline void multiply_words(uint32_t a, Vec<uint32_t> b, Vec<uint32_t>& high, Vec<uint32_t>& low) {
  const Vec<uint64_t> even = bit_cast<Vec<uint64_t>>(b), odd = even >> 32;
  const Vec<uint64_t> by_even = multiply_low_words(even, a), by_odd = multiply_low_words(odd, a);
  constexpr uint64_t kUpper = 0xffffffff00000000u;
  high = bit_cast<Vec<uint32_t>>((by_even >> 32) | (by_odd & kUpper));
  low = bit_cast<Vec<uint32_t>>((by_even & ~kUpper) | (by_odd << 32));
}

inline void philox(Words& c, uint32_t key_0, uint32_t key_1) {
  for (int round = 0; round < 10; ++round, key_0 += 0x9e3779b9u, key_1 += 0xbb67ae85u) {
    Vec<uint32_t> high_0, low_0, high_1, low_1;
    multiply_words(0xd2511f53u, c.of[0], high_0, low_0);
    multiply_words(0xcd9e8d57u, c.of[2], high_1, low_1);
    c.of[0] = high_1 ^ c.of[1] ^ key_0, c.of[1] = low_1;
    c.of[2] = high_0 ^ c.of[3] ^ key_1, c.of[3] = low_0;
  }
}

}  // namespace
}  // namespace hetkern::cpu
