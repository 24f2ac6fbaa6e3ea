// How a walk through time finds its rows, and where it keeps what it carries.                  (the walks: rnn_forward.cpp, rnn_backward.cpp)
//
// A task has a slice of the rows, the longest first, so that the rows of a step are the first ones of the slice. Workspace:
//   panels | left: two operands (B, words), of this step and the next | dh (backward) | lengths, order: B integers each
#pragma once
#include "carver.h"
#include "gemm.h"
#include "parallel.h"
#include "rnn_cells.h"
#include "rnn_plan.h"
#include "team.h"

namespace hetkern::cpu {
namespace {

inline void prefetch_to_l2(const void* at) { __builtin_prefetch(at, 0, 2); }

// What forward and backward parameters have in common.
struct Walk {
  int64_t T, B, H;
  const int64_t* batch_sizes;
  bool reverse;
  Steps reset;

  int64_t ahead;  // steps from a row's operands being asked for to their use

  const int64_t* length;  // (B) by sequence
  const int64_t* order;   // (B): the sequence of each row
  const int64_t* offset;  // (T): packed rows before the step

  int64_t at(const Steps& s, int64_t t, int64_t b) const {
    return batch_sizes ? (offset[t] + b) * s.row : t * s.step + b * s.row;
  }
  template <class X>
  X* row(const Steps& s, int64_t t, int64_t b) const {
    return s ? static_cast<X*>(s.data) + at(s, t, b) : nullptr;
  }
  int64_t first_step(int64_t b) const { return reverse ? length[b] - 1 : 0; }
  bool begins(int64_t t, int64_t b) const { return t == first_step(b); }
  // The step that row b comes to after so many, or t: its operands, which may lie in another core's cache, are asked for at t.
  int64_t soon(int64_t t, int64_t b, int64_t steps, bool falling) const {
    const int64_t next = falling ? t - steps : t + steps;
    return next >= 0 && next < length[b] ? next : t;
  }
  // Whether row b begins step t at zeros.
  bool anew(int64_t t, int64_t b) const { return reset && *row<const uint8_t>(reset, t, b); }
};

// The rows of a slice at step t: as many of the first as are longer.
struct Slice {
  int64_t begin, end, rows = 0;  // rows: those of the step at hand
  int64_t move_to(const Walk& w, int64_t t) {
    while (rows > 0 && w.length[w.order[begin + rows - 1]] <= t) --rows;
    while (begin + rows < end && w.length[w.order[begin + rows]] > t) ++rows;
    return rows;
  }
};

// ---- Workspace. -----------------------------------------------------------------------------------------------------------

// Lengths, and rows dealt out to `tasks` slices, each the longest first. One slice: all rows.
template <class Params>
Walk make_walk(const Params& p, Carver& carver, int tasks) {
  const int64_t units = p.B * p.H, ahead = units <= 128 ? 4 : units <= 512 ? 2 : 1;
  Walk w{p.T, p.B, p.H, p.batch_sizes, p.reverse, p.reset, ahead, nullptr, nullptr, nullptr};
  auto* const length = carver.take<int64_t>(p.B);
  auto* const order = carver.take<int64_t>(p.B);
  auto* const sorted = carver.take<int64_t>(p.B);
  auto* const place = carver.take<int64_t>(p.T + 2);  // by length; then packed offsets
  for (int64_t b = 0; b < p.B; ++b) length[b] = p.lengths ? p.lengths[b] : p.batch_sizes ? 0 : p.T;
  if (p.batch_sizes)
    for (int64_t t = 0; t < p.T; ++t)
      for (int64_t b = p.batch_sizes[t] - 1; b >= 0 && length[b] == t; --b) length[b] = t + 1;

  // Counting sort, longest first, equal ones in their order.
  for (int64_t n = 0; n < p.T + 2; ++n) place[n] = 0;
  for (int64_t b = 0; b < p.B; ++b) ++place[p.T - length[b] + 1];
  for (int64_t n = 1; n < p.T + 2; ++n) place[n] += place[n - 1];
  for (int64_t b = 0; b < p.B; ++b) sorted[place[p.T - length[b]]++] = b;

  int64_t row = 0;
  for (int task = 0; task < tasks; ++task)
    for (int64_t i = task; i < p.B; i += tasks) order[row++] = sorted[i];

  if (p.batch_sizes) {
    int64_t before = 0;
    for (int64_t t = 0; t < p.T; ++t) place[t] = before, before += p.batch_sizes[t];
  }
  w.length = length, w.order = order, w.offset = place;
  return w;
}
// The rows dealt to a task by make_walk.
inline Slice slice_of(int64_t B, int task, int tasks) {
  Slice slice{0, 0};
  for (int i = 0; i <= task; ++i) slice.begin = slice.end, slice.end += (B - i + tasks - 1) / tasks;
  return slice;
}

// Block `block` of step s where blocks [begin, end) are a task's: to and fro, so that the weights it ended with, which its
// caches have, are those it begins with.
inline int64_t to_and_fro(int64_t block, int64_t begin, int64_t end, int64_t s) {
  return s & 1 ? begin + end - 1 - block : block;
}

// Packs the weights and walks, as the plan says: tasks with rows of their own, or a team that shares out each step's units.
template <class F>
void run_walk(const F& f, int64_t B, const RnnPlan& plan) {
  const int64_t blocks = f.blocks();
  if (plan.path == RnnPath::split_units)
    return run_team(plan.tasks, f.steps() + 1, blocks, [&](Member& member) {
      Slice slice{0, B};
      while (member.next()) {
        const int64_t chunk = member.chunk, owner = ((chunk + 1) * plan.tasks - 1) / blocks;
        const Share share(blocks, static_cast<int>(owner), plan.tasks);
        const int64_t block = to_and_fro(chunk, share.begin, share.end, member.step);
        if (member.step == 0)
          f.pack(block);
        else
          f.step(slice, Share(blocks, static_cast<int>(block), static_cast<int>(blocks)), member.step - 1);
      }
    });
  run_tasks(plan.tasks, [&](int task) {
    const Share share(blocks, task, plan.tasks);
    for (int64_t b = share.begin; b < share.end; ++b) f.pack(b);
  });
  run_tasks(plan.tasks, [&](int task) {
    Slice slice = slice_of(B, task, plan.tasks);
    for (int64_t s = 0; s < f.steps(); ++s) f.step(slice, Share(blocks, 0, 1), s);
  });
}

// Zeros in the rows that no sequence has: what is there is a result as well.
template <class X>
void clear_padding(const Walk& w, const Steps& s, int64_t columns, int tasks) {
  if (!s || w.batch_sizes) return;
  run_tasks(tasks, [&](int task) {
    const Share share(w.B, task, tasks);
    for (int64_t b = share.begin; b < share.end; ++b)
      for (int64_t t = w.length[b]; t < w.T; ++t)
        std::memset(w.row<X>(s, t, b), 0, static_cast<size_t>(columns) * sizeof(X));
  });
}

// ---- Left operands. -------------------------------------------------------------------------------------------------------

// What a product reads of numbers that are stored as E: rounded to E, at column j of a row.
template <class P, class A, class E, class Lanes>
inline void store_left(typename P::Left* row, int64_t j, Vec<A> v, Lanes n) {
  if constexpr (P::per_word == 2 || std::is_same_v<A, E>)
    store_first<A>(row + j, v, n);
  else
    store_first<A>(row + j, Packed<A, E>::pack(v).unpack(), n);
}
template <class A, class E>
inline Vec<A> rounded(Vec<A> v) {
  if constexpr (std::is_same_v<A, E>)
    return v;
  else
    return Packed<A, E>::pack(v).unpack();
}

// Calls use(a product's struct) for a type and the plan's choice.
template <class E, class Use>
void with_product([[maybe_unused]] Product product, const Use& use) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<E, bf16>) {
    if (product == Product::amx) return use(Amx{});
    if (product == Product::dot) return use(Dot{});
  }
#endif
  use(Fma<AccumulatorOf<E>>{});
}
template <class Use>
void with_vectors(int vectors, const Use& use) {
  if (vectors == 4) return use(std::integral_constant<int, 4>{});
  if (vectors == 2) return use(std::integral_constant<int, 2>{});
  use(std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace hetkern::cpu
