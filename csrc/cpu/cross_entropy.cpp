// Row cross-entropy on the CPU: forward and backward.                           (the contract: csrc/cross_entropy.h)
//
//   m_i   = max_j z_ij         d_i = log1p(sum_{j != argmax} exp(z_ij - m_i))
//   row_i = w_t (m_i - z_it + d_i)                              dx_ij = (exp(z_ij - m_i - d_i) a_i - ...) dz/dx
//
// x, dx: M rows of N; float, double, half or bfloat16; m, d, losses and statistics are A: float, double for double.
// Work:    a thread takes whole rows; few long rows are cut into chunks; over an inner dimension, a vector lane is a row.
//          Backward reduces nothing: its tasks take chunks of all rows.
// Traffic: forward reads MN elements (and the probabilities) once, a chunk at a time: its scores wait in a first-level
//          cache for their maximum. Backward reads MN and writes MN.
// Edges:   a class out of range is skipped and reported; nothing counted gives a mean of NaN.
#include "../cross_entropy.h"

#include "cross_entropy_columns.h"
#include "cross_entropy_few_columns.h"
#include "cross_entropy_math.h"
#include "cross_entropy_short.h"
#include "plan.h"
#include "row_job.h"

namespace hetkern::cpu {
namespace {

// ---- Forward. -------------------------------------------------------------------------------------------------------

template <class A, class X>
struct LossRows {
  using Total = LossSum<A>;
  struct Row {
    const X* x;
    const X* q;
    A* z;  // scratch: the scores of the chunk at hand
    int64_t index;
  };
  const CrossEntropyForward& p;
  Met& met;
  Score<A> score{p.scale, p.softcap};
  TargetTerm<A> term{p.target, p.rows.N};
  const A* weight = static_cast<const A*>(p.target.weight);

  Row row(int64_t r) const {
    const RowIndex at = row_index(p.rows, r);
    return {row_of<const X>(p.rows, p.x, at), row_of<const X>(p.rows, p.target.probability, at),
            static_cast<A*>(scratch()), r};
  }

  LossSum<A> sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    A* const z = row.z;
    LossSum<A> part;
    const X* const x = row.x + chunk.begin;
    const bool unscaled = score.scale == 1 && !(score.cap > 0);
    const Lanes<A> lanes = unscaled ? write_scores<A>(x, chunk.n, Unscaled{}, z, NothingMore{})
                                    : write_scores<A>(x, chunk.n, score, z, NothingMore{});
    const A largest = lanes.largest();
    if (row.q || p.target.label_smoothing > 0) add_targets(row, chunk, largest, part);
    const Maxima<A> maxima(z, chunk.n, lanes, largest);
    if (!p.correct) {
      part.exp = sum_beside_maxima(z, chunk.n, largest, maxima,
                                   [&](int64_t j, int, Vec<A>, Vec<A>) { prefetch(x + chunk.n + j); });
    } else {
      Lanes<A> moment(0);
      part.exp = sum_beside_maxima(z, chunk.n, largest, maxima,
                                   [&](int64_t, int k, Vec<A> s, Vec<A> e) { moment.v[k] += e * bounded_below<A>(s); });
      part.moment = moment.sum(), part.stats = true;
      part.first_max = chunk.begin + maxima.first;
    }
    part.exp.kept = true;
    return part;
  }

  // sum_j t_j (z_j - max), sum_j t_j and the like.
  void add_targets(Row& row, const Chunk<A>& chunk, A largest, LossSum<A>& part) const {
    const Vec<A> shift = splat(largest == -kInfinity<A> ? A(0) : largest);
    const auto shifted = [&](int64_t j, int64_t count) { return load_at<A>(row.z, j, count) - shift; };
    const auto w = [&](int64_t j, int64_t count) {
      return weight ? load_at<A>(weight + chunk.begin, j, count) : splat(A(1));
    };
    const auto q = [&](int64_t j, int64_t count) { return load_at<A>(row.q + chunk.begin, j, count); };
    const auto weighted = [&](const auto& t) {
      return Weighted<A>{
          sum_chunk<A>(0, chunk.n, [&](int64_t j, int64_t count) { return t(j, count) * shifted(j, count); }),
          sum_chunk<A>(0, chunk.n, t)};
    };
    // A class that only the smoothing gives a share adds nothing here, though its logarithm be -inf.
    const auto weighted_present = [&](const auto& t) {
      const auto term = [&](int64_t j, int64_t count) {
        const Vec<A> v = t(j, count);
        return v == A(0) ? v : v * shifted(j, count);
      };
      return Weighted<A>{sum_chunk<A>(0, chunk.n, term), sum_chunk<A>(0, chunk.n, t)};
    };
    if (!row.q) {
      part.target = weighted(w);
      return;
    }
    part.plain = part.target = weighted(q);
    if (term.splits())
      part.target =
          term.sums(weighted_present([&](int64_t j, int64_t count) { return w(j, count) * q(j, count); }), weighted(w));
    else if (!same_as_probabilities(p.target))
      part.target = weighted([&](int64_t j, int64_t count) { return term(q(j, count), w(j, count)); });
    if (!p.correct) return;
    const Largest<A> most(row.q + chunk.begin, chunk.n);
    part.target_max = most.value, part.target_first_max = chunk.begin + most.first;
  }

