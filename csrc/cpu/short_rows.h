// Rows of at most two values a lane, as many at once as a vector has lanes: what is computed once a row (its logarithm, its
// quotient, what a target asks for) is computed in lanes, a row a lane, where one row alone would wait for it. The tree is row.h's,
// and so are the bits.
#pragma once
#include <utility>

#include "row_job.h"

namespace hetkern::cpu {
namespace {

template <class A>
constexpr int64_t kShortRow = 2 * kLanes<A>;

// Calls run with the number of vectors that such a row has room in, a constant: one, one a lane, two a lane.
template <class A, class Run>
inline void for_vectors_of(int64_t n, const Run& run) {
  if (n <= W<A>) return run(std::integral_constant<int, 1>{});
  if (n <= kLanes<A>) return run(std::integral_constant<int, kVectors<A>>{});
  run(std::integral_constant<int, 2 * kVectors<A>>{});
}

// Calls group(first, count) for every W<A> rows, the last ones fewer.
template <class A, class Group>
inline void run_groups(int64_t rows, int tasks, const Group& group) {
  run_tasks(tasks, [&](int task) {
    Share share(ceil_div(rows, W<A>), task, tasks);
    if (planted(Bug::race) && task > 0) --share.begin;  // the last rows of the task before
    for (int64_t g = share.begin; g < share.end; ++g) {
      const int64_t left = rows - g * W<A>;
      group(g * W<A>, static_cast<int>(left < W<A> ? left : W<A>));
    }
  });
}

// Where each row of a group begins.
template <class A, class T>
struct RowStarts {
  T* at[W<A>];
};
inline void to_next_row(const Rows& rows, RowIndex& index) {
  for (int d = rows.outer_dims - 1; d > 0; --d) {
    if (++index.at[d] < rows.size[d]) return;
    index.at[d] = 0;
  }
  ++index.at[0];
}
template <class A, class T>
inline RowStarts<A, T> row_starts(const Rows& rows, const Operand& operand, int64_t first, int count) {
  RowStarts<A, T> starts;
  RowIndex index = row_index(rows, first);
  if (const int last = rows.outer_dims - 1; last < 0 || index.at[last] + count <= rows.size[last]) {
    const int64_t stride = last < 0 ? 0 : operand.stride[last];
    T* const begin = row_of<T>(rows, operand, index);
    for (int i = 0; i < count; ++i) starts.at[i] = begin + i * stride;
    return starts;
  }
  for (int i = 0; i < count; ++i, to_next_row(rows, index)) starts.at[i] = row_of<T>(rows, operand, index);
  return starts;
}

// ---- Reductions of a group. -----------------------------------------------------------------------------------------------

// Of two rows' vectors the lower halves of every 2 half lanes, or the upper ones: a's first, then b's.
template <bool upper, int half, class V, int... lane>
inline V halves(V a, V b, std::integer_sequence<int, lane...>) {
  constexpr int n = sizeof...(lane);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((lane & half) ? n + lane - (upper ? 0 : half) : lane + (upper ? half : 0))...);
#else
  using Index = typename VectorOf<typename Bits<std::remove_reference_t<decltype(a[0])>>::type>::type;
  return __builtin_shuffle(a, b, Index{((lane & half) ? n + lane - (upper ? 0 : half) : lane + (upper ? half : 0))...});
#endif
}
template <int half, class A, class Op>
inline void reduce_halves(Vec<A>* rows, const Op& op) {
  using Lane = std::make_integer_sequence<int, W<A>>;
  for (int i = 0; i < half; ++i)
    rows[i] =
        op(halves<false, half>(rows[i], rows[i + half], Lane{}), halves<true, half>(rows[i], rows[i + half], Lane{}));
  if constexpr (half > 1) reduce_halves<half / 2, A>(rows, op);
}

// One vector a row, reduced like reduce_lanes: lane i has row i's result.
template <class A>
struct RowParts {
  Vec<A> of[W<A>];
  template <class Op>
  Vec<A> reduced(int count, const Op& op) {
    for (int i = count; i < W<A>; ++i) of[i] = Vec<A>{};
    reduce_halves<W<A> / 2, A>(of, op);
    return of[0];
  }
};

struct Plus {
  template <class V>
  V operator()(V a, V b) const {
    return a + b;
  }
};
struct Larger {
  template <class V>
  V operator()(V a, V b) const {
    return max(a, b);
  }
};
struct EitherBits {  // of values of which at most one is not 0
  template <class V>
  V operator()(V a, V b) const {
    using Words = typename VectorOf<uint32_t>::type;
    return bit_cast<V>(bit_cast<Words>(a) | bit_cast<Words>(b));
  }
};

// A row's accumulators: one a lane, as far as it reaches.
template <class A, int vectors>
struct ShortLanes {
  static constexpr int n = vectors < kVectors<A> ? vectors : kVectors<A>;
  Vec<A> v[n];
  explicit ShortLanes(A a) {
    for (auto& u : v) u = splat(a);
  }
  Vec<A>& operator[](int k) { return v[k % n]; }
  template <class Op>
  Vec<A> folded(const Op& op) const {
    Vec<A> part[n];
    std::memcpy(part, v, sizeof(part));
    for (int half = n / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] = op(part[i], part[i + half]);
    return part[0];
  }
};

// The lanes of a vector one by one.
template <class A>
struct alignas(kVectorBytes) LaneValues {
  A of[W<A>] = {};
  LaneValues() = default;
  explicit LaneValues(Vec<A> v) { store<A>(of, v); }
  Vec<A> vector() const { return load<A>(of); }
};

// ---- Scores, their maxima and their sums. ---------------------------------------------------------------------------------

// Scores of a group's rows wait in scratch memory, row i from i * vectors * W<A> on, padded with -inf.
template <class A, int vectors>
struct ShortScores {
  static constexpr int64_t kStride = vectors * W<A>;
  static_assert(W<A> * kStride * sizeof(A) <= kScratchBytes);
  A* const z = static_cast<A*>(scratch());
  int64_t N;
  int count;
  Vec<A> largest;       // -inf: the row has nothing
  Mask<A> nothing;      // as for a row of NaN
  LaneValues<A> shift;  // the largest; 0 where there is nothing

