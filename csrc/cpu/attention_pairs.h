// Products of bfloat16 for attention: pairs of neighbouring numbers, by the processor's dot product or by its tiles (AMX).
//
//   c[m][n] (+)= sum_i a[m][2i] b[i][n].low + a[m][2i + 1] b[i][n].high        a: rows of bfloat16; b, a word: two of them
//
// Both read the same forms, so that all five products are this one, with queries in the lanes of every result but dk and dv:
//
//   S^T = K Q^T, dP^T = V dO^T    a: rows of k, v                 b: q, dout, pairs of columns      [D / 2][query]
//   O^T += V^T P^T                a: v, turned [Dv][key]          b: p, pairs of keys               [key / 2][query]
//   dQ^T += K^T dS^T              a: k, turned [D][key]           b: ds, pairs of keys
//   dV += P^T dO, dK += dS^T Q    a: rows of P^T, dS^T            b: dout, q, pairs of queries      [query / 2][column]
//
// Rows come in sixteens and numbers in thirty-twos, filled up with zeros: what is not finite in k, v, q, dout would reach rows
// that do not see it, so it is left out where numbers are summed over keys or queries, and added for those that do.
// With attention_pair_weights.h, simd.h, simd_math.h, gemm.h and amx.h the files that have instruction-set intrinsics.
#pragma once
#include "amx.h"
#include "attention_scores.h"

