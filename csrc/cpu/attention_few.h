// Few queries against a cache: a panel of at most a few vectors, so that keys and values are read once and little is done with each.
//
// Speed: memory decides. Rows are read where they lie and are fetched into the second cache while the block before them is worked
//        on: a fetch into the first waits for what loads wait for, and without any, arithmetic and memory add up.
// Bits:  sums have the order of attention_tile's, so that a decoding step is the last row of the whole call.
#pragma once
#include "attention_panel.h"

namespace hetkern::cpu {
namespace {

constexpr int kFewVectors = 2;  // of queries
constexpr int kFewKeys = 8;     // a tile's: as many chains as two fused multiply-adds a cycle keep busy
constexpr int kFewRows = 4;     // queries of a tile beside values

// Rows of a block of keys or values: row j, column c at data + j row + c / kPanel segment + c % kPanel.
template <class A>
struct BlockRows {
  const A* data;
  int64_t row, segment;
};

// Rows of memory that will be wanted, and are fetched line by line.
struct Ahead {
  const char *at = nullptr, *row_end = nullptr, *end = nullptr;
  int64_t gap = 0, row = 0;  // bytes from a row's end to the next one, and of a row
  void line() {
    if (at >= end) return;
    __builtin_prefetch(at, 0, 1);
    at += 64;
    if (at >= row_end) at = row_end + gap, row_end = at + row;
  }
  void lines(int64_t n) {
    for (; n > 0 && at < end; --n) line();
  }
  void rest() {
    while (at < end) line();
  }
};
// The rows of a block from key j on; none where numbers of a row are apart.
inline Ahead ahead_of(const Heads& t, const Sequence& q, int64_t head, int64_t j, int64_t columns, int64_t size) {
  const int64_t left = q.Lk - j, rows = left < kBlock ? left : kBlock, bytes = columns * size, row = t.row * size;
  if (left <= 0 || t.step != 1 || row < bytes) return {};
  const char* const first = static_cast<const char*>(t.data) + key_offset(t, q, head, j) * size;
  return {first, first + bytes, first + (rows - 1) * row + bytes, row - bytes, bytes};
}

// s[m] = start + sum_i a[m][i] b[i], a vector of queries. Fetches a line of each of both every second i.
template <class A, int M>
__attribute__((noinline)) void few_scores(A* s, const A* a, int64_t row, const A* b, int64_t k, bool add, Ahead& keys,
                                          Ahead& values) {
  Vec<A> sum[M] = {};
  const auto step = [&] {
    Vec<A> w = load<A>(b);
    hold(w);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m] = fma(splat(a[m * row]), w, sum[m]);
    ++a, b += kPanel;
  };
  Ahead of_keys = keys, of_values = values;
  for (int64_t i = 0; i < k / 2; ++i) {
    step();
    of_keys.line();
    step();
    of_values.line();
  }
  if (k % 2) step();
  keys = of_keys, values = of_values;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store<A>(s + m * kPanel, add ? load<A>(s + m * kPanel) + sum[m] : sum[m]);
}

// o[m][n] = alpha[m] o[m][n] + sum_j p[j][m] v[j][n]
template <class A, int M, int N>
__attribute__((noinline)) void few_sums(A* o, const A* p, const A* v, int64_t row, int64_t k, const A* alpha) {
  Vec<A> s[M][N] = {};
  for (int64_t j = 0; j < k; ++j, p += kPanel, v += row) {
    Vec<A> w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      w[n] = load<A>(v + n * W<A>);
      if (M > 1) hold(w[n]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<A> x = splat(p[m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) s[m][n] = fma(x, w[n], s[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      A* const at = o + m * kPanel + n * W<A>;
      store<A>(at, fma(load<A>(at), splat(alpha[m]), s[m][n]));
    }
}

template <class A>
struct FewTiles {
  using Scores = void (*)(A* s, const A* a, int64_t row, const A* b, int64_t k, bool add, Ahead& keys, Ahead& values);
  using Sums = void (*)(A* o, const A* p, const A* v, int64_t row, int64_t k, const A* alpha);
  Scores scores[kFewKeys] = {};            // by keys less one
  Sums sums[kTileVectors][kFewRows] = {};  // by vectors and by rows less one
  constexpr FewTiles() {
    fill(std::make_integer_sequence<int, kFewKeys>());
    fill_sums(std::make_integer_sequence<int, kTileVectors>());
  }
  template <int... M>
  constexpr void fill(std::integer_sequence<int, M...>) {
    ((scores[M] = few_scores<A, M + 1>), ...);
  }
  template <int... N>
  constexpr void fill_sums(std::integer_sequence<int, N...>) {
    ((sums[N][0] = few_sums<A, 1, N + 1>, sums[N][1] = few_sums<A, 2, N + 1>, sums[N][2] = few_sums<A, 3, N + 1>,
      sums[N][3] = few_sums<A, 4, N + 1>),
     ...);
  }
};
template <class A>
constexpr FewTiles<A> kFewTiles{};

// S^T of keys from … to - 1; fetches what is ahead meanwhile.
template <class A>
inline void few_products(A* s, const BlockRows<A>& k, const A* turned, int64_t columns, int from, int to, int vectors,
                         Ahead& keys, Ahead& values) {
  row_groups(from, to, kFewKeys, [&](int64_t j, int n) {
    for (int v = 0; v < vectors; ++v)
      for (int64_t c = 0; c == 0 || c < columns; c += kPanel)  // without columns scores are 0
        kFewTiles<A>.scores[n - 1](s + j * kPanel + v * W<A>, k.data + j * k.row + c / kPanel * k.segment, k.row,
                                   turned + c * kPanel + v * W<A>, columns - c < kPanel ? columns - c : kPanel, c > 0,
                                   keys, values);
  });
  keys.rest(), values.rest();
}

// out = alpha out + P V, all rows seeing all of the keys from … to - 1; out [segment][room][kPanel].
template <class A>
inline void few_outs(A* out, int64_t room, const A* p, const BlockRows<A>& v, int64_t columns, int from, int to,
                     int rows, const A* alpha) {
  row_groups(0, rows, kFewRows, [&](int64_t r, int m) {
    for (int64_t c = 0; c < columns; c += kPanel) {
      const int vectors = vectors_of<A>(columns - c);
      for (int n = 0; n < vectors; n += kTileVectors) {
        const int wide = vectors - n < kTileVectors ? vectors - n : kTileVectors;
        kFewTiles<A>.sums[wide - 1][m - 1](out + (c / kPanel * room + r) * kPanel + n * W<A>, p + from * kPanel + r,
                                           v.data + from * v.row + c / kPanel * v.segment + n * W<A>, v.row, to - from,
                                           alpha + r);
      }
    }
  });
}

}  // namespace
}  // namespace hetkern::cpu
