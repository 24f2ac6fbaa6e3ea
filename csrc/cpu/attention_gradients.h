// Gradients of scores: P and dS of one panel against one block of keys, computed anew from what forward kept of each row.
#pragma once
#include "attention_pair_sums.h"
#include "carver.h"

namespace hetkern::cpu {
namespace {

// A panel of queries as backward reads it.
template <class A>
struct QueryPanel {
  Panel<A> at;
  A *q, *dout;            // turned: [column][kPanel]; pairs of columns where those are multiplied
  A *q_rows, *dout_rows;  // [segment][kPanel][kPanel]; pairs of rows: [segment][kPanel / 2][kPanel]
  A* dq;                  // [segment][kPanel][kPanel]; of pairs turned, [D][kPanel]
  bool q_finite, dout_finite;
  alignas(64) A m[kPanel], log_sum[kPanel], delta[kPanel];
};

template <class A>
struct ScoreTiles {
  A *p, *ds;                   // P^T, times what dropout keeps, and dS^T
  A *tile, *drop, *cap_slope;  // of features
  // The same rounded, for pairs: by keys, and dS^T in pairs of keys.
  bf16 *weights, *slopes;
  uint32_t* slope_pairs;
};

// A block of keys and values, packed or where it lies; of pairs, the keys turned as well.
template <class A>
struct KeyBlock {
  A *k, *v;  // room for them
  bf16* turned;
  const A *k_at = nullptr, *v_at = nullptr;  // the block at hand
};

// Blocks of a sequence's keys that a part of them has.
struct KeyParts {
  int64_t count, blocks, most;
  bool together;        // part n has blocks n most …; else n, n + count, …
  int64_t left, right;  // of a window
  KeyParts(const AttentionProblem& p, const Sequence& q)
      : count(backward_parts(q.Lk)),
        blocks(ceil_div(q.Lk, kBlock)),
        most(ceil_div(blocks, count)),
        left(p.window_left),
        right(p.causal ? 0 : p.window_right) {
    together = count > 1 && left >= 0 && right >= 0 && (left + right + 1) * count <= q.Lk;
  }
  int64_t blocks_of(int64_t number) const {
    const int64_t before = together ? number * most : number, rest = blocks - before;
    if (rest <= 0) return 0;
    return together ? (rest < most ? rest : most) : (rest - 1) / count + 1;
  }
  int64_t block(int64_t number, int64_t i) const { return together ? number * most + i : number + i * count; }
  // Parts whose keys the query at `place` sees, at least.
  VectorRange of_query(int64_t place) const {
    if (!together) return {0, static_cast<int>(count)};
    const int64_t from = place - left, to = place + right, size = most * kBlock;
    if (to < 0) return {0, 0};
    const int64_t end = to / size + 1;
    return {static_cast<int>(from > 0 ? from / size : 0), static_cast<int>(end < count ? end : count)};
  }
};

template <class A, bool pairs>
struct Gradients {
  const AttentionBackward& p;
  const Scoring<A> f;
  const Pairs by;
  A* delta;  // laid out as row_max

  // Memory of a panel but for its rows.
  static QueryPanel<A> carve_turned(Carver& carver, int64_t D, int64_t Dv) {
    QueryPanel<A> panel;
    panel.q = carver.take<A>(ceil_div(D, 16) * 16 * kPanel),
    panel.dout = carver.take<A>(ceil_div(Dv, 16) * 16 * kPanel);
    return panel;
  }
  static KeyBlock<A> carve_keys(Carver& carver, int64_t D, int64_t Dv) {
    A* const k = carver.take<A>(segments_of(D) * kBlock * kPanel);
    // Half of it are rows, half the same turned.
    return {k, carver.take<A>(segments_of(Dv) * kBlock * kPanel),
            reinterpret_cast<bf16*>(k + segments_of(D) * kBlock * kPanel / 2)};
  }
  // All of block j0. Returns whether the keys are finite, if asked.
  bool read_keys(KeyBlock<A>& block, const Sequence& q, int64_t head, int64_t j0, int nk, bool turned) const {
    const KeyRows k(p.k, q, head, j0, nk), v(p.v, q, head, j0, nk);
    block.k_at = block.k, block.v_at = block.v;
#if defined(__AVX512F__)
    if constexpr (pairs) {
      pack_pair_rows(reinterpret_cast<bf16*>(block.k), round_up(p.D, 32), k.of(p.k), nk, p.D);
      pack_pair_rows(reinterpret_cast<bf16*>(block.v), round_up(p.Dv, 32), v.of(p.v), nk, p.Dv);
      return !turned || pack_turned_rows(block.turned, k.of(p.k), nk, p.D);
    }
#endif
    if (lies_as_packed<A>(p.v, f.elements.size, p.Dv))
      block.v_at = static_cast<const A*>(p.v.data) + v.offset[0];
    else
      f.elements.pack_segments(block.v, kBlock, v.of(p.v), nk, p.Dv);
    if (!lies_as_packed<A>(p.k, f.elements.size, p.D))
      return f.elements.pack_segments(block.k, kBlock, k.of(p.k), nk, p.D);
    block.k_at = static_cast<const A*>(p.k.data) + k.offset[0];
    return !turned || all_finite(block.k_at, nk, p.D);
  }

  static ScoreTiles<A> carve_tiles(Carver& carver) {
    A* const first = carver.take<A>(5 * kBlock * kPanel);
    const auto tile = [&](int i) { return first + i * kBlock * kPanel; };
    return {tile(0), tile(1), tile(2), tile(3), tile(4), nullptr, nullptr, nullptr};
  }

