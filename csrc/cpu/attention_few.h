// Few queries against a cache: a panel of at most a few vectors, so that keys and values are read once and little is done with each.
//
// Speed: memory decides. Rows are read where they lie and are fetched into the second cache while the block before them is worked
//        on: a fetch into the first waits for what loads wait for, and without any, arithmetic and memory add up.
// Bits:  sums have the order of attention_tile's, so that a decoding step is the last row of the whole call.
#pragma once
#include "attention_fetch.h"

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

// s[m] = start + sum_i a[m][i] b[i], a vector of queries.
template <class A, int M>
__attribute__((noinline)) void few_scores(A* s, const A* a, int64_t row, const A* b, int64_t k, bool add,
                                          Fetch& fetch) {
  Vec<A> sum[M] = {};
  Fetch ahead = fetch;
  for (int64_t i = 0; i < k; ++i, ++a, b += kPanel) {
    Vec<A> w = load<A>(b);
    hold(w);
    if (i % 2) ahead.lines(1);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m] = fma(splat(a[m * row]), w, sum[m]);
  }
  fetch = ahead;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store<A>(s + m * kPanel, add ? load<A>(s + m * kPanel) + sum[m] : sum[m]);
}

// The same sums of M queries, a vector of keys in the lanes: half a vector of queries or fewer leave the lanes of few_scores idle,
// and turning keys in registers costs less than that. s[key][query], with zeros behind the queries.
template <class A, int M>
__attribute__((noinline)) void few_turned_scores(A* s, const BlockRows<A>& k, const A* queries, int64_t columns,
                                                 Fetch& fetch) {
  Vec<A> all[M] = {};
  const int64_t lines = fetch.of_scores;
  Fetch ahead = fetch;
  for (int64_t first = 0; first < columns; first += kPanel) {
    Vec<A> sum[M] = {};
    const A* const rows = k.data + first / kPanel * k.segment;
    const int64_t end = columns - first < kPanel ? columns - first : kPanel;
    const A* q = queries + first * kPanel;
    const auto add = [&](int64_t c, int64_t left, auto whole) {
      constexpr int half = W<A> / 2;
      const A *const low = rows + c, *const high = low + half * k.row;
      Vec<A> v[W<A>];
#pragma GCC unroll 8
      for (int i = 0; i < half;
           ++i) {  // loaded in pairs that are exchanged at once, or GCC puts all of them on the stack
        v[i] = whole ? load<A>(low + i * k.row) : load_first<A>(low + i * k.row, left);
        v[i + half] = whole ? load<A>(high + i * k.row) : load_first<A>(high + i * k.row, left);
        exchange<Vec<A>, half>(v[i], v[i + half], std::make_integer_sequence<int, W<A>>());
      }
      transpose<A, half / 2>(v);
      ahead.lines(lines);
#pragma GCC unroll 16
      for (int i = 0; i < W<A>; ++i)
        if (whole || i < left) {
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) sum[m] = fma(splat(q[(c + i) * kPanel + m]), v[i], sum[m]);
        }
    };
    int64_t c = 0;
    for (; c + W<A> <= end; c += W<A>) add(c, W<A>, std::true_type());
    if (c < end) add(c, end - c, std::false_type());
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) all[m] = first ? all[m] + sum[m] : sum[m];
  }
  fetch = ahead;
  Vec<A> out[W<A>] = {};
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) out[m] = all[m];
  transpose<A>(out);
#pragma GCC unroll 16
  for (int i = 0; i < W<A>; ++i) store<A>(s + i * kPanel, out[i]);
}

