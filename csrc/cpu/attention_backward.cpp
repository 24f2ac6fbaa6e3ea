// Attention on the CPU: backward.                                                           (the contract: csrc/attention.h)
//
//   ds_ij = p_ij (drop_ij dout_i v_j - delta_i)      dv_j = sum_i p_ij drop_ij dout_i
//   dq_i  = scale sum_j dr_ij k_j                    dk_j = scale sum_i dr_ij q_i          (dr: ds past the softcap)
//
// Work:    one pass over panels of queries and blocks of keys, five products each; queries lie in the lanes, as in forward. A task
//          takes a key head and one of a fixed number of parts of its keys, so that one head keeps several cores busy; interleaved
//          by blocks, so that causal parts weigh the same, but beside a narrow window, where a part together has few queries.
//          A part has a dq of its own; they are added in their order.
// Traffic: a chunk of at most 1024 queries is packed once a part and head; a part's dk and dv are kept in A until they are complete.
// Bits:    parts depend on the sequence's keys and the window alone. Sums over a block begin at 0.
// Edges:   as forward; a row that is emptied, or a score of -inf, has no gradient. Bias and sink: attention_bias.cpp.
#include "attention_deltas.h"
#include "parallel.h"

namespace hetkern::cpu {
namespace HETKERN_ISA {
void attention_bias_backward(const AttentionBackward& p, const AttentionPlan& plan, void* delta);  // attention_bias.cpp
}
namespace {

template <class A, bool pairs>
struct Backward : Gradients<A, pairs> {
  using Base = Gradients<A, pairs>;
  using Base::p, Base::f, Base::delta, Base::by;
  const AttentionPlan& plan;
  A *dq_parts, *slope_parts;  // [part] laid out as row_max, D each; [b][head][part]
  const int64_t of_D = segments_of(p.D), of_Dv = segments_of(p.Dv);
  const int64_t stats = p.cu_seqlens_q ? p.stat_head * p.Hq : p.B * p.stat_batch;  // rows of all heads

  struct Task {
    KeyBlock<A> keys;
    A *dk, *dv;  // gradients of the part's blocks
    ScoreTiles<A> tiles;
  };
  int64_t key_size() const { return of_D * kBlock * kPanel; }
  int64_t value_size() const { return of_Dv * kBlock * kPanel; }

  // c[m] += sum_i a(m, i) b[i] over the pairs that see one another; in the tiles' order.
  template <class At, class Sees>
  static void careful(A* c, const At& a, const A* b, int rows, int from, int to, int vectors, const Sees& sees) {
    for (int m = 0; m < rows; ++m)
      for (int v = 0; v < vectors; ++v) {
        Vec<A> sum{};
        for (int i = from; i < to; ++i)
          if (sees(m, i)) sum = fma(splat(a(m, i)), load<A>(b + i * kPanel + v * W<A>), sum);
        A* const at = c + m * kPanel + v * W<A>;
        store<A>(at, load<A>(at) + sum);
      }
  }

  // One panel against one block.
  void block(const Task& t, QueryPanel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0, A* dk, A* dv,
             bool k_finite, double& dslope) const {
    const bool wants_ds = p.dq || p.dk || p.dslopes;
    this->scores(panel, q, sight, j0, t.keys, t.tiles, wants_ds);
    const A *const weights = t.tiles.p, *const ds = t.tiles.ds;
    if (p.dslopes) add_slopes(panel.at, sight, j0, ds, dslope);
    if (p.softcap > 0 && wants_ds)
      each_score(t.tiles.ds, sight.from, sight.to, panel.at.vectors, [&](A* at, int, int) {
        const Vec<A> d = load<A>(at);  // 0 where a key is not seen, whatever it holds
        store<A>(at, d == A(0) ? d : d * load<A>(t.tiles.cap_slope + (at - t.tiles.ds)));
      });
    const bool all = f.all_seen(sight);
    if constexpr (pairs) return add_pairs(t, panel, q, sight, j0, dk, dv, k_finite);

    // dv += P dout, dk += dS q, by keys: a segment after another, which stays in the first cache.
    const auto add = [&](A* to, const A* from, const A* operand, int64_t columns, int64_t segments, bool finite) {
      for (int64_t g = 0; g < segments; ++g)
        row_groups(sight.from, sight.to, kTileRows, [&](int64_t j, int n) {
          const VectorRange rows = rows_of_keys(panel.at, sight.edge, j0 + j, n);
          if (rows.end <= rows.begin) return;
          A* const c = to + (g * kBlock + j) * kPanel;
          const A* const b = operand + g * kPanel * kPanel;
          const int vectors = vectors_of<A>(columns - g * kPanel);
          if (all || finite)
            product<A, false, Start::sum>(c, from + j * kPanel + rows.begin, b + rows.begin * kPanel,
                                          rows.end - rows.begin, n, 0, vectors);
          else
            careful(
                c, [&](int m, int i) { return from[(j + m) * kPanel + i]; }, b, n, rows.begin, rows.end, vectors,
                [&](int m, int i) { return f.row_sees(panel.at, q, i, j0 + j + m); });
        });
    };
    if (p.dv) add(dv, weights, panel.dout_rows, p.Dv, of_Dv, panel.dout_finite);
    if (p.dk) add(dk, ds, panel.q_rows, p.D, of_D, panel.q_finite);

    // dq += dS k, by queries.
    for (int64_t g = 0; p.dq && g < of_D; ++g)
      row_groups(0, panel.at.rows, kTileRows, [&](int64_t r, int n) {
        const Sight keys = keys_of_rows(panel.at, sight, j0, static_cast<int>(r), n);
        if (keys.to <= keys.from) return;
        A* const c = panel.dq + (g * kPanel + r) * kPanel;
        const A* const b = t.keys.k_at + g * kBlock * kPanel;
        const int vectors = vectors_of<A>(p.D - g * kPanel);
        if (all || k_finite)
          product<A, true, Start::sum>(c, ds + keys.from * kPanel + r, b + keys.from * kPanel, keys.to - keys.from, n,
                                       0, vectors);
        else
          careful(
              c, [&](int m, int i) { return ds[i * kPanel + r + m]; }, b, n, keys.from, keys.to, vectors,
              [&](int m, int i) { return f.row_sees(panel.at, q, static_cast<int>(r) + m, j0 + i); });
      });
  }

