// Rows over a dimension that is not the innermost: a vector lane is a row, its elements a stride apart.
//
// The W rows of a group lie side by side, so that loads and stores are whole vectors without a copy of the tensor. Sums go to
// kLanes accumulators by j mod kLanes and are added pairwise: the tree of row.h, and so its bits.
#pragma once
#include "row_job.h"

namespace hetkern::cpu {
namespace {

// Vectors of neighbouring rows: `width` rows along the last outer dimension, the end of each run a shorter one.
template <class A>
struct ColumnGroups {
  int64_t runs, width, per_run;
  explicit ColumnGroups(const Rows& rows)
      : runs(rows.M / rows.size[rows.outer_dims - 1]),
        width(rows.size[rows.outer_dims - 1]),
        per_run(ceil_div(width, W<A>)) {}
  int64_t count() const { return runs * per_run; }
  int64_t first_row(int64_t group) const { return group / per_run * width + group % per_run * W<A>; }
  int64_t lanes(int64_t group) const {
    const int64_t left = width - group % per_run * W<A>;
    return left < W<A> ? left : W<A>;
  }
};

// An operand of one group: element j of lane i.
template <class T>
struct Column {
  T* at;
  int64_t step, lane;
  Column(const Rows& rows, const Operand& operand, const RowIndex& index)
      : at(operand ? static_cast<T*>(operand.data) + offset(rows, operand, index) : nullptr),
        step(operand.step),
        lane(operand.stride[rows.outer_dims - 1]) {}
  template <class A>
  Vec<A> load(int64_t j, int64_t lanes) const {
    return load_strided<A>(at + j * step, lane, 0, lanes);
  }
  template <class A>
  void store(int64_t j, int64_t lanes, Vec<A> v) const {
    if (lanes == W<A>) return cpu::store<A>(at + j * step, v);
    store_some<A>(at + j * step, v, lanes);
  }
};

// n sums over [begin, end) of the terms that term(j, terms) sets, a row a lane.
template <class A, int n>
struct ColumnSums {
  Vec<A> of[n];
};
template <int n, class A, class Term>
inline ColumnSums<A, n> sums_of_columns(int64_t begin, int64_t end, const Term& term) {
  ColumnSums<A, n> sum[kLanes<A>] = {};
  for (int64_t j = begin; j < end; ++j) {
    Vec<A> terms[n];
    term(j, terms);
    for (int i = 0; i < n; ++i) sum[(j - begin) % kLanes<A>].of[i] += terms[i];
  }
  for (int half = kLanes<A> / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k)
      for (int i = 0; i < n; ++i) sum[k].of[i] += sum[k + half].of[i];
  return sum[0];
}
template <class A, class Term>
inline Vec<A> sum_columns(int64_t begin, int64_t end, const Term& term) {
  return sums_of_columns<1, A>(begin, end, [&](int64_t j, Vec<A>* terms) { *terms = term(j); }).of[0];
}

// For each lane the first j of [0, n) where value(j) equals `wanted`; 0 if none does.
template <class A, class Value>
inline Mask<A> first_equal(int64_t n, Vec<A> wanted, const Value& value) {
  Mask<A> first = {};
  for (int64_t j = n - 1; j >= 0; --j)
    first = value(j) == wanted ? Mask<A>{} + static_cast<typename Bits<A>::type>(j) : first;
  return first;
}

// A value a lane, combined lane by lane.
template <class Part, int lanes>
struct Each {
  Part lane[lanes];
};
template <class Part, int lanes>
inline Each<Part, lanes> combine(const Each<Part, lanes>& a, const Each<Part, lanes>& b) {
  Each<Part, lanes> both;
  for (int i = 0; i < lanes; ++i) both.lane[i] = combine(a.lane[i], b.lane[i]);
  return both;
}

}  // namespace
}  // namespace hetkern::cpu
