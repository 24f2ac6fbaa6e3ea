// Attention on the CPU: gradients of the bias and of the sink.                              (the contract: csrc/attention.h)
//
//   dbias = ds, summed over what was broadcast      dsink = -sum_i exp(sink - row_max_i - log_sum_i) delta_i
//
// Work:    a pass of its own, that computes P and dS anew: a task takes a panel of queries of one slice of the bias and adds up,
//          in double, over the batches, heads and blocks that share it. So nothing of Lq times Lk is kept but the result itself.
// Bits:    each number is one task's, in a fixed order.
#include "attention_gradients.h"
#include "parallel.h"

namespace hetkern::cpu {
namespace {

struct Range {
  int64_t begin, end;
  // All of n where a dimension is broadcast, else the one at hand.
  Range(int64_t size, int64_t n, int64_t at) : begin(size == 1 ? 0 : at), end(size == 1 ? n : at + 1) {}
};

template <class A, bool pairs>
struct BiasGradient : Gradients<A, pairs> {
  using Base = Gradients<A, pairs>;
  using Base::p, Base::f, Base::delta, Base::by;

  struct Task {
    QueryPanel<A> panel;
    KeyBlock<A> keys;
    ScoreTiles<A> tiles;
    double* sum;  // [kBlock][kPanel]
    A* rows;      // [segment][kPanel][kPanel]: the sum, turned
  };

  // A panel of queries (all, where the bias has one row) of slice (b, h).
  void slice(Task& t, int64_t b_at, int64_t h_at, int64_t panel_at) const {
    const int64_t panels = ceil_div(p.Lq, kPanel), blocks = ceil_div(p.Lk, kBlock);
    const Range of_b(p.bias_size[0], p.B, b_at), of_h(p.bias_size[1], p.Hq, h_at);
    const Range of_panel(p.bias_size[2], panels, panel_at);
    int64_t in_memory = -1;
    for (int64_t block_at = 0; block_at < (p.bias_size[3] == 1 ? 1 : blocks); ++block_at) {
      const Range of_block(p.bias_size[3], blocks, block_at);
      std::memset(t.sum, 0, sizeof(double) * kBlock * kPanel);
      for (int64_t b = of_b.begin; b < of_b.end; ++b) {
        const Sequence q = sequence_of(p, b);
        for (int64_t h = of_h.begin; h < of_h.end; ++h)
          for (int64_t i = of_panel.begin; i < of_panel.end; ++i) {
            const int64_t number = (b * p.Hq + h) * panels + i;
            if (number != in_memory) this->read_panel(t.panel, q, h, i * kPanel, false);
            in_memory = number;
            for (int64_t j = of_block.begin; j < of_block.end; ++j) add(t, q, h, j * kBlock);
          }
      }
      write(t, b_at, h_at, panel_at, block_at);
    }
  }

  void add(Task& t, const Sequence& q, int64_t head, int64_t j0) const {
    const int nk = static_cast<int>(q.Lk - j0 < kBlock ? q.Lk - j0 : kBlock);
    if (nk <= 0) return;
    const Sight sight = sight_of(t.panel.at, j0, nk);
    if (sight.to <= sight.from) return;
    const int64_t kv_head = head / (p.Hq / p.Hkv);
    this->read_keys(t.keys, q, kv_head, j0, nk, false);
    this->scores(t.panel, q, sight, j0, t.keys, t.tiles, true);
    const int rows = t.panel.at.rows;
    for (int j = sight.from; j < sight.to; ++j)
      for (int r = 0; r < rows; ++r) t.sum[j * kPanel + r] += static_cast<double>(t.tiles.ds[j * kPanel + r]);
  }

