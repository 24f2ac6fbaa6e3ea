// Few classes over a dimension that is not the innermost: a vector of neighbouring rows at a time, from its loads to its stores.
//
// Such a row is one chunk of a few columns, so that the general path's bookkeeping (64 accumulators a row, a scalar end for
// each lane) would take ten times its work. Here nothing is done lane by lane: the vectors of a step wait in a first-level
// cache, leaf k of row.h's tree adds up the columns k, k + kLanes, …, and leaves that no column reaches are left out: they
// would add 0. So the bits are the general path's.
#pragma once
#include "columns.h"

namespace hetkern::cpu {
namespace {

constexpr int64_t kFewColumns = 256;     // past that the work of a row hides its bookkeeping
constexpr int64_t kRowsOfBlock = 256;    // neighbouring rows for which addresses are found once
constexpr int64_t kPrefetchBytes = 512;  // how far ahead of its use memory is asked for

// The terms of a step and their exponentials wait in scratch memory.
static_assert(2 * 2 * kFewColumns * kWidestVectorBytes <= kScratchBytes);

// Vectors of a step: as many as fill a cache line of T.
template <class A, class T>
constexpr int kStepVectors = sizeof(T) < sizeof(A) ? 2 : 1;

// Blocks of neighbouring rows: runs along the last outer dimension, cut.
struct ColumnBlocks {
  int64_t runs, width, per_run;
  explicit ColumnBlocks(const Rows& rows)
      : runs(rows.M / rows.size[rows.outer_dims - 1]),
        width(rows.size[rows.outer_dims - 1]),
        per_run(ceil_div(width, kRowsOfBlock)) {}
  int64_t count() const { return runs * per_run; }
  int64_t first_row(int64_t block) const { return block / per_run * width + block % per_run * kRowsOfBlock; }
  int64_t rows(int64_t block) const {
    const int64_t left = width - block % per_run * kRowsOfBlock;
    return left < kRowsOfBlock ? left : kRowsOfBlock;
  }
};

// Whether the rows of an operand lie side by side (an absent one does).
inline bool side_by_side(const Rows& rows, const Operand& operand) {
  return !operand || operand.stride[rows.outer_dims - 1] == 1;
}
inline bool has_few_columns(const Rows& rows) { return rows.N >= 1 && rows.N <= kFewColumns && rows.outer_dims > 0; }

// Calls step(vectors, i, count) for the rows of a block: whole steps of `vectors` vectors, then vectors that need not be full.
// `vectors` is a type, and so is the count of a full one.
template <class A, int vectors, class Step>
inline void for_each_step(int64_t rows, const Step& step) {
  int64_t i = 0;
  for (; i + vectors * W<A> <= rows; i += vectors * W<A>)
    step(std::integral_constant<int, vectors>{}, i, std::integral_constant<int64_t, W<A>>{});
  for (; i < rows; i += W<A>) step(std::integral_constant<int, 1>{}, i, rows - i < W<A> ? rows - i : int64_t{W<A>});
}

// The rows of one vector: all, or the first `count`; the other lanes hold 0 and are stored nowhere.
template <class A, class T, class Count>
inline Vec<A> load_rows(const T* from, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) return load_some<A>(from, count, A(0));
  return load<A>(from);
}
// `own`: the values are computed from Ts alone.
template <class A, bool own, class T, class Count>
inline void store_rows(T* to, Vec<A> v, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) return store_some<A>(to, v, count);
  own ? store_own<A>(to, v) : store<A>(to, v);
}

// The sum of n terms, a row a lane, in row.h's tree: term j waits at terms + j * stride. They are overwritten.
template <class A>
inline Vec<A> tree_sum(A* terms, int64_t n, int64_t stride) {
  const auto add = [&](int64_t to, int64_t from) {
    store<A>(terms + to * stride, load<A>(terms + to * stride) + load<A>(terms + from * stride));
  };
  for (int64_t j = kLanes<A>; j < n; ++j) add(j % kLanes<A>, j);
  int64_t leaves = n < kLanes<A> ? n : kLanes<A>, half = kLanes<A> / 2;
  while (half >= leaves) half /= 2;
  for (; half > 0; leaves = half, half /= 2)
    for (int64_t k = 0; k + half < leaves; ++k) add(k, k + half);
  return load<A>(terms) + A(0);  // a leaf begins at 0
}

// A count a lane, of comparisons that count down.
template <class A>
inline Vec<A> counted(Mask<A> down) {
  return __builtin_convertvector(-down, Vec<A>);
}

}  // namespace
}  // namespace hetkern::cpu
