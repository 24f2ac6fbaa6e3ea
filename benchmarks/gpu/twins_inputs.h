// What the twin table's cases are made of.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/device/ptx.cuh"
#include "device_memory.h"

namespace {

using namespace hetkern;
using gpu_day::Buffer;
using gpu_day::Random;
using Words = std::vector<uint32_t>;

constexpr int kThreads = 128;
constexpr uint32_t kSpecial[] = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x7f800000, 0xff800000,
                                 0x7f800001, 0x7fc00000, 0xffffffff, 0x7c00fc00, 0x7f80ff80, 0x00010001};

// Infinities, NaNs with a payload, subnormals, negative zeros, in every position of a vector; then anything.
Words adversarial(size_t count, uint64_t seed) {
  Random random(seed);
  Words words(count);
  for (size_t i = 0; i < count; ++i) words[i] = i % 3 ? random.bits() : kSpecial[(i / 3) % 12];
  return words;
}

// Threads meet others' cache lines: a permutation of 0 … count - 1, count a power of two.
__device__ __forceinline__ unsigned scattered(unsigned i, unsigned count) { return (i * 37 + 11) & (count - 1); }

}  // namespace