  // Queries first … of one head; what the products of this pass read of them.
  void read_panel(QueryPanel<A>& panel, const Sequence& q, int64_t head, int64_t first, bool rows) const {
    set_panel(panel, q, head, first);
    read_rows(panel, q, head, rows);
  }
  void set_panel(QueryPanel<A>& panel, const Sequence& q, int64_t head, int64_t first) const {
    panel.at.set(p, q, head, first, static_cast<int>(q.Lq - first < kPanel ? q.Lq - first : kPanel));
  }
  void read_rows(QueryPanel<A>& panel, const Sequence& q, int64_t head, bool rows) const {
    const int n = panel.at.rows;
    int64_t of_q[kPanel], of_dout[kPanel];
    for (int r = 0; r < n; ++r) {
      const int64_t i = panel.at.query[r], at = stat_offset(p, q, head, i);
      of_q[r] = query_offset(p.q, q, head, i), of_dout[r] = query_offset(p.dout, q, head, i);
      panel.m[r] = static_cast<const A*>(p.row_max)[at], panel.log_sum[r] = static_cast<const A*>(p.log_sum)[at];
      panel.delta[r] = delta[at];
    }
    for (int r = n; r < kPanel; ++r) panel.m[r] = panel.delta[r] = A(0), panel.log_sum[r] = kInfinity<A>;
    const RowsAt q_at{p.q.data, of_q, p.q.step}, dout_at{p.dout.data, of_dout, p.dout.step};
    pack_queries<pairs>(f, panel.q, q_at, n, p.D), pack_queries<pairs>(f, panel.dout, dout_at, n, p.Dv);
    if (!rows) return;
#if defined(__AVX512F__)
    if constexpr (pairs) {
      panel.q_finite = pack_row_pairs(reinterpret_cast<uint32_t*>(panel.q_rows), kPanel, q_at, n, p.D);
      panel.dout_finite = pack_row_pairs(reinterpret_cast<uint32_t*>(panel.dout_rows), kPanel, dout_at, n, p.Dv);
      return;
    }
#endif
    panel.q_finite = f.elements.pack_segments(panel.q_rows, kPanel, q_at, n, p.D);
    panel.dout_finite = f.elements.pack_segments(panel.dout_rows, kPanel, dout_at, n, p.Dv);
  }

  // P and dS, the latter only if wanted; before the softcap, whose slope is left in its tile.
  void scores(const QueryPanel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0, const KeyBlock<A>& keys,
              const ScoreTiles<A>& t, bool wants_ds) const {
    turned_product<pairs>(by, panel.at, sight, j0, t.p, keys.k_at, panel.q, p.D);
    if (wants_ds) turned_product<pairs>(by, panel.at, sight, j0, t.ds, keys.v_at, panel.dout, p.Dv);
    const bool scaled = !f.unscaled();
    if (scaled)
      f.scores(panel.at, q, sight, j0, t.p, t.tile, t.cap_slope);
    else if (sight.edge)
      f.hide(panel.at, sight, j0, t.p);
    if (f.drops()) f.dropout(panel.at, sight, j0, t.drop);
    for (int u = 0; u < panel.at.vectors; ++u) {
      if (f.drops())
        exponentials<true>(panel, sight, t, u, scaled, wants_ds);
      else
        exponentials<false>(panel, sight, t, u, scaled, wants_ds);
    }
  }

  // An exponential, as forward takes it.
  static Vec<A> weight(Vec<A> x) {
#if defined(__AVX512F__)
    if constexpr (pairs) return exp_of_weight(x);
#endif
    return exp_of_share<false>(x);
  }
  // ds = p (drop dP - delta); 0 where a score is -inf, whatever its row holds.
  template <bool drops>
  void exponentials(const QueryPanel<A>& panel, const Sight& sight, const ScoreTiles<A>& t, int u, bool scaled,
                    bool wants_ds) const {
    const int at = u * W<A>;
    const Vec<A> m = load<A>(panel.m + at), log_sum = load<A>(panel.log_sum + at), mean = load<A>(panel.delta + at);
    const Vec<A> by = splat(f.scale), none = splat(-kInfinity<A>);
    const bool hides = scaled || sight.edge;
    if (!hides && !drops && wants_ds) {
#pragma GCC unroll 2
      for (int j = sight.from; j < sight.to; ++j) {
        A *const p_at = t.p + j * kPanel + at, *const ds_at = t.ds + j * kPanel + at;
        const Vec<A> e = weight((load<A>(p_at) * by - m) - log_sum);
        store<A>(p_at, e), store<A>(ds_at, e * (load<A>(ds_at) - mean));
      }
      return;
    }
    for (int j = sight.from; j < sight.to; ++j) {
      A *const p_at = t.p + j * kPanel + at, *const ds_at = t.ds + j * kPanel + at;
      const Vec<A> s = scaled ? load<A>(p_at) : load<A>(p_at) * by;
      Vec<A> e = weight((s - m) - log_sum), kept = splat(A(1));
      if (hides) e = s == none ? Vec<A>{} : e;
      if constexpr (drops) kept = load<A>(t.drop + j * kPanel + at);
      if (wants_ds) {
        const Vec<A> ds = e * (load<A>(ds_at) * kept - mean);
        store<A>(ds_at, hides ? (s == none ? Vec<A>{} : ds) : ds);
      }
      store<A>(p_at, e * kept);
    }
  }
};

}  // namespace
}  // namespace hetkern::cpu
