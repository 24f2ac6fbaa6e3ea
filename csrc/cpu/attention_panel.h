// A panel of queries: which keys its rows see, and where their numbers lie.
#pragma once
#include "attention_tile.h"

namespace hetkern::cpu {
namespace {

// One sequence of the batch.
struct Sequence {
  int64_t b, Lq, Lk;         // its own lengths
  int64_t first_q, first_k;  // rows before it, where sequences are packed
  int64_t shift() const { return Lk - Lq; }
};
inline Sequence sequence_of(const AttentionProblem& p, int64_t b) {
  Sequence s{b, p.Lq, p.Lk, 0, 0};
  if (p.cu_seqlens_q) {
    s.first_q = p.cu_seqlens_q[b], s.Lq = p.cu_seqlens_q[b + 1] - s.first_q;
    s.first_k = p.cu_seqlens_k[b], s.Lk = p.cu_seqlens_k[b + 1] - s.first_k;
  }
  if (p.seqlens_k) s.Lk = p.seqlens_k[b];
  return s;
}
// Where a row of a tensor begins.
inline int64_t query_offset(const Heads& t, const Sequence& s, int64_t head, int64_t i) {
  return s.b * t.batch + head * t.head + (s.first_q + i) * t.row;
}
inline int64_t key_offset(const Heads& t, const Sequence& s, int64_t head, int64_t j) {
  return s.b * t.batch + head * t.head + (s.first_k + j) * t.row;
}
inline int64_t stat_offset(const AttentionProblem& p, const Sequence& s, int64_t head, int64_t i) {
  return s.b * p.stat_batch + head * p.stat_head + s.first_q + i;
}

// Rows of k or v from row j on.
struct KeyRows {
  int64_t offset[kBlock];
  KeyRows(const Heads& t, const Sequence& s, int64_t head, int64_t j, int n) {
    for (int i = 0; i < n; ++i) offset[i] = key_offset(t, s, head, j + i);
  }
  RowsAt of(const Heads& t) const { return {t.data, offset, t.step}; }
};

constexpr int64_t kFar = int64_t{1} << 31;

template <class A>
struct Panel {
  using I = typename Bits<A>::type;
  int rows, vectors;
  int64_t head[kPanel], query[kPanel];  // of each row
  int64_t low[kPanel], high[kPanel];    // it sees keys low … high, both included
  int64_t least, most;                  // keys that any row sees lie in least … most, and
  int64_t inner_least, inner_most;      // all rows see those in between these
  int64_t vector_low[kPanel / 2],
      vector_high[kPanel / 2];  // keys that a vector's rows see, and those that all of them see
  int64_t vector_inner_low[kPanel / 2], vector_inner_high[kPanel / 2];
  // The same for the lanes; a row behind the last one sees nothing.
  alignas(64) I lane_low[kPanel];
  alignas(64) I lane_span[kPanel];   // high - low
  alignas(64) I lane_place[kPanel];  // i + Lk - Lq
  alignas(64) A slope[kPanel];
  alignas(64) uint32_t philox_query[kPanel];
  alignas(64) uint32_t philox_head[kPanel];

  // Rows first … first + n - 1 of the queries of heads from head_0 on, one head after another; or those of a list.
  void set(const AttentionProblem& p, const Sequence& s, int64_t head_0, int64_t first, int n,
           const int64_t* list = nullptr) {
    rows = n, vectors = vectors_of<A>(n);
    least = inner_most = kFar, most = inner_least = -1;
    int64_t at_head = first / s.Lq, i = first % s.Lq;  // a division a row would take longer than all the rest
    for (int r = 0; r < n; ++r, ++i) {
      if (list) at_head = list[r] / s.Lq, i = list[r] % s.Lq;
      if (i == s.Lq) ++at_head, i = 0;
      const int64_t place = i + s.shift();
      head[r] = head_0 + at_head, query[r] = i;
      int64_t from = 0, to = s.Lk - 1;
      if (p.window_left >= 0 && place - p.window_left > from) from = place - p.window_left;
      if (p.window_right >= 0 && place + p.window_right < to) to = place + p.window_right;
      if (p.causal && place < to) to = place;
      const bool sees = from <= to;
      low[r] = sees ? from : kFar, high[r] = sees ? to : -1;
      lane_low[r] = static_cast<I>(sees ? from : kFar - 1), lane_span[r] = static_cast<I>(sees ? to - from : 0);
      lane_place[r] = static_cast<I>(place);
      philox_query[r] = static_cast<uint32_t>(i), philox_head[r] = static_cast<uint32_t>(s.b * p.Hq + head[r]);
      slope[r] = p.slopes ? static_cast<const A*>(p.slopes)[s.b * p.slope_batch + head[r] * p.slope_head] : A(0);
      if (low[r] < least) least = low[r];
      if (high[r] > most) most = high[r];
      if (low[r] > inner_least) inner_least = low[r];
      if (high[r] < inner_most) inner_most = high[r];
    }
    for (int r = n; r < vectors * W<A>; ++r) {
      lane_low[r] = static_cast<I>(kFar - 1), lane_span[r] = 0, lane_place[r] = 0, slope[r] = A(0);
      philox_query[r] = philox_head[r] = 0;
    }
    for (int v = 0; v < vectors; ++v) {
      vector_low[v] = vector_inner_high[v] = kFar, vector_high[v] = vector_inner_low[v] = -1;
      for (int r = v * W<A>; r < n && r < (v + 1) * W<A>; ++r) {
        if (low[r] < vector_low[v]) vector_low[v] = low[r];
        if (high[r] > vector_high[v]) vector_high[v] = high[r];
        if (low[r] > vector_inner_low[v]) vector_inner_low[v] = low[r];
        if (high[r] < vector_inner_high[v]) vector_inner_high[v] = high[r];
      }
    }
  }

