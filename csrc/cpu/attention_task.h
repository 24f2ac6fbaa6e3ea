// What a task of attention's forward pass works on.
#pragma once
#include "attention_few_pairs.h"
#include "attention_totals.h"
#include "carver.h"

namespace hetkern::cpu {
namespace {

template <class A>
struct Task {
  A* q[kPanelsOfTask];
  State<A> part[kPanelsOfTask], total[kPanelsOfTask];
  A *s, *tile, *k, *v;
  const A *k_at, *v_at;  // the block at hand: packed, or where it lies
  Panel<A> panel[kPanelsOfTask];
  // The block at hand for few queries, and the next one's rows.
  bool few;
  BlockRows<A> keys, values;
  Fetch next;
#if defined(__AVX512F__)
  FewPairs of_pairs;
#endif
};

template <class A>
inline Task<A> carve(Carver& carver, int64_t D, int64_t Dv) {
  const AttentionScratch size = attention_scratch(D, Dv);
  Task<A> t;
  for (int i = 0; i < kPanelsOfTask; ++i) {
    t.q[i] = carver.take<A>(size.q);
    for (State<A>* s : {&t.part[i], &t.total[i]})
      *s = {carver.take<A>(size.out), carver.take<A>(size.stats), carver.take<A>(size.stats), kPanel};
  }
  t.s = carver.take<A>(size.scores), t.tile = carver.take<A>(3 * size.scores);
  t.k = carver.take<A>(size.keys), t.v = carver.take<A>(size.values);
  t.few = false;
  return t;
}

}  // namespace
}  // namespace hetkern::cpu
