// Few queries by products of bfloat16 pairs: at most a vector of them, so that outs stand as rows and values need no turning.
//
//   S^T = K Q^T    a: rows of k, where they lie        b: q, pairs of columns      [D / 2][query]
//   O += P V       a: p, turned [query][key]           b: v, pairs of keys         [key / 2][column]
//
// Bits: O is O^T of attention_pairs.h: the same sums in the same order.
#pragma once
#include "attention_few.h"
#include "attention_pair_sums.h"

namespace hetkern::cpu {
namespace {

#if defined(__AVX512F__)
// One task's part of the keys.
struct FewPairs {
  float* out;  // [16][columns]
  int64_t columns;
  uint32_t* values;  // [segment][kBlock / 2][kPanel]
  bf16* weights;     // [16][kBlock]
  const bf16* keys;  // rows of the block at hand
  int64_t row;       // from one to the next
};

// Scores of sixteen or thirty-two keys by tiles 2 and 3, which have sixteen rows where those of outs have the queries'.
template <int M>
HETKERN_AMX_TARGET __attribute__((noinline)) void amx_few_scores(float* c, const bf16* a, int64_t lda,
                                                                 const uint32_t* b, int64_t pairs, Fetch& fetch) {
  constexpr int64_t of_row = kPanel * 4;
  Fetch ahead = fetch;
  asm volatile("" ::: "memory");  // to GCC a tile's load reads no memory
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < pairs; i += 16, a += 32, b += 16 * kPanel) {
    ahead.lines(ahead.of_scores);
    _tile_loadd(6, b, of_row);
    _tile_loadd(5, a, 2 * lda);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (M == 1) continue;
    _tile_loadd(5, a + 16 * lda, 2 * lda);
    _tile_dpbf16ps(3, 5, 6);
  }
  _tile_stored(2, c, of_row);
  if constexpr (M > 1) _tile_stored(3, c + 16 * kPanel, of_row);
  fetch = ahead;
}

// S^T of a block; fetches the next one meanwhile.
inline void few_pair_products(const Pairs& by, float* s, const FewPairs& few, const float* queries, int64_t columns,
                              const Sight& sight, Fetch& next) {
  const auto* const b = reinterpret_cast<const uint32_t*>(queries);
  const int64_t pairs = round_up(columns, 32) / 2, end = round_up(sight.to, 16);
  for (int64_t j = sight.from / 16 * 16, n; j < end; j += n) {
    n = end - j < 32 ? 16 : 32;
    float* const to = s + j * kPanel;
    const bf16* const a = few.keys + j * few.row;
    if (by.tiles) {
      (n > 16 ? amx_few_scores<2> : amx_few_scores<1>)(to, a, few.row, b, pairs, next);
    } else {
      next.lines(next.of_scores * pairs / 16);
      by.product(to, kPanel, a, few.row, b, n, 1, pairs, false);
    }
  }
}

// out = alpha out + P V; `pairs`: weights in pairs of keys.
inline void few_pair_outs(const Pairs& by, const FewPairs& few, const uint32_t* pairs, const Sight& sight, int rows,
                          int64_t columns, const float* alpha, Fetch& next) {
  for (int r = 0; r < rows; ++r)
    if (alpha[r] != 1.0f)
      for (int64_t c = 0; c < few.columns; c += 16) {
        float* const at = few.out + r * few.columns + c;
        store<float>(at, load<float>(at) * splat(alpha[r]));
      }
  const int64_t from = sight.from / 32 * 32, to = round_up(sight.to, 32);
  for (int64_t j = from; j < to; j += 32) {
    Vec<float> v[16];
    next.lines(next.of_outs);
    for (int i = 0; i < 16; ++i) v[i] = load<float>(reinterpret_cast<const float*>(pairs + (j / 2 + i) * kPanel));
    transpose<float>(v);
    for (int i = 0; i < 16; ++i)
      if (i < rows) std::memcpy(few.weights + i * kBlock + j, &v[i], sizeof(v[i]));
  }
  const int64_t step = by.tiles ? 32 : kPanel;  // columns of a turn
  for (int64_t c = 0; c < columns; c += step) {
    next.lines(next.of_outs * step / 32);
    by.product(few.out + c, few.columns, few.weights + from, kBlock,
               few.values + (c / kPanel * kBlock / 2 + from / 2) * kPanel + c % kPanel, rows,
               vectors_of<float>(columns - c < step ? columns - c : step), (to - from) / 2, true);
  }
}

// Outs as a panel's are kept, [column][room].
inline void turn_few(float* to, int64_t room, const FewPairs& few, int64_t columns) {
  for (int64_t c = 0; c < columns; c += 16) {
    Vec<float> v[16];
    for (int i = 0; i < 16; ++i) v[i] = load<float>(few.out + i * few.columns + c);
    transpose<float>(v);
    for (int i = 0; i < 16; ++i) store<float>(to + (c + i) * room, v[i]);
  }
}
#endif

}  // namespace
}  // namespace hetkern::cpu