  // The lanes of vector v whose rows see key j.
  Mask<A> sees(int64_t j, int v) const {
    using U = Vec<std::make_unsigned_t<I>>;
    const U at = load_vector<U>(lane_low + v * W<A>), span = load_vector<U>(lane_span + v * W<A>);
    return (U{} + static_cast<std::make_unsigned_t<I>>(j)) - at <= span;
  }
  bool row_sees(int r, int64_t j) const { return low[r] <= j && j <= high[r]; }
};

// A block's keys that a panel sees, and whether some row does not see some of them.
struct Sight {
  int from, to;  // of the block; `from` is a multiple of 4, as dropout counts
  bool edge;
};
template <class A>
inline Sight sight_of(const Panel<A>& panel, int64_t j0, int nk) {
  Sight s{0, nk, false};
  if (panel.least > j0) s.from = panel.least - j0 < nk ? static_cast<int>(panel.least - j0) / 4 * 4 : nk;
  if (panel.most < j0 + nk - 1) s.to = panel.most >= j0 ? static_cast<int>(panel.most - j0) + 1 : 0;
  s.edge = j0 + s.from < panel.inner_least || j0 + s.to - 1 > panel.inner_most;
  return s;
}

// Whole vectors of queries that see one of the keys j … j + n - 1.
struct VectorRange {
  int begin, end;
};
template <class A>
inline VectorRange vectors_that_see(const Panel<A>& panel, bool edge, int64_t j, int n) {
  VectorRange r{0, panel.vectors};
  if (!edge) return r;
  const auto sees = [&](int v) { return panel.vector_low[v] <= j + n - 1 && panel.vector_high[v] >= j; };
  while (r.begin < r.end && !sees(r.begin)) ++r.begin;
  while (r.begin < r.end && !sees(r.end - 1)) --r.end;
  return r;
}

// Keys of the block that one of the rows r … r + n - 1 sees, within a sight.
template <class A>
inline Sight keys_of_rows(const Panel<A>& panel, const Sight& sight, int64_t j0, int r, int n) {
  if (!sight.edge) return sight;
  int64_t low = kFar, high = -1;
  for (int i = r; i < r + n; ++i) {
    if (panel.low[i] < low) low = panel.low[i];
    if (panel.high[i] > high) high = panel.high[i];
  }
  Sight s = sight;
  if (low - j0 > s.from) s.from = low - j0 < s.to ? static_cast<int>(low - j0) : s.to;
  if (high - j0 + 1 < s.to) s.to = high - j0 + 1 > s.from ? static_cast<int>(high - j0) + 1 : s.from;
  return s;
}
// Rows of the panel that see one of the keys j … j + n - 1.
template <class A>
inline VectorRange rows_of_keys(const Panel<A>& panel, bool edge, int64_t j, int n) {
  VectorRange r{0, panel.rows};
  if (!edge) return r;
  const auto sees = [&](int i) { return panel.low[i] <= j + n - 1 && panel.high[i] >= j; };
  while (r.begin < r.end && !sees(r.begin)) ++r.begin;
  while (r.begin < r.end && !sees(r.end - 1)) --r.end;
  return r;
}

}  // namespace
}  // namespace hetkern::cpu
