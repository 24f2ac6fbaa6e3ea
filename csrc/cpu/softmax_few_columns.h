// Softmax over a few columns: softmax_columns.h's bits, a vector of rows at a time.                    (how: few_columns.h)
#pragma once
#include "few_columns.h"
#include "softmax_math.h"

namespace hetkern::cpu {
namespace {

template <bool log, class A, class X, class Y>
struct ForwardFewColumns {
  struct Row {  // a block of rows, the first one's
    const X* x;
    Y* y;
    int64_t rows;
  };
  const SoftmaxForward& p;
  ColumnBlocks blocks{p.rows};
  Vec<A> scale = splat(static_cast<A>(p.scale));

  Row row(int64_t block) const {
    const RowIndex at = row_index(p.rows, blocks.first_row(block));
    return {row_of<const X>(p.rows, p.x, at), row_of<Y>(p.rows, p.y, at), blocks.rows(block)};
  }

  void write(const Row& row, int64_t) const {
    for_each_step<A, kStepVectors<A, X>>(
        row.rows, [&](auto vectors, int64_t i, auto count) { step<vectors>(row.x + i, row.y + i, count); });
  }

  template <int vectors, class Count>
  void step(const X* x, Y* y, Count count) const {
    constexpr int64_t stride = vectors * W<A>;
    const int64_t N = p.rows.N;
    A* const z = static_cast<A*>(scratch());
    A* const e = z + N * stride;
    // Scores and their maximum.
    Vec<A> largest[vectors], shift[vectors];
    for (int u = 0; u < vectors; ++u) largest[u] = splat(-kInfinity<A>);
    for (int64_t j = 0; j < N; ++j)
      for (int u = 0; u < vectors; ++u) {
        const Vec<A> v = load_rows<A>(x + j * p.x.step + u * W<A>, count) * scale;
        store<A>(z + j * stride + u * W<A>, v);
        largest[u] = max(v, largest[u]);
      }
    for (int u = 0; u < vectors; ++u) shift[u] = largest[u] == -kInfinity<A> ? Vec<A>{} : largest[u];
    // Exponentials and their sum.
    Mask<A> equal[vectors] = {};
    for (int64_t j = 0; j < N; ++j) {
      prefetch(x + j * p.x.step + kPrefetchBytes / sizeof(X));
      prefetch_to_write(y + j * p.y.step + kPrefetchBytes / sizeof(Y));
      for (int u = 0; u < vectors; ++u) {
        A* const at = z + j * stride + u * W<A>;
        const Vec<A> v = load<A>(at);
        if constexpr (log) {
          const Mask<A> is_max = v == shift[u];
          equal[u] += is_max;
          store<A>(e + j * stride + u * W<A>, is_max ? Vec<A>{} : exp_nonpositive(v - shift[u]));
        } else {
          const Vec<A> share = exp_of_share<kCoarse<Y>>(v - shift[u]);
          store<A>(at, share), store<A>(e + j * stride + u * W<A>, share);
        }
      }
    }
    // Write the rows. One that holds +inf, or -inf alone, is NaN.
    Vec<A> factor[vectors];
    for (int u = 0; u < vectors; ++u) {
      const Vec<A> all = tree_sum(e + u * W<A>, N, stride);
      const Vec<A> sum = largest[u] == kInfinity<A> || largest[u] == -kInfinity<A> ? splat(kNaN<A>) : all;
      factor[u] = log ? log1p(sum + (counted<A>(equal[u]) - A(1))) : A(1) / sum;
    }
    for (int64_t j = 0; j < N; ++j)
      for (int u = 0; u < vectors; ++u) {
        const Vec<A> v = load<A>(z + j * stride + u * W<A>);
        store_rows<A, std::is_same_v<X, Y>>(y + j * p.y.step + u * W<A>,
                                            log ? v - largest[u] - factor[u] : v * factor[u], count);
      }
  }
};

template <bool log, class A, class X, class Y>
struct BackwardFewColumns {
  struct Row {
    const Y *dy, *y;
    X* dx;
    int64_t rows;
  };
  const SoftmaxBackward& p;
  ColumnBlocks blocks{p.rows};
  Vec<A> scale = splat(static_cast<A>(p.scale));

  Row row(int64_t block) const {
    const RowIndex at = row_index(p.rows, blocks.first_row(block));
    return {row_of<const Y>(p.rows, p.dy, at), row_of<const Y>(p.rows, p.y, at), row_of<X>(p.rows, p.dx, at),
            blocks.rows(block)};
  }

  void write(const Row& row, int64_t) const {
    for_each_step<A, kStepVectors<A, Y>>(row.rows,
                                         [&](auto vectors, int64_t i, auto count) { step<vectors>(row, i, count); });
  }

