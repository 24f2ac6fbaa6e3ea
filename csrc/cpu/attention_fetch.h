// Memory that is asked for while something else is computed: the keys and values of the next block, into the second cache.
//
// Speed: lines are asked for a few at a time beside all of the work on a block. In bursts they wait for the processor's fill
//        buffers, and work waits with them.
#pragma once
#include "attention_panel.h"

namespace hetkern::cpu {
namespace {

constexpr int kKeysOfStep = 8;  // that weights are made of between fetches
constexpr int64_t kPage = 4096;

// Rows that are fetched line by line; of the page after one that is begun a line, so that its translation is there in time. A fetch
// faults nowhere.
struct Ahead {
  const char *at = nullptr, *row_end = nullptr, *end = nullptr;
  int64_t gap = 0, row = 0;  // bytes from a row's end to the next one, and of a row
  void line() {
    if (at >= end) return;
    __builtin_prefetch(at, 0, 1);
    if (reinterpret_cast<uintptr_t>(at) % kPage < 64) __builtin_prefetch(at + kPage, 0, 1);
    at += 64;
    if (at >= row_end) at = row_end + gap, row_end = at + row;
  }
  int64_t count() const {
    const int64_t n = row + gap > 0 ? (end - at + gap) / (row + gap) : 0;
    return n * ((row + 63) / 64);
  }
};
// Of the next block's keys and values, and how many lines at a time beside the work on this one.
struct Fetch {
  Ahead keys, values;
  int64_t of_scores = 0, of_weights = 0, of_outs = 0, of_values = 0;
  // The lines of one turn, where so many turns have so many eighths of all.
  int64_t share(int64_t eighths, int64_t turns) const {
    return turns > 0 ? ceil_div((keys.count() + values.count()) * eighths, 8 * turns) : 0;
  }
  void lines(int64_t n) {
    for (; n > 0 && keys.at < keys.end; --n) keys.line();
    for (; n > 0 && values.at < values.end; --n) values.line();
  }
};
// The rows of a block from key j on; none where numbers of a row are apart.
inline Ahead ahead_of(const Heads& t, const Sequence& q, int64_t head, int64_t j, int64_t columns, int64_t size) {
  const int64_t left = q.Lk - j, rows = left < kBlock ? left : kBlock, bytes = columns * size, row = t.row * size;
  if (left <= 0 || t.step != 1 || row < bytes) return {};
  const char* const first = static_cast<const char*>(t.data) + key_offset(t, q, head, j) * size;
  return {first, first + bytes, first + (rows - 1) * row + bytes, row - bytes, bytes};
}
inline Fetch block_ahead(const AttentionProblem& p, const Sequence& q, int64_t kv_head, int64_t j, int64_t size) {
  Fetch next;
  next.keys = ahead_of(p.k, q, kv_head, j, p.D, size), next.values = ahead_of(p.v, q, kv_head, j, p.Dv, size);
  return next;
}

// Fetches between exponentials, in so many turns.
struct FetchWork {
  Fetch& next;
  const int turns;
  void step() { next.lines(next.of_weights); }
  int steps() const { return turns; }
};

}  // namespace
}  // namespace hetkern::cpu
