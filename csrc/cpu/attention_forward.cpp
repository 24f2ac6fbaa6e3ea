// Attention on the CPU: forward, and decoding.                                              (the contract: csrc/attention.h)
//
//   s_ij = score(q_i k_j)      m_i = max_j s_ij      l_i = sum_j exp(s_ij - m_i)      out_i = sum_j exp(s_ij - m_i) v_j / l_i
//
// Work:    queries lie in the lanes: a panel of 64 is turned once, scores stand as S^T, so that maximum, sum and exponential are
//          vertical, and keys and values are read as they lie. Tasks take two panels that share a block of 96 keys once it is packed.
//          Few queries stand in one panel with their whole group of heads, and tasks take parts of the keys as well.
// Traffic: k and v are read once for 128 queries (decoding: once), q and out once. Nothing of Lq times Lk leaves the second cache.
// Bits:    blocks and parts of keys are counted from the sequence's first, and the parts (of 1152 keys) are put together in
//          their order, whoever computed them: a decoding step is the last row of the whole call bit for bit.
// Edges:   at the diagonal and at a window's edges whole vectors of queries and whole keys are left out. Where a row does not see
//          all of a block that holds NaN or infinity, its sums skip what it does not see.
#include "attention_scores.h"
#include "carver.h"
#include "parallel.h"

namespace hetkern::cpu {
namespace {

// Sums of a panel, not yet divided by l.
template <class A>
struct State {
  A* o;  // [segment of Dv][room][kPanel]
  A *m, *l;
  int64_t room;
};

template <class A>
struct Task {  // one task's memory
  A* q[kPanelsOfTask];
  State<A> part[kPanelsOfTask], total[kPanelsOfTask];
  A *s, *tile, *k, *v;
  Panel<A> panel[kPanelsOfTask];
};

template <class A>
struct Forward {
  const AttentionForward& p;
  const Scoring<A> f;
  const int64_t heads;  // that stand in one panel
  const int64_t segments = segments_of(p.Dv);

  int64_t chunk_rows(const AttentionPlan& plan) const {
    return plan.path == AttentionPath::split_keys ? kPanel : kPanelsOfTask * kPanel;
  }

  static Task<A> carve(Carver& carver, int64_t D, int64_t Dv) {
    const AttentionScratch size = attention_scratch(D, Dv);
    Task<A> t;
    for (int i = 0; i < kPanelsOfTask; ++i) {
      t.q[i] = carver.take<A>(size.q);
      for (State<A>* s : {&t.part[i], &t.total[i]})
        *s = {carver.take<A>(size.out), carver.take<A>(size.stats), carver.take<A>(size.stats), kPanel};
    }
    t.s = carver.take<A>(size.scores), t.tile = carver.take<A>(3 * size.scores);
    t.k = carver.take<A>(size.keys), t.v = carver.take<A>(size.values);
    return t;
  }

  // ---- A panel against a block. ----------------------------------------------------------------------------------------

