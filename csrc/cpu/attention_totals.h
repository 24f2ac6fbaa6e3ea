// Sums of a panel over some of its keys, put together, and what becomes of them.
#pragma once
#include "attention_pair_sums.h"

namespace hetkern::cpu {
namespace {

// Sums of a panel, not yet divided by l.
template <class A>
struct State {
  A* o;  // [segment of Dv][room][kPanel]; of pairs turned, [Dv][room]
  A *m, *l;
  int64_t room;
};

template <class A, bool pairs>
struct Totals {
  const AttentionForward& p;
  const Scoring<A> f;
  const int64_t segments = segments_of(p.Dv);

  void clear(const State<A>& state, int rows, const A* sinks) const {
    if (pairs) std::memset(state.o, 0, sizeof(A) * static_cast<size_t>(round_up(p.Dv, 16) * state.room));
    for (int64_t g = 0; !pairs && g < segments; ++g)
      std::memset(state.o + g * state.room * kPanel, 0, sizeof(A) * static_cast<size_t>(rows) * kPanel);
    for (int r = 0; r < kPanel; ++r) state.m[r] = sinks ? sinks[r] : -kInfinity<A>, state.l[r] = sinks ? A(1) : A(0);
  }
  void begin(const State<A>& total, const Panel<A>& panel) const {
    A sinks[kPanel] = {};
    for (int r = 0; p.sink && r < panel.rows; ++r) sinks[r] = f.elements.read(p.sink, panel.head[r]);
    clear(total, panel.rows, p.sink ? sinks : nullptr);
  }

  // Products in s become scores, and what dropout keeps of each fills `tile`. Returns what scores are to be multiplied by.
  A score(const Panel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0, A* s, A* tile) const {
    const bool scaled = !f.unscaled();
    if (scaled)
      f.scores(panel, q, sight, j0, s, tile, nullptr);
    else if (sight.edge)
      f.hide(panel, sight, j0, s);
    if (f.drops()) f.dropout(panel, sight, j0, tile);
    return scaled ? A(1) : f.scale;
  }

  // total = total and part together.
  void merge(const State<A>& total, const State<A>& part, int rows, int vectors) const {
    alignas(64) A of_total[kPanel], of_part[kPanel];
    for (int v = 0; v < vectors * W<A>; v += W<A>) {
      const Vec<A> before = load<A>(total.m + v), m = load<A>(part.m + v);
      const Vec<A> top = max(m, before), offset = top == -kInfinity<A> ? Vec<A>{} : top;
      const Vec<A> a = exp_of_share<false>(before - offset), b = exp_of_share<false>(m - offset);
      store<A>(total.m + v, top);
      store<A>(total.l + v, fma(load<A>(part.l + v), b, load<A>(total.l + v) * a));
      store<A>(of_total + v, a), store<A>(of_part + v, b);
    }
    for (int64_t c = 0; pairs && c < p.Dv; ++c)
      for (int v = 0; v < vectors * W<A>; v += W<A>) {
        A* const to = total.o + c * total.room + v;
        store<A>(to,
                 fma(load<A>(part.o + c * part.room + v), load<A>(of_part + v), load<A>(to) * load<A>(of_total + v)));
      }
    for (int64_t g = 0; !pairs && g < segments; ++g)
      for (int r = 0; r < rows; ++r) {
        A* const to = total.o + (g * total.room + r) * kPanel;
        const A* const from = part.o + (g * part.room + r) * kPanel;
        for (int c = 0; c < vectors_of<A>(p.Dv - g * kPanel) * W<A>; c += W<A>)
          store<A>(to + c, fma(load<A>(from + c), splat(of_part[r]), load<A>(to + c) * splat(of_total[r])));
      }
  }

  void finish(const Panel<A>& panel, const Sequence& q, const State<A>& total, A* scratch) const {
    alignas(64) A inverse[kPanel], log_sum[kPanel];
    for (int v = 0; v < panel.vectors * W<A>; v += W<A>) {
      const Vec<A> l = load<A>(total.l + v);  // at least 1, where a row sees anything
      store<A>(inverse + v, l == A(0) ? Vec<A>{} : A(1) / l);
      store<A>(log_sum + v, l == A(0) ? Vec<A>{} : log1p(l - A(1)));
    }
    int64_t offset[kPanel];
    for (int r = 0; r < panel.rows; ++r) {
      offset[r] = query_offset(p.out, q, panel.head[r], panel.query[r]);
      const int64_t at = stat_offset(p, q, panel.head[r], panel.query[r]);
      static_cast<A*>(p.row_max)[at] = total.m[r], static_cast<A*>(p.log_sum)[at] = log_sum[r];
    }
#if defined(__AVX512F__)
    if constexpr (pairs) {
      turn_back(scratch, total.o, total.room, panel.rows, p.Dv);
      return f.elements.store_segments(p.out.data, offset, scratch, kPanel, panel.rows, p.Dv, inverse);
    }
#endif
    static_cast<void>(scratch);
    f.elements.store_segments(p.out.data, offset, total.o, total.room, panel.rows, p.Dv, inverse);
  }
};

}  // namespace
}  // namespace hetkern::cpu