  // scores(i): row i's, a ScoresOf of its kept columns.
  template <class Scores>
  ShortScores(int64_t N_, int count_, const Scores& scores) : N(N_), count(count_) {
    RowParts<A> most;
    for (int i = 0; i < count; ++i) {
      const auto row = scores(i);
      ShortLanes<A, vectors> lanes(-kInfinity<A>);
      for (int k = 0; k < vectors; ++k) {
        if (k * W<A> >= N) continue;
        const Vec<A> v = k * W<A> < row.n ? row.at(k * W<A>) : splat(-kInfinity<A>);
        store<A>(at(i, k), v);
        lanes[k] = max(v, lanes[k]);
      }
      most.of[i] = lanes.folded(Larger{});
    }
    largest = most.reduced(count, Larger{});
    nothing = largest == -kInfinity<A>;
    shift = LaneValues<A>(nothing ? Vec<A>{} : largest);
  }
  A* at(int i, int k) const { return z + i * kStride + k * W<A>; }

  // The sums of term(v - shift): what term returns is also kept in the score's place where `keep`.
  template <bool keep, class Term>
  Vec<A> sums(const Term& term) const {
    RowParts<A> sum;
    for (int i = 0; i < count; ++i) {
      const Vec<A> s = splat(shift.of[i]);
      ShortLanes<A, vectors> lanes(0);
      for (int k = 0; k < vectors; ++k) {
        if (k * W<A> >= N) continue;
        const Vec<A> e = term(load<A>(at(i, k)) - s);
        lanes[k] += e;
        if (keep) store<A>(at(i, k), e);
      }
      sum.of[i] = lanes.folded(Plus{});
    }
    return sum.reduced(count, Plus{});
  }

  // log sum_j exp(z_j - m), the maximum's own term never added (row.h); NaN where finished() says so.
  template <class Exp>
  Vec<A> log_sums(const Exp& exp_of, Mask<A> kept) const {
    RowParts<A> sum;
    LaneValues<A> beside;  // maxima but one
    for (int i = 0; i < count; ++i) {
      const Vec<A> s = splat(shift.of[i]);
      ShortLanes<A, vectors> lanes(0);
      int maxima = 0;
      for (int k = 0; k < vectors; ++k) {
        if (k * W<A> >= N) continue;
        const Vec<A> v = load<A>(at(i, k));
        const Picked<A> is_max = picked_equal(v, s);
        lanes[k] += without(is_max, exp_of(v - s));
        maxima += how_many(is_max);
      }
      sum.of[i] = lanes.folded(Plus{});
      beside.of[i] = static_cast<A>(maxima - 1);
    }
    const Vec<A> more = nothing ? Vec<A>{} : beside.vector();
    const auto log1p_of = [](Vec<double> a, Vec<double> b) { return log1p_to<A>(a + b); };
    return spoiled(kept) ? splat(kNaN<A>) : in_double<A>(log1p_of, sum.reduced(count, Plus{}), more);
  }

  // finished(), in lanes.
  Mask<A> spoiled(Mask<A> kept) const { return (largest == kInfinity<A>) | (nothing & kept); }
};

}  // namespace
}  // namespace hetkern::cpu
