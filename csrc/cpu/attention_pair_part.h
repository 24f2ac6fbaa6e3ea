// Forward of pairs (attention_pairs.h): panels against a part of the keys.
//
// Work:  while a panel's weights are made beside a block, the tiles multiply what lies before and after it: the outs of the panel
//        before, whose weights are complete, and the scores of the next. So there are scores of two panels, and values of two
//        blocks.
// Bits:  every sum has the order that it would have one panel after another.
#pragma once
#include "attention_pair_weights.h"

namespace hetkern::cpu {
namespace {

#if defined(__AVX512F__)
class PairPart {
 public:
  const Totals<float, true>& of;
  const Pairs& by;
  const Sequence& q;
  const int64_t kv_head;
  const Panel<float>* panel;  // and what each has
  float* const* queries;
  const State<float>* state;
  const int panels;
  float* s[2];
  float* tile;  // of features
  bf16* keys;
  bf16* values[2];

  // Keys first … end - 1. What they come to is added to the panels' states.
  void run(int64_t first, int64_t end) {
    PairWork work(by);
    Place now{first, end};
    if (!find(now, 0)) return;
    read_keys(now);
    multiply(work, now, s[0]);
    work.finish();
    bool finite = true;
    int64_t values_of = -1;
    for (int turn = 0, block = 0;; turn ^= 1) {
      if (values_of != now.j0) finite = read_values(now, values[block ^= 1]), values_of = now.j0;
      Place next = now;
      const bool more = find(next, now.panel + 1);
      if (more) {
        if (next.j0 != now.j0) read_keys(next);
        multiply(work, next, s[turn ^ 1]);
      }
      weigh(work, now, s[turn], values[block], finite);
      if (!more) break;
      now = next;
    }
    work.finish();
  }

 private:
  // A panel and a block that it sees something of.
  struct Place {
    int64_t j0, end;
    int panel = 0, nk = 0, from = 0, to = 0;  // what any panel sees of the block
    Sight sight[kPanelsOfTask] = {};
  };

  // On from panel `i` of the block at hand.
  bool find(Place& at, int i) const {
    for (; at.j0 < at.end; at.j0 += kBlock, i = 0) {
      at.nk = static_cast<int>(at.end - at.j0 < kBlock ? at.end - at.j0 : kBlock);
      if (i == 0) look(at);
      for (; i < panels; ++i)
        if (at.sight[i].to > at.sight[i].from) return at.panel = i, true;
    }
    return false;
  }
  void look(Place& at) const {
    at.from = at.nk, at.to = 0;
    for (int i = 0; i < panels; ++i) {
      const Sight x = at.sight[i] = sight_of(panel[i], at.j0, at.nk);
      if (x.to <= x.from) continue;
      if (x.from < at.from) at.from = x.from;
      if (x.to > at.to) at.to = x.to;
    }
  }

  // What no row of a block's first thirty-twos sees is packed as well, and meets a weight of 0.
  void read_keys(const Place& at) const {
    const int first = at.from / 32 * 32, n = at.to - first;
    const int64_t width = round_up(of.p.D, 32);
    pack_pair_rows(keys + first * width, width, KeyRows(of.p.k, q, kv_head, at.j0 + first, n).of(of.p.k), n, of.p.D);
  }
  bool read_values(const Place& at, bf16* to) const {
    const int first = at.from / 32 * 32, n = at.to - first;
    return pack_turned_rows(to + first, KeyRows(of.p.v, q, kv_head, at.j0 + first, n).of(of.p.v), n, of.p.Dv);
  }
  void multiply(PairWork& work, const Place& at, float* to) const {
    turned_product<true>(work, panel[at.panel], at.sight[at.panel], at.j0, to, reinterpret_cast<const float*>(keys),
                         queries[at.panel], of.p.D);
  }

  // Weights, and out = alpha out + P V, turned: O^T = alpha O^T + V^T P^T.
  void weigh(PairWork& work, const Place& at, float* scores, const bf16* turned, bool finite) const {
    const Panel<float>& x = panel[at.panel];
    const Sight& sight = at.sight[at.panel];
    const State<float>& sums = state[at.panel];
    alignas(64) float alpha[kPanel];
    const float factor = of.score(x, q, sight, at.j0, scores, tile);
    panel_weights(scores, of.f.drops() ? tile : nullptr, sums, alpha, x.vectors, sight, factor, work);
    for (int v = 0; v < x.vectors * 16; v += 16) {
      const Vec<float> by_alpha = load<float>(alpha + v);
      if (!lane_bits(by_alpha != 1.0f)) continue;
      for (int64_t c = 0; c < of.p.Dv; ++c) {
        float* const o = sums.o + c * sums.room + v;
        store<float>(o, load<float>(o) * by_alpha);
      }
    }
    const auto* const weights = reinterpret_cast<const uint32_t*>(scores);
    key_sums(work, x, sight, at.j0, sums.o, sums.room, turned, weights, of.p.Dv);
    if (finite) return;
    work.finish();
    add_strange_keys(of.f, x, q, sight, at.j0, sums.o, sums.room, 1, weights, of.p.v, kv_head, of.p.Dv);
  }
};
#endif

}  // namespace
}  // namespace hetkern::cpu
