// What forward and backward sum up of pairs (attention_pairs.h), and what they leave out and add for the rows that see it.
#pragma once
#include "attention_pairs.h"

namespace hetkern::cpu {
namespace {

// Queries, or their outs' gradients, as a product reads them beside keys.
template <bool pairs, class A>
inline void pack_queries(const Scoring<A>& f, A* to, const RowsAt& from, int rows, int64_t columns) {
#if defined(__AVX512F__)
  if constexpr (pairs) return pack_pair_columns(reinterpret_cast<uint32_t*>(to), from, rows, columns);
#endif
  f.elements.pack_turned(to, from, rows, columns);
}

// S^T or dP^T: a block's keys or values times a panel of queries.
template <bool pairs, class A>
inline void turned_product(const Pairs& by, const Panel<A>& panel, const Sight& sight, int64_t j0, A* s, const A* keys,
                           const A* queries, int64_t columns) {
#if defined(__AVX512F__)
  if constexpr (pairs) {
    const int64_t width = round_up(columns, 32);
    const int step = sight.edge ? 32 : kBlock, first = sight.from / 16 * 16;
    for (int j = first; j < sight.to; j += step) {
      const int end = static_cast<int>(round_up(sight.to, 16)), n = end - j < step ? end - j : step;
      const VectorRange at = vectors_that_see(panel, sight.edge, j0 + j, n);
      if (at.begin < at.end)
        by.product(s + j * kPanel + at.begin * 16, kPanel, reinterpret_cast<const bf16*>(keys) + j * width, width,
                   reinterpret_cast<const uint32_t*>(queries) + at.begin * 16, n, at.end - at.begin, width / 2, false);
    }
    return;
  }
#endif
  static_cast<void>(by);
  row_groups(sight.from, sight.to, kTileRows, [&](int64_t j, int n) {
    const VectorRange at = vectors_that_see(panel, sight.edge, j0 + j, n);
    product<A, false, Start::zero>(s + j * kPanel, keys + j * kPanel, queries, columns, n, at.begin, at.end);
  });
}

#if defined(__AVX512F__)
// c[column][query] += sum over a block's keys: keys turned, times weights in pairs of keys.
inline void key_sums(const Pairs& by, const Panel<float>& panel, const Sight& sight, int64_t j0, float* c, int64_t ldc,
                     const bf16* turned, const uint32_t* weights, int64_t columns) {
  const int step = sight.edge ? 2 : panel.vectors;
  for (int v = 0; v < panel.vectors; v += step) {
    const int n = panel.vectors - v < step ? panel.vectors - v : step, rows = panel.rows - v * 16;
    const Sight keys = keys_of_rows(panel, sight, j0, v * 16, rows < n * 16 ? rows : n * 16);
    if (keys.to <= keys.from) continue;
    const int64_t from = keys.from / 32 * 32, pairs = (round_up(keys.to, 32) - from) / 2;
    by.product(c + v * 16, ldc, turned + from, kBlock, weights + from / 2 * kPanel + v * 16, round_up(columns, 16), n,
               pairs, true);
  }
}
// What key_sums left out: numbers of k or v that are not finite, for the rows that see them. c[i of_column + r of_row]
inline void add_strange_keys(const Scoring<float>& f, const Panel<float>& panel, const Sequence& q, const Sight& sight,
                             int64_t j0, float* c, int64_t of_column, int64_t of_row, const uint32_t* weights,
                             const Heads& t, int64_t head, int64_t columns) {
  for (int j = sight.from; j < sight.to; ++j)
    for (int64_t i = 0; i < columns; ++i) {
      const float x = f.elements.read(t.data, key_offset(t, q, head, j0 + j) + i * t.step);
      if (x - x == 0) continue;
      for (int r = 0; r < panel.rows; ++r)
        if (f.row_sees(panel, q, r, j0 + j)) {
          const uint32_t word = weights[j / 2 * kPanel + r];
          c[i * of_column + r * of_row] += bit_cast<float>(j % 2 ? word & 0xffff0000 : word << 16) * x;
        }
    }
}

// c[key][column] += sum over a panel's queries: weights by rows of keys, times queries in pairs.
inline void query_sums(const Pairs& by, const Panel<float>& panel, const Sight& sight, int64_t j0, float* c,
                       const bf16* weights, const uint32_t* queries, int64_t columns) {
  const int step = sight.edge ? 32 : kBlock, end = static_cast<int>(round_up(sight.to, 16));
  for (int j = sight.from / 16 * 16; j < end; j += step) {
    const int n = end - j < step ? end - j : step;
    const VectorRange rows = rows_of_keys(panel, sight.edge, j0 + j, n);
    if (rows.end <= rows.begin) continue;
    const int64_t from = rows.begin / 32 * 32, pairs = (round_up(rows.end, 32) - from) / 2;
    for (int64_t g = 0; g < segments_of(columns); ++g)
      by.product(c + (g * kBlock + j) * kPanel, kPanel, weights + j * kPanel + from, kPanel,
                 queries + (g * kPanel / 2 + from / 2) * kPanel, n, vectors_of<float>(columns - g * kPanel), pairs,
                 true);
  }
}
// What query_sums left out: numbers of q or dout that are not finite, for the keys that their rows see.
inline void add_strange_queries(const Scoring<float>& f, const Panel<float>& panel, const Sequence& q,
                                const Sight& sight, int64_t j0, float* c, const bf16* weights, const Heads& t,
                                int64_t columns) {
  for (int r = 0; r < panel.rows; ++r)
    for (int64_t i = 0; i < columns; ++i) {
      const float x = f.elements.read(t.data, query_offset(t, q, panel.head[r], panel.query[r]) + i * t.step);
      if (x - x == 0) continue;
      for (int j = sight.from; j < sight.to; ++j)
        if (f.row_sees(panel, q, r, j0 + j))
          c[(i / kPanel * kBlock + j) * kPanel + i % kPanel] += get<float>(weights + j * kPanel + r) * x;
    }
}
#endif

}  // namespace
}  // namespace hetkern::cpu
