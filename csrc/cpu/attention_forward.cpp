// Attention on the CPU: forward, and decoding.                                              (the contract: csrc/attention.h)
//
//   s_ij = score(q_i k_j)      m_i = max_j s_ij      l_i = sum_j exp(s_ij - m_i)      out_i = sum_j exp(s_ij - m_i) v_j / l_i
//
// Work:    queries lie in the lanes: a panel of 64 is turned once, scores stand as S^T, so that maximum, sum and exponential are
//          vertical, and keys and values are read as they lie. Tasks take up to four panels, which share a block of 96 keys once packed.
//          Few queries stand in one panel with their whole group of heads, and tasks take parts of the keys as well.
// Traffic: k and v are read once for 256 queries, or fewer where tasks are many (decoding: once), q and out once. Nothing of Lq times Lk leaves the second cache.
// Bits:    blocks and parts of keys are counted from the sequence's first, and the parts (of 1152 keys) are put together in
//          their order, whoever computed them: a decoding step is the last row of the whole call bit for bit.
// Edges:   at the diagonal and at a window's edges whole vectors of queries and whole keys are left out. Where a row does not see
//          all of a block that holds NaN or infinity, its sums skip what it does not see.
#include "attention_pair_weights.h"
#include "attention_task.h"
#include "parallel.h"

namespace hetkern::cpu {
namespace {

template <class A, bool pairs>
struct Forward : Totals<A, pairs> {
  using Base = Totals<A, pairs>;
  using Base::p, Base::f, Base::segments;
  const Pairs by;
  const int64_t heads;  // that stand in one panel

  int64_t chunk_rows(const AttentionPlan& plan) const {
    if (plan.path == AttentionPath::split_keys) return kPanel;
    return kPanel * panels_of_task(p.B * (p.Hq / heads), heads * p.Lq, plan.tasks);
  }

  // ---- A panel against a block. ----------------------------------------------------------------------------------------

  void block(Task<A>& t, const Panel<A>& panel, const Sequence& q, const A* turned, const Sight& sight, int64_t j0,
             const State<A>& state, bool finite) const {
    A* const s = t.s;
    if (t.few)
      few_turned_product(t, panel, turned, sight);
    else
      turned_product<pairs>(by, panel, sight, j0, s, t.k_at, turned, p.D);
    const A scale = this->score(panel, q, sight, j0, s, t.tile);
    alignas(64) A alpha[kPanel];
    if constexpr (pairs) return add_weights(t, panel, q, sight, j0, state, alpha, scale, finite);

    // Row maximum and sum.
    const Vec<A> factor = splat(scale);
    constexpr int U = 4;  // vectors side by side
    for (int v = 0; v < panel.vectors; v += U) {
      const int wide = panel.vectors - v < U ? panel.vectors - v : U;
      wide == U ? exponentials<U>(t, state, sight, alpha, v, factor)
      : t.few   ? each_exponential<true>(t, state, sight, alpha, v, wide, factor)
                : each_exponential<false>(t, state, sight, alpha, v, wide, factor);
    }
    // out = alpha out + P V.
    if (t.few && f.all_seen(sight))
      return few_outs(state.o, state.room, s, t.values, p.Dv, sight.from, sight.to, panel.rows, alpha, t.next);
    for (int64_t g = 0; g < segments; ++g)
      row_groups(0, panel.rows, kTileRows, [&](int64_t r, int n) {
        const Sight keys = keys_of_rows(panel, sight, j0, static_cast<int>(r), n);
        t.next.lines(t.next.of_outs);
        A* const o = state.o + (g * state.room + r) * kPanel;
        const A *const a = s + keys.from * kPanel + r, *const b = t.v_at + (g * kBlock + keys.from) * kPanel;
        const int vectors = vectors_of<A>(p.Dv - g * kPanel);
        if (finite || f.all_seen(sight))
          product<A, true, Start::scaled>(o, a, b, keys.to - keys.from, n, 0, vectors, alpha + r);
        else
          careful(panel, q, keys, j0, s, t.v_at + g * kBlock * kPanel, o, static_cast<int>(r), n, vectors, alpha);
      });
  }

