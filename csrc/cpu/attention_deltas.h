// Each row's delta, which its gradients of scores are taken from.
//
//   delta_i = dout_i out_i - dlse_i        ds_ij = p_ij (drop_ij dout_i v_j - delta_i)
//
// Where one key has most of a row, the difference is small beside both terms, and out, rounded to 16 bits, is too coarse for it:
// such a row's delta is sum_j p_ij drop_ij (dout_i v_j), of the same products that it is taken from. So is every row's of
// float16, and that of a row that one key has all of, whose gradient is 0 and would be what two orders of adding differ by.
// Work:    one product of two rows; of those others, put together in panels, two of the five products of backward.
// Bits:    a row is judged by its own log-sum, and added up over blocks of keys in their order.
#pragma once
#include "attention_gradients.h"
#include "parallel.h"

namespace hetkern::cpu {
namespace {

template <class A, bool pairs>
struct Deltas : Gradients<A, pairs> {
  using Base = Gradients<A, pairs>;
  using Base::p, Base::f, Base::delta, Base::by;
  static constexpr int64_t kChunk = kPanelsOfChunk * kPanel;

  void set(const Sequence& q, int64_t head, int64_t i, A sum) const {
    const int64_t at = stat_offset(p, q, head, i);
    delta[at] = sum - (p.dlse ? static_cast<const A*>(p.dlse)[at] : A(0));
  }

  // The largest log-sum of a row that is taken from the products: of bfloat16 a key has more than half of it.
  A limit() const { return p.type == DType::f16 ? kInfinity<A> : A(0.6931472); }
  bool by_products(const Sequence& q, int64_t head, int64_t i) const {
    const int64_t at = stat_offset(p, q, head, i);  // an emptied row has no key
    return static_cast<const A*>(p.log_sum)[at] < limit() && static_cast<const A*>(p.row_max)[at] > -kInfinity<A>;
  }

  // Queries first … first + kChunk - 1 of one head.
  void chunk(int task, const Sequence& q, int64_t head, int64_t first) const {
    const int64_t end = first + kChunk < q.Lq ? first + kChunk : q.Lq;
    int64_t list[kPanel];
    int n = 0;
    for (int64_t i = first; i < end; ++i) {
      if (by_products(q, head, i)) {
        list[n++] = i;
        if (n == kPanel) together(task, q, head, list, n), n = 0;
        continue;
      }
      const int64_t x = query_offset(p.dout, q, head, i), y = query_offset(p.out, q, head, i);
      set(q, head, i, f.elements.dot_rows({p.dout.data, &x, p.dout.step}, {p.out.data, &y, p.out.step}, p.Dv));
    }
    if (n) together(task, q, head, list, n);
  }

  void together(int task, const Sequence& q, int64_t head, const int64_t* list, int n) const {
    Carver carver{static_cast<char*>(p.workspace) +
                  static_cast<int64_t>(sizeof(A)) * task * backward_scratch(p.Lq, p.Lk, p.D, p.Dv)};
    QueryPanel<A> panel = this->carve_turned(carver, p.D, p.Dv);
    KeyBlock<A> keys = this->carve_keys(carver, p.D, p.Dv);
    const ScoreTiles<A> tiles = this->carve_tiles(carver);
    panel.at.set(p, q, head, 0, n, list);
    this->read_rows(panel, q, head, false);
    std::memset(panel.delta, 0, sizeof(panel.delta));
    const TilesInUse in_use(by);

    alignas(64) A total[kPanel] = {};
    for (int64_t j0 = 0; j0 < q.Lk; j0 += kBlock) {
      const int nk = static_cast<int>(q.Lk - j0 < kBlock ? q.Lk - j0 : kBlock);
      const Sight sight = sight_of(panel.at, j0, nk);
      if (sight.to <= sight.from) continue;
      this->read_keys(keys, q, head / (p.Hq / p.Hkv), j0, nk, false);
      this->scores(panel, q, sight, j0, keys, tiles, true);  // of a delta of 0: ds is p drop dP
      for (int u = 0; u < panel.at.vectors * W<A>; u += W<A>) {
        Vec<A> sum{};
        for (int j = sight.from; j < sight.to; ++j) sum += load<A>(tiles.ds + j * kPanel + u);
        store<A>(total + u, load<A>(total + u) + sum);
      }
    }
    for (int r = 0; r < n; ++r) set(q, head, list[r], total[r]);
  }

  void run(const AttentionPlan& plan) const {
    const int64_t chunks = ceil_div(p.Lq, kChunk);
    run_items(plan.tasks, p.B * p.Hq * chunks, [&](int task, int64_t item) {
      const int64_t head = item / chunks;
      chunk(task, sequence_of(p, head / p.Hq), head % p.Hq, item % chunks * kChunk);
    });
  }
};

}  // namespace
}  // namespace hetkern::cpu
