// The register tile of recurrences and attention: some rows times a packed panel of weights.
//
//   out[r][v] = sum_k left[r][k] panel[k][v]        v: the lanes of NV vectors
//
// left is A and its products are fused multiply-adds, or it is bfloat16 and pairs of k are dot products of the processor's (Dot,
// and Amx by whole tiles: both flush denormals and round a pair in their own way).
// Bits:  k is cut into kParts equal parts, each added in its order, the parts added in theirs; Amx adds its tiles in their
//        order. So a row's sum depends on K alone, whatever the tile, its neighbours and the threads.
// Speed: a tile is never inlined: within a larger function GCC spills its accumulators (two to four times slower).
#pragma once
#include <utility>

#include "amx.h"
#include "simd.h"

#if defined(__AVX512F__)
#define HETKERN_DOT_TARGET __attribute__((target("avx512bf16")))
#endif

namespace hetkern::cpu {
namespace {

constexpr int kParts = 4;
constexpr int kMostTileRows = 32;
#if defined(__AVX512F__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// How left and panel hold numbers for accumulators of A.
template <class A>
struct Fma {
  using Left = A;
  using Word = A;  // of a panel
  static constexpr int per_word = 1, whole_words = kParts, most_rows = 8;
};
struct Dot {
  using Left = bf16;
  using Word = float;  // two bf16, the lower k below
  static constexpr int per_word = 2, whole_words = kParts, most_rows = 8;
};
struct Amx {
  using Left = bf16;
  using Word = float;
  static constexpr int per_word = 2, whole_words = kAmxWords, most_rows = 2 * kAmxRows;
};

// Vectors of a panel that lie side by side. A tile of three rows and four vectors leaves 16 registers no room for a row's number
// beside accumulators and weights, which are then read once a row: it takes two and two. One or two rows have room for all four.
constexpr int vectors_at_once(int NV) { return kRegisters == 16 && NV == 4 ? 2 : NV; }

// Where word k of a panel's vector v begins, in lanes: panel[v / at once][k][v % at once], and by whole tiles for Amx.
template <class P, class A>
constexpr int64_t word_at(int64_t k, int v, int NV, int64_t words) {
  if constexpr (std::is_same_v<P, Amx>)
    return amx_word_at(k, v, NV, words);
  else
    return ((v / vectors_at_once(NV) * words + k) * vectors_at_once(NV) + v % vectors_at_once(NV)) * W<A>;
}

// Words that K takes: a whole number for each part, or tile.
template <class P>
constexpr int64_t words_of(int64_t K) {
  return (K + P::per_word * P::whole_words - 1) / (P::per_word * P::whole_words) * P::whole_words;
}

// Rows of a tile with so many vectors: accumulators fill three quarters of the vector registers.
template <class P>
constexpr int most_rows(int vectors) {
  const int rows = kRegisters * 3 / 4 / vectors_at_once(vectors);
  return std::is_same_v<P, Amx> || rows > P::most_rows ? P::most_rows : rows;
}

// Parts of k that run side by side, where a tile alone has too few independent sums for the multiplier's latency: eight, of two
// multipliers and four cycles. Six rows would need twelve addresses.
constexpr int parts_at_once(int rows, int vectors) {
  const int tile = rows * vectors;
  if (tile * 8 <= kRegisters) return 4;
  return tile * 4 <= kRegisters || (tile <= 6 && rows < 6) ? 2 : 1;
}

template <class V>
inline void hold(V& v) {  // in a register: else GCC reads a weight from memory once a row, and loads would limit
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#else
  static_cast<void>(v);
#endif
}

// Rows of `out` are `Out` vectors long.
template <class A, int R, int NV, int Out>
__attribute__((noinline)) void fma_tile(const A* left, int64_t stride, const A* panel, int64_t words, A* out) {
  constexpr int at_once = parts_at_once(R, NV), beside = vectors_at_once(Out);
  const int64_t part = words / kParts;
  for (int p = 0; p < kParts; p += at_once) {
    Vec<A> s[at_once][R][NV] = {};
    for (int64_t k = 0; k < part; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < at_once; ++i) {
        const int64_t at = (p + i) * part + k;
        Vec<A> w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          w[v] = load<A>(panel + ((v / beside * words + at) * beside + v % beside) * W<A>);
          if (R > 1) hold(w[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec<A> b = splat(left[r * stride + at]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) s[i][r][v] = fma(b, w[v], s[i][r][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < at_once; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          A* const to = out + (r * Out + v) * W<A>;
          store<A>(to, p + i == 0 ? s[i][r][v] : load<A>(to) + s[i][r][v]);
        }
  }
}

template <class A, int R, int NV>
void fma_rows(const void* left, int64_t stride, const void* panel, int64_t words, void* out) {
  constexpr int N = R <= 2 ? NV : vectors_at_once(NV);
  for (int v = 0; v < NV; v += N)
    fma_tile<A, R, N, NV>(static_cast<const A*>(left), stride, static_cast<const A*>(panel) + v * words * W<A>, words,
                          static_cast<A*>(out) + v * W<A>);
}

#if defined(__AVX512F__)
template <int R, int NV>
HETKERN_DOT_TARGET __attribute__((noinline)) void dot_tile(const void* left_any, int64_t stride, const void* panel_any,
                                                           int64_t words, void* out_any) {
  const bf16* const left = static_cast<const bf16*>(left_any);
  const char* const panel = static_cast<const char*>(panel_any);
  float* const out = static_cast<float*>(out_any);
  constexpr int at_once = parts_at_once(R, NV);
  const int64_t part = words / kParts;
  for (int p = 0; p < kParts; p += at_once) {
    __m512 s[at_once][R][NV] = {};
    for (int64_t k = 0; k < part; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < at_once; ++i) {
        const int64_t at = (p + i) * part + k;
        __m512i w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          w[v] = _mm512_loadu_si512(panel + (at * NV + v) * 64);
          if (R > 1) asm("" : "+v"(w[v]));
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          int32_t pair;
          std::memcpy(&pair, left + r * stride + 2 * at, 4);
          const __m512i b = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) s[i][r][v] = _mm512_dpbf16_ps(s[i][r][v], (__m512bh)w[v], (__m512bh)b);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < at_once; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          float* const to = out + (r * NV + v) * 16;
          _mm512_storeu_ps(to, p + i == 0 ? s[i][r][v] : _mm512_add_ps(_mm512_loadu_ps(to), s[i][r][v]));
        }
  }
}

template <int R, int NV>
void amx_rows(const void* left, int64_t stride, const void* panel, int64_t words, void* out) {
  amx_tile<NV>(R, left, stride, panel, words, out);
}
#endif

using Tile = void (*)(const void* left, int64_t stride, const void* panel, int64_t words, void* out);

// The tiles of NV vectors, by rows less one.
template <class P, int NV>
struct Tiles {
  Tile of[P::most_rows] = {};
  constexpr Tiles() { fill(std::make_integer_sequence<int, most_rows<P>(NV)>()); }
  template <int... R>
  constexpr void fill(std::integer_sequence<int, R...>) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<P, Amx>) return static_cast<void>(((of[R] = amx_rows<R + 1, NV>), ...));
    if constexpr (std::is_same_v<P, Dot>) return static_cast<void>(((of[R] = dot_tile<R + 1, NV>), ...));
#endif
    if constexpr (P::per_word == 1) ((of[R] = fma_rows<typename P::Left, R + 1, NV>), ...);
  }
};
template <class P, int NV>
constexpr Tiles<P, NV> kTiles{};

// Calls tile(first row, rows) for groups of nearly one size, of at most `most` rows.
template <class Body>
inline void row_groups(int64_t begin, int64_t end, int most, const Body& body) {
  const int64_t n = end - begin, groups = (n + most - 1) / most;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t from = begin + n * g / groups, to = begin + n * (g + 1) / groups;
    body(from, static_cast<int>(to - from));
  }
}

// ---- Panels. --------------------------------------------------------------------------------------------------------------

// W vectors of W lanes transposed, by halves, quarters and so on.
template <class V, int half, int... lane>
inline void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int w = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, (lane & half ? w + lane - half : lane)...);
  b = __builtin_shufflevector(a, b, (lane & half ? w + lane : lane + half)...);
  a = low;
}
template <class A, int half = W<A> / 2>
inline void transpose(Vec<A> (&v)[W<A>]) {
  if constexpr (half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < W<A>; ++i)
      if (!(i & half)) exchange<Vec<A>, half>(v[i], v[i + half], std::make_integer_sequence<int, W<A>>());
    transpose<A, half / 2>(v);
  }
}

