// Softmax of short rows, a vector of rows at a time (short_rows.h): the bits of the general path, without its bookkeeping.
#pragma once
#include "short_rows.h"
#include "softmax_math.h"

namespace hetkern::cpu {
namespace {

// ---- Forward. -------------------------------------------------------------------------------------------------------------

template <bool log, int vectors, class A, class X, class Y>
inline void short_forward(const SoftmaxForward& p, int64_t first, int count) {
  const int64_t N = p.rows.N, queries = p.queries;
  const Vec<A> scale = splat(static_cast<A>(p.scale));
  const auto x = row_starts<A, const X>(p.rows, p.x, first, count);
  const auto y = row_starts<A, Y>(p.rows, p.y, first, count);
  Mask<A> kept = ~Mask<A>{};
  const ShortScores<A, vectors> scores(N, count, [&](int i) {
    const int64_t n = kept_columns(N, queries, first + i);
    if (n == 0) kept[i] = 0;
    return ScoresOf<A, X, Scaled<A>>{x.at[i], n, {scale}};
  });

  // Row sum, and the row.
  if constexpr (log) {
    const LaneValues<A> logs(scores.log_sums([](Vec<A> s) { return exp_nonpositive(s); }, kept));
    for (int i = 0; i < count; ++i) {
      const Vec<A> m = splat(scores.shift.of[i]), d = splat(logs.of[i]);
      write_row<A, std::is_same_v<X, Y>>(
          y.at[i], N, [&, z = scores.at(i, 0)](int64_t j, int64_t) { return load<A>(z + j) - m - d; });
    }
  } else {
    const Vec<A> sums = scores.template sums<true>([](Vec<A> s) { return exp_of_share<kCoarse<Y>>(s); });
    const auto share = [](Vec<double> sum) { return 1.0 / (1.0 + sum); };
    const Vec<A> quotient = in_double<A>(share, scores.nothing ? sums : sums - A(1));
    const LaneValues<A> factors(scores.spoiled(kept) ? splat(kNaN<A>) : quotient);
    for (int i = 0; i < count; ++i) {
      const Vec<A> factor = splat(factors.of[i]);
      write_row<A, std::is_same_v<X, Y>>(
          y.at[i], N, [&, e = scores.at(i, 0)](int64_t j, int64_t) { return load<A>(e + j) * factor; });
    }
  }
}

// Whether the rows were short and plain enough, and are done.
template <bool log, class A, class X, class Y, class General>
bool run_short_rows(const General&, const SoftmaxForward& p, int tasks) {
  if (p.rows.N > kShortRow<A> || p.bias || p.mask || p.sink || p.softcap > 0) return false;
  for_vectors_of<A>(p.rows.N, [&](auto vectors) {
    run_groups<A>(p.rows.M, tasks,
                  [&](int64_t first, int count) { short_forward<log, vectors, A, X, Y>(p, first, count); });
  });
  return true;
}

// ---- Backward. ------------------------------------------------------------------------------------------------------------

// GradientSum, a row a lane.
template <class A>
struct GradientSums {
  Vec<A> rest{}, y_rest{}, top_dy{}, top_y{};
  void set(int i, const GradientSum<A>& of) {
    rest[i] = of.rest, y_rest[i] = of.y_rest, top_dy[i] = of.top_dy, top_y[i] = of.top_y;
  }
  Vec<A> mean(DType y_type) const {
    const Vec<A> all = y_rest + top_y, lacks = all - A(1);
    const Vec<A> rounding = A(eps_of(y_type)) * (size_of(y_type) == 2 ? A(0.25) + y_rest / A(2) : splat(A(4)));
    const Mask<A> meant = (lacks <= rounding) & (lacks >= -rounding);
    return meant ? (rest - y_rest * top_dy) / all : rest - (A(1) - top_y) * top_dy;
  }
};

template <bool log, int vectors, class A, class X, class Y, class General>
inline void short_backward(const General& general, const SoftmaxBackward& p, int64_t first, int count) {
  const int64_t N = p.rows.N, queries = p.queries;
  const auto dys = row_starts<A, const Y>(p.rows, p.dy, first, count);
  const auto ys = row_starts<A, const Y>(p.rows, p.y, first, count);
  const auto dxs = row_starts<A, X>(p.rows, p.dx, first, count);
  const auto dy_at = [&, step = p.dy.step](int i, int64_t j, int64_t n) {
    if (step == 1) return load_at<A>(dys.at[i] + j, 0, n);
    const Vec<A> same = splat(get<A>(dys.at[i]));
    return n == W<A> ? same : keep_lanes<A>(same, n, A(0));
  };

  // sum dy y, log: sum dy.
  GradientSums<A> sums;
  RowParts<A> rest, y_rest, top_dy, top_y;
  int tops_of[W<A>], any = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t n = log ? N : kept_columns(N, queries, first + i);
    ShortLanes<A, vectors> lanes(0), y_lanes(0), dy_tops(0), y_tops(0);
    int tops = 0;
    for (int k = 0; k < vectors; ++k) {
      const int64_t left = n - k * W<A>;
      if (left <= 0) continue;
      const int64_t in = left < W<A> ? left : W<A>;
      const Vec<A> dy = dy_at(i, k * W<A>, in);
      if constexpr (log) {
        lanes[k] += dy;
      } else {
        const Vec<A> y = load_at<A>(ys.at[i] + k * W<A>, 0, in);
        const Picked<A> apart = picked_above(y, A(0.5), dy);
        const Vec<A> less = without(apart, y);
        lanes[k] += dy * less, y_lanes[k] += less;
        dy_tops[k] = EitherBits{}(dy_tops[k], only(apart, dy)), y_tops[k] = EitherBits{}(y_tops[k], only(apart, y));
        tops += how_many(apart);
      }
    }
    rest.of[i] = lanes.folded(Plus{});
    if constexpr (!log) {
      y_rest.of[i] = y_lanes.folded(Plus{});
      top_dy.of[i] = dy_tops.folded(EitherBits{}), top_y.of[i] = y_tops.folded(EitherBits{});
      tops_of[i] = tops, any |= tops;
    }
  }
  sums.rest = rest.reduced(count, Plus{});
  if constexpr (!log) {
    sums.y_rest = y_rest.reduced(count, Plus{});
    if (any) sums.top_dy = top_dy.reduced(count, EitherBits{}), sums.top_y = top_y.reduced(count, EitherBits{});
    for (int i = 0; any > 1 && i < count; ++i)  // no softmax has two, but y may be anything
      if (tops_of[i] > 1) {
        auto row = general.row(first + i);
        sums.set(i, general.sum(row, 0));
      }
  }

