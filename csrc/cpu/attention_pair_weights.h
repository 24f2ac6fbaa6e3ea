// Weights of a panel beside a block of keys, made while the processor's tiles multiply for the panels before and after it.
//
// Speed: exponentials keep the vector units busy, AMX has a unit of its own, and a processor looks a few hundred instructions
//        ahead. So products are put down as work, and a piece of it is begun every few rows of exponentials.
#pragma once
#include "attention_totals.h"

namespace hetkern::cpu {
namespace {

#if defined(__AVX512F__)
// Products that are made in their order, piece by piece, whenever somebody says so.
class PairWork {
 public:
  explicit PairWork(const Pairs& by) : by(by) {}
  // As Pairs::product; it reads and writes later.
  void product(float* c, int64_t ldc, const bf16* a, int64_t lda, const uint32_t* b, int64_t rows, int vectors,
               int64_t pairs, bool add) {
    if (count == kMost) finish();
    of[count++] = {c, ldc, a, lda, b, rows, vectors, pairs, add};
  }
  void step() {
    if (at == count) return;
    const Piece& p = of[at];
    // Without tiles there is nothing to be gained from small pieces.
    const int64_t rows = by.tiles && p.rows - row > 32 ? 32 : p.rows - row;
    const int vectors = by.tiles && p.vectors - vector > 2 ? 2 : p.vectors - vector;
    by.product(p.c + row * p.ldc + vector * 16, p.ldc, p.a + row * p.lda, p.lda, p.b + vector * 16, rows, vectors,
               p.pairs, p.add);
    vector += vectors;
    if (vector < p.vectors) return;
    vector = 0, row += rows;
    if (row < p.rows) return;
    row = 0;
    if (++at == count) at = count = 0;
  }
  void finish() {
    while (at < count) step();
  }
  // Pieces that are left.
  int steps() const {
    int n = 0;
    for (int i = at; i < count; ++i)
      n += static_cast<int>(by.tiles ? ceil_div(of[i].rows, 32) * ceil_div(of[i].vectors, 2) : 1);
    return n;
  }

 private:
  struct Piece {
    float* c;
    int64_t ldc;
    const bf16* a;
    int64_t lda;
    const uint32_t* b;
    int64_t rows;
    int vectors;
    int64_t pairs;
    bool add;
  };
  static constexpr int kMost = 8;
  const Pairs& by;
  Piece of[kMost];
  int count = 0, at = 0, vector = 0;
  int64_t row = 0;
};

// Maxima, sums, and exponentials of U vectors of s [key][kPanel], these rounded as pairs of keys in place: pair j / 2 is where
// row j / 2 was, with zeros beside the keys that are seen up to whole thirty-twos. Takes a step of `work` every few keys.
template <int U, bool drops, class Work>
HETKERN_DOT_TARGET __attribute__((noinline)) void pair_weights(float* s, const float* drop, float* m, float* l,
                                                               float* alpha, const Sight& sight, float factor,
                                                               Work& work, int keys_of_step) {
  const Vec<float> by = splat(factor);
  const int from = sight.from, end = sight.to;
  Vec<float> top[U], sum[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) top[u] = splat(-kInfinity<float>), sum[u] = Vec<float>{};
  const auto in_place = reinterpret_cast<uint32_t*>(s);
  if (factor > 0) {  // the largest of the products is that of the largest
    for (int j = from; j < end; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) top[u] = max(load<float>(s + j * kPanel + u * 16), top[u]);  // of NaN: the other
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) top[u] = top[u] * by;
  } else {
    for (int j = from; j < end; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) top[u] = max(load<float>(s + j * kPanel + u * 16) * by, top[u]);
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    const Vec<float> old = load<float>(m + u * 16), now = max(top[u], old);
    store<float>(m + u * 16, now);
    top[u] = now == -kInfinity<float> ? Vec<float>{} : now;
    store<float>(alpha + u * 16, exp_of_share<false>(old - top[u]));
  }
  const __m512i order = interleaved();
  for (int j = from / 32 * 32; j < from; j += 2) std::memset(in_place + j / 2 * kPanel, 0, sizeof(float) * U * 16);
  for (int j = from; j < end;) {
    const int stop = j + keys_of_step < end ? j + keys_of_step : end;
    for (; j < stop; j += 2) {
      const bool both = j + 1 < end;
#pragma GCC unroll 4
      for (int u = 0; u < U;
           ++u) {  // the product is rounded as the maximum was, or a huge one's rounding would be in a power
        float* const at = s + j * kPanel + u * 16;
        Vec<float> low = exp_of_weight(load<float>(at) * by - top[u]), high{};
        if (both) high = exp_of_weight(load<float>(at + kPanel) * by - top[u]);
        sum[u] += low + high;
        if constexpr (drops) {
          const float* const kept = drop + j * kPanel + u * 16;
          low = low * load<float>(kept);
          if (both) high = high * load<float>(kept + kPanel);
        }
        const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(in_place + j / 2 * kPanel + u * 16, _mm512_permutexvar_epi16(order, pair));
      }
    }
    work.step();
  }
  for (int j = (end + 1) / 2 * 2; j < round_up(end, 32); j += 2)
    std::memset(in_place + j / 2 * kPanel, 0, sizeof(float) * U * 16);
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u)
    store<float>(l + u * 16, fma(load<float>(l + u * 16), load<float>(alpha + u * 16), sum[u]));
}

// The same of a whole panel. `drop`, if not null, is what dropout keeps of each.
template <class Work>
inline void panel_weights(float* s, const float* drop, const State<float>& state, float* alpha, int vectors,
                          const Sight& sight, float factor, Work& work) {
  const int groups = (vectors + 3) / 4, steps = work.steps() / groups;
  const int keys = steps > 0 ? (sight.to - sight.from) / steps / 2 * 2 : kBlock, keys_of_step = keys < 2 ? 2 : keys;
  const auto weights = [&](auto wide, int v) {
    constexpr int U = decltype(wide)::value;
    const auto f = drop ? pair_weights<U, true, Work> : pair_weights<U, false, Work>;
    const int at = v * 16;
    f(s + at, drop ? drop + at : nullptr, state.m + at, state.l + at, alpha + at, sight, factor, work, keys_of_step);
  };
  for (int v = 0; v < vectors; v += 4) {
    switch (vectors - v) {
      case 1:
        weights(std::integral_constant<int, 1>(), v);
        break;
      case 2:
        weights(std::integral_constant<int, 2>(), v);
        break;
      case 3:
        weights(std::integral_constant<int, 3>(), v);
        break;
      default:
        weights(std::integral_constant<int, 4>(), v);
    }
  }
  work.finish();
}
#endif

}  // namespace
}  // namespace hetkern::cpu