// The first n lanes' elements from memory; zeros after them.
template <class A, class T>
inline Vec<A> load_first(const T* from, int64_t n) {
  return n >= W<A> ? load<A>(from) : n > 0 ? load_some<A>(from, n, A(0)) : Vec<A>{};
}
template <class A, class T>
inline void store_first(T* to, Vec<A> v, int64_t n) {
  if (n >= W<A>) return store<A>(to, v);
  if (n > 0) store_some<A>(to, v, n);
}

// In place of a number of lanes: all of them, and no branches at each of a loop's many loads and stores.
struct AllLanes {};
template <class A, class T>
inline Vec<A> load_first(const T* from, AllLanes) {
  return load<A>(from);
}
template <class A, class T>
inline void store_first(T* to, Vec<A> v, AllLanes) {
  store<A>(to, v);
}
// Calls use(the first lanes of a vector that are elements), if there are any.
template <class A, class Use>
inline void with_lanes(int64_t n, const Use& use) {
  if (n >= W<A>)
    use(AllLanes{});
  else if (n > 0)
    use(n);
}

// Words k … k + W - 1 of a row of K elements.
template <class P, class A, class T>
inline Vec<A> load_words(const T* row, int64_t K, int64_t k) {
  if constexpr (P::per_word == 1) {
    return load_first<A>(row + k, K - k);
  } else {
    const int64_t left = K - 2 * k;
    if (left >= 2 * W<A>) return load_vector<Vec<A>>(row + 2 * k);
    T some[2 * W<A>] = {};
    for (int64_t i = 0; i < left; ++i) some[i] = row[2 * k + i];
    return load_vector<Vec<A>>(some);
  }
}

