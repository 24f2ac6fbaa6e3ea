// Cross-entropy over a dimension that is not the innermost: a vector lane is a row.            (rows: cross_entropy.cpp)
#pragma once
#include "columns.h"
#include "cross_entropy_math.h"

namespace hetkern::cpu {
namespace {

template <class A, class X>
struct LossColumns {
  using Total = Each<LossSum<A>, W<A>>;
  static_assert(kChunk<A> * W<A> * static_cast<int64_t>(sizeof(A)) <= kScratchBytes);
  struct Row {
    int64_t first, lanes;
    Column<const X> x, q;
    A* z;
  };
  const CrossEntropyForward& p;
  Met& met;
  ColumnGroups<A> groups{p.rows};
  Score<A> score{p.scale, p.softcap};
  TargetTerm<A> term{p.target, p.rows.N};
  const A* weight = static_cast<const A*>(p.target.weight);

  Row row(int64_t group) const {
    const int64_t first = groups.first_row(group);
    const RowIndex at = row_index(p.rows, first);
    return {
        first, groups.lanes(group), {p.rows, p.x, at}, {p.rows, p.target.probability, at}, static_cast<A*>(scratch())};
  }

  Total sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    A* const z = row.z;
    // Scores, their maximum and where it first stands.
    Vec<A> largest = splat(-kInfinity<A>);
    for (int64_t j = 0; j < chunk.n; ++j) {
      const Vec<A> v = score(row.x.template load<A>(chunk.begin + j, row.lanes));
      store<A>(z + j * W<A>, v);
      largest = max(v, largest);
    }
    // Exponentials and their sum.
    const Vec<A> shift = largest == -kInfinity<A> ? Vec<A>{} : largest;
    const auto shifted = [&](int64_t j) { return load<A>(z + j * W<A>) - shift; };
    Mask<A> equal = {};
    const Vec<A> sums = sum_columns<A>(0, chunk.n, [&](int64_t j) {
      const Vec<A> v = load<A>(z + j * W<A>), e = exp_nonpositive(v - shift);
      const Mask<A> is_max = v == shift;
      equal += is_max;
      return is_max ? Vec<A>{} : e;
    });
    Total part;
    for (int i = 0; i < W<A>; ++i) {
      part.lane[i].exp = {largest[i], sums[i], true};
      if (largest[i] != -kInfinity<A>) part.lane[i].exp.sum += static_cast<double>(-equal[i] - 1);
    }
    if (p.correct) {
      const Vec<A> moment = sum_columns<A>(
          0, chunk.n, [&](int64_t j) { return exp_nonpositive(shifted(j)) * bounded_below<A>(shifted(j)); });
      const Mask<A> first = first_equal<A>(chunk.n, largest, [&](int64_t j) { return load<A>(z + j * W<A>); });
      for (int i = 0; i < W<A>; ++i)
        part.lane[i].moment = moment[i], part.lane[i].first_max = chunk.begin + first[i], part.lane[i].stats = true;
    }
    if (row.q.at || p.target.label_smoothing > 0) add_targets(row, chunk, shifted, part);
    return part;
  }

