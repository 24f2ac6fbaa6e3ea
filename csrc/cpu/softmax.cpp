// Row softmax on the CPU: forward, backward, double backward.                            (the contract: csrc/softmax.h)
//
//   m_i  = max_j z_ij          y_ij = exp(z_ij - m_i) / sum_j exp(z_ij - m_i)
//   dx_ij = y_ij (dy_ij - sum_k dy_ik y_ik) dz/dx
//
// x, y, dy, dx: M rows of N; float, double, half or bfloat16; m and the sums are A: float, double for double.
// Work:    a thread takes whole rows; few long rows are cut into chunks; over an inner dimension, a vector lane is a row.
// Traffic: forward reads MN and writes MN elements: a row's exponentials wait in scratch memory for its sum (rows too long
//          for that are read twice); backward reads 2MN and writes MN.
// Edges:   a row of -inf gives NaN, as torch does; a row emptied by a mask gives 0, its logarithm -inf.
#include "../softmax.h"

#include "plan.h"
#include "row_job.h"
#include "softmax_columns.h"
#include "softmax_few_columns.h"
#include "softmax_math.h"
#include "softmax_short.h"

namespace hetkern::cpu {
namespace {

// ---- Forward. -------------------------------------------------------------------------------------------------------------

template <bool log, class A, class X, class Y>
struct ForwardRows {
  using Total = RowSum<A>;
  struct Row {
    const X* x;
    Y* y;
    const X* bias;
    const uint8_t* mask;
    const X* sink;
    A* y_sink;
    int64_t kept;  // columns before the causal edge
    A* z;          // scratch: the row's chunks side by side, or the one at hand
    A chunk_max[kKeptChunks<A>];
  };
  const SoftmaxForward& p;
  const SoftmaxPlan& plan;
  Score<A> score{p.scale, p.softcap};

  Row row(int64_t r) const {
    const RowIndex at = row_index(p.rows, r);
    Row row;
    row.x = row_of<const X>(p.rows, p.x, at), row.y = row_of<Y>(p.rows, p.y, at);
    row.bias = row_of<const X>(p.rows, p.bias, at), row.mask = row_of<const uint8_t>(p.rows, p.mask, at);
    row.sink = row_of<const X>(p.rows, p.sink, at), row.y_sink = row_of<A>(p.rows, p.y_sink, at);
    row.kept = kept_columns(p.rows.N, p.queries, r);
    row.z = static_cast<A*>(scratch());
    return row;
  }

  // Scores of chunk c into z, then their exponentials over them (log: the scores stay).
  RowSum<A> sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, row.kept);
    if (chunk.n == 0) return {};
    A* const z = plan.keep ? row.z + chunk.begin : row.z;
    bool kept = !row.mask;
    const X* const x = row.x + chunk.begin;
    Y* const y = row.y + chunk.begin;
    const auto meanwhile = [&](int64_t j) { prefetch(x + chunk.n + j), prefetch_to_write(y + j); };
    RowSum<A> part;
    if (!log && !row.bias && !row.mask && !(score.cap > 0)) {
      part = score.scale == 1
                 ? plain_sum(ScoresOf<A, X, Unscaled>{x, chunk.n, {}}, chunk.n, z, meanwhile)
                 : plain_sum(ScoresOf<A, X, Scaled<A>>{x, chunk.n, {splat(score.scale)}}, chunk.n, z, meanwhile);
    } else {
      const A largest = write_scores(x, chunk.n, score, z, [&](Vec<A> v, int64_t j, int64_t count) {
                          if (row.bias) v += load_strided<A>(row.bias, p.bias.step, chunk.begin + j, count);
                          if (row.mask) kept |= apply_mask<A>(v, row.mask, p.mask.step, chunk.begin + j, count);
                          return v;
                        }).largest();
      part = log ? sum_exponentials(z, chunk.n, largest)
                 : write_exponentials<kCoarse<Y>>(ScoresIn<A>{z}, chunk.n, largest, z, meanwhile);
    }
    part.kept = kept;
    if (plan.keep) row.chunk_max[c] = part.max;
    return part;
  }

  template <class Scores, class Meanwhile>
  static RowSum<A> plain_sum(const Scores& scores, int64_t n, A* z, const Meanwhile& meanwhile) {
    return write_exponentials<kCoarse<Y>>(scores, n, largest_score<A>(scores, n), z, meanwhile);
  }

  RowSum<A> finish(Row& row, RowSum<A> whole) const {
    if (!row.sink) return finished(whole);
    const A sink = get<A>(row.sink);
    whole = finished(combine(whole, RowSum<A>{sink}));
    *row.y_sink = sink_output<log>(sink, whole);
    return whole;
  }

