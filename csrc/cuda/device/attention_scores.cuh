// From products to scores: which sequence, who sees whom, softcap, ALiBi, bias, dropout.               (the contract: csrc/attention.h)
//
// Rows of a tile are queries and its columns keys, or (kKeysDown, for the gradients of k and v) the other way round; x is a row's
// place, y a column's. Folded, all heads of a group stand in the rows: row x is query x / heads, of head x mod heads.
#pragma once
#include "../attention_plan.h"
#include "attention_tiles.cuh"
#include "philox.cuh"

namespace hetkern::cuda {

struct Sequence {
  int b, q0, k0;  // its first rows in packed tensors
  int Lq, Lk;
};

__device__ __forceinline__ Sequence sequence_of(const AttentionProblem& p, int b) {
  if (p.cu_seqlens_q) {
    const int q0 = p.cu_seqlens_q[b], k0 = p.cu_seqlens_k[b];
    return {b, q0, k0, p.cu_seqlens_q[b + 1] - q0, p.cu_seqlens_k[b + 1] - k0};
  }
  return {b, 0, 0, static_cast<int>(p.Lq), p.seqlens_k ? p.seqlens_k[b] : static_cast<int>(p.Lk)};
}

template <class T>
__device__ __forceinline__ T* at(const Heads& t, int64_t b, int64_t h, int64_t row) {
  return static_cast<T*>(t.data) + b * t.batch + h * t.head + row * t.row;
}
template <class T>
__device__ __forceinline__ TileRows<T> rows_of(const Heads& t, int64_t b, int64_t h, int64_t row, bool vectors) {
  return {at<T>(t, b, h, row), t.row, t.step, vectors};
}
// A tile's queries from row x on; folded, of the group that h begins.
template <class T, bool kFold>
__device__ __forceinline__ TileRows<T, kFold> queries_of(const Heads& t, const AttentionTiles& tiles, const Sequence& s,
                                                         int h, int x, bool vectors) {
  if constexpr (kFold)
    return {at<T>(t, s.b, h, s.q0), t.row, t.step, vectors, t.head, tiles.heads, x};
  else
    return rows_of<T>(t, s.b, h, s.q0 + x, vectors);
}
__device__ __forceinline__ int64_t stat_of(const AttentionProblem& p, const Sequence& s, int64_t h, int64_t i) {
  return s.b * p.stat_batch + h * p.stat_head + s.q0 + i;
}
__device__ __forceinline__ int key_head(const AttentionProblem& p, int h) {
  return h / (static_cast<int>(p.Hq) / static_cast<int>(p.Hkv));
}

// Row x sees columns x + low … x + high of [0, columns). In 32 bits, for registers: beyond them an end is the tensor's.
struct Band {
  int shift, low, high;  // shift: of the row's own place
  int rows, columns;

  template <bool kKeysDown>
  static __device__ __forceinline__ Band of(const AttentionProblem& p, const Sequence& s) {
    constexpr int64_t kFar = int64_t{1} << 40;
    const int64_t left = p.window_left < 0 || p.window_left > kFar ? kFar : p.window_left;
    int64_t right = p.window_right < 0 || p.window_right > kFar ? kFar : p.window_right;
    if (p.causal) right = 0;
    const int shift = kKeysDown ? s.Lq - s.Lk : s.Lk - s.Lq;
    const int64_t before = kKeysDown ? right : left, after = kKeysDown ? left : right;
    const auto clipped = [](int64_t y) {
      constexpr int64_t kMost = 0x7fffffff;
      return static_cast<int>(y < -kMost ? -kMost : y > kMost ? kMost : y);
    };
    return {shift, clipped(shift - before), clipped(shift + after), kKeysDown ? s.Lk : s.Lq, kKeysDown ? s.Lq : s.Lk};
  }
  __device__ __forceinline__ int first(int x) const {  // columns: none
    const int64_t y = int64_t{x} + low;
    return static_cast<int>(y < 0 ? 0 : y > columns ? columns : y);
  }
  __device__ __forceinline__ int last(int x) const {  // -1: none
    const int64_t y = int64_t{x} + high;
    return static_cast<int>(y < 0 ? -1 : y >= columns ? columns - 1 : y);
  }
  // The columns that some of the rows x … x + n - 1 sees: from a multiple of `block` to an end.
  __device__ __forceinline__ int from(int x, int block) const { return first(x) / block * block; }
  __device__ __forceinline__ int to(int x, int n) const { return last(min(x + n, rows) - 1) + 1; }
  // Whether some of those rows does not see some of the columns y … y + m - 1.
  __device__ __forceinline__ bool cuts(int x, int n, int y, int m) const {
    return x + n > rows || y + m > columns || first(x + n - 1) > y || last(x) < y + m - 1;
  }
};

// What a row's saved numbers become. of_sum below 0: the row is emptied, or none.
template <class A>
struct RowStats {
  A max, of_sum, delta;  // of_sum: exp(-log_sum)
};

template <class A>
__device__ __forceinline__ RowStats<A> row_stats(const void* row_max, const void* log_sum, const A* delta, int64_t i) {
  const A max = static_cast<const A*>(row_max)[i], log = static_cast<const A*>(log_sum)[i];
  if (max == -kInfinity<A> && log == A(0)) return {A(0), A(-1), A(0)};
  return {max, exp_one(-log), delta[i]};
}

template <class T, bool kKeysDown, bool kFold = false>
struct Scores {
  using A = AccumulatorOf<T>;
  const AttentionProblem& p;
  const AttentionTiles& tiles;
  const Sequence seq;
  const Band band;
  int h = 0;  // folded: the group's first
  A slope = 0;
  const bool plain;  // scores are scaled products

