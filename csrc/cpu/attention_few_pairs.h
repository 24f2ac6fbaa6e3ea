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

// S^T of a block; fetches the next one's keys meanwhile.
inline void few_pair_products(const Pairs& by, float* s, const FewPairs& few, const float* queries, int64_t columns,
                              const Sight& sight, Ahead& keys) {
  for (int64_t j = sight.from / 16 * 16; j < sight.to; j += 16) {
    keys.lines(16 * ceil_div(keys.row, 64));
    by.product(s + j * kPanel, kPanel, few.keys + j * few.row, few.row, reinterpret_cast<const uint32_t*>(queries), 16,
               1, round_up(columns, 32) / 2, false);
  }
}

// out = alpha out + P V; `pairs`: weights in pairs of keys.
inline void few_pair_outs(const Pairs& by, const FewPairs& few, const uint32_t* pairs, const Sight& sight, int rows,
                          int64_t columns, const float* alpha) {
  for (int r = 0; r < rows; ++r)
    if (alpha[r] != 1.0f)
      for (int64_t c = 0; c < few.columns; c += 16) {
        float* const at = few.out + r * few.columns + c;
        store<float>(at, load<float>(at) * splat(alpha[r]));
      }
  const int64_t from = sight.from / 32 * 32, to = round_up(sight.to, 32);
  for (int64_t j = from; j < to; j += 32) {
    Vec<float> v[16];
    for (int i = 0; i < 16; ++i) v[i] = load<float>(reinterpret_cast<const float*>(pairs + (j / 2 + i) * kPanel));
    transpose<float>(v);
    for (int i = 0; i < 16; ++i) std::memcpy(few.weights + i * kBlock + j, &v[i], sizeof(v[i]));
  }
  for (int64_t g = 0; g < few.columns / kPanel; ++g)
    by.product(few.out + g * kPanel, few.columns, few.weights + from, kBlock,
               few.values + (g * kBlock / 2 + from / 2) * kPanel, by.tiles ? 16 : rows,
               vectors_of<float>(columns - g * kPanel), (to - from) / 2, true);
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
