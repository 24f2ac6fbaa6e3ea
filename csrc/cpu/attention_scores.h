// From products to scores: scale, softcap, ALiBi, bias, mask, and what dropout keeps; one panel against one block of keys.
#pragma once
#include "attention_panel.h"
#include "philox.h"
#include "simd_math.h"

namespace hetkern::cpu {
namespace {

// Calls f(at, j, v) for the scores of keys from … to - 1 and every vector of a panel.
template <class A, class F>
inline void each_score(A* s, int from, int to, int vectors, const F& f) {
  for (int j = from; j < to; ++j)
    for (int v = 0; v < vectors; ++v) f(s + j * kPanel + v * W<A>, j, v);
}

template <class A>
struct Scoring {
  const AttentionProblem& p;
  const Elements<A> elements;
  const A scale, softcap, kept;
  const uint32_t threshold;
  const bool plain;  // scores are scaled products

  explicit Scoring(const AttentionProblem& p)
      : p(p),
        elements(elements_for<A>(p.type)),
        scale(static_cast<A>(p.scale)),
        softcap(static_cast<A>(p.softcap)),
        kept(static_cast<A>(1 / (1 - p.dropout_p))),
        threshold(static_cast<uint32_t>(p.dropout_p * 0x1p32)),
        plain(!(p.softcap > 0) && !p.slopes && !p.bias && !p.mask) {}
  bool drops() const { return p.seed != nullptr; }

  // Products in, scores out: -inf where a row does not see a key. `slope_of_cap`, if not null, gets d s / d (scale product).
  void scores(const Panel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0, A* s, A* tile,
              A* slope_of_cap) const {
    const int from = sight.from, to = sight.to, vectors = panel.vectors;
    const Vec<A> by = splat(scale);
    each_score(s, from, to, vectors, [&](A* at, int, int) { store<A>(at, load<A>(at) * by); });
    if (p.softcap > 0) {
      const Vec<A> cap = splat(softcap), inverse = splat(A(1) / softcap);
      each_score(s, from, to, vectors, [&](A* at, int, int) {
        const Vec<A> t = tanh(load<A>(at) * inverse);
        store<A>(at, cap * t);
        if (slope_of_cap) store<A>(slope_of_cap + (at - s), fma(-t, t, splat(A(1))));
      });
    }
    if (p.slopes)
      each_score(s, from, to, vectors, [&](A* at, int j, int v) {
        store<A>(at, fma(-load<A>(panel.slope + v * W<A>), distance(panel, j0 + j, v), load<A>(at)));
      });
    if (p.bias) {
      read_tile(p.bias, panel, q, sight, j0, elements.pack_turned, tile);
      each_score(s, from, to, vectors, [&](A* at, int, int) { store<A>(at, load<A>(at) + load<A>(tile + (at - s))); });
    }
    if (p.mask) {
      read_tile(p.mask, panel, q, sight, j0, pack_turned<A, Kept>, tile);
      each_score(s, from, to, vectors, [&](A* at, int, int) {
        store<A>(at, load<A>(tile + (at - s)) != A(0) ? load<A>(at) : splat(-kInfinity<A>));
      });
    }
    if (sight.edge)
      each_score(s, from, to, vectors, [&](A* at, int j, int v) {
        store<A>(at, panel.sees(j0 + j, v) ? load<A>(at) : splat(-kInfinity<A>));
      });
  }

  // -inf where a row does not see a key, the rest as it is.
  static void hide(const Panel<A>& panel, const Sight& sight, int64_t j0, A* s) {
    for (int v = 0; v < panel.vectors; ++v) {
      const auto hide_keys = [&](int64_t from, int64_t to) {
        for (int64_t j = from; j < to; ++j) {
          A* const at = s + j * kPanel + v * W<A>;
          store<A>(at, panel.sees(j0 + j, v) ? load<A>(at) : splat(-kInfinity<A>));
        }
      };
      // Before and behind the keys that all of its rows see.
      const int64_t low = panel.vector_inner_low[v] - j0, high = panel.vector_inner_high[v] + 1 - j0;
      const int64_t first = low < sight.from ? sight.from : low < sight.to ? low : sight.to;
      hide_keys(sight.from, first);
      hide_keys(high > first ? high : first, sight.to);
    }
  }
  // Whether s holds products still, to be scaled by who reads them: nothing is added to them, -inf stays so, and the largest stays
  // the largest.
  bool unscaled() const { return plain && scale > A(0); }

  // |i + Lk - Lq - j|
  static Vec<A> distance(const Panel<A>& panel, int64_t j, int v) {
    using I = typename Panel<A>::I;
    const Vec<I> d = load_vector<Vec<I>>(panel.lane_place + v * W<A>) - static_cast<I>(j);
    return __builtin_convertvector(d < 0 ? -d : d, Vec<A>);
  }

  // Whether row r sees key j, by position and by mask.
  bool row_sees(const Panel<A>& panel, const Sequence& q, int r, int64_t j) const {
    if (!panel.row_sees(r, j)) return false;
    if (!p.mask) return true;
    const int64_t at = q.b * p.mask.batch + panel.head[r] * p.mask.head + panel.query[r] * p.mask.row + j * p.mask.step;
    return static_cast<const uint8_t*>(p.mask.data)[at];
  }
  bool all_seen(const Sight& sight) const { return !sight.edge && !p.mask; }

  // A block of a bias or a mask, turned as scores are.
  template <class Pack>
  static void read_tile(const Heads& t, const Panel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0,
                        const Pack& pack, A* tile) {
    int64_t offset[kPanel];
    const int n = sight.to - sight.from;
    A* const first = tile + sight.from * kPanel;
    bool same = true;
    for (int r = 0; r < panel.rows; ++r) {
      offset[r] = q.b * t.batch + panel.head[r] * t.head + panel.query[r] * t.row + (j0 + sight.from) * t.step;
      same = same && offset[r] == offset[0];
    }
    if (t.step == 0) {  // one number a row
      pack(first, {t.data, offset, 1}, panel.rows, 1);
      for (int j = 1; j < n; ++j) std::memcpy(first + j * kPanel, first, sizeof(A) * panel.vectors * W<A>);
    } else {
      pack(first, {t.data, offset, t.step}, same ? 1 : panel.rows, n);
      if (same)
        each_score(first, 0, n, panel.vectors, [&](A* at, int j, int) { store<A>(at, splat(first[j * kPanel])); });
    }
  }

  // 0 or 1 / (1 - dropout_p) for each score.
  void dropout(const Panel<A>& panel, const Sight& sight, int64_t j0, A* tile) const {
    const auto seed = static_cast<uint64_t>(*p.seed);
    for (int j = sight.from; j < sight.to; j += 4)
      for (int r = 0; r < panel.vectors * W<A>; r += W<float>) {
        Words words{{Words::all(static_cast<uint32_t>((j0 + j) / 4)),
                     load_vector<Vec<uint32_t>>(panel.philox_query + r),
                     load_vector<Vec<uint32_t>>(panel.philox_head + r), Words::all(0)}};
        philox(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
        for (int i = 0; i < 4 && j + i < sight.to; ++i) {
          A* const at = tile + (j + i) * kPanel + r;
          const Mask<float> keep = words.of[i] >= Words::all(threshold);
          if constexpr (std::is_same_v<A, float>)
            store<A>(at, keep ? splat(kept) : Vec<float>{});
          else
            for (int l = 0; l < W<float>; ++l) at[l] = keep[l] ? kept : A(0);
        }
      }
  }
};

}  // namespace
}  // namespace hetkern::cpu
