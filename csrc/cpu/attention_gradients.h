// Gradients of scores: P and dS of one panel against one block of keys, computed anew from what forward kept of each row.
#pragma once
#include "attention_scores.h"
#include "carver.h"

namespace hetkern::cpu {
namespace {

// A panel of queries as backward reads it.
template <class A>
struct QueryPanel {
  Panel<A> at;
  A *q, *dout;            // turned: [column][kPanel]
  A *q_rows, *dout_rows;  // [segment][kPanel][kPanel]
  A* dq;                  // likewise
  bool q_finite, dout_finite;
  alignas(64) A m[kPanel], log_sum[kPanel], delta[kPanel];
};

template <class A>
struct ScoreTiles {
  A *p, *ds;                   // P^T, times what dropout keeps, and dS^T
  A *tile, *drop, *cap_slope;  // of features
};

template <class A>
struct Gradients {
  const AttentionBackward& p;
  const Scoring<A> f;
  A* delta;  // laid out as row_max

  // Memory of a panel but for its rows.
  static QueryPanel<A> carve_turned(Carver& carver, int64_t D, int64_t Dv) {
    QueryPanel<A> panel;
    panel.q = carver.take<A>(ceil_div(D, 16) * 16 * kPanel),
    panel.dout = carver.take<A>(ceil_div(Dv, 16) * 16 * kPanel);
    return panel;
  }
  static ScoreTiles<A> carve_tiles(Carver& carver) {
    A* const first = carver.take<A>(5 * kBlock * kPanel);
    const auto tile = [&](int i) { return first + i * kBlock * kPanel; };
    return {tile(0), tile(1), tile(2), tile(3), tile(4)};
  }

  // Queries first … of one head; what the products of this pass read of them.
  void read_panel(QueryPanel<A>& panel, const Sequence& q, int64_t head, int64_t first, bool rows) const {
    const int n = static_cast<int>(q.Lq - first < kPanel ? q.Lq - first : kPanel);
    panel.at.set(p, q, head, first, n);
    int64_t of_q[kPanel], of_dout[kPanel];
    for (int r = 0; r < n; ++r) {
      of_q[r] = query_offset(p.q, q, head, first + r), of_dout[r] = query_offset(p.dout, q, head, first + r);
      const int64_t at = stat_offset(p, q, head, first + r);
      panel.m[r] = static_cast<const A*>(p.row_max)[at], panel.log_sum[r] = static_cast<const A*>(p.log_sum)[at];
      panel.delta[r] = delta[at];
    }
    for (int r = n; r < kPanel; ++r) panel.m[r] = panel.delta[r] = A(0), panel.log_sum[r] = kInfinity<A>;
    const RowsAt q_at{p.q.data, of_q, p.q.step}, dout_at{p.dout.data, of_dout, p.dout.step};
    f.elements.pack_turned(panel.q, q_at, n, p.D), f.elements.pack_turned(panel.dout, dout_at, n, p.Dv);
    if (!rows) return;
    panel.q_finite = f.elements.pack_segments(panel.q_rows, kPanel, q_at, n, p.D);
    panel.dout_finite = f.elements.pack_segments(panel.dout_rows, kPanel, dout_at, n, p.Dv);
  }

  // P and dS, the latter only if wanted; before the softcap, whose slope is left in its tile.
  void scores(const QueryPanel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0, const A* k, const A* v,
              const ScoreTiles<A>& t, bool wants_ds) const {
    row_groups(sight.from, sight.to, kTileRows, [&](int64_t j, int n) {
      const VectorRange at = vectors_that_see(panel.at, sight.edge, j0 + j, n);
      product<A, false, Start::zero>(t.p + j * kPanel, k + j * kPanel, panel.q, p.D, n, at.begin, at.end);
      if (wants_ds)
        product<A, false, Start::zero>(t.ds + j * kPanel, v + j * kPanel, panel.dout, p.Dv, n, at.begin, at.end);
    });
    const bool scaled = !f.plain || sight.edge;
    if (scaled) f.scores(panel.at, q, sight, j0, t.p, t.tile, t.cap_slope);
    if (f.drops()) f.dropout(panel.at, sight, j0, t.drop);
    for (int u = 0; u < panel.at.vectors; ++u) {
      if (f.drops())
        exponentials<true>(panel, sight, t, u, scaled, wants_ds);
      else
        exponentials<false>(panel, sight, t, u, scaled, wants_ds);
    }
  }

  // ds = p (drop dP - delta); 0 where a score is -inf, whatever its row holds.
  template <bool drops>
  void exponentials(const QueryPanel<A>& panel, const Sight& sight, const ScoreTiles<A>& t, int u, bool scaled,
                    bool wants_ds) const {
    const int at = u * W<A>;
    const Vec<A> m = load<A>(panel.m + at), log_sum = load<A>(panel.log_sum + at), mean = load<A>(panel.delta + at);
    const Vec<A> by = splat(f.scale), none = splat(-kInfinity<A>);
    if (!scaled && !drops && wants_ds) {
#pragma GCC unroll 2
      for (int j = sight.from; j < sight.to; ++j) {
        A *const p_at = t.p + j * kPanel + at, *const ds_at = t.ds + j * kPanel + at;
        const Vec<A> e = exp_of_share<false>((load<A>(p_at) * by - m) - log_sum);
        store<A>(p_at, e), store<A>(ds_at, e * (load<A>(ds_at) - mean));
      }
      return;
    }
    for (int j = sight.from; j < sight.to; ++j) {
      A *const p_at = t.p + j * kPanel + at, *const ds_at = t.ds + j * kPanel + at;
      const Vec<A> s = scaled ? load<A>(p_at) : load<A>(p_at) * by;
      Vec<A> e = exp_of_share<false>((s - m) - log_sum), kept = splat(A(1));
      if (scaled) e = s == none ? Vec<A>{} : e;
      if constexpr (drops) kept = load<A>(t.drop + j * kPanel + at);
      if (wants_ds) {
        const Vec<A> ds = e * (load<A>(ds_at) * kept - mean);
        store<A>(ds_at, scaled ? (s == none ? Vec<A>{} : ds) : ds);
      }
      store<A>(p_at, e * kept);
    }
  }
};

}  // namespace
}  // namespace hetkern::cpu