  LossSum<A> finish(Row& row, const LossSum<A>& total) const {
    finish_loss<A, X>(p, score, met, row.index, total);
    return total;
  }
};

// ---- The reduction. -------------------------------------------------------------------------------------------------

// A plane of M terms, in a fixed order: the same bits whatever the threads. Equal terms, all rounded the same way, would
// take a float's last digits, and a double's but for the rests: what each addition rounded away.
template <class A>
double sum_terms(const A* terms, int64_t M) {
  constexpr int lanes = 32, vectors = lanes / W<double>;
  Vec<double> sums[vectors] = {}, rests[vectors] = {};
  const auto add = [](auto& sum, auto& rest, auto term) {
    const auto before = sum, added = (sum += term) - before;
    rest += (before - (sum - added)) + (term - added);
  };
  int64_t i = 0;
  for (; i + lanes <= M; i += lanes)
    for (int k = 0; k < vectors; ++k) add(sums[k], rests[k], load_doubles(terms + i + k * W<double>));
  double sum[lanes], rest[lanes];
  std::memcpy(sum, sums, sizeof(sum)), std::memcpy(rest, rests, sizeof(rest));
  for (int k = 0; i < M; ++k, ++i) add(sum[k], rest[k], static_cast<double>(terms[i]));
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) add(sum[k], rest[k], sum[k + half]), rest[k] += rest[k + half];
  return std::isfinite(sum[0]) ? sum[0] + rest[0] : sum[0];
}

template <class A>
void reduce(const CrossEntropyForward& p, const Met& met) {
  const int64_t M = p.rows.M;
  const A* plane = static_cast<const A*>(p.terms);
  A* const divisors = static_cast<A*>(p.divisors);
  divisors[0] = divisors[1] = 1;
  if (!p.reduced) return;
  double loss = sum_terms(plane, M), z_loss = 0, counted = static_cast<double>(M - met.ignored), weight = counted;
  if (p.z_loss_factor != 0) z_loss = sum_terms(plane += M, M);
  if (p.target.weight && p.target.index) weight = sum_terms(plane += M, M);
  if (p.reduction == Reduction::mean) {
    loss /= weight;
    if (p.z_loss_factor != 0) z_loss /= counted;
    divisors[0] = static_cast<A>(weight), divisors[1] = static_cast<A>(counted);
  }
  *static_cast<A*>(p.reduced) = static_cast<A>(loss + z_loss);
}

// ---- Backward. ------------------------------------------------------------------------------------------------------

template <class A, class X>
struct GradientRows {
  struct Row {
    const X *x, *q;
    X *dx, *dq;
    RowGradient<A> gradient;
    GradientFormula<A> formula;
  };
  const CrossEntropyBackward& p;
  const CrossEntropyPlan& plan;
  Met& met;
  A weight_sum;
  Score<A> score{p.scale, p.softcap};
  TargetTerm<A> term{p.target, p.rows.N};
  const A* weight = static_cast<const A*>(p.target.weight);

  Row row(int64_t r) const {
    const RowIndex at = row_index(p.rows, r);
    const RowGradient<A> gradient = row_gradient<A, X>(p, score, met, r, weight_sum);
    return {row_of<const X>(p.rows, p.x, at),
            row_of<const X>(p.rows, p.target.probability, at),
            row_of<X>(p.rows, p.dx, at),
            row_of<X>(p.rows, p.d_target, at),
            gradient,
            GradientFormula<A>(gradient)};
  }