  __device__ __forceinline__ Scores(const AttentionProblem& p, const AttentionTiles& tiles, const Sequence& seq)
      : p(p),
        tiles(tiles),
        seq(seq),
        band(Band::of<kKeysDown>(p, seq)),
        plain(!(p.softcap > 0) && !p.slopes && !p.bias) {}
  static constexpr bool kFloat = sizeof(A) == 4;
  __device__ __forceinline__ A scale() const { return kFloat ? A(tiles.scale) : A(p.scale); }
  __device__ __forceinline__ A softcap() const { return kFloat ? A(tiles.softcap) : A(p.softcap); }
  __device__ __forceinline__ A kept() const { return kFloat ? A(tiles.kept) : A(1 / (1 - p.dropout_p)); }
  __device__ __forceinline__ void take_head(int head) {
    h = head;
    if (p.slopes && !kFold) slope = static_cast<const A*>(p.slopes)[seq.b * p.slope_batch + h * p.slope_head];
  }
  // Folded, rows that are not there are as the last query's: they find their numbers, and nobody looks at theirs.
  __device__ __forceinline__ int row_of(int x) const { return kFold ? min(x / tiles.heads, seq.Lq - 1) : x; }
  __device__ __forceinline__ int head_of(int x) const { return kFold ? h + x % tiles.heads : h; }
  __device__ __forceinline__ int query(int x, int y) const { return kKeysDown ? y : row_of(x); }
  static __device__ __forceinline__ int key(int x, int y) { return kKeysDown ? x : y; }
  // Of a tile's rows.
  __device__ __forceinline__ int from(int x, int block) const { return band.from(row_of(x), block); }
  __device__ __forceinline__ int to(int x, int n) const {
    return kFold ? band.last(row_of(x + n - 1)) + 1 : band.to(x, n);
  }
  __device__ __forceinline__ bool cuts(int x, int n, int y, int m) const {
    return kFold ? band.cuts(row_of(x), row_of(x + n - 1) - row_of(x) + 1, y, m) : band.cuts(x, n, y, m);
  }

  // Whether products with a tile's columns need care: some row may not see one, or may have been emptied by a bias.
  __device__ __forceinline__ bool careful(bool cut) const { return cut || p.mask || p.bias; }

