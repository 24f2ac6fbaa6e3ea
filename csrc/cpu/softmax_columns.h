// Softmax over a dimension that is not the innermost: a vector lane is a row.                (rows: softmax.cpp)
#pragma once
#include "columns.h"
#include "softmax_math.h"

namespace hetkern::cpu {
namespace {

template <bool log, class A, class X, class Y>
struct ForwardColumns {
  using Total = Each<RowSum<A>, W<A>>;
  static constexpr int64_t kKept = kScratchBytes / kWidestVectorBytes;  // columns that a plan may keep
  static_assert(kVectorBytes <= kWidestVectorBytes);
  static_assert(kKept >= kChunk<A>);
  struct Row {
    int64_t lanes;
    Column<const X> x, bias, sink;
    Column<const uint8_t> mask;
    Column<Y> y;
    Column<A> y_sink;
    A* z;
    Vec<A> chunk_max[kKept / kChunk<A>];
  };
  const SoftmaxForward& p;
  const SoftmaxPlan& plan;
  ColumnGroups<A> groups{p.rows};
  Score<A> score{p.scale, p.softcap};

  Row row(int64_t group) const {
    const RowIndex at = row_index(p.rows, groups.first_row(group));
    return {groups.lanes(group),    {p.rows, p.x, at},          {p.rows, p.bias, at},
            {p.rows, p.sink, at},   {p.rows, p.mask, at},       {p.rows, p.y, at},
            {p.rows, p.y_sink, at}, static_cast<A*>(scratch()), {}};
  }

  Total sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    A* const z = row.z + (plan.keep ? chunk.begin * W<A> : 0);
    // Scores and their maximum.
    Vec<A> largest = splat(-kInfinity<A>);
    Mask<A> kept = {};
    for (int64_t j = 0; j < chunk.n; ++j) {
      Vec<A> v = score(row.x.template load<A>(chunk.begin + j, row.lanes));
      if (row.bias.at) v += row.bias.template load<A>(chunk.begin + j, row.lanes);
      if (row.mask.at) {
        const uint8_t* const mask = row.mask.at + (chunk.begin + j) * row.mask.step;
        apply_mask<A>(v, mask, row.mask.lane, 0, row.lanes);
        for (int64_t i = 0; i < row.lanes; ++i) kept[i] |= mask[i * row.mask.lane];
      }
      store<A>(z + j * W<A>, v);
      largest = max(v, largest);
    }
    // Exponentials and their sum.
    const Vec<A> shift = largest == -kInfinity<A> ? Vec<A>{} : largest;
    Mask<A> equal = {};
    const Vec<A> sums = sum_columns<A>(0, chunk.n, [&](int64_t j) {
      const Vec<A> v = load<A>(z + j * W<A>);
      if (!log) {
        const Vec<A> e = exp_of_share<kCoarse<Y>>(v - shift);
        store<A>(z + j * W<A>, e);
        return e;
      }
      const Vec<A> e = exp_nonpositive(v - shift);
      const Mask<A> is_max = v == shift;
      equal += is_max;
      return is_max ? Vec<A>{} : e;
    });
    Total part;
    for (int i = 0; i < W<A>; ++i) {
      part.lane[i] = {largest[i], sums[i], !row.mask.at || kept[i] != 0};
      if (largest[i] != -kInfinity<A>) part.lane[i].sum += static_cast<double>(-equal[i] - 1);
    }
    if (plan.keep) row.chunk_max[c] = largest;
    return part;
  }

  Total finish(Row& row, Total whole) const {
    for (int64_t i = 0; i < row.lanes; ++i) {
      if (!row.sink.at) {
        whole.lane[i] = finished(whole.lane[i]);
        continue;
      }
      const A sink = get<A>(row.sink.at + i * row.sink.lane);
      whole.lane[i] = finished(combine(whole.lane[i], RowSum<A>{sink}));
      row.y_sink.at[i * row.y_sink.lane] = sink_output<log>(sink, whole.lane[i]);
    }
    return whole;
  }

  void write(Row& row, int64_t c, const Total& whole) const {
    const Chunk<A> chunk(c, p.rows.N);
    A* const z = row.z + (plan.keep ? chunk.begin * W<A> : 0);
    Vec<A> largest = {}, shift = {}, factor = {};
    Mask<A> emptied = {};
    if (plan.keep)
      largest = row.chunk_max[c];
    else if (const Total again = sum(row, c); true)
      for (int i = 0; i < W<A>; ++i) largest[i] = again.lane[i].max;
    for (int64_t i = 0; i < row.lanes; ++i) {
      const Output<log, A> output(largest[i], whole.lane[i]);
      shift[i] = output.shift[0], factor[i] = output.factor[0], emptied[i] = whole.lane[i].kept ? 0 : -1;
    }
    const Vec<A> nothing = splat(log ? -kInfinity<A> : A(0));
    for (int64_t j = 0; j < chunk.n; ++j) {
      const Vec<A> v = load<A>(z + j * W<A>);
      row.y.template store<A>(chunk.begin + j, row.lanes, emptied ? nothing : log ? v - shift - factor : v * factor);
    }
  }
};

template <bool log, class A, class X, class Y>
struct BackwardColumns {
  using Total = Each<GradientSum<A>, W<A>>;
  struct Row {
    int64_t lanes;
    Column<const Y> dy, y;
    Column<X> dx;
    Column<const X> x;
    Column<const uint8_t> mask;
    Column<const A> y_sink;
  };
  const SoftmaxBackward& p;
  const SoftmaxPlan& plan;
  ColumnGroups<A> groups{p.rows};
  Score<A> score{p.scale, p.softcap};

