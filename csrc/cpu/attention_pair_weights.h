// Weights of a panel of pairs (attention_pairs.h) beside a block of keys, and what they add to outs.
#pragma once
#include "attention_fetch.h"
#include "attention_totals.h"

namespace hetkern::cpu {
namespace {

#if defined(__AVX512F__)
// Maxima, sums, and exponentials of U vectors of s [key][kPanel], these rounded as pairs of keys in place: pair j / 2 is where
// row j / 2 was, with zeros beside the keys that are seen up to whole thirty-twos. Takes a step of `work` every few keys.
template <int U, bool drops>
HETKERN_DOT_TARGET __attribute__((noinline)) void pair_weights(float* s, const float* drop, float* m, float* l,
                                                               float* alpha, const Sight& sight, float factor,
                                                               FetchWork& work, int keys_of_step) {
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
inline void panel_weights(float* s, const float* drop, const State<float>& state, float* alpha,
                          const Panel<float>& panel, const Sight& sight, int64_t j0, float factor, FetchWork& work) {
  // At an edge two vectors at a time, of the keys that one of their rows sees: key_sums reads no others.
  const int most = sight.edge ? 2 : 4, groups = (panel.vectors + most - 1) / most, steps = work.steps() / groups;
  const int keys = steps > 0 ? (sight.to - sight.from) / steps / 2 * 2 : kBlock, keys_of_step = keys < 2 ? 2 : keys;
  for (int v = 0; v < panel.vectors; v += most) {
    const int wide = panel.vectors - v < most ? panel.vectors - v : most, at = v * 16;
    Sight own = keys_of_rows(panel, sight, j0, at, panel.rows - at < wide * 16 ? panel.rows - at : wide * 16);
    own.from = own.from / 4 * 4;
    const auto weights = [&](auto vectors) {
      constexpr int U = decltype(vectors)::value;
      const auto f = drop ? pair_weights<U, true> : pair_weights<U, false>;
      f(s + at, drop ? drop + at : nullptr, state.m + at, state.l + at, alpha + at, own, factor, work, keys_of_step);
    };
    switch (wide) {
      case 1:
        weights(std::integral_constant<int, 1>());
        break;
      case 2:
        weights(std::integral_constant<int, 2>());
        break;
      case 3:
        weights(std::integral_constant<int, 3>());
        break;
      default:
        weights(std::integral_constant<int, 4>());
    }
  }
}

// out = alpha out + P V, turned: O^T = alpha O^T + V^T P^T, of scores in s, which weights take the place of. `drop` as above.
inline void add_pairs(const Totals<float, true>& of, const Pairs& by, const Panel<float>& panel, const Sequence& q,
                      const Sight& sight, int64_t j0, const State<float>& sums, float* s, const float* drop,
                      float factor, const bf16* turned, bool finite, FetchWork& work) {
  alignas(64) float alpha[kPanel];
  uint32_t begun[kPanel / 16];  // lanes whose outs are no longer 0
  for (int v = 0; v < panel.vectors; ++v) begun[v] = lane_bits(load<float>(sums.m + v * 16) != -kInfinity<float>);
  panel_weights(s, drop, sums, alpha, panel, sight, j0, factor, work);
  for (int v = 0; v < panel.vectors; ++v) {
    const Vec<float> by_alpha = load<float>(alpha + v * 16);
    if (!(begun[v] & lane_bits(by_alpha != 1.0f))) continue;
    for (int64_t c = 0; c < of.p.Dv; ++c) {
      float* const o = sums.o + c * sums.room + v * 16;
      store<float>(o, load<float>(o) * by_alpha);
    }
  }
  const auto* const weights = reinterpret_cast<const uint32_t*>(s);
  key_sums(by, panel, sight, j0, sums.o, sums.room, turned, weights, of.p.Dv);
  if (!finite)
    add_strange_keys(of.f, panel, q, sight, j0, sums.o, sums.room, 1, weights, of.p.v,
                     panel.head[0] / (of.p.Hq / of.p.Hkv), of.p.Dv);
}
#endif

}  // namespace
}  // namespace hetkern::cpu
