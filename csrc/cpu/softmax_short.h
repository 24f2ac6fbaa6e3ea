// Softmax of rows that fit in registers: the bits of the general path, without its scratch memory and its bookkeeping, which
// cost a row of 16 five times its own work. Nothing here waits for a row before it, so that a processor overlaps several.
#pragma once
#include "row_job.h"
#include "softmax_math.h"

namespace hetkern::cpu {
namespace {

// Rows of at most `vectors` vectors, a power of two.
template <int vectors, class A, class X, class Y>
struct ShortRows {
  using Total = RowSum<A>;
  struct Row {
    const X* x;
    Y* y;
    int64_t kept;  // columns before the causal edge
  };
  const SoftmaxForward& p;
  Vec<A> scale = splat(static_cast<A>(p.scale));

  Row row(int64_t r) const {
    const RowIndex at = row_index(p.rows, r);
    return {row_of<const X>(p.rows, p.x, at), row_of<Y>(p.rows, p.y, at), kept_columns(p.rows.N, p.queries, r)};
  }

  RowSum<A> sum(Row& row, int64_t) const {
    Vec<A> z[vectors], e[vectors];
    take_scores<A>(ScoresOf<A, X, Scaled<A>>{row.x, row.kept, {scale}}, row.kept, z);
    const A largest = reduce_vectors<A>(z, [](auto a, auto b) { return a > b ? a : b; });
    const bool nothing = largest == -kInfinity<A>;
    const Vec<A> shift = splat(nothing ? A(0) : largest);
    for (int k = 0; k < vectors; ++k) e[k] = exp_of_share<kCoarse<Y>>(z[k] - shift);
    const A all = reduce_vectors<A>(e, [](auto a, auto b) { return a + b; });
    RowSum<A> whole{largest, nothing ? all : all - A(1)};
    whole.kept = row.kept > 0;
    whole = finished(whole);
    const Output<false, A> output(largest, whole);
    for (int k = 0; k < vectors; ++k) {
      const int64_t count = p.rows.N - k * W<A>;
      if (count > 0)
        write_row<A, std::is_same_v<X, Y>>(row.y + k * W<A>, count < W<A> ? count : W<A>,
                                           [&](int64_t, int64_t) { return output(e[k]); });
    }
    return whole;
  }

  RowSum<A> finish(Row&, const RowSum<A>& whole) const { return whole; }
};

// Whether the rows were short and plain enough, and are done.
template <bool log, class A, class X, class Y, int vectors = 1>
bool run_short_rows(const SoftmaxForward& p, int tasks) {
  if constexpr (!log) {
    if (p.rows.N > vectors * W<A>) {
      if constexpr (vectors < kShortVectors<A>) return run_short_rows<log, A, X, Y, 2 * vectors>(p, tasks);
    } else if (!p.bias && !p.mask && !p.sink && !(p.softcap > 0)) {
      run_whole_rows(ShortRows<vectors, A, X, Y>{p}, p.rows.M, 1, tasks);
      return true;
    }
  }
  return false;
}
template <bool log, class A, class X, class Y, class Params>
bool run_short_rows(const Params&, int) {
  return false;
}

}  // namespace
}  // namespace hetkern::cpu