  // Write the rows.
  const LaneValues<A> means(log ? sums.rest : sums.mean(p.y_type)), apart(sums.top_dy);
  const Vec<A> scale = splat(static_cast<A>(p.scale));
  for (int i = 0; i < count; ++i) {
    const int64_t n = kept_columns(N, queries, first + i);
    const SoftmaxGradient<log, A> gradient{splat(apart.of[i]), splat(means.of[i])};
    const auto dx = [&](int64_t j, int64_t in) {
      return gradient(dy_at(i, j, in), load_at<A>(ys.at[i], j, in)) * scale;
    };
    write_row<A, std::is_same_v<X, Y>>(dxs.at[i], n, dx);
    if (n < N) write_row<A>(dxs.at[i] + n, N - n, [](int64_t, int64_t) { return Vec<A>{}; });
  }
}

template <bool log, class A, class X, class Y, class General>
bool run_short_rows(const General& general, const SoftmaxBackward& p, int tasks) {
  if (p.rows.N > kShortRow<A> || p.x || p.mask || p.y_sink) return false;
  for_vectors_of<A>(p.rows.N, [&](auto vectors) {
    run_groups<A>(p.rows.M, tasks,
                  [&](int64_t first, int count) { short_backward<log, vectors, A, X, Y>(general, p, first, count); });
  });
  return true;
}

template <bool log, class A, class X, class Y, class General>
bool run_short_rows(const General&, const SoftmaxDoubleBackward&, int) {
  return false;
}

}  // namespace
}  // namespace hetkern::cpu