  Row row(int64_t group) const {
    const RowIndex at = row_index(p.rows, groups.first_row(group));
    return {groups.lanes(group), {p.rows, p.dy, at},   {p.rows, p.y, at},     {p.rows, p.dx, at},
            {p.rows, p.x, at},   {p.rows, p.mask, at}, {p.rows, p.y_sink, at}};
  }

  Total sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    Total part;
    const auto sums =
        sums_of_columns<log ? 1 : 2, A>(chunk.begin, chunk.begin + chunk.n, [&](int64_t j, Vec<A>* terms) {
          const Vec<A> dy = row.dy.template load<A>(j, row.lanes);
          if constexpr (log) {
            terms[0] = dy;
          } else {
            const Vec<A> y = without_top(part, dy, row.y.template load<A>(j, row.lanes));
            terms[0] = dy * y, terms[1] = y;
          }
        });
    for (int i = 0; i < W<A>; ++i) {
      part.lane[i].rest += sums.of[0][i];
      if constexpr (!log) part.lane[i].y_rest += sums.of[1][i];
    }
    return part;
  }

  Total finish(Row&, const Total& total) const { return total; }

  void write(Row& row, int64_t c, const Total& total) const {
    const Chunk<A> chunk(c, p.rows.N);
    SoftmaxGradient<log, A> gradient{};
    for (int64_t i = 0; i < row.lanes; ++i) {
      const A y_sink = row.y_sink.at ? row.y_sink.at[i * row.y_sink.lane] : A(0);
      gradient.top_dy[i] = total.lane[i].top_dy, gradient.mean[i] = total.lane[i].mean(y_sink, p.y_type);
    }
    for (int64_t j = chunk.begin; j < chunk.begin + chunk.n; ++j) {
      const Vec<A> dy = row.dy.template load<A>(j, row.lanes), y = row.y.template load<A>(j, row.lanes);
      Vec<A> value = gradient(dy, y);
      value *= row.x.at ? score.slope(row.x.template load<A>(j, row.lanes)) : splat(score.scale);
      if (row.mask.at) value = kept_lanes<A>(value, row.mask.at + j * row.mask.step, row.mask.lane, 0, row.lanes);
      row.dx.template store<A>(j, row.lanes, value);
    }
  }
};

template <bool log, class A, class X, class Y>
struct DoubleBackwardColumns {
  using Total = TwoSums<Each<A, W<A>>>;
  struct Row {
    int64_t lanes;
    Column<const X> g;
    Column<const Y> dy, y;
    Column<Y> g_dy, g_y;
  };
  const SoftmaxDoubleBackward& p;
  const SoftmaxPlan& plan;
  ColumnGroups<A> groups{p.rows};

  Row row(int64_t group) const {
    const RowIndex at = row_index(p.rows, groups.first_row(group));
    return {groups.lanes(group), {p.rows, p.g, at},    {p.rows, p.dy, at},
            {p.rows, p.y, at},   {p.rows, p.g_dy, at}, {p.rows, p.g_y, at}};
  }

  Total sum(Row& row, int64_t c) const {
    const Chunk<A> chunk(c, p.rows.N);
    const int64_t end = chunk.begin + chunk.n;
    const auto dy_sum = sum_columns<A>(chunk.begin, end, [&](int64_t j) {
      const Vec<A> dy = row.dy.template load<A>(j, row.lanes);
      return log ? dy : dy * row.y.template load<A>(j, row.lanes);
    });
    const auto g_sum = sum_columns<A>(chunk.begin, end, [&](int64_t j) {
      const Vec<A> y = row.y.template load<A>(j, row.lanes);
      return row.g.template load<A>(j, row.lanes) * (log ? exp(y) : y);
    });
    return {bit_cast<Each<A, W<A>>>(dy_sum), bit_cast<Each<A, W<A>>>(g_sum)};
  }

  Total finish(Row&, const Total& total) const { return total; }

  void write(Row& row, int64_t c, const Total& total) const {
    const Chunk<A> chunk(c, p.rows.N);
    const TwoSums<Vec<A>> sum{bit_cast<Vec<A>>(total.dy), bit_cast<Vec<A>>(total.g)};
    for (int64_t j = chunk.begin; j < chunk.begin + chunk.n; ++j) {
      const auto both =
          softmax_second_gradient<log, A>(row.g.template load<A>(j, row.lanes), row.dy.template load<A>(j, row.lanes),
                                          row.y.template load<A>(j, row.lanes), sum, static_cast<A>(p.scale));
      row.g_dy.template store<A>(j, row.lanes, both.g_dy);
      row.g_y.template store<A>(j, row.lanes, both.g_y);
    }
  }
};

}  // namespace
}  // namespace hetkern::cpu
