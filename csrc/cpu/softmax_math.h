// The formulas of csrc/softmax.h on vectors: the same for rows and for columns.
#pragma once
#include "../softmax.h"
#include "columns.h"

namespace hetkern::cpu {
namespace {

template <class A>
constexpr int kKeptChunks = static_cast<int>(kScratchBytes / (kChunk<A> * sizeof(A)));  // that scratch memory holds

// Whether y has fewer digits than exponentials need for a float.
template <class Y>
constexpr bool kCoarse = sizeof(Y) == 2;

// Columns that row r of a causal call sees: j <= i + N - queries.
inline int64_t kept_columns(int64_t N, int64_t queries, int64_t r) {
  if (queries == 0) return N;
  const int64_t kept = r % queries + N - queries + 1;
  return kept < 0 ? 0 : kept;
}

// y of a chunk: from its exponentials, the chunk's own maximum taken off and the row's put in; log: from its scores.
template <bool log, class A>
struct Output {
  Vec<A> shift, factor;
  Output(A chunk_max, const RowSum<A>& row)
      : shift(splat(row.max)),
        factor(splat(static_cast<A>(log ? row.log_all() : share(chunk_max, row.max) / row.all()))) {}
  static A share(A chunk_max, A row_max) {  // a row of one chunk, and of -inf: 1
    return chunk_max == row_max || chunk_max == -kInfinity<A> ? A(1) : exp_one(chunk_max - row_max);
  }
  Vec<A> operator()(Vec<A> z) const { return log ? z - shift - factor : z * factor; }
  A masked() const { return (*this)(splat(log ? -kInfinity<A> : A(0)))[0]; }
};

// What the sink's own column would have got.
template <bool log, class A>
inline A sink_output(A sink, const RowSum<A>& row) {
  if (row.max == -kInfinity<A> && !row.kept) return log ? -kInfinity<A> : A(0);
  return log ? sink - row.max - row.log_all() : static_cast<A>(exp_one(sink - row.max) / row.all());
}

// y, but 0 where it is set apart. An infinite dy stays with the others: it leaves no digits to keep.
template <class A>
inline GradientSum<A>& of_lane(GradientSum<A>& row, int) {
  return row;
}
template <class A>
inline GradientSum<A>& of_lane(Each<GradientSum<A>, W<A>>& rows, int i) {
  return rows.lane[i];
}
template <class Total, class V>
__attribute__((noinline, cold)) V take_out(Total& total, V dy, V y,
                                           uint32_t lanes) {  // once a row at most, out of the loop
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = __builtin_ctz(lanes);
    if (std::isfinite(dy[i])) of_lane(total, i).set_apart(dy[i], y[i]), y[i] = 0;
  }
  return y;
}
template <class Total, class V>
inline V without_top(Total& total, V dy, V y) {
  const uint32_t lanes = lanes_above(y, 0.5f);
  return __builtin_expect(lanes != 0, 0) ? take_out(total, dy, y, lanes) : y;
}

// dz of a row, or of a row a lane.
template <bool log, class A>
struct SoftmaxGradient {
  Vec<A> top_dy, mean;
  Vec<A> operator()(Vec<A> dy, Vec<A> y) const { return log ? dy - exp(y) * mean : y * (dy - top_dy - mean); }
};

template <class S>
struct TwoSums {
  S dy{}, g{};
};
template <class S>
inline TwoSums<S> combine(const TwoSums<S>& a, const TwoSums<S>& b) {
  return {combine(a.dy, b.dy), combine(a.g, b.g)};
}

template <class A>
struct SecondGradient {
  Vec<A> g_dy, g_y;
};
template <bool log, class A>
inline SecondGradient<A> softmax_second_gradient(Vec<A> g, Vec<A> dy, Vec<A> y, TwoSums<Vec<A>> sum, A scale) {
  if (log) return {scale * (g - sum.g), -scale * sum.dy * (g * exp(y))};
  return {scale * y * (g - sum.g), scale * (g * (dy - sum.dy) - dy * sum.g)};
}

// v where the mask keeps, 0 elsewhere.
template <class A>
inline Vec<A> kept_lanes(Vec<A> v, const uint8_t* mask, int64_t step, int64_t j, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!mask[(j + i) * step]) v[i] = 0;
  return v;
}

}  // namespace
}  // namespace hetkern::cpu