  void write(Row& row, int64_t c, const RowSum<A>& whole) const {
    const Chunk<A> all(c, p.rows.N);
    const int64_t n = whole.kept ? Chunk<A>(c, row.kept).n : 0;  // an emptied row has nothing but its masked columns
    Y* const y = row.y + all.begin;
    A* const z = plan.keep ? row.z + all.begin : row.z;
    A largest = whole.max;
    if (n > 0) largest = plan.keep ? row.chunk_max[c] : sum(row, c).max;
    const Output<log, A> output(largest, whole);
    write_row<A, std::is_same_v<X, Y>>(y, n, [&](int64_t j, int64_t count) { return output(load_at<A>(z, j, count)); });
    if (n == all.n) return;
    const Vec<A> masked = splat(whole.kept ? output.masked() : log ? -kInfinity<A> : A(0));
    write_row<A>(y + n, all.n - n, [&](int64_t, int64_t) { return masked; });
  }
};

// ---- Backward. ------------------------------------------------------------------------------------------------------------

template <bool log, class A, class X, class Y>
struct BackwardRows {
  using Total = GradientSum<A>;
  struct Row {
    const Y* dy;  // of step 1, or 0 where a sum's gradient is expanded
    const Y* y;
    X* dx;
    const X* x;
    const uint8_t* mask;
    int64_t kept;
    A y_sink;
  };
  const SoftmaxBackward& p;
  const SoftmaxPlan& plan;
  Score<A> score{p.scale, p.softcap};

  Row row(int64_t r) const {
    const RowIndex at = row_index(p.rows, r);
    return {row_of<const Y>(p.rows, p.dy, at),
            row_of<const Y>(p.rows, p.y, at),
            row_of<X>(p.rows, p.dx, at),
            row_of<const X>(p.rows, p.x, at),
            row_of<const uint8_t>(p.rows, p.mask, at),
            kept_columns(p.rows.N, p.queries, r),
            p.y_sink ? *row_of<const A>(p.rows, p.y_sink, at) : A(0)};
  }

  // Calls use(dy_at), where dy_at(j, count) loads; one loop for each step, or no loop is unrolled.
  template <class Use>
  auto with_dy(const Row& row, const Use& use) const {
    if (p.dy.step == 1) return use([dy = row.dy](int64_t j, int64_t count) { return load_at<A>(dy, j, count); });
    return use([&](int64_t j, int64_t count) { return load_strided<A>(row.dy, p.dy.step, j, count); });
  }

  // sum dy y, log: sum dy.
  Total sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, log ? p.rows.N : row.kept);
    const Y* const y_of_row = row.y;
    X* const dx = row.dx;
    Total part;
    const auto sums = with_dy(row, [&](const auto& dy_at) {
      return sums_of_chunk<log ? 1 : 2, A>(chunk.begin, chunk.begin + chunk.n,
                                           [&](int64_t j, int64_t count, Vec<A>* terms) {
                                             const Vec<A> dy = dy_at(j, count);
                                             if constexpr (log) {
                                               terms[0] = dy;
                                             } else {
                                               prefetch_to_write(dx + j);
                                               const Vec<A> y = without_top(part, dy, load_at<A>(y_of_row, j, count));
                                               terms[0] = dy * y, terms[1] = y;
                                             }
                                           });
    });
    part.rest += sums.of[0];
    if constexpr (!log) part.y_rest += sums.of[1];
    return part;
  }

  Total finish(Row&, const Total& total) const { return total; }

  void write(Row& row, int64_t c, const Total& total) const {
    const Chunk<A> all(c, p.rows.N), chunk(c, row.kept);
    X* const dx = row.dx + all.begin;
    const SoftmaxGradient<log, A> gradient{splat(total.top_dy), splat(total.mean(row.y_sink, p.y_type))};
    if (!row.x && !row.mask) {
      const Vec<A> scale = splat(score.scale);
      const Y* const y_of_row = row.y;
      with_dy(row, [&](const auto& dy_at) {
        write_row<A, std::is_same_v<X, Y>>(dx, chunk.n, [&](int64_t at, int64_t count) {
          const int64_t j = all.begin + at;
          return gradient(dy_at(j, count), load_at<A>(y_of_row, j, count)) * scale;
        });
      });
    } else {
      write_row<A>(dx, chunk.n, [&](int64_t at, int64_t count) {
        const int64_t j = all.begin + at;
        const Vec<A> dy = load_strided<A>(row.dy, p.dy.step, j, count), y = load_at<A>(row.y, j, count);
        Vec<A> value = gradient(dy, y);
        value *= row.x ? score.slope(load_at<A>(row.x, j, count)) : splat(score.scale);
        if (row.mask) value = kept_lanes<A>(value, row.mask, p.mask.step, j, count);  // a masked x may be NaN
        return value;
      });
    }
    write_row<A>(dx + chunk.n, all.n - chunk.n, [](int64_t, int64_t) { return Vec<A>{}; });
  }
};

// ---- Double backward. -----------------------------------------------------------------------------------------------------