  void write(Task& t, int64_t b, int64_t h, int64_t panel, int64_t block) const {
    const bool one_row = p.bias_size[2] == 1, one_column = p.bias_size[3] == 1;
    const int64_t first = panel * kPanel, j0 = block * kBlock;
    const int rows = one_row ? 1 : static_cast<int>(p.Lq - first < kPanel ? p.Lq - first : kPanel);
    const int columns = one_column ? 1 : static_cast<int>(p.Lk - j0 < kBlock ? p.Lk - j0 : kBlock);
    if (one_row)
      for (int j = 0; j < kBlock; ++j)
        for (int r = 1; r < kPanel; ++r) t.sum[j * kPanel] += t.sum[j * kPanel + r];
    if (one_column)
      for (int j = 1; j < kBlock; ++j)
        for (int r = 0; r < kPanel; ++r) t.sum[r] += t.sum[j * kPanel + r];
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < columns; ++j)
        t.rows[(j / kPanel * kPanel + r) * kPanel + j % kPanel] = static_cast<A>(t.sum[j * kPanel + r]);
    int64_t offset[kPanel];
    A ones[kPanel];
    for (int r = 0; r < rows; ++r) {
      offset[r] = b * p.dbias.batch + h * p.dbias.head + (first + r) * p.dbias.row + j0 * p.dbias.step;
      ones[r] = A(1);
    }
    f.elements.store_segments(p.dbias.data, offset, t.rows, kPanel, rows, columns, ones);
  }

  void bias(const AttentionPlan& plan) const {
    const int64_t panels = p.bias_size[2] == 1 ? 1 : ceil_div(p.Lq, kPanel);
    const int64_t items = p.bias_size[0] * p.bias_size[1] * panels;
    run_items(plan.tasks, items, [&](int task, int64_t item) {
      Carver carver{static_cast<char*>(p.workspace) +
                    static_cast<int64_t>(sizeof(A)) * task * backward_scratch(p.Lq, p.Lk, p.D, p.Dv)};
      Task t{this->carve_turned(carver, p.D, p.Dv), this->carve_keys(carver, p.D, p.Dv), this->carve_tiles(carver),
             carver.take<double>(int64_t{kBlock} * kPanel), carver.take<A>(segments_of(kBlock) * kPanel * kPanel)};
      const int64_t at = item / panels;
      const TilesInUse in_use(by);
      slice(t, at / p.bias_size[1], at % p.bias_size[1], item % panels);
    });
  }

  void sink(int64_t head) const {
    const A logit = f.elements.read(p.sink, head);
    double sum = 0;
    for (int64_t b = 0; b < p.B; ++b) {
      const Sequence q = sequence_of(p, b);
      const int64_t first = stat_offset(p, q, head, 0);
      const A *const row_max = static_cast<const A*>(p.row_max) + first, *const d = delta + first;
      const A* const log_sum = static_cast<const A*>(p.log_sum) + first;
      for (int64_t i = 0; i < q.Lq; i += W<A>) {
        const int64_t n = q.Lq - i;
        const Vec<A> m = load_first<A>(row_max + i, n), offset = m == -kInfinity<A> ? Vec<A>{} : m;
        const Vec<A> share = exp_of_share<false>((splat(logit) - offset) - load_first<A>(log_sum + i, n));
        const Vec<A> part = share * load_first<A>(d + i, n);
        for (int l = 0; l < W<A> && l < n; ++l) sum -= static_cast<double>(part[l]);
      }
    }
    f.elements.write(p.dsink, head, static_cast<A>(sum));
  }
};

template <class A, bool pairs>
void gradients(const AttentionBackward& p, const AttentionPlan& plan, void* delta) {
  const BiasGradient<A, pairs> job{{p, Scoring<A>(p), Pairs(plan), static_cast<A*>(delta)}};
  if (p.dbias) job.bias(plan);
  if (p.dsink) run_items(plan.tasks, p.Hq, [&](int, int64_t head) { job.sink(head); });
}

}  // namespace

namespace HETKERN_ISA {
void attention_bias_backward(const AttentionBackward& p, const AttentionPlan& plan, void* delta);
void attention_bias_backward(const AttentionBackward& p, const AttentionPlan& plan, void* delta) {
  if (!p.dbias && !p.dsink) return;
#if defined(__AVX512F__)
  if (plan.product != Product::fma) return gradients<float, true>(p, plan, delta);
#endif
  p.type == DType::f64 ? gradients<double, false>(p, plan, delta) : gradients<float, false>(p, plan, delta);
}
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
