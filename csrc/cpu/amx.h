// The register tile of gemm.h by AMX: up to 32 rows times a packed panel of bfloat16.
//
// A panel's tile is 16 words of k, 16 lanes a word, as the instruction wants it: a kilobyte that lies together. Vectors stand in
// pairs, the tiles of a pair by turns. Even and odd k have sums of their own over the 32 numbers of a tile, added to the
// accumulator at its end; denormals are zeros.
// Speed: a step of k costs what its panel's kilobytes cost to load, whatever the rows; so up to 32 of them go together. Each
//        call configures the unit and lets it go again, some 200 cycles: other libraries in this thread have configurations
//        of their own.
#pragma once
#include "simd.h"

namespace hetkern::cpu {
namespace {

constexpr int kAmxWords = 16, kAmxRows = 16;  // of k, and at left, in a tile

// Where word k of vector v begins in a panel of NV vectors, in words.
constexpr int64_t amx_word_at(int64_t k, int v, int NV, int64_t words) {
  const int pair = v / 2, width = NV - 2 * pair < 2 ? 1 : 2;
  return 2 * pair * words * 16 + ((k / kAmxWords * width + v % 2) * kAmxWords + k % kAmxWords) * 16;
}

}  // namespace
}  // namespace hetkern::cpu

#if defined(__AVX512F__) && defined(__x86_64__)
#define HETKERN_AMX_TARGET __attribute__((target("amx-tile,amx-bf16")))

namespace hetkern::cpu {
namespace {

// Registers 0 … 3 hold sums, of the first rows 0 and 1; 4 and 5 rows at left, 6 and 7 panels.
struct alignas(64) AmxConfiguration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  AmxConfiguration(int first_rows, int more_rows) {
    for (int i = 0; i < 8; ++i) bytes[i] = 64, rows[i] = kAmxWords;
    rows[0] = rows[1] = rows[4] = static_cast<uint8_t>(first_rows);
    rows[2] = rows[3] = rows[5] = static_cast<uint8_t>(more_rows);
  }
};

// As Tile in gemm.h.
template <int NV>
HETKERN_AMX_TARGET __attribute__((noinline)) void amx_tile(int rows, const void* left_any, int64_t stride,
                                                           const void* panel_any, int64_t words, void* out_any) {
  static_assert(NV >= 1 && NV <= 4);
  const bool tall = rows > kAmxRows;
  const int first_rows = tall ? kAmxRows : rows;
  const char* panel = static_cast<const char*>(panel_any);
  const AmxConfiguration configuration(first_rows, tall ? rows - kAmxRows : 1);
  asm volatile("" ::: "memory");  // GCC's tile loads are no readers of memory
  _tile_loadconfig(&configuration);
  for (int v = 0; v < NV; v += 2) {
    const bool wide = v + 1 < NV;
    const char* left = static_cast<const char*>(left_any);
    const char* const more = left + 2 * kAmxRows * stride;
    float* const out = static_cast<float*>(out_any) + 16 * v;
    float* const out_of_more = out + kAmxRows * 16 * NV;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < words; k += kAmxWords) {
      const int64_t at = 4 * k;
      _tile_loadd(4, left + at, 2 * stride);
      _tile_loadd(6, panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (tall) {
        _tile_loadd(5, more + at, 2 * stride);
        _tile_dpbf16ps(2, 5, 6);
      }
      panel += 64 * kAmxWords;
      if (!wide) continue;
      _tile_loadd(7, panel, 64);
      _tile_dpbf16ps(1, 4, 7);
      if (tall) _tile_dpbf16ps(3, 5, 7);
      panel += 64 * kAmxWords;
    }
    _tile_stored(0, out, 64 * NV);
    if (wide) _tile_stored(1, out + 16, 64 * NV);
    if (tall) _tile_stored(2, out_of_more, 64 * NV);
    if (tall && wide) _tile_stored(3, out_of_more + 16, 64 * NV);
  }
  _tile_release();
}

}  // namespace
}  // namespace hetkern::cpu
#endif
