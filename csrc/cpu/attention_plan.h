// How the CPU shares out attention, and where a task keeps what it works on: pure functions of the shape and the machine.
#pragma once
#include "../attention.h"
#include "isa.h"
#include "rnn_plan.h"

namespace hetkern::cpu {

namespace {  // of every instruction set's own

constexpr int kPanel = 64;        // queries of a panel, columns of a segment: the stride of all that a tile reads
constexpr int kBlock = 96;        // keys that scores are computed for at a time
constexpr int kPanelsOfTask = 4;  // at most: they share a block of keys once it is packed
constexpr int64_t kPart =
    12 * kBlock;  // keys with a maximum and a sum of their own: a decoding call's tasks take parts
constexpr int64_t kPanelsOfChunk = 16;  // at most: queries whose gradient a backward task adds up at a time

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t segments_of(int64_t columns) { return ceil_div(columns, kPanel); }

// Elements of A; every piece is a multiple of 16 of them.
struct AttentionScratch {
  int64_t q, out, stats, scores, keys, values;  // a panel's, but for keys and values: a block's
};
constexpr AttentionScratch attention_scratch(int64_t D, int64_t Dv) {
  return {ceil_div(D, 16) * 16 * kPanel, segments_of(Dv) * kPanel * kPanel, kPanel,
          int64_t{kBlock} * kPanel,      segments_of(D) * kBlock * kPanel,  segments_of(Dv) * kBlock * kPanel};
}
// A task's, forward: panels, their totals, scores and three tiles for features, a block of keys and values.
constexpr int64_t forward_scratch(int64_t D, int64_t Dv) {
  const AttentionScratch s = attention_scratch(D, Dv);
  return kPanelsOfTask * (s.q + 2 * s.out + 4 * s.stats) + 4 * s.scores + s.keys + s.values;
}
// A part's result of one panel, whose rows are whole vectors.
constexpr int64_t part_rows(int64_t rows) { return rows < kPanel ? ceil_div(rows, 16) * 16 : kPanel; }
constexpr int64_t part_result(int64_t rows, int64_t Dv) { return segments_of(Dv) * rows * kPanel + 2 * kPanel; }

// Panels that a task takes at a time of units with so many rows: fewer where every task would have few turns, and the last end late.
constexpr int panels_of_task(int64_t units, int64_t rows, int64_t tasks) {
  int panels = kPanelsOfTask;
  while (panels > 1 && units * ceil_div(rows, panels * kPanel) < 8 * tasks) panels /= 2;
  return panels;
}

// Parts that a head's keys are cut into for backward, interleaved by blocks: by the number of keys alone.
constexpr int64_t backward_parts(int64_t keys) {
  const int64_t blocks = ceil_div(keys, kBlock);
  return blocks < 8 ? 1 : blocks < 20 ? 2 : 4;
}
// The most blocks that a part has of a sequence of at most so many keys.
constexpr int64_t backward_blocks(int64_t keys) {
  const int64_t blocks = ceil_div(keys, kBlock), most = ceil_div(blocks, backward_parts(keys));
  const int64_t of_shorter = blocks < 8 ? blocks : blocks < 20 ? 7 : 10;  // with fewer parts
  return most > of_shorter ? most : of_shorter;
}
// A task's, backward: a chunk of queries four ways and dq; gradients of a part's keys; a block of them; scores, tiles for features
// and for the bias' gradient.
constexpr int64_t backward_scratch(int64_t Lq, int64_t Lk, int64_t D, int64_t Dv) {
  const AttentionScratch s = attention_scratch(D, Dv);
  const int64_t panels = ceil_div(Lq, kPanel), chunk = panels < kPanelsOfChunk ? panels : kPanelsOfChunk;
  const int64_t rows = segments_of(D) * kPanel * kPanel, turned = ceil_div(Dv, 16) * 16 * kPanel;
  return chunk * (s.q + turned + 2 * rows + s.out) + (backward_blocks(Lk) + 1) * (s.keys + s.values) + 9 * s.scores;
}

// Panels of a chunk: a block of keys meets all of them in turn, so that they are read from the second cache as long as they fit
// into it beside the block and its gradients. No bit depends on it. Of 2 MiB and more 16 were measured best.
constexpr int64_t panels_of_chunk(int64_t D, int64_t Dv, int64_t size, int64_t l2_bytes) {
  if (l2_bytes >= int64_t{2} << 20) return kPanelsOfChunk;
  const AttentionScratch s = attention_scratch(D, Dv);
  const int64_t bytes = size * (s.q + s.out + ceil_div(Dv, 16) * 16 * kPanel + 2 * segments_of(D) * kPanel * kPanel);
  const int64_t fit = l2_bytes * 5 / 8 / bytes;
  return fit < 1 ? 1 : fit < kPanelsOfChunk ? fit : kPanelsOfChunk;
}

}  // namespace

AttentionPlan attention_plan(const AttentionShape& shape, const Machine& machine, const Vectors& vectors);
AttentionPlan attention_plan(const AttentionShape& shape);  // on this machine, now

}  // namespace hetkern::cpu
