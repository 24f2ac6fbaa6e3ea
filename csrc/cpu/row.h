// What softmax and the losses share: a row's scores, its maximum and its sum of exponentials, in one reduction tree.
//
//   z_j = softcap tanh(scale x_j / softcap) + bias_j, -inf where masked         m = max_j z_j         s = sum_j exp(z_j - m) - 1
//
// A row is cut into chunks of kChunk; within one, element j goes to lane j mod kLanes, and lanes are added pairwise; chunks are
// combined in order. So a row's bits depend on N and the dtype, never on threads, alignment or neighbours.
// s leaves out one term that equals the maximum: log1p(s) is right to rounding where a confident row has s near 0.
#pragma once
#include "parallel.h"
#include "planted.h"
#include "simd_math.h"

namespace hetkern::cpu {
namespace {

template <class A>
constexpr int64_t kChunk = 16384 / sizeof(A);  // its scores and its part of x fit in a first-level cache
template <class A>
constexpr int kLanes = 256 / static_cast<int>(sizeof(A));
template <class A>
constexpr int kVectors = kLanes<A> / W<A>;  // registers that hold one value a lane
static_assert(kChunk<float> % kLanes<float> == 0 && kChunk<double> % kLanes<double> == 0);

// Chunk c of a row of n columns.
template <class A>
struct Chunk {
  int64_t begin, n;
  Chunk(int64_t c, int64_t columns)
      : begin(c * kChunk<A>), n(columns - begin < kChunk<A> ? columns - begin : kChunk<A>) {
    if (n < 0) n = 0;
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class A>
inline int64_t padded(int64_t n) {
  return ceil_div(n, kLanes<A>) * kLanes<A>;
}

// All lanes of a power of two of vectors, pairwise: lane i with lane i + half.
template <class A, int bytes, class Op>
inline A reduce_lanes(typename VectorOf<A, bytes>::type v, Op op) {
  if constexpr (bytes == 2 * sizeof(A)) {
    return op(v[0], v[1]);
  } else {
    typename VectorOf<A, bytes / 2>::type half[2];
    std::memcpy(half, &v, bytes);
    return reduce_lanes<A, bytes / 2>(op(half[0], half[1]), op);
  }
}
template <class A, int vectors, class Op>
inline A reduce_vectors(const Vec<A> (&v)[vectors], Op op) {
  Vec<A> part[vectors];
  std::memcpy(part, v, sizeof(part));
  for (int half = vectors / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] = op(part[i], part[i + half]);
  return reduce_lanes<A, kVectorBytes>(part[0], op);
}

// One accumulator a lane.
template <class A>
struct Lanes {
  Vec<A> v[kVectors<A>];
  explicit Lanes(A a = 0) {
    for (auto& u : v) u = splat(a);
  }
  A sum() const {
    return reduce_vectors<A>(v, [](auto a, auto b) { return a + b; });
  }
  A largest() const {
    return reduce_vectors<A>(v, [](auto a, auto b) { return a > b ? a : b; });
  }
};

// sum = the terms but one that equals max; a row without a finite or +inf score has max = -inf. A float would round chunk by
// chunk: 128 of them cost a descending row of 262145 the last digits of its probabilities.
template <class A>
struct RowSum {
  A max = -kInfinity<A>;
  double sum = 0;
  bool kept = false;  // some column was not masked
  double all() const { return 1 + sum; }
  A log_all() const { return log1p_one<A>(sum); }
};

// Two parts of a row, or a row and one more score.
template <class A>
inline RowSum<A> combine(RowSum<A> a, RowSum<A> b) {
  if (a.max < b.max) {
    const RowSum<A> swap = a;
    a = b, b = swap;
  }
  // A part of -inf adds nothing, but its NaN.
  a.sum += b.max == -kInfinity<A> ? b.sum : exp_one(b.max - a.max) * b.all();
  a.kept |= b.kept;
  return a;
}

// NaN where torch gives NaN: the row holds +inf, or nothing but -inf though something was kept.
template <class A>
inline RowSum<A> finished(RowSum<A> row) {
  if (row.max == kInfinity<A> || (row.max == -kInfinity<A> && row.kept)) row.sum = kNaN<double>;
  return row;
}

// ---- Scores. --------------------------------------------------------------------------------------------------------------

// z of x alone: the part of the score that a loss has, too.
template <class A>
struct Score {
  A scale;
  A cap, inverse_cap;  // 0: none
  Score(double scale_, double softcap)
      : scale(static_cast<A>(scale_)),
        cap(static_cast<A>(softcap)),
        inverse_cap(softcap > 0 ? static_cast<A>(1 / softcap) : A(0)) {}
  Vec<A> operator()(Vec<A> x) const {
    const Vec<A> z = x * scale;
    return cap > 0 ? tanh(z * inverse_cap) * cap : z;
  }
  // dz/dx.
  Vec<A> slope(Vec<A> x) const {
    if (!(cap > 0)) return splat(scale);
    const Vec<A> t = tanh(x * scale * inverse_cap);
    return (A(1) - t * t) * scale;
  }
};

struct Unscaled {
  template <class V>
  V operator()(V x) const {
    return x;
  }
};
template <class A>
struct Scaled {
  Vec<A> scale;
  Vec<A> operator()(Vec<A> x) const { return x * scale; }
};
struct NothingMore {
  template <class V>
  V operator()(V z, int64_t, int64_t) const {
    return z;
  }
};

// Scores of x[0, n) into z, padded with -inf to a whole number of lanes; returns the largest of each lane.
// `more(z, j, count)` adds what is not x alone: bias, mask.
template <class A, class T, class ScoreOf, class More>
inline Lanes<A> write_scores(const T* x, int64_t n, const ScoreOf& score, A* z, const More& more) {
  Lanes<A> largest(-kInfinity<A>);
  int64_t j = 0;
  for (; j + kLanes<A> <= n; j += kLanes<A>)
    for (int k = 0; k < kVectors<A>; ++k) {
      const Vec<A> v = more(score(load<A>(x + j + k * W<A>)), j + k * W<A>, W<A>);
      store<A>(z + j + k * W<A>, v);
      largest.v[k] = max(v, largest.v[k]);
    }
  for (int k = 0; j < padded<A>(n); ++k, j += W<A>) {
    const int64_t count = n - j < W<A> ? (n > j ? n - j : 0) : W<A>;
    Vec<A> v = splat(-kInfinity<A>);
    if (count == W<A>) {
      v = more(score(load<A>(x + j)), j, W<A>);
    } else if (count > 0) {
      v = keep_lanes<A>(more(score(load_some<A>(x + j, count, A(0))), j, count), count, -kInfinity<A>);
    }
    store<A>(z + j, v);
    largest.v[k] = max(v, largest.v[k]);
  }
  return largest;
}

// Scores that are cheap enough to be computed anew wherever they are read.
template <class A, class T, class ScoreOf>
struct ScoresOf {
  const T* x;
  int64_t n;
  ScoreOf score;
  Vec<A> whole(int64_t j) const { return score(load<A>(x + j)); }
  Vec<A> at(int64_t j) const {  // -inf past the end
    const int64_t count = n - j;
    if (count >= W<A>) return whole(j);
    return keep_lanes<A>(score(load_some<A>(x + j, count, A(0))), count, -kInfinity<A>);
  }
};

// Scores that write_scores left in z.
template <class A>
struct ScoresIn {
  const A* z;
  Vec<A> whole(int64_t j) const { return load<A>(z + j); }
  Vec<A> at(int64_t j) const { return whole(j); }
};

// Calls body(j, k, v) with every vector v of a chunk's scores, from column j on, for register k; the last one is padded.
template <class A, class Scores, class Body>
inline void for_each_score(const Scores& scores, int64_t n, const Body& body) {
  int64_t j = 0;
  for (; j + kLanes<A> <= n; j += kLanes<A>)
    for (int k = 0; k < kVectors<A>; ++k) body(j + k * W<A>, k, scores.whole(j + k * W<A>));
  for (int k = 0; j < n; ++k, j += W<A>) body(j, k, scores.at(j));
}

template <class A, class Scores>
inline A largest_score(const Scores& scores, int64_t n) {
  Lanes<A> largest(-kInfinity<A>);
  for_each_score<A>(scores, n, [&](int64_t, int k, Vec<A> v) { largest.v[k] = max(v, largest.v[k]); });
  return largest.largest();
}

// Exponentials of the scores less their maximum, into z, and their sum. The maximum's own term is taken off afterwards:
// enough where the sum only divides. `meanwhile(j)` is called for every vector: the place to ask for memory.
template <bool coarse, class A, class Scores, class Meanwhile>
inline RowSum<A> write_exponentials(const Scores& scores, int64_t n, A max, A* z, const Meanwhile& meanwhile) {
  const Vec<A> shift = splat(max == -kInfinity<A> ? A(0) : max);
  Lanes<A> sum(0);
  for_each_score<A>(scores, n, [&](int64_t j, int k, Vec<A> v) {
    meanwhile(j);
    const Vec<A> e = exp_of_share<coarse>(v - shift);
    sum.v[k] += e;
    store<A>(z + j, e);
  });
  return {max, max == -kInfinity<A> ? sum.sum() : sum.sum() - A(1)};  // without a maximum: zeros, or NaN
}

// The sum of the exponentials of z[0, padded n) - max. The maximum's own term is never added, which keeps every digit of a
// sum near 0; z stays.
template <class A>
inline RowSum<A> sum_exponentials(const A* z, int64_t n, A max) {
  const Vec<A> shift = splat(max == -kInfinity<A> ? A(0) : max);
  Lanes<A> sum(0);
  Mask<A> equal[kVectors<A>] = {};
  for_each_score<A>(ScoresIn<A>{z}, n, [&](int64_t, int k, Vec<A> v) {
    const Vec<A> e = exp_nonpositive(v - shift);
    const Mask<A> is_max = v == shift;
    sum.v[k] += is_max ? Vec<A>{} : e;
    equal[k] += is_max;  // counts down
  });
  RowSum<A> row{max, sum.sum()};
  if (max == -kInfinity<A>) return row;  // nothing but the padding's zeros, or NaN
  int64_t count = 0;
  for (int k = 0; k < kVectors<A>; ++k)
    for (int i = 0; i < W<A>; ++i) count -= equal[k][i];
  row.sum += static_cast<double>(count - 1);
  return row;
}

// Takes every term that equals `max` out of z (it becomes -inf), so that a sum of exponentials needs no comparison.
template <class A>
struct Maxima {
  int64_t count = 0, first = 0;
  Maxima(A* z, int64_t n, const Lanes<A>& largest, A max) {
    if (max == -kInfinity<A>) return;
    first = n;
    uint64_t lanes = 0;
    for (int k = 0; k < kVectors<A>; ++k) lanes |= static_cast<uint64_t>(lane_bits(largest.v[k] == max)) << (k * W<A>);
    for (; lanes != 0; lanes &= lanes - 1)
      for (int64_t j = __builtin_ctzll(lanes); j < n; j += kLanes<A>) {  // without a branch that would be mispredicted
        const bool equal = z[j] == max;
        z[j] = equal ? -kInfinity<A> : z[j];
        first = equal && j < first ? j : first;
        count += equal;
      }
  }
};

// The same sum, once the maxima are out. `more(j, k, z - max, e)` takes what else is wanted of the terms from column j on,
// which go to register k.
template <class A, class More>
inline RowSum<A> sum_beside_maxima(const A* z, int64_t n, A max, const Maxima<A>& maxima, const More& more) {
  const Vec<A> shift = splat(max == -kInfinity<A> ? A(0) : max);
  Lanes<A> sum(0);
  for (int64_t j = 0; j < padded<A>(n); j += kLanes<A>)
    for (int k = 0; k < kVectors<A>; ++k) {
      const Vec<A> s = load<A>(z + j + k * W<A>) - shift, e = exp_nonpositive(s);
      sum.v[k] += e;
      more(j + k * W<A>, k, s, e);
    }
  RowSum<A> row{max, sum.sum()};
  if (maxima.count > 0) row.sum += static_cast<double>(maxima.count - 1);
  return row;
}

// ---- Writing a row. -------------------------------------------------------------------------------------------------------

// to[j] = value(j, count) for j in [0, n): whole vectors, then single elements. Ordinary stores, also for outputs that no
// cache holds: streaming past it gained nothing. `own`: the values are computed from Ts alone.
template <class A, bool own = false, class T, class Value>
inline void write_row(T* to, int64_t n, const Value& value) {
  int64_t j = 0;
  for (; j + W<A> <= n; j += W<A>) own ? store_own<A>(to + j, value(j, W<A>)) : store<A>(to + j, value(j, W<A>));
  if (j < n && !planted(Bug::dropped_tail)) store_some<A>(to + j, value(j, n - j), n - j);
  if (planted(Bug::zero_output)) std::memset(to, 0, n * sizeof(T));
  if (planted(Bug::out_of_bounds)) to[n] = to[n - 1];
  if (planted(Bug::misaligned)) *reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(to) + 1) = 0;
}

// A vector of `from` at j, of which `count` elements exist.
template <class A, class T>
inline Vec<A> load_at(const T* from, int64_t j, int64_t count) {
  return count == W<A> ? load<A>(from + j) : load_some<A>(from + j, count, A(0));
}

// The first of from[0, n) that equals the largest, and the largest.
template <class A>
struct Largest {
  A value = -kInfinity<A>;
  int64_t first = 0;
  template <class T>
  Largest(const T* from, int64_t n) {
    Vec<A> most = splat(value);
    const auto at = [&](int64_t j) {
      return n - j < W<A> ? load_some<A>(from + j, n - j, -kInfinity<A>) : load<A>(from + j);
    };
    for (int64_t j = 0; j < n; j += W<A>) most = max(at(j), most);
    for (int i = 0; i < W<A>; ++i) value = most[i] > value ? most[i] : value;
    for (int64_t j = 0; j < n; j += W<A>)
      if (const uint32_t lanes = lane_bits(at(j) == value)) {
        first = j + __builtin_ctz(lanes);
        return;
      }
  }
};

// n sums over [begin, end) of the terms that term(j, count, terms) sets: one chunk of a row, in the tree of this file.
template <class A, int n>
struct Sums {
  A of[n];
};
template <int n, class A, class Term>
inline Sums<A, n> sums_of_chunk(int64_t begin, int64_t end, const Term& term) {
  Lanes<A> sum[n];
  Vec<A> terms[n];
  int64_t j = begin;
  for (; j + kLanes<A> <= end; j += kLanes<A>)
    for (int k = 0; k < kVectors<A>; ++k) {
      term(j + k * W<A>, W<A>, terms);
      for (int i = 0; i < n; ++i) sum[i].v[k] += terms[i];
    }
  for (int k = 0; j < end; ++k, j += W<A>) {
    const int64_t count = end - j < W<A> ? end - j : W<A>;
    term(j, count, terms);
    for (int i = 0; i < n; ++i) {
      sum[i].v[k] += keep_lanes<A>(terms[i], count, A(0));
    }
  }
  Sums<A, n> sums;
  for (int i = 0; i < n; ++i) sums.of[i] = sum[i].sum();
  return sums;
}
template <class A, class Term>
inline A sum_chunk(int64_t begin, int64_t end, const Term& term) {
  return sums_of_chunk<1, A>(begin, end, [&](int64_t j, int64_t count, Vec<A>* terms) { *terms = term(j, count); })
      .of[0];
}

// ---- Broadcast operands. --------------------------------------------------------------------------------------------------

// `count` elements of a bias from element j on.
template <class A, class T>
inline Vec<A> load_strided(const T* from, int64_t step, int64_t j, int64_t count) {
  if (step == 1) return load_at<A>(from, j, count);
  if (step == 0) return splat(get<A>(from));
  T lanes[W<A>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[(j + i) * step];
  return load<A>(lanes);
}

// -inf in the lanes that the mask drops; says whether it keeps any.
template <class A>
inline bool apply_mask(Vec<A>& v, const uint8_t* mask, int64_t step, int64_t j, int64_t count) {
  typename Bits<A>::type lanes[W<A>] = {};
  bool any = false;
  for (int64_t i = 0; i < count; ++i) {
    const bool keep = mask[(j + i) * step] != 0;
    lanes[i] = -static_cast<int>(keep);
    any |= keep;
  }
  v = bit_cast<Mask<A>>(lanes) ? v : splat(-kInfinity<A>);
  return any;
}

}  // namespace
}  // namespace hetkern::cpu