  void block(const Task<A>& t, const Panel<A>& panel, const Sequence& q, const A* turned, const Sight& sight,
             int64_t j0, const State<A>& state, bool finite) const {
    A* const s = t.s;
    row_groups(sight.from, sight.to, kTileRows, [&](int64_t j, int n) {
      const VectorRange at = vectors_that_see(panel, sight.edge, j0 + j, n);
      product<A, false, Start::zero>(s + j * kPanel, t.k + j * kPanel, turned, p.D, n, at.begin, at.end);
    });
    const bool scaled = !f.plain || sight.edge;  // what stands in s is scores, else products
    if (scaled) f.scores(panel, q, sight, j0, s, t.tile, nullptr);
    const Vec<A> by = splat(scaled ? A(1) : f.scale);
    if (f.drops()) f.dropout(panel, sight, j0, t.tile);

    // Row maximum and sum.
    alignas(64) A alpha[kPanel];
    constexpr int U = 4;  // vectors side by side
    for (int v = 0; v < panel.vectors; v += U) {
      const int wide = panel.vectors - v < U ? panel.vectors - v : U;
      wide == U ? exponentials<U>(t, state, sight, alpha, v, by)
                : each_exponential(t, state, sight, alpha, v, wide, by);
    }

    // out = alpha out + P V.
    row_groups(0, panel.rows, kTileRows, [&](int64_t r, int n) {
      const Sight keys = keys_of_rows(panel, sight, j0, static_cast<int>(r), n);
      for (int64_t g = 0; g < segments; ++g) {
        A* const o = state.o + (g * state.room + r) * kPanel;
        const A *const a = s + keys.from * kPanel + r, *const b = t.v + (g * kBlock + keys.from) * kPanel;
        const int vectors = vectors_of<A>(p.Dv - g * kPanel);
        if (finite || f.all_seen(sight))
          product<A, true, Start::scaled>(o, a, b, keys.to - keys.from, n, 0, vectors, alpha + r);
        else
          careful(panel, q, keys, j0, s, t.v + g * kBlock * kPanel, o, static_cast<int>(r), n, vectors, alpha);
      }
    });
  }

  void each_exponential(const Task<A>& t, const State<A>& state, const Sight& sight, A* alpha, int v, int n,
                        Vec<A> by) const {
    for (int i = 0; i < n; ++i) exponentials<1>(t, state, sight, alpha, v + i, by);
  }
  template <int U>
  void exponentials(const Task<A>& t, const State<A>& state, const Sight& sight, A* alpha, int v, Vec<A> by) const {
    A* const s = t.s + v * W<A>;
    Vec<A> top[U], sum[U];
    for (int u = 0; u < U; ++u) top[u] = splat(-kInfinity<A>), sum[u] = Vec<A>{};
    for (int j = sight.from; j < sight.to; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) top[u] = max(load<A>(s + j * kPanel + u * W<A>) * by, top[u]);  // of NaN: the other
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const int at = (v + u) * W<A>;
      const Vec<A> old = load<A>(state.m + at), now = max(top[u], old);
      store<A>(state.m + at, now);
      top[u] = now == -kInfinity<A> ? Vec<A>{} : now;
      store<A>(alpha + at, exp_of_share<false>(old - top[u]));
    }
    for (int j = sight.from; j < sight.to; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        A* const at = s + j * kPanel + u * W<A>;
        const Vec<A> e = exp_of_share<false>(load<A>(at) * by - top[u]);
        sum[u] += e;
        store<A>(at, e);
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

  // ---- Parts of the keys. ----------------------------------------------------------------------------------------------

  void clear(const State<A>& state, int rows, const A* sinks) const {
    for (int64_t g = 0; g < segments; ++g)
      std::memset(state.o + g * state.room * kPanel, 0, sizeof(A) * static_cast<size_t>(rows) * kPanel);
    for (int r = 0; r < kPanel; ++r) state.m[r] = sinks ? sinks[r] : -kInfinity<A>, state.l[r] = sinks ? A(1) : A(0);
  }

  // The panels' sums over one part.
  void part(Task<A>& t, const Sequence& q, int64_t kv_head, int panels, int64_t number) const {
    for (int i = 0; i < panels; ++i) clear(t.part[i], t.panel[i].rows, nullptr);
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
      const KeyRows k(p.k, q, kv_head, j0 + from, to - from), v(p.v, q, kv_head, j0 + from, to - from);
      f.elements.pack_segments(t.k + from * kPanel, kBlock, k.of(p.k), to - from, p.D);
      const bool finite = f.elements.pack_segments(t.v + from * kPanel, kBlock, v.of(p.v), to - from, p.Dv);
      for (int i = 0; i < panels; ++i)
        if (sight[i].to > sight[i].from) block(t, t.panel[i], q, t.q[i], sight[i], j0, t.part[i], finite);
    }
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
    for (int64_t g = 0; g < segments; ++g)
      for (int r = 0; r < rows; ++r) {
        A* const to = total.o + (g * total.room + r) * kPanel;
        const A* const from = part.o + (g * part.room + r) * kPanel;
        for (int c = 0; c < vectors_of<A>(p.Dv - g * kPanel) * W<A>; c += W<A>)
          store<A>(to + c, fma(load<A>(from + c), splat(of_part[r]), load<A>(to + c) * splat(of_total[r])));
      }
  }

