// The register tile of gemm.h by AMX: up to 16 rows times a packed panel of bfloat16.
//
// A panel of pairs is what the instruction wants as it stands: 16 words of k, 16 lanes a word. Even and odd k have sums of their
// own over the 32 numbers of a tile, added to the accumulator at its end; denormals are zeros.
// Speed: a step of k costs what its panel's kilobytes cost to load, whatever the rows. A tile configures the unit and lets it go
//        again, some 200 cycles: other libraries in this thread have configurations of their own.
#pragma once
#include "simd.h"

#if defined(__AVX512F__) && defined(__x86_64__)
#define HETKERN_AMX_TARGET __attribute__((target("amx-tile,amx-bf16")))

namespace hetkern::cpu {
namespace {

constexpr int kAmxWords = 16;  // of k in a tile

// Registers 0 … 3 hold sums, 4 the rows at left, 5 … 7 panels by turns.
struct alignas(64) AmxConfiguration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  explicit AmxConfiguration(int left_rows) {
    for (int i = 0; i < 8; ++i) bytes[i] = 64, rows[i] = static_cast<uint8_t>(i < 5 ? left_rows : kAmxWords);
  }
};

// As Tile in gemm.h.
template <int NV>
HETKERN_AMX_TARGET __attribute__((noinline)) void amx_tile(int rows, const void* left_any, int64_t stride,
                                                           const void* panel_any, int64_t words, void* out_any) {
  static_assert(NV >= 1 && NV <= 4);
  const char* left = static_cast<const char*>(left_any);
  const char* panel = static_cast<const char*>(panel_any);
  float* const out = static_cast<float*>(out_any);
  const AmxConfiguration configuration(rows);
  asm volatile("" ::: "memory");  // GCC's tile loads are no readers of memory
  _tile_loadconfig(&configuration);
  _tile_zero(0);
  if constexpr (NV > 1) _tile_zero(1);
  if constexpr (NV > 2) _tile_zero(2);
  if constexpr (NV > 3) _tile_zero(3);
  for (int64_t k = 0; k < words; k += kAmxWords) {
    _tile_loadd(4, left, 2 * stride);
    _tile_loadd(5, panel, 64 * NV);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (NV > 1) {
      _tile_loadd(6, panel + 64, 64 * NV);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (NV > 2) {
      _tile_loadd(7, panel + 128, 64 * NV);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (NV > 3) {
      _tile_loadd(5, panel + 192, 64 * NV);
      _tile_dpbf16ps(3, 4, 5);
    }
    left += 4 * kAmxWords;
    panel += 64 * NV * kAmxWords;
  }
  _tile_stored(0, out, 64 * NV);
  if constexpr (NV > 1) _tile_stored(1, out + 16, 64 * NV);
  if constexpr (NV > 2) _tile_stored(2, out + 32, 64 * NV);
  if constexpr (NV > 3) _tile_stored(3, out + 48, 64 * NV);
  _tile_release();
}

}  // namespace
}  // namespace hetkern::cpu
#endif