namespace hetkern::cpu {
namespace {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
using Words16 = Vec<uint32_t>;

#if defined(__AVX512F__)
// ---- The product. ---------------------------------------------------------------------------------------------------------

// c's rows are `ldc` floats apart, b's kPanel words. `rows` is a multiple of 16, `pairs` too.
using PairProduct = void (*)(float* c, int64_t ldc, const bf16* a, int64_t lda, const uint32_t* b, int64_t rows,
                             int vectors, int64_t pairs, bool add);

template <int M, int N>
HETKERN_DOT_TARGET __attribute__((noinline)) void pairs_tile(float* c, int64_t ldc, const bf16* a, int64_t lda,
                                                             const uint32_t* b, int64_t pairs, bool add) {
  __m512 s[M][N] = {};
  for (int64_t i = 0; i < pairs; ++i, b += kPanel) {
    __m512i w[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      w[v] = _mm512_loadu_si512(b + v * 16);
      asm("" : "+v"(w[v]));
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      int32_t pair;
      std::memcpy(&pair, a + m * lda + 2 * i, 4);
      const __m512i x = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) s[m][v] = _mm512_dpbf16_ps(s[m][v], (__m512bh)x, (__m512bh)w[v]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      float* const at = c + m * ldc + v * 16;
      _mm512_storeu_ps(at, add ? _mm512_add_ps(_mm512_loadu_ps(at), s[m][v]) : s[m][v]);
    }
}
template <int N>
inline void pairs_rows(float* c, int64_t ldc, const bf16* a, int64_t lda, const uint32_t* b, int64_t rows,
                       int64_t pairs, bool add) {
  row_groups(0, rows, 6, [&](int64_t m, int n) {
    float* const to = c + m * ldc;
    const bf16* const from = a + m * lda;
    if (n == 6) return pairs_tile<6, N>(to, ldc, from, lda, b, pairs, add);
    if (n == 5) return pairs_tile<5, N>(to, ldc, from, lda, b, pairs, add);
    for (int i = 0; i < n; ++i) pairs_tile<1, N>(to + i * ldc, ldc, from + i * lda, lda, b, pairs, add);
  });
}
inline void pairs_by_dot(float* c, int64_t ldc, const bf16* a, int64_t lda, const uint32_t* b, int64_t rows,
                         int vectors, int64_t pairs, bool add) {
  for (int v = 0; v < vectors; v += 4) {
    float* const to = c + v * 16;
    const uint32_t* const from = b + v * 16;
    switch (vectors - v) {
      case 1:
        pairs_rows<1>(to, ldc, a, lda, from, rows, pairs, add);
        break;
      case 2:
        pairs_rows<2>(to, ldc, a, lda, from, rows, pairs, add);
        break;
      case 3:
        pairs_rows<3>(to, ldc, a, lda, from, rows, pairs, add);
        break;
      default:
        pairs_rows<4>(to, ldc, a, lda, from, rows, pairs, add);
    }
  }
}

// Two by two of the processor's tiles of 16 rows of 64 bytes: 0 … 3 sums, 4 and 5 of a, 6 and 7 of b.
template <int M, int N>
HETKERN_AMX_TARGET __attribute__((noinline)) void amx_pairs(float* c, int64_t ldc, const bf16* a, int64_t lda,
                                                            const uint32_t* b, int64_t pairs, bool add) {
  const int64_t of_c = ldc * 4, of_a = lda * 2;
  constexpr int64_t of_b = kPanel * 4;
  asm volatile("" ::: "memory");  // to GCC a tile's load reads no memory
  if (add) {
    _tile_loadd(0, c, of_c);
    if constexpr (N > 1) _tile_loadd(1, c + 16, of_c);
    if constexpr (M > 1) _tile_loadd(2, c + 16 * ldc, of_c);
    if constexpr (M > 1 && N > 1) _tile_loadd(3, c + 16 * ldc + 16, of_c);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < pairs; i += 16, a += 32, b += 16 * kPanel) {
    _tile_loadd(6, b, of_b);
    _tile_loadd(4, a, of_a);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N > 1) {
      _tile_loadd(7, b + 16, of_b);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (M > 1) {
      _tile_loadd(5, a + 16 * lda, of_a);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (N > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, of_c);
  if constexpr (N > 1) _tile_stored(1, c + 16, of_c);
  if constexpr (M > 1) _tile_stored(2, c + 16 * ldc, of_c);
  if constexpr (M > 1 && N > 1) _tile_stored(3, c + 16 * ldc + 16, of_c);
}
inline void pairs_by_amx(float* c, int64_t ldc, const bf16* a, int64_t lda, const uint32_t* b, int64_t rows,
                         int vectors, int64_t pairs, bool add) {
  for (int64_t m = 0; m < rows; m += 32)
    for (int v = 0; v < vectors; v += 2) {
      float* const to = c + m * ldc + v * 16;
      const bf16* const left = a + m * lda;
      const bool tall = rows - m > 16, wide = vectors - v > 1;
      const auto tile = tall ? (wide ? amx_pairs<2, 2> : amx_pairs<2, 1>) : (wide ? amx_pairs<1, 2> : amx_pairs<1, 1>);
      tile(to, ldc, left, lda, b + v * 16, pairs, add);
    }
}

// A thread's tiles are in use from `enter` to `leave`; 0, 1 and 4 have so many rows.
HETKERN_AMX_TARGET __attribute__((noinline, unused)) void enter_tiles(int rows) {
  const AmxConfiguration configuration(rows, kAmxRows);
  asm volatile("" ::: "memory");
  _tile_loadconfig(&configuration);
}
HETKERN_AMX_TARGET __attribute__((noinline, unused)) void leave_tiles() { _tile_release(); }

// exp(x) for x <= 0, error below 3 ulp: a weight is rounded to bfloat16, and sums of them are numbers of float32. 2^t, t = x / ln 2,
// as exp_of_share; what the product rounded away is little beside what a small weight adds to its sum.
inline Vec<float> exp_of_weight(Vec<float> x) {
  const Vec<float> t = x * splat(0x1.715476p0f);
  const Vec<float> r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);
  Vec<float> p = fma(splat(0.0018671302f), r, splat(0.009017030f));
  p = fma(p, r, splat(0.05579991f));
  p = fma(p, r, splat(0.24016444f));
  p = fma(p, r, splat(0.6931513f));
  return scaled(fma(p, r, splat(1.0f)), t, x);
}

// ---- Scores and their gradients, rounded. ---------------------------------------------------------------------------------

inline __m512i interleaved() {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_load_si512(kOrder);
}

// Rows from … to - 1 of tile[key][kPanel] as pairs of keys, to[key / 2][kPanel], which may be the tile itself; zeros beside
// them up to whole thirty-twos. `from` is even.
HETKERN_DOT_TARGET __attribute__((noinline, unused)) void pair_keys(uint32_t* to, const float* tile, int from, int end,
                                                                    int vectors) {
  const __m512i order = interleaved();
  for (int j = from / 32 * 32; j < from; j += 2)
    std::memset(to + j / 2 * kPanel, 0, sizeof(float) * static_cast<size_t>(vectors) * 16);
  for (int j = from; j < end; j += 2)
    for (int v = 0; v < vectors * 16; v += 16) {
      const __m512 low = _mm512_loadu_ps(tile + j * kPanel + v);
      const __m512 high = j + 1 < end ? _mm512_loadu_ps(tile + (j + 1) * kPanel + v) : _mm512_setzero_ps();
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_si512(to + j / 2 * kPanel + v, _mm512_permutexvar_epi16(order, both));
    }
  for (int j = (end + 1) / 2 * 2; j < round_up(end, 32); j += 2)
    std::memset(to + j / 2 * kPanel, 0, sizeof(float) * static_cast<size_t>(vectors) * 16);
}

// The same rows as rows of kPanel numbers, with zeros behind `vectors` vectors and in the other rows of their sixteens.
HETKERN_DOT_TARGET __attribute__((noinline, unused)) void round_keys(bf16* to, const float* tile, int from, int end,
                                                                     int vectors) {
  for (int j = from / 16 * 16; j < round_up(end, 16); ++j) {
    if (j < from || j >= end) {
      std::memset(to + j * kPanel, 0, sizeof(bf16) * kPanel);
      continue;
    }
    for (int v = 0; v < kPanel / 16; v += 2) {
      const float* const at = tile + j * kPanel + v * 16;
      const __m512 low = v < vectors ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
      const __m512 high = v + 1 < vectors ? _mm512_loadu_ps(at + 16) : _mm512_setzero_ps();
      _mm512_storeu_si512(to + j * kPanel + v * 16, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}

// ---- Rows of memory. ------------------------------------------------------------------------------------------------------

// Words c … c + 15 of a row of bfloat16: numbers 2c … 2c + 31, of `columns`.
inline Words16 words_of_row(const RowsAt& from, int r, int64_t c, int64_t columns) {
  const bf16* const row = static_cast<const bf16*>(from.data) + from.offset[r];
  const int64_t left = columns - 2 * c;
  if (from.step == 1 && left >= 32) return load_vector<Words16>(row + 2 * c);
  if (left <= 0) return Words16{};
  if (from.step == 1) {
    const auto lanes = (uint32_t{1} << left) - 1;
    return bit_cast<Words16>(_mm512_maskz_loadu_epi16(lanes, row + 2 * c));
  }
  bf16 some[32] = {};
  for (int64_t i = 0; i < 32 && i < left; ++i) some[i] = row[(2 * c + i) * from.step];
  return load_vector<Words16>(some);
}

// As rows of `width` numbers; zeros behind a row's end and up to sixteen rows. Rows first … first + rows - 1 of `to`.
inline void pack_pair_rows(bf16* to, int64_t width, const RowsAt& from, int rows, int64_t columns) {
  for (int r = 0; r < round_up(rows, 16); ++r)
    for (int64_t c = 0; c < width / 2; c += 16) {
      const Words16 w = r < rows ? words_of_row(from, r, c, columns) : Words16{};
      std::memcpy(to + r * width + 2 * c, &w, sizeof(w));
    }
}

// As pairs of columns, [column / 2][kPanel]: the words of rows, turned. Zeros up to sixteen rows and thirty-two columns.
inline void pack_pair_columns(uint32_t* to, const RowsAt& from, int rows, int64_t columns) {
  for (int r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < round_up(columns, 32) / 2; c += 16) {
      Vec<float> v[16];
      for (int i = 0; i < 16; ++i)
        v[i] = r + i < rows ? bit_cast<Vec<float>>(words_of_row(from, r + i, c, columns)) : Vec<float>{};
      transpose<float>(v);
      for (int i = 0; i < 16; ++i) std::memcpy(to + (c + i) * kPanel + r, &v[i], sizeof(v[i]));
    }
}

// What is not finite becomes 0.
inline Words16 without_strange(Words16 w) {
  const Words16 low = w & 0x7f80, high = w & 0x7f800000;
  const Words16 strange = bit_cast<Words16>((low == 0x7f80) & 0xffff) |
                          bit_cast<Words16>((high == 0x7f800000) & static_cast<int>(0xffff0000));
  return w & ~strange;
}
// Numbers c … c + 15 of rows r and r + 1, as words; what is not finite is 0.
inline Words16 row_pair(const RowsAt& from, int r, int rows, int64_t c, int64_t columns) {
  Words16 half[2] = {};
  for (int i = 0; i < 2 && r + i < rows; ++i) {
    const bf16* const row = static_cast<const bf16*>(from.data) + from.offset[r + i];
    const int64_t left = columns - c;
    if (from.step == 1) {
      const auto lanes = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      half[i] = widen(bit_cast<Shorts>(_mm256_maskz_loadu_epi16(lanes, row + c)));
    } else {
      for (int64_t l = 0; l < 16 && l < left; ++l) half[i][l] = row[(c + l) * from.step].bits;
    }
  }
  return without_strange(half[0] | (half[1] << 16));
}

// Numbers c … c + 31 of rows r and r + 1 beside one another; `largest` of their magnitudes' bits.
struct TwoRows {
  __m512i low, high;  // of each eight columns the first four, and the last four, a word a column
};
inline TwoRows two_rows(__m512i a, __m512i b, __m512i& largest) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  largest = _mm512_max_epu16(largest, _mm512_max_epu16(_mm512_and_si512(a, magnitude), _mm512_and_si512(b, magnitude)));
  return {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)};
}
inline TwoRows two_rows(const RowsAt& from, int r, int rows, int64_t c, int64_t columns, __m512i& largest) {
  const Words16 none{};
  return two_rows(bit_cast<__m512i>(r < rows ? words_of_row(from, r, c / 2, columns) : none),
                  bit_cast<__m512i>(r + 1 < rows ? words_of_row(from, r + 1, c / 2, columns) : none), largest);
}
inline bool finite(__m512i largest) { return !_mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7f80)); }

// As pairs of rows, in segments: [segment][room / 2][kPanel]. Zeros up to thirty-two rows. Returns whether all are finite.
template <class Beside>  // beside(): called for every two rows
inline bool pack_row_pairs(uint32_t* to, int64_t room, const RowsAt& from, int rows, int64_t columns,
                           const Beside& beside) {
  const auto at = [&](int r, int64_t c) { return to + (c / kPanel * room / 2 + r / 2) * kPanel + c % kPanel; };
  __m512i largest = _mm512_setzero_si512();
  // Fours of columns in their order.
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), rest = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int r = 0; r < round_up(rows, 32); r += 2) {
    beside();
    const bool whole = from.step == 1 && r + 1 < rows;
    const bf16* const row = static_cast<const bf16*>(from.data) + (whole ? from.offset[r] : 0);
    const int64_t next = whole ? from.offset[r + 1] - from.offset[r] : 0;
    for (int64_t g = 0; g < columns; g += kPanel) {
      uint32_t* const pairs = at(r, g);
      for (int64_t i = 0; i < kPanel && g + i < columns; i += 32) {
        const int64_t c = g + i;
        const TwoRows two = whole && columns - c >= 32
                                ? two_rows(load_vector<__m512i>(row + c), load_vector<__m512i>(row + next + c), largest)
                                : two_rows(from, r, rows, c, columns, largest);
        _mm512_storeu_si512(pairs + i, _mm512_permutex2var_epi64(two.low, first, two.high));
        _mm512_storeu_si512(pairs + i + 16, _mm512_permutex2var_epi64(two.low, rest, two.high));
      }
    }
  }
  if (finite(largest)) return true;
  for (int r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; c += 16) {
      const Words16 words = row_pair(from, r, rows, c, columns);
      std::memcpy(at(r, c), &words, sizeof(words));
    }
  return false;
}

inline bool pack_row_pairs(uint32_t* to, int64_t room, const RowsAt& from, int rows, int64_t columns) {
  return pack_row_pairs(to, room, from, rows, columns, [] {});
}

// Turned, [column][kBlock], rows first … of it. Zeros up to sixteen columns and thirty-two rows. Returns whether all are finite.
inline bool pack_turned_rows(bf16* to, const RowsAt& from, int rows, int64_t columns) {
  __m512i largest = _mm512_setzero_si512();
  for (int r = 0; r < round_up(rows, 32); r += 32)
    for (int64_t c = 0; c < columns; c += 32) {
      Vec<float> v[2][16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const TwoRows two = two_rows(from, r + 2 * i, rows, c, columns, largest);
        v[0][i] = bit_cast<Vec<float>>(two.low), v[1][i] = bit_cast<Vec<float>>(two.high);
      }
      for (int half = 0; half < 2; ++half) {
        transpose<float>(v[half]);
        for (int i = 0; i < 16; ++i) {
          const int64_t column = c + i / 4 * 8 + half * 4 + i % 4;
          if (column < round_up(columns, 16)) std::memcpy(to + column * kBlock + r, &v[half][i], sizeof(v[half][i]));
        }
      }
    }
  if (finite(largest)) return true;
  for (int r = 0; r < round_up(rows, 32); r += 32)
    for (int64_t c = 0; c < columns; c += 16) {
      Vec<float> v[16];
      for (int i = 0; i < 16; ++i) v[i] = bit_cast<Vec<float>>(row_pair(from, r + 2 * i, rows, c, columns));
      transpose<float>(v);
      for (int i = 0; i < 16; ++i) std::memcpy(to + (c + i) * kBlock + r, &v[i], sizeof(v[i]));
    }
  return false;
}

// [column][stride] to segments of kPanel rows, [segment][kPanel][kPanel].
inline void turn_back(float* to, const float* from, int64_t stride, int rows, int64_t columns) {
  for (int64_t c = 0; c < columns; c += 16)
    for (int r = 0; r < rows; r += 16) {
      Vec<float> v[16];
      for (int i = 0; i < 16; ++i) v[i] = load<float>(from + (c + i) * stride + r);
      transpose<float>(v);
      for (int i = 0; i < 16; ++i) store<float>(to + (c / kPanel * kPanel + r + i) * kPanel + c % kPanel, v[i]);
    }
}
#endif

// What the plan chose. Without AVX-512 neither is compiled.
struct Pairs {
#if defined(__AVX512F__)
  PairProduct product;
#endif
  bool tiles;
  explicit Pairs(const AttentionPlan& plan) : tiles(plan.product == Product::amx) {
#if defined(__AVX512F__)
    product = tiles ? pairs_by_amx : pairs_by_dot;
#endif
  }
};
// While it lives, this thread may multiply.
struct TilesInUse {
  bool used;
  explicit TilesInUse(const Pairs& pairs, int rows = kAmxRows) : used(pairs.tiles) {
    static_cast<void>(rows);
#if defined(__AVX512F__)
    if (used) enter_tiles(rows);
#endif
  }
  ~TilesInUse() {
#if defined(__AVX512F__)
    if (used) leave_tiles();
#endif
  }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

}  // namespace
}  // namespace hetkern::cpu
