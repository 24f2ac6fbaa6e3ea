// Philox4x32-10: the numbers of hetkern/ops/philox.py, a counter at a time.
//
// Source: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include "launch.cuh"

namespace hetkern::cuda {

struct PhiloxWords {
  uint32_t of[4];
};

__device__ __forceinline__ PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key_0,
                                              uint32_t key_1) {
#pragma unroll
  for (int round = 0; round < 10; ++round, key_0 += 0x9e3779b9u, key_1 += 0xbb67ae85u) {
    const uint64_t a = uint64_t{0xd2511f53u} * c0, b = uint64_t{0xcd9e8d57u} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key_0, c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key_1, c3 = static_cast<uint32_t>(a);
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace hetkern::cuda