  // Bit 4 t + e: whether the fragment's element is seen; x, y: where its first one is.
  template <int N>
  __device__ __forceinline__ uint32_t seen(int x, int y, bool cut) const {
    uint32_t bits = 0xffffffffu >> (32 - 4 * N);
    if (cut) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(x + 8 * half);
        const int first = band.first(row), last = row < band.rows ? band.last(row) : -1;
#pragma unroll
        for (int t = 0; t < N; ++t)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = y + 8 * t + e;
            if (column < first || column > last) bits &= ~(1u << (4 * t + 2 * half + e));
          }
      }
    }
    if (p.mask) {
#pragma unroll 4
      for (int n = 0; n < 4 * N; ++n) {
        if (!(bits >> n & 1)) continue;
        const int row = x + n % 4 / 2 * 8, column = y + n / 4 * 8 + n % 2;
        const uint8_t* const mask = at<const uint8_t>(p.mask, seq.b, head_of(row), 0);
        if (!mask[query(row, column) * p.mask.row + key(row, column) * p.mask.step]) bits &= ~(1u << n);
      }
    }
    return bits;
  }

  // Bit 4 t + e: whether dropout keeps the element.
  template <int N>
  __device__ __forceinline__ uint32_t stays(int x, int y) const {
    uint32_t bits = 0xffffffffu;
    if (!p.seed) return bits;
    const auto seed = static_cast<uint64_t>(*p.seed);  // read anew, or ten rounds' keys stay in registers
    const auto key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
    const auto threshold = static_cast<uint32_t>(p.dropout_p * 4294967296.0);
#pragma unroll 1
    for (int n = 0; n < 4 * N; ++n) {
      const int row = x + n % 4 / 2 * 8, column = y + n / 4 * 8 + n % 2;
      const uint32_t head =
          static_cast<uint32_t>(seq.b) * static_cast<uint32_t>(p.Hq) + static_cast<uint32_t>(head_of(row));
      const auto i = static_cast<uint32_t>(query(row, column)), j = static_cast<uint32_t>(key(row, column));
      const PhiloxWords words = philox(j / 4, i, head, 0, key_0, key_1);
      const uint32_t word = j & 2 ? (j & 1 ? words.of[3] : words.of[2]) : (j & 1 ? words.of[1] : words.of[0]);
      if (word < threshold) bits &= ~(1u << n);
    }
    return bits;
  }

  // |i + Lk - Lq - j|
  __device__ __forceinline__ A distance(int x, int y) const {
    const int64_t d = int64_t{row_of(x)} + band.shift - y;
    return static_cast<A>(d < 0 ? -d : d);
  }

  // The score of a product; by_cap: its derivative by the scaled product.
  __device__ __forceinline__ A score(A product, int x, int y, bool is_seen, A& by_cap) const {
    A s = product * scale();
    by_cap = 1;
    if (plain) return s;
    if (p.softcap > 0) {
      const A t = tanh_one(s / softcap());
      s = softcap() * t, by_cap = 1 - t * t;
    }
    if (p.slopes)
      s -= distance(x, y) *
           (kFold ? static_cast<const A*>(p.slopes)[seq.b * p.slope_batch + head_of(x) * p.slope_head] : slope);
    if (p.bias && is_seen) s += get<A>(at<const T>(p.bias, seq.b, head_of(x), query(x, y))[key(x, y) * p.bias.step]);
    return s;
  }

  // Scores' products and dout v in; dr out in s, p drop out in dp: -0 where a row does not see a column. each(t, e, ds, x, y)
  // hears of all that are seen. stats(e, y): a query's; y counts within the tile.
  template <int N, class Stats, class Each>
  __device__ __forceinline__ void gradients(A (&s)[N][4], A (&dp)[N][4], int x, int y, uint32_t& bits, uint32_t stay,
                                            const Stats& stats, const Each& each) const {
#pragma unroll
    for (int t = 0; t < N; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = x + e / 2 * 8, column = 8 * t + e % 2;
        const RowStats<A> stat = stats(e, column);
        const bool is_seen = (bits >> (4 * t + e) & 1) && !(stat.of_sum < 0);
        A by_cap;
        const A z = score(s[t][e], row, y + column, is_seen, by_cap);
        const A weight = exp_nonpositive(z - stat.max) * stat.of_sum;
        const A drop = !p.seed ? A(1) : stay >> (4 * t + e) & 1 ? kept() : A(0);
        const A ds = weight * (dp[t][e] * drop - stat.delta);
        if (is_seen) each(t, e, ds, row, y + column);
        s[t][e] = is_seen ? ds * by_cap : A(kUnseen);
        dp[t][e] = is_seen ? weight * drop : A(kUnseen);
        if (!is_seen) bits &= ~(1u << (4 * t + e));
      }
  }

  // The same from tiles in shared memory: rows x0 … of q and dout, 16 a warp, and columns y0 … of k and v.
  template <int N, class Each>
  __device__ __forceinline__ void gradients_of_tiles(const T* q, const T* dout, const T* k, const T* v, int x0,
                                                     int rows, int y0, const RowStats<A> (&stats)[2],
                                                     const Each& each) const {
    const int first = 16 * (static_cast<int>(threadIdx.x) / 32), x = x0 + first + fragment_row();
    const int depth = (static_cast<int>(p.D) + 15) / 16 * 16, depth_v = (static_cast<int>(p.Dv) + 15) / 16 * 16;
    A s[N][4], dp[N][4];
    clear(s), clear(dp);
    multiply_rows<T>(s, q + first * tiles.ld_d, tiles.ld_d, k, tiles.ld_d, depth);
    multiply_rows<T>(dp, dout + first * tiles.ld_v, tiles.ld_v, v, tiles.ld_v, depth_v);
    const int y = y0 + fragment_column();
    uint32_t bits = seen<N>(x, y, band.cuts(x0, rows, y0, 8 * N));
    const uint32_t stay = stays<N>(x, y);
    gradients(s, dp, x, y, bits, stay, [&](int e, int) { return stats[e / 2]; }, each);
  }
};

}  // namespace hetkern::cuda