// o[m][n] = alpha[m] o[m][n] + sum_j p[j][m] v[j][n]
template <class A, int M, int N>
__attribute__((noinline)) void few_sums(A* o, const A* p, const A* v, int64_t row, int64_t k, const A* alpha,
                                        Fetch& fetch) {
  Vec<A> s[M][N] = {};
  Fetch ahead = fetch;
  for (int64_t j = 0; j < k; ++j, p += kPanel, v += row) {
    Vec<A> w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      w[n] = load<A>(v + n * W<A>);
      if (M > 1) hold(w[n]);
    }
    ahead.lines(ahead.of_outs);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<A> x = splat(p[m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) s[m][n] = fma(x, w[n], s[m][n]);
    }
  }
  fetch = ahead;
  end_tile<A, M, N, Start::scaled>(o, s, alpha);
}

template <class A>
struct FewTiles {
  using Scores = void (*)(A* s, const A* a, int64_t row, const A* b, int64_t k, bool add, Fetch& fetch);
  using TurnedScores = void (*)(A* s, const BlockRows<A>& k, const A* queries, int64_t columns, Fetch& fetch);
  using Sums = void (*)(A* o, const A* p, const A* v, int64_t row, int64_t k, const A* alpha, Fetch& fetch);
  static constexpr int kTurned = W<A> / 2;   // queries, at most
  Scores scores[kFewKeys] = {};              // by keys less one
  TurnedScores turned_scores[kTurned] = {};  // by queries less one
  Sums sums[kTileVectors][kFewRows] = {};    // by vectors and by rows less one
  constexpr FewTiles() {
    fill(std::make_integer_sequence<int, kFewKeys>());
    fill_turned(std::make_integer_sequence<int, kTurned>());
    fill_sums(std::make_integer_sequence<int, kTileVectors>());
  }
  template <int... M>
  constexpr void fill(std::integer_sequence<int, M...>) {
    ((scores[M] = few_scores<A, M + 1>), ...);
  }
  template <int... M>
  constexpr void fill_turned(std::integer_sequence<int, M...>) {
    ((turned_scores[M] = few_turned_scores<A, M + 1>), ...);
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

// S^T of keys from … to - 1 and `rows` queries; fetches what is ahead meanwhile.
template <class A>
inline void few_products(A* s, const BlockRows<A>& k, const A* turned, int64_t columns, int from, int to, int rows,
                         Fetch& fetch) {
  const auto at = [&](int64_t j) { return BlockRows<A>{k.data + j * k.row, k.row, k.segment}; };
  if (rows <= FewTiles<A>::kTurned)
    for (; to - from >= W<A>; from += W<A>)
      kFewTiles<A>.turned_scores[rows - 1](s + from * kPanel, at(from), turned, columns, fetch);
  row_groups(from, to, kFewKeys, [&](int64_t j, int n) {
    for (int v = 0; v < vectors_of<A>(rows); ++v)
      for (int64_t c = 0; c == 0 || c < columns; c += kPanel)  // without columns scores are 0
        kFewTiles<A>.scores[n - 1](s + j * kPanel + v * W<A>, at(j).data + c / kPanel * k.segment, k.row,
                                   turned + c * kPanel + v * W<A>, columns - c < kPanel ? columns - c : kPanel, c > 0,
                                   fetch);
  });
}

// out = alpha out + P V, all rows seeing all of the keys from … to - 1; out [segment][room][kPanel].
template <class A>
inline void few_outs(A* out, int64_t room, const A* p, const BlockRows<A>& v, int64_t columns, int from, int to,
                     int rows, const A* alpha, Fetch& fetch) {
  row_groups(0, rows, kFewRows, [&](int64_t r, int m) {
    for (int64_t c = 0; c < columns; c += kPanel) {
      const int vectors = vectors_of<A>(columns - c);
      for (int n = 0; n < vectors; n += kTileVectors) {
        const int wide = vectors - n < kTileVectors ? vectors - n : kTileVectors;
        kFewTiles<A>.sums[wide - 1][m - 1](out + (c / kPanel * room + r) * kPanel + n * W<A>, p + from * kPanel + r,
                                           v.data + from * v.row + c / kPanel * v.segment + n * W<A>, v.row, to - from,
                                           alpha + r, fetch);
      }
    }
  });
}

}  // namespace
}  // namespace hetkern::cpu