  // The same of pairs.
  void add_pairs(const Task& t, const QueryPanel<A>& panel, const Sequence& q, const Sight& sight, int64_t j0, A* dk,
                 A* dv, bool k_finite) const {
#if defined(__AVX512F__)
    const ScoreTiles<A>& tiles = t.tiles;
    const int vectors = panel.at.vectors;
    const auto add = [&](A* to, const bf16* weights, const A* operand, const Heads& from, int64_t columns,
                         bool finite) {
      query_sums(by, panel.at, sight, j0, to, weights, reinterpret_cast<const uint32_t*>(operand), columns);
      if (!finite) add_strange_queries(f, panel.at, q, sight, j0, to, weights, from, columns);
    };
    if (p.dv) {
      round_keys(tiles.weights, tiles.p, sight.from, sight.to, vectors);
      add(dv, tiles.weights, panel.dout_rows, p.dout, p.Dv, panel.dout_finite);
    }
    if (p.dk) {
      round_keys(tiles.slopes, tiles.ds, sight.from, sight.to, vectors);
      add(dk, tiles.slopes, panel.q_rows, p.q, p.D, panel.q_finite);
    }
    if (!p.dq) return;
    pair_keys(tiles.slope_pairs, tiles.ds, sight.from, sight.to, vectors);
    key_sums(by, panel.at, sight, j0, panel.dq, kPanel, t.keys.turned, tiles.slope_pairs, p.D);
    if (!k_finite)
      add_strange_keys(f, panel.at, q, sight, j0, panel.dq, kPanel, 1, tiles.slope_pairs, p.k,
                       panel.at.head[0] / (p.Hq / p.Hkv), p.D);
#endif
  }

  void add_slopes(const Panel<A>& panel, const Sight& sight, int64_t j0, const A* ds, double& dslope) const {
    for (int v = 0; v < panel.vectors; ++v) {
      Vec<A> sum{};
      for (int j = sight.from; j < sight.to; ++j)
        sum = fma(load<A>(ds + j * kPanel + v * W<A>), Scoring<A>::distance(panel, j0 + j, v), sum);
      for (int i = 0; i < W<A> && v * W<A> + i < panel.rows; ++i) dslope -= static_cast<double>(sum[i]);
    }
  }

  // ---- Tasks. ----------------------------------------------------------------------------------------------------------