  void write(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    const X* const x = row.x + chunk.begin;
    X* const dx = row.dx + chunk.begin;
    const GradientFormula<A>& formula = row.formula;
    const bool capped = score.cap > 0;
    const Vec<A> scale = splat(score.scale);
    const auto at = [&](int64_t j, int64_t count) { return load_at<A>(x, j, count); };
    const auto w = [&](int64_t j, int64_t count) {
      return weight ? load_at<A>(weight + chunk.begin, j, count) : splat(A(1));
    };
    const auto q = [&](int64_t j, int64_t count) {
      return row.q ? load_at<A>(row.q + chunk.begin, j, count) : Vec<A>{};
    };
    if (row.gradient.nothing) {
      write_row<A>(dx, chunk.n, [](int64_t, int64_t) { return Vec<A>{}; });
    } else if (has_plain_gradient(p) && !capped) {
      write_row<A>(dx, chunk.n, [&](int64_t j, int64_t count) { return formula.plain(at(j, count) * scale) * scale; });
    } else {
      write_row<A>(dx, chunk.n, [&](int64_t j, int64_t count) {
        const Vec<A> v = at(j, count), weights = w(j, count), probabilities = q(j, count);
        const Vec<A> dz = has_plain_gradient(p)
                              ? formula.plain(score(v))
                              : formula.full(score(v), row.q ? term(probabilities, weights) : weights, probabilities);
        return dz * (capped ? score.slope(v) : scale);
      });
    }
    // The target's own column keeps more digits.
    if (row.gradient.at >= chunk.begin && row.gradient.at < chunk.begin + chunk.n && !planted(Bug::dropped_target))
      store_some<A>(row.dx + row.gradient.at, splat(row.gradient.dx_at), 1);
    const bool with_g = p.d_log_prob && !same_as_probabilities(p.target);
    if (row.dq)
      write_row<A>(row.dq + chunk.begin, chunk.n, [&](int64_t j, int64_t count) {
        return formula.target(score(at(j, count)), w(j, count), term.keep, with_g);
      });
  }
};

// ---- Launchers. -----------------------------------------------------------------------------------------------------

template <class A, class X>
void forward(const CrossEntropyForward& p, const CrossEntropyPlan& plan, Met& met) {
  const int64_t chunks = ceil_div(p.rows.N, kChunk<A>);
  if (p.rows.M > 0) {
    const LossRows<A, X> rows{p, met};
    if (plan.path == RowPath::whole_rows && !run_short_losses<A, X>(p, rows.score, met, plan.tasks))
      run_whole_rows(rows, p.rows.M, chunks, plan.tasks);
    if (plan.path == RowPath::split_rows) run_split_rows(rows, p.rows.M, chunks, plan.tasks);
    if (plan.path == RowPath::columns && !run_few_columns<A, X>(p, plan.tasks, met))
      run_whole_rows(LossColumns<A, X>{p, met}, ColumnGroups<A>(p.rows).count(), chunks, plan.tasks);
  }
  reduce<A>(p, met);
}

template <class A, class X>
void backward(const CrossEntropyBackward& p, const CrossEntropyPlan& plan, Met& met) {
  const int64_t chunks = ceil_div(p.rows.N, kChunk<A>);
  const auto* const weight = static_cast<const A*>(p.target.weight);
  A weight_sum = static_cast<A>(p.rows.N);
  if (weight && p.target.label_smoothing > 0) weight_sum = static_cast<A>(sum_terms(weight, p.rows.N));
  if (plan.path == RowPath::columns && run_few_columns<A, X>(p, plan.tasks, met, weight_sum)) return;
  if (plan.path == RowPath::columns)
    run_chunks(GradientColumns<A, X>{p, plan, met, weight_sum}, ColumnGroups<A>(p.rows).count(), chunks, plan.tasks);
  else if (!run_gradients_of_loss<A, X>(p, met, weight_sum, plan.tasks))
    run_chunks(GradientRows<A, X>{p, plan, met, weight_sum}, p.rows.M, chunks, plan.tasks);
}

template <class Params, class Run>
BadTarget typed(const Params& p, const Run& run) {
  Met met;
  switch (p.x_type) {
    case DType::f32:
      run(float{}, float{}, met);
      break;
    case DType::f64:
      run(double{}, double{}, met);
      break;
    case DType::bf16:
      run(float{}, bf16{}, met);
      break;
    case DType::f16:
      run(float{}, f16{}, met);
      break;
  }
  return bad_target(p.rows, p.target, met);
}

BadTarget launch_forward(const CrossEntropyForward& p, CrossEntropyPlan plan, void*) {
  return typed(p, [&](auto a, auto x, Met& met) { forward<decltype(a), decltype(x)>(p, plan, met); });
}

BadTarget launch_backward(const CrossEntropyBackward& p, CrossEntropyPlan plan, void*) {
  return typed(p, [&](auto a, auto x, Met& met) { backward<decltype(a), decltype(x)>(p, plan, met); });
}

}  // namespace

namespace HETKERN_ISA {
extern const CrossEntropyKernels cross_entropy;
const CrossEntropyKernels cross_entropy{cross_entropy_plan, launch_forward, launch_backward};
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