template <bool log, class A, class X, class Y>
struct DoubleBackwardRows {
  using Total = TwoSums<A>;
  struct Row {
    const X* g;
    const Y *dy, *y;
    Y *g_dy, *g_y;
  };
  const SoftmaxDoubleBackward& p;
  const SoftmaxPlan& plan;

  Row row(int64_t r) const {
    const RowIndex at = row_index(p.rows, r);
    return {row_of<const X>(p.rows, p.g, at), row_of<const Y>(p.rows, p.dy, at), row_of<const Y>(p.rows, p.y, at),
            row_of<Y>(p.rows, p.g_dy, at), row_of<Y>(p.rows, p.g_y, at)};
  }

  // sum dy y (log: sum dy) and sum g y (log: sum g exp(y)).
  TwoSums<A> sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    const int64_t end = chunk.begin + chunk.n;
    const auto probability = [&](int64_t j, int64_t count) {
      const Vec<A> y = load_at<A>(row.y, j, count);
      return log ? exp(y) : y;
    };
    return {sum_chunk<A>(chunk.begin, end,
                         [&](int64_t j, int64_t count) {
                           const Vec<A> dy = load_at<A>(row.dy, j, count);
                           return log ? dy : dy * load_at<A>(row.y, j, count);
                         }),
            sum_chunk<A>(chunk.begin, end, [&](int64_t j, int64_t count) {
              return load_at<A>(row.g, j, count) * probability(j, count);
            })};
  }

  TwoSums<A> finish(Row&, TwoSums<A> total) const { return total; }

  void write(Row& row, int64_t c, TwoSums<A> total) const {
    const Chunk<A> all(c, p.rows.N);
    const A scale = static_cast<A>(p.scale);
    const auto both = [&](int64_t at, int64_t count) {
      const int64_t j = all.begin + at;
      return softmax_second_gradient<log, A>(load_at<A>(row.g, j, count), load_at<A>(row.dy, j, count),
                                             load_at<A>(row.y, j, count),
                                             TwoSums<Vec<A>>{splat(total.dy), splat(total.g)}, scale);
    };
    write_row<A>(row.g_dy + all.begin, all.n, [&](int64_t at, int64_t count) { return both(at, count).g_dy; });
    write_row<A>(row.g_y + all.begin, all.n, [&](int64_t at, int64_t count) { return both(at, count).g_y; });
  }
};

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

template <template <bool, class, class, class> class RowsJob, template <bool, class, class, class> class ColumnsJob,
          bool log, class A, class X, class Y, class Params>
void run(const Params& p, const SoftmaxPlan& plan) {
  const int64_t chunks = ceil_div(p.rows.N, kChunk<A>);
  switch (plan.path) {
    case RowPath::whole_rows:
      if (const RowsJob<log, A, X, Y> rows{p, plan}; !run_short_rows<log, A, X, Y>(rows, p, plan.tasks))
        run_whole_rows(rows, p.rows.M, chunks, plan.tasks);
      return;
    case RowPath::split_rows:
      return run_split_rows(RowsJob<log, A, X, Y>{p, plan}, p.rows.M, chunks, plan.tasks);
    case RowPath::columns:
      if (run_few_columns<log, A, X, Y>(p, plan.tasks)) return;
      return run_whole_rows(ColumnsJob<log, A, X, Y>{p, plan}, ColumnGroups<A>(p.rows).count(), chunks, plan.tasks);
  }
}

// The pairs of types: the same for x and y, or float32 y for 16-bit x.
template <template <bool, class, class, class> class R, template <bool, class, class, class> class C, bool log,
          class Params>
void run_typed(const Params& p, const SoftmaxPlan& plan) {
  switch (p.x_type) {
    case DType::f32:
      return run<R, C, log, float, float, float>(p, plan);
    case DType::f64:
      return run<R, C, log, double, double, double>(p, plan);
    case DType::bf16:
      return p.y_type == DType::f32 ? run<R, C, log, float, bf16, float>(p, plan)
                                    : run<R, C, log, float, bf16, bf16>(p, plan);
    case DType::f16:
      return p.y_type == DType::f32 ? run<R, C, log, float, f16, float>(p, plan)
                                    : run<R, C, log, float, f16, f16>(p, plan);
  }
}

template <template <bool, class, class, class> class R, template <bool, class, class, class> class C, class Params>
void launch(const Params& p, SoftmaxPlan plan, void*) {
  return p.log ? run_typed<R, C, true>(p, plan) : run_typed<R, C, false>(p, plan);
}

}  // namespace

namespace HETKERN_ISA {
extern const SoftmaxKernels softmax;
const SoftmaxKernels softmax{softmax_plan, launch<ForwardRows, ForwardColumns>, launch<BackwardRows, BackwardColumns>,
                             launch<DoubleBackwardRows, DoubleBackwardColumns>};
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