  // One part of one key head's keys, against all queries of its group.
  void part(int task, int64_t b, int64_t kv_head, int64_t number) const {
    const Sequence q = sequence_of(p, b);
    const int64_t group = p.Hq / p.Hkv;
    const KeyParts parts(p, q);
    if (number >= parts.count) return;
    const int64_t own = parts.blocks_of(number);
    Carver carver{static_cast<char*>(p.workspace) +
                  static_cast<int64_t>(sizeof(A)) * task * backward_scratch(p.Lq, p.Lk, p.D, p.Dv)};
    const int64_t panels = ceil_div(p.Lq, kPanel), most = panels < plan.chunk ? panels : plan.chunk;
    QueryPanel<A> chunk[kPanelsOfChunk];
    for (int64_t i = 0; i < most; ++i) {
      chunk[i] = this->carve_turned(carver, p.D, p.Dv);
      chunk[i].q_rows = carver.take<A>(of_D * kPanel * kPanel), chunk[i].dq = carver.take<A>(of_D * kPanel * kPanel);
      chunk[i].dout_rows = carver.take<A>(of_Dv * kPanel * kPanel);
    }
    Task t{this->carve_keys(carver, p.D, p.Dv), carver.take<A>(own * key_size()), carver.take<A>(own * value_size()),
           this->carve_tiles(carver)};
    if constexpr (pairs) {
      t.tiles.weights = carver.take<bf16>(kBlock * kPanel), t.tiles.slopes = carver.take<bf16>(kBlock * kPanel);
      t.tiles.slope_pairs = carver.take<uint32_t>(kBlock / 2 * kPanel);
    }
    const TilesInUse in_use(by);
    std::memset(t.dk, 0, sizeof(A) * static_cast<size_t>(own * key_size()));
    std::memset(t.dv, 0, sizeof(A) * static_cast<size_t>(own * value_size()));

    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      double dslope = 0;
      for (int64_t first = 0; first < q.Lq; first += plan.chunk * kPanel) {
        const int n = static_cast<int>(ceil_div(q.Lq - first, kPanel) < most ? ceil_div(q.Lq - first, kPanel) : most);
        for (int i = 0; i < n; ++i) {
          this->set_panel(chunk[i], q, head, first + i * kPanel);
          if (sees(chunk[i].at, q, parts, number)) this->read_rows(chunk[i], q, head, true);
          std::memset(chunk[i].dq, 0, sizeof(A) * static_cast<size_t>(of_D) * kPanel * kPanel);
        }
        for (int64_t i = 0; i < own; ++i)
          key_block(t, chunk, n, q, kv_head, parts.block(number, i), t.dk + i * key_size(), t.dv + i * value_size(),
                    dslope);
        for (int i = 0; p.dq && i < n; ++i)
          if (!parts.together || sees(chunk[i].at, q, parts, number))  // else nobody reads it
            store_dq(chunk[i], q, parts.count, number, t.tiles.p);
      }
      if (p.dslopes) slope_parts[(b * p.Hq + head) * plan.parts + number] = static_cast<A>(dslope);
    }
    store_keys(p.dk, q, kv_head, parts, number, t.dk, key_size(), p.D, f.scale);
    store_keys(p.dv, q, kv_head, parts, number, t.dv, value_size(), p.Dv, A(1));
  }

  // Whether a panel sees any of a part's keys.
  static bool sees(const Panel<A>& panel, const Sequence& q, const KeyParts& parts, int64_t number) {
    for (int64_t i = 0; i < parts.blocks_of(number); ++i) {
      const int64_t j0 = parts.block(number, i) * kBlock, left = q.Lk - j0;
      if (panel.least < j0 + (left < kBlock ? left : kBlock) && panel.most >= j0) return true;
    }
    return false;
  }

  // A chunk's panels against one block.
  void key_block(Task& t, QueryPanel<A>* chunk, int n, const Sequence& q, int64_t kv_head, int64_t block_number, A* dk,
                 A* dv, double& dslope) const {
    const int64_t j0 = block_number * kBlock;
    const int nk = static_cast<int>(q.Lk - j0 < kBlock ? q.Lk - j0 : kBlock);
    bool packed = false, k_finite = true;
    for (int i = 0; i < n; ++i) {
      const Sight sight = sight_of(chunk[i].at, j0, nk);
      if (sight.to <= sight.from) continue;
      if (!packed) {
        k_finite = this->read_keys(t.keys, q, kv_head, j0, nk, bool(p.dq));
        packed = true;
      }
      block(t, chunk[i], q, sight, j0, dk, dv, k_finite, dslope);
    }
  }

  void store_dq(const QueryPanel<A>& panel, const Sequence& q, int64_t parts, int64_t number, A* scratch) const {
    const A* dq = panel.dq;
#if defined(__AVX512F__)
    if constexpr (pairs) turn_back(scratch, panel.dq, kPanel, panel.at.rows, p.D), dq = scratch;
#endif
    static_cast<void>(scratch);
    int64_t offset[kPanel];
    A factor[kPanel];
    for (int r = 0; r < panel.at.rows; ++r) {
      offset[r] = parts == 1 ? query_offset(p.dq, q, panel.at.head[r], panel.at.query[r])
                             : (number * stats + stat_offset(p, q, panel.at.head[r], panel.at.query[r])) * p.D;
      factor[r] = parts == 1 ? f.scale : A(1);
    }
    if (parts == 1)
      f.elements.store_segments(p.dq.data, offset, dq, kPanel, panel.at.rows, p.D, factor);
    else
      store_segments<A, A>(dq_parts, offset, dq, kPanel, panel.at.rows, p.D, factor);
  }