  template <int vectors, class Count>
  void step(const Row& row, int64_t i, Count count) const {
    constexpr int64_t stride = vectors * W<A>;
    const int64_t N = p.rows.N;
    A* const products = static_cast<A*>(scratch());
    A* const shares = products + N * stride;
    // The sums, the y above a half apart.
    Each<Vec<A>, vectors> rest{}, y_rest{}, top_dy{}, top_y{};
    for (int64_t j = 0; j < N; ++j) {
      prefetch(row.dy + i + j * p.dy.step + kPrefetchBytes / sizeof(Y));
      prefetch(row.y + i + j * p.y.step + kPrefetchBytes / sizeof(Y));
      prefetch_to_write(row.dx + i + j * p.dx.step + kPrefetchBytes / sizeof(X));
      for (int u = 0; u < vectors; ++u) {
        const int64_t at = j * stride + u * W<A>;
        const Vec<A> dy = load_rows<A>(row.dy + i + j * p.dy.step + u * W<A>, count);
        if constexpr (log) {
          store<A>(products + at, dy);
        } else {
          Vec<A> y = load_rows<A>(row.y + i + j * p.y.step + u * W<A>, count);
          const Mask<A> apart = (y > A(0.5)) & (dy - dy == A(0));
          rest.lane[u] += apart ? top_dy.lane[u] * top_y.lane[u] : Vec<A>{};
          y_rest.lane[u] += apart ? top_y.lane[u] : Vec<A>{};
          top_dy.lane[u] = apart ? dy : top_dy.lane[u], top_y.lane[u] = apart ? y : top_y.lane[u];
          y = apart ? Vec<A>{} : y;
          store<A>(products + at, dy * y), store<A>(shares + at, y);
        }
      }
    }
    // Write the rows.
    SoftmaxGradient<log, A> gradient[vectors];
    for (int u = 0; u < vectors; ++u) {
      rest.lane[u] += tree_sum(products + u * W<A>, N, stride);
      if constexpr (!log) y_rest.lane[u] += tree_sum(shares + u * W<A>, N, stride);
      gradient[u] = {top_dy.lane[u],
                     log ? rest.lane[u] : mean(rest.lane[u], y_rest.lane[u], top_dy.lane[u], top_y.lane[u])};
    }
    for (int64_t j = 0; j < N; ++j)
      for (int u = 0; u < vectors; ++u) {
        const int64_t at = i + u * W<A>;
        const Vec<A> dz = gradient[u](load_rows<A>(row.dy + at + j * p.dy.step, count),
                                      load_rows<A>(row.y + at + j * p.y.step, count));
        store_rows<A, std::is_same_v<X, Y>>(row.dx + at + j * p.dx.step, dz * scale, count);
      }
  }

  // GradientSum's.
  Vec<A> mean(Vec<A> rest, Vec<A> beside, Vec<A> top_dy, Vec<A> top_y) const {
    const Vec<A> all = beside + top_y, lacks = all - A(1);
    const Vec<A> rounding = A(eps_of(p.y_type)) * (size_of(p.y_type) == 2 ? A(0.25) + beside / A(2) : splat(A(4)));
    const Mask<A> meant = (lacks <= rounding) & (lacks >= -rounding);
    return meant ? (rest - beside * top_dy) / all : rest - (A(1) - top_y) * top_dy;
  }
};

// Whether the columns were few and plain enough, and are done.
template <bool log, class A, class X, class Y>
bool run_few_columns(const SoftmaxForward& p, int tasks) {
  const bool plain =
      !p.bias && !p.mask && !p.sink && !(p.softcap > 0) && side_by_side(p.rows, p.x) && side_by_side(p.rows, p.y);
  if (!has_few_columns(p.rows) || !plain) return false;
  const ForwardFewColumns<log, A, X, Y> job{p};
  run_chunks(job, job.blocks.count(), 1, tasks);
  return true;
}
template <bool log, class A, class X, class Y>
bool run_few_columns(const SoftmaxBackward& p, int tasks) {
  const bool plain = !p.mask && !p.y_sink && !p.x && side_by_side(p.rows, p.dy) && side_by_side(p.rows, p.y) &&
                     side_by_side(p.rows, p.dx);
  if (!has_few_columns(p.rows) || !plain) return false;
  const BackwardFewColumns<log, A, X, Y> job{p};
  run_chunks(job, job.blocks.count(), 1, tasks);
  return true;
}
template <bool log, class A, class X, class Y>
bool run_few_columns(const SoftmaxDoubleBackward&, int) {
  return false;
}

}  // namespace
}  // namespace hetkern::cpu