// One vector of a panel, v of NV, whose lanes are rows of w, W of them from row 0 of n; K elements a row.
template <class P, class A, class T>
inline void pack_rows(const T* w, int64_t n, int64_t K, typename P::Word* panel, int v, int NV) {
  const int64_t words = words_of<P>(K);
  for (int64_t k = 0; k < words; k += W<A>) {
    Vec<A> rows[W<A>];
    for (int i = 0; i < W<A>; ++i) rows[i] = i < n ? load_words<P, A>(w + i * K, K, k) : Vec<A>{};
    transpose<A>(rows);
    for (int i = 0; i < W<A> && k + i < words; ++i) store<A>(panel + word_at<P, A>(k + i, v, NV, words), rows[i]);
  }
}

// One vector of a panel whose lanes are neighbouring columns: row k of w is at row_of(k), null past the last.
template <class P, class A, class RowOf>
inline void pack_columns(const RowOf& row_of, int64_t n, int64_t words, typename P::Word* panel, int v, int NV) {
  for (int64_t k = 0; k < words; ++k) {
    Vec<A> word{};
    const auto* const row = row_of(P::per_word * k);
    if constexpr (P::per_word == 1) {
      if (row) word = load_first<A>(row, n);
    } else {  // bfloat16 widened is its bits above zeros
      const auto* const next = row_of(2 * k + 1);
      using U = Vec<uint32_t>;
      const U low = row ? bit_cast<U>(load_first<A>(row, n)) >> 16 : U{};
      const U high = next ? bit_cast<U>(load_first<A>(next, n)) : U{};
      word = bit_cast<Vec<A>>(low | high);
    }
    store<A>(panel + word_at<P, A>(k, v, NV, words), word);
  }
}

}  // namespace
}  // namespace hetkern::cpu