  template <class Shifted>
  void add_targets(Row& row, const Chunk<A>& chunk, const Shifted& shifted, Total& part) const {
    const auto w = [&](int64_t j) { return splat(weight ? weight[chunk.begin + j] : A(1)); };
    const auto q = [&](int64_t j) { return row.q.template load<A>(chunk.begin + j, row.lanes); };
    const auto weighted = [&](Weighted<A> LossSum<A>::* sum, const auto& t) {
      const Vec<A> dot = sum_columns<A>(0, chunk.n, [&](int64_t j) { return t(j) * shifted(j); });
      const Vec<A> all = sum_columns<A>(0, chunk.n, t);
      for (int i = 0; i < W<A>; ++i) part.lane[i].*sum = {dot[i], all[i]};
    };
    if (!row.q.at) return weighted(&LossSum<A>::target, w);
    weighted(&LossSum<A>::plain, q);
    const auto own = [&](int64_t j) { return w(j) * q(j); };
    if (term.splits()) {
      // A class that only the smoothing gives a share adds nothing here, though its logarithm be -inf.
      const Vec<A> dot = sum_columns<A>(0, chunk.n, [&](int64_t j) {
        const Vec<A> v = own(j);
        return v == A(0) ? v : v * shifted(j);
      });
      const Vec<A> all = sum_columns<A>(0, chunk.n, own);
      weighted(&LossSum<A>::target, w);
      for (int i = 0; i < W<A>; ++i) part.lane[i].target = term.sums({dot[i], all[i]}, part.lane[i].target);
    } else {
      weighted(&LossSum<A>::target,
               [&](int64_t j) { return same_as_probabilities(p.target) ? q(j) : term(q(j), w(j)); });
    }
    if (!p.correct) return;
    Vec<A> most = splat(-kInfinity<A>);
    for (int64_t j = 0; j < chunk.n; ++j) most = max(q(j), most);
    const Mask<A> first = first_equal<A>(chunk.n, most, q);
    for (int i = 0; i < W<A>; ++i)
      part.lane[i].target_max = most[i], part.lane[i].target_first_max = chunk.begin + first[i];
  }

  Total finish(Row& row, const Total& total) const {
    for (int64_t i = 0; i < row.lanes; ++i) finish_loss<A, X>(p, score, met, row.first + i, total.lane[i]);
    return total;
  }
};

template <class A, class X>
struct GradientColumns {
  struct Row {
    int64_t lanes;
    Column<const X> x, q;
    Column<X> dx, dq;
    GradientFormula<A> formula;
    RowGradient<A> gradient[W<A>];
  };
  const CrossEntropyBackward& p;
  const CrossEntropyPlan& plan;
  Met& met;
  A weight_sum;
  ColumnGroups<A> groups{p.rows};
  Score<A> score{p.scale, p.softcap};
  TargetTerm<A> term{p.target, p.rows.N};
  const A* weight = static_cast<const A*>(p.target.weight);

  Row row(int64_t group) const {
    const int64_t first = groups.first_row(group);
    const RowIndex at = row_index(p.rows, first);
    Row row{groups.lanes(group),
            {p.rows, p.x, at},
            {p.rows, p.target.probability, at},
            {p.rows, p.dx, at},
            {p.rows, p.d_target, at},
            GradientFormula<A>(RowGradient<A>{}),
            {}};
    for (int64_t i = 0; i < row.lanes; ++i) {
      row.gradient[i] = row_gradient<A, X>(p, score, met, first + i, weight_sum);
      row.formula.set(static_cast<int>(i), row.gradient[i]);
    }
    return row;
  }

  void write(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    const bool plain = has_plain_gradient(p), with_g = p.d_log_prob && !same_as_probabilities(p.target);
    const GradientFormula<A>& formula = row.formula;
    for (int64_t j = chunk.begin; j < chunk.begin + chunk.n; ++j) {
      const Vec<A> x = row.x.template load<A>(j, row.lanes), z = score(x), w = splat(weight ? weight[j] : A(1));
      const Vec<A> q = row.q.at ? row.q.template load<A>(j, row.lanes) : Vec<A>{};
      const Vec<A> dz = plain ? formula.plain(z) : formula.full(z, row.q.at ? term(q, w) : w, q);
      const Vec<A> dx = dz * (score.cap > 0 ? score.slope(x) : splat(score.scale));
      row.dx.template store<A>(j, row.lanes, formula.nothing ? Vec<A>{} : dx);
      if (row.dq.at) row.dq.template store<A>(j, row.lanes, formula.target(z, w, term.keep, with_g));
    }
    // The target's own column keeps more digits.
    for (int64_t i = 0; i < row.lanes; ++i) {
      const int64_t t = row.gradient[i].at;
      if (t >= chunk.begin && t < chunk.begin + chunk.n)
        store_some<A>(row.dx.at + t * row.dx.step + i * row.dx.lane, splat(row.gradient[i].dx_at), 1);
    }
  }
};

}  // namespace
}  // namespace hetkern::cpu