  template <bool few>
  void each_exponential(Task<A>& t, const State<A>& state, const Sight& sight, A* alpha, int v, int n,
                        Vec<A> by) const {
    for (int i = 0; i < n; ++i) exponentials<1, few>(t, state, sight, alpha, v + i, by);
  }
  template <int U, bool few = false>
  void exponentials(Task<A>& t, const State<A>& state, const Sight& sight, A* alpha, int v, Vec<A> by) const {
    A* const s = t.s + v * W<A>;
    Vec<A> top[U], sum[U];
    for (int u = 0; u < U; ++u) top[u] = splat(-kInfinity<A>), sum[u] = Vec<A>{};
    for (int j = sight.from; j < sight.to; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) top[u] = max(load<A>(s + j * kPanel + u * W<A>), top[u]);  // of NaN: the other
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const int at = (v + u) * W<A>;
      const Vec<A> old = load<A>(state.m + at), now = max(top[u] * by, old);  // by > 0
      store<A>(state.m + at, now);
      top[u] = now == -kInfinity<A> ? Vec<A>{} : now;
      store<A>(alpha + at, exp_of_share<false>(old - top[u]));
    }
    for (int j = sight.from; j < sight.to; ++j) {
      if constexpr (few) t.next.lines(t.next.of_weights);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        A* const at = s + j * kPanel + u * W<A>;
        const Vec<A> e = exp_of_share<false>(load<A>(at) * by - top[u]);
        sum[u] += e;
        store<A>(at, e);
      }
    }
    if (f.drops())
      for (int j = sight.from; j < sight.to; ++j)
        for (int u = 0; u < U; ++u) {
          A* const at = s + j * kPanel + u * W<A>;
          store<A>(at, load<A>(at) * load<A>(t.tile + (at - t.s)));
        }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      A* const l = state.l + (v + u) * W<A>;
      store<A>(l, fma(load<A>(l), load<A>(alpha + (v + u) * W<A>), sum[u]));
    }
  }

  // What the tiles do, in the same order, without the keys that a row does not see.
  void careful(const Panel<A>& panel, const Sequence& q, const Sight& keys, int64_t j0, const A* s, const A* values,
               A* o, int first, int rows, int vectors, const A* alpha) const {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) {
        Vec<A> sum{};
        for (int j = keys.from; j < keys.to; ++j)
          if (f.row_sees(panel, q, first + r, j0 + j))
            sum = fma(splat(s[j * kPanel + first + r]), load<A>(values + j * kPanel + v * W<A>), sum);
        A* const at = o + r * kPanel + v * W<A>;
        store<A>(at, fma(load<A>(at), splat(alpha[first + r]), sum));
      }
  }

  // out = alpha out + P V of a panel of pairs.
  void add_weights(Task<A>& t, const Panel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0,
                   const State<A>& state, A* alpha, A scale, bool finite) const {
#if defined(__AVX512F__)
    if constexpr (pairs) {
      const float* const drop = f.drops() ? t.tile : nullptr;
      FetchWork work{t.next, (sight.to - sight.from) / kKeysOfStep * (panel.vectors + 3) / 4};
      if (!t.few)
        return add_pairs(*this, by, panel, q, sight, j0, state, t.s, drop, scale, key_columns(t.v), finite, work);
      panel_weights(t.s, drop, state, alpha, panel, sight, j0, scale, work);
      const auto* const weights = reinterpret_cast<const uint32_t*>(t.s);
      few_pair_outs(by, t.of_pairs, weights, sight, panel.rows, p.Dv, alpha, t.next);
      if (!finite)
        add_strange_keys(f, panel, q, sight, j0, t.of_pairs.out, 1, t.of_pairs.columns, weights, p.v,
                         panel.head[0] / (p.Hq / p.Hkv), p.Dv);
    }
#endif
  }
  static bf16* key_columns(A* v) { return reinterpret_cast<bf16*>(v); }

  // ---- Parts of the keys. ----------------------------------------------------------------------------------------------

  // A block's keys and values from … to - 1. Returns whether the values are finite.
  bool read_keys(Task<A>& t, const Sequence& q, int64_t kv_head, int64_t j0, int nk, int from, int to) const {
    static_cast<void>(nk);
    t.k_at = t.k, t.v_at = t.v;
#if defined(__AVX512F__)
    if constexpr (pairs) {  // what no row of the first thirty-twos sees is packed as well, and meets a weight of 0
      const int first = from / 32 * 32, n = to - first;
      const int64_t width = round_up(p.D, 32);
      const bool lies = p.k.step == 1 && p.k.row == width && p.D == width && round_up(to, 16) <= nk;
      const KeyRows k(p.k, q, kv_head, j0 + first, n), v(p.v, q, kv_head, j0 + first, n);
      if (lies)
        t.k_at = reinterpret_cast<const A*>(static_cast<const bf16*>(p.k.data) + k.offset[0] - first * width);
      else
        pack_pair_rows(key_columns(t.k) + first * width, width, k.of(p.k), n, p.D);
      return pack_turned_rows(key_columns(t.v) + first, v.of(p.v), n, p.Dv);
    }
#endif
    const KeyRows k(p.k, q, kv_head, j0 + from, to - from), v(p.v, q, kv_head, j0 + from, to - from);
    if (lies_as_packed<A>(p.k, f.elements.size, p.D))
      t.k_at = static_cast<const A*>(p.k.data) + k.offset[0] - from * kPanel;
    else
      f.elements.pack_segments(t.k + from * kPanel, kBlock, k.of(p.k), to - from, p.D);
    if (!lies_as_packed<A>(p.v, f.elements.size, p.Dv))
      return f.elements.pack_segments(t.v + from * kPanel, kBlock, v.of(p.v), to - from, p.Dv);
    const A* const values = static_cast<const A*>(p.v.data) + v.offset[0];
    t.v_at = values - from * kPanel;
    return all_finite(values, to - from, p.Dv);
  }

  // ---- Few queries. ----------------------------------------------------------------------------------------------------

  void begin_few(Task<A>& t) const {
    static_cast<void>(t);
#if defined(__AVX512F__)
    if constexpr (pairs) {
      if (!t.few) return;
      t.of_pairs = {t.part[1].o,
                    segments * kPanel,
                    reinterpret_cast<uint32_t*>(t.v),
                    reinterpret_cast<bf16*>(t.part[1].o + segments * kPanel * 16),
                    nullptr,
                    0};
      std::memset(t.of_pairs.out, 0, sizeof(A) * static_cast<size_t>(segments) * kPanel * 16);
    }
#endif
  }
  // A block, of which as much as can be stays where it lies. Returns whether the values are finite, or need not be.
  bool read_few(Task<A>& t, const Sequence& q, int64_t kv_head, int64_t j0, int nk, const Sight& sight) const {
    const int64_t size = f.elements.size;
    t.next = block_ahead(p, q, kv_head, j0 + kBlock, size);
#if defined(__AVX512F__)
    if constexpr (pairs) {
      const int first = sight.from / 32 * 32, n = sight.to - first;
      const KeyRows k(p.k, q, kv_head, j0 + first, n), v(p.v, q, kv_head, j0 + first, n);
      const bool lies = p.k.step == 1 && p.D % 32 == 0 && round_up(sight.to, 16) <= nk;
      t.of_pairs.keys = lies ? static_cast<const bf16*>(p.k.data) + key_offset(p.k, q, kv_head, j0) : key_columns(t.k);
      t.of_pairs.row = lies ? p.k.row : round_up(p.D, 32);
      if (!lies) pack_pair_rows(key_columns(t.k) + first * t.of_pairs.row, t.of_pairs.row, k.of(p.k), n, p.D);
      t.next.of_scores = t.next.share(2, ceil_div(n, 32) * ceil_div(p.D, 32));
      t.next.of_values = t.next.share(3, ceil_div(n, 2));
      t.next.of_weights = t.next.share(1, ceil_div(n, kKeysOfStep));
      t.next.of_outs = t.next.share(2, ceil_div(n, 32) + ceil_div(p.Dv, 32));
      return pack_row_pairs(t.of_pairs.values + first / 2 * kPanel, kBlock, v.of(p.v), n, p.Dv,
                            [&] { t.next.lines(t.next.of_values); });
    }
#endif
    const int n = sight.to - sight.from;
    t.next.of_scores = t.next.share(4, ceil_div(n, W<A>) * ceil_div(p.D, W<A>));
    t.next.of_weights = t.next.share(1, n);
    t.next.of_outs = t.next.share(3, n * ceil_div(t.panel[0].rows, kFewRows) * ceil_div(p.Dv, kTileVectors * W<A>));
    const bool lies = f.all_seen(sight) && size == sizeof(A) && p.k.step == 1 && p.v.step == 1 && p.Dv % W<A> == 0;
    const auto at = [&](const Heads& x) {
      return BlockRows<A>{static_cast<const A*>(x.data) + key_offset(x, q, kv_head, j0), x.row, kPanel};
    };
    if (lies) {
      t.keys = at(p.k), t.values = at(p.v);
      return true;
    }
    const bool finite = read_keys(t, q, kv_head, j0, nk, sight.from, sight.to);
    t.keys = {t.k_at, kPanel, kBlock * kPanel}, t.values = {t.v_at, kPanel, kBlock * kPanel};
    return finite;
  }
  void few_turned_product(Task<A>& t, const Panel<A>& panel, const A* turned, const Sight& sight) const {
#if defined(__AVX512F__)
    if constexpr (pairs) return few_pair_products(by, t.s, t.of_pairs, turned, p.D, sight, t.next);
#endif
    few_products(t.s, t.keys, turned, p.D, sight.from, sight.to, panel.rows, t.next);
  }

  // Fetches a block beside the work of the panels on another one, if they see any of it.
  void fetch_beside(Task<A>& t, const Sequence& q, int64_t kv_head, int64_t j, int panels) const {
    t.next = {};
    if (j > t.panel[panels - 1].most) return;
    t.next = block_ahead(p, q, kv_head, j, f.elements.size);
    t.next.of_weights = t.next.share(8, panels * (kBlock / kKeysOfStep) * kPanel / 4 / W<A>);
    t.next.of_outs = t.next.share(8, panels * segments * ceil_div(kPanel, kTileRows));
  }

  // The panels' sums over one part.
  void part(Task<A>& t, const Sequence& q, int64_t kv_head, int panels, int64_t number) const {
    begin_few(t);
    for (int i = 0; i < panels; ++i) this->clear(t.part[i], t.panel[i].rows, nullptr);
    const int64_t end = q.Lk < (number + 1) * kPart ? q.Lk : (number + 1) * kPart;
    for (int64_t j0 = number * kPart; j0 < end; j0 += kBlock) {
      const int nk = static_cast<int>(end - j0 < kBlock ? end - j0 : kBlock);
      Sight sight[kPanelsOfTask];
      int from = nk, to = 0;
      for (int i = 0; i < panels; ++i) {
        sight[i] = sight_of(t.panel[i], j0, nk);
        if (sight[i].to <= sight[i].from) continue;
        if (sight[i].from < from) from = sight[i].from;
        if (sight[i].to > to) to = sight[i].to;
      }
      if (to <= from) continue;
      const bool finite =
          t.few ? read_few(t, q, kv_head, j0, nk, sight[0]) : read_keys(t, q, kv_head, j0, nk, from, to);
      if (!t.few) fetch_beside(t, q, kv_head, j0 + kBlock, panels);
      for (int i = 0; i < panels; ++i)
        if (sight[i].to > sight[i].from) block(t, t.panel[i], q, t.q[i], sight[i], j0, t.part[i], finite);
    }
#if defined(__AVX512F__)
    if constexpr (pairs)
      if (t.few) turn_few(t.part[0].o, t.part[0].room, t.of_pairs, p.Dv);
#endif
  }

  // ---- Tasks. ----------------------------------------------------------------------------------------------------------

  // The rows of a unit (heads that stand together) from `first` on, in panels. Returns how many panels.
  int set_panels(Task<A>& t, const Sequence& q, int64_t head, int64_t first, int64_t most) const {
    int panels = 0;
    const int64_t rows = heads * q.Lq, end = first + most < rows ? first + most : rows;
    for (int64_t r = first; r < end; r += kPanel)
      t.panel[panels++].set(p, q, head, r, static_cast<int>(end - r < kPanel ? end - r : kPanel));
    return panels;
  }
  void turn(Task<A>& t, const Sequence& q, int panels) const {
    for (int i = 0; i < panels; ++i) {
      int64_t offset[kPanel];
      for (int r = 0; r < t.panel[i].rows; ++r)
        offset[r] = query_offset(p.q, q, t.panel[i].head[r], t.panel[i].query[r]);
      pack_queries<pairs>(f, t.q[i], {p.q.data, offset, p.q.step}, t.panel[i].rows, p.D);
    }
  }
  void run(const AttentionPlan& plan) const {
    const int64_t rows = chunk_rows(plan), chunks = ceil_div(heads * p.Lq, rows), units = p.B * (p.Hq / heads);
    const int64_t parts = ceil_div(p.Lk, kPart), per_task = forward_scratch(p.D, p.Dv);
    const int64_t room = part_rows(heads * p.Lq), result = part_result(room, p.Dv);
    const bool split = plan.path == AttentionPath::split_keys;
    const bool alone = !split && parts == 1 && !p.sink;  // a part's sums are the total's
    A* const memory = static_cast<A*>(p.workspace);
    A* const results = memory + plan.tasks * per_task;
    const auto result_of = [&](int64_t number) -> State<A> {
      A* const m = results + number * result;
      return {m + 2 * kPanel, m, m + kPanel, room};
    };
    // Calls use(task's memory, sequence, key head, panels) for chunk `number`, the last chunks first: causal ones are the longest.
    const auto with_chunk = [&](int task, int64_t number, const auto& use) {
      Carver carver{reinterpret_cast<char*>(memory + task * per_task)};
      Task<A> t = carve<A>(carver, p.D, p.Dv);
      const int64_t unit = number / chunks, head = unit % (p.Hq / heads) * heads;
      const Sequence q = sequence_of(p, unit / (p.Hq / heads));
      const int panels = q.Lq ? set_panels(t, q, head, (chunks - 1 - number % chunks) * rows, rows) : 0;
      t.few = panels == 1 && t.panel[0].vectors <= (pairs ? 1 : kFewVectors);
      const TilesInUse tiles(by, t.few ? t.panel[0].rows : kAmxRows);
      if (panels) use(t, q, head / (p.Hq / p.Hkv), panels);
    };

    if (split)
      run_items(plan.tasks, units * chunks * parts, [&](int task, int64_t item) {
        with_chunk(task, item / parts, [&](Task<A>& t, const Sequence& q, int64_t kv_head, int panels) {
          turn(t, q, panels);
          t.part[0] = result_of(item);
          part(t, q, kv_head, panels, item % parts);
        });
      });
    run_items(split ? 1 : plan.tasks, units * chunks, [&](int task, int64_t item) {
      with_chunk(task, item, [&](Task<A>& t, const Sequence& q, int64_t kv_head, int panels) {
        if (!split) turn(t, q, panels);
        if (alone) {
          part(t, q, kv_head, panels, 0);
          for (int i = 0; i < panels; ++i) this->finish(t.panel[i], q, t.part[i], t.tile);
          return;
        }
        for (int i = 0; i < panels; ++i) this->begin(t.total[i], t.panel[i]);
        for (int64_t number = 0; number < parts; ++number) {
          const auto seen = [&](const Panel<A>& x) {
            return x.least < (number + 1) * kPart && x.most >= number * kPart;
          };
          bool any = false;
          for (int i = 0; i < panels; ++i) any = any || seen(t.panel[i]);
          if (!any) continue;
          if (!split) part(t, q, kv_head, panels, number);
          for (int i = 0; i < panels; ++i)
            if (seen(t.panel[i]))
              this->merge(t.total[i], split ? result_of(item * parts + number) : t.part[i], t.panel[i].rows,
                          t.panel[i].vectors);
        }
        for (int i = 0; i < panels; ++i) this->finish(t.panel[i], q, t.total[i], t.tile);
      });
    });
  }
};

template <class A, bool pairs>
void forward(const AttentionForward& p, const AttentionPlan& plan) {
  Forward<A, pairs>{{p, Scoring<A>(p)}, Pairs(plan), plan.fold ? p.Hq / p.Hkv : 1}.run(plan);
}

void launch_forward(const AttentionForward& p, AttentionPlan plan, void*) {
#if defined(__AVX512F__)
  if (plan.product != Product::fma) return forward<float, true>(p, plan);
#endif
  p.type == DType::f64 ? forward<double, false>(p, plan) : forward<float, false>(p, plan);
}

}  // namespace

namespace HETKERN_ISA {
void attention_backward(const AttentionBackward& p, AttentionPlan plan, void* stream);  // attention_backward.cpp
extern const AttentionKernels attention;
const AttentionKernels attention{attention_plan, launch_forward, attention_backward};
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