  // A part's dk or dv; zeros behind the keys that a cache has, of which the first part takes care.
  void store_keys(const Heads& to, const Sequence& q, int64_t head, const KeyParts& parts, int64_t number,
                  const A* from, int64_t size, int64_t columns, A scale) const {
    if (!to) return;
    A factor[kBlock];
    for (A& x : factor) x = scale;
    for (int64_t i = 0; i < parts.blocks_of(number); ++i) {
      const int64_t j0 = parts.block(number, i) * kBlock;
      const int nk = static_cast<int>(q.Lk - j0 < kBlock ? q.Lk - j0 : kBlock);
      f.elements.store_segments(to.data, KeyRows(to, q, head, j0, nk).offset, from + i * size, kBlock, nk, columns,
                                factor);
    }
    if (!p.seqlens_k || number != 0 || q.Lk == p.Lk) return;
    std::memset(static_cast<char*>(to.data) + key_offset(to, q, head, q.Lk) * f.elements.size, 0,
                static_cast<size_t>((p.Lk - q.Lk) * columns * f.elements.size));
  }

  // dq = scale times the sum of its parts.
  void add_parts(int64_t b, int64_t head) const {
    const Sequence q = sequence_of(p, b);
    const KeyParts parts(p, q);
    if (parts.count == 1) return;
    for (int64_t i = 0; i < q.Lq; ++i) {
      const VectorRange of = parts.of_query(i + q.shift());
      const A* const row = dq_parts + stat_offset(p, q, head, i) * p.D;
      const int64_t offset = query_offset(p.dq, q, head, i);
      for (int64_t c = 0; c < p.D; c += kPanel) {
        alignas(64) A columns[kPanel];
        const int64_t n = p.D - c < kPanel ? p.D - c : kPanel, to = offset + c;
        for (int64_t v = 0; v < n; v += W<A>) {
          Vec<A> sum{};
          for (int64_t part = of.begin; part < of.end; ++part)
            sum = sum + load_first<A>(row + part * stats * p.D + c + v, n - v);
          store<A>(columns + v, sum);
        }
        f.elements.store_segments(p.dq.data, &to, columns, 1, 1, n, &f.scale);
      }
    }
  }

  void add_slope_parts() const {
    const int64_t batches = p.slope_batch ? 1 : p.B, slopes = p.slope_batch ? p.B * p.Hq : p.Hq;
    for (int64_t at = 0; at < slopes; ++at) {
      double sum = 0;
      for (int64_t b = 0; b < batches; ++b) {
        const int64_t row = b * p.Hq + at, parts = backward_parts(sequence_of(p, row / p.Hq).Lk);
        for (int64_t part = 0; part < parts; ++part) sum += static_cast<double>(slope_parts[row * plan.parts + part]);
      }
      static_cast<A*>(p.dslopes)[at] = static_cast<A>(sum);
    }
  }

  void run() const {
    const int64_t heads = p.B * p.Hq, key_heads = p.B * p.Hkv;
    Deltas<A, pairs>{*this}.run(plan);
    if (p.dq || p.dk || p.dv || p.dslopes) {
      run_items(plan.tasks, key_heads * plan.parts, [&](int task, int64_t item) {
        const int64_t at = item / plan.parts;
        part(task, at / p.Hkv, at % p.Hkv, item % plan.parts);
      });
      if (p.dq && plan.parts > 1)
        run_items(plan.tasks, heads, [&](int, int64_t item) { add_parts(item / p.Hq, item % p.Hq); });
      if (p.dslopes) add_slope_parts();
    }
    HETKERN_ISA::attention_bias_backward(p, plan, delta);
  }
};

template <class A, bool pairs>
void backward(const AttentionBackward& p, const AttentionPlan& plan) {
  const int64_t rows = p.cu_seqlens_q ? p.stat_head * p.Hq : p.B * p.stat_batch;
  A* const delta = static_cast<A*>(p.workspace) + plan.tasks * backward_scratch(p.Lq, p.Lk, p.D, p.Dv);
  A* const slopes = delta + ceil_div(rows, 16) * 16;
  A* const parts = slopes + ceil_div(p.B * p.Hq * plan.parts, 16) * 16;
  Backward<A, pairs>{{p, Scoring<A>(p), Pairs(plan), delta}, plan, parts, slopes}.run();
}

}  // namespace

namespace HETKERN_ISA {
void attention_backward(const AttentionBackward& p, AttentionPlan plan, void* stream);
void attention_backward(const AttentionBackward& p, AttentionPlan plan, void*) {
#if defined(__AVX512F__)
  if (plan.product != Product::fma) return backward<float, true>(p, plan);
#endif
  p.type == DType::f64 ? backward<double, false>(p, plan) : backward<float, false>(p, plan);
}
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