  void finish(const Panel<A>& panel, const Sequence& q, const State<A>& total) const {
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
    f.elements.store_segments(p.out.data, offset, total.o, total.room, panel.rows, p.Dv, inverse);
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
      f.elements.pack_turned(t.q[i], {p.q.data, offset, p.q.step}, t.panel[i].rows, p.D);
    }
  }
  void begin(const State<A>& total, const Panel<A>& panel) const {
    A sinks[kPanel] = {};
    for (int r = 0; p.sink && r < panel.rows; ++r) sinks[r] = f.elements.read(p.sink, panel.head[r]);
    clear(total, panel.rows, p.sink ? sinks : nullptr);
  }

  void run(const AttentionPlan& plan) const {
    const int64_t rows = chunk_rows(plan), chunks = ceil_div(heads * p.Lq, rows), units = p.B * (p.Hq / heads);
    const int64_t parts = ceil_div(p.Lk, kPart), per_task = forward_scratch(p.D, p.Dv);
    const int64_t room = heads * p.Lq < kPanel ? heads * p.Lq : kPanel, result = part_result(room, p.Dv);
    const bool split = plan.path == AttentionPath::split_keys;
    A* const memory = static_cast<A*>(p.workspace);
    A* const results = memory + plan.tasks * per_task;
    const auto result_of = [&](int64_t number) -> State<A> {
      A* const m = results + number * result;
      return {m + 2 * kPanel, m, m + kPanel, room};
    };
    // Calls use(task's memory, sequence, key head, panels) for chunk `number`, the last chunks first: causal ones are the longest.
    const auto with_chunk = [&](int task, int64_t number, const auto& use) {
      Carver carver{reinterpret_cast<char*>(memory + task * per_task)};
      Task<A> t = carve(carver, p.D, p.Dv);
      const int64_t unit = number / chunks, head = unit % (p.Hq / heads) * heads;
      const Sequence q = sequence_of(p, unit / (p.Hq / heads));
      const int panels = q.Lq ? set_panels(t, q, head, (chunks - 1 - number % chunks) * rows, rows) : 0;
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
        for (int i = 0; i < panels; ++i) begin(t.total[i], t.panel[i]);
        if (!split) turn(t, q, panels);
        for (int64_t number = 0; number < parts; ++number) {
          if (!split) part(t, q, kv_head, panels, number);
          for (int i = 0; i < panels; ++i)
            merge(t.total[i], split ? result_of(item * parts + number) : t.part[i], t.panel[i].rows,
                  t.panel[i].vectors);
        }
        for (int i = 0; i < panels; ++i) finish(t.panel[i], q, t.total[i]);
      });
    });
  }
};

template <class A>
void forward(const AttentionForward& p, const AttentionPlan& plan) {
  Forward<A>{p, Scoring<A>(p), plan.fold ? p.Hq / p.Hkv : 1}.run(plan);
}

void launch_forward(const AttentionForward& p, AttentionPlan plan, void*) {
  p.type == DType::f64 ? forward<double>(p, plan) : forward<float>(p, plan);
}

}  // namespace

namespace HETKERN_ISA {
void attention_backward(const AttentionBackward& p, AttentionPlan plan, void* stream);  // attention_backward.cpp
extern const AttentionKernels attention;
const AttentionKernels attention{attention_plan, launch_forward, attention_backward};
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
