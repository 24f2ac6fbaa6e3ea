// How a GPU shares out its work: pure functions of the shape and the device.
//
// The leaves of a row's reduction tree depend on N, the types and the device, never on M or the layout: rows and columns of the
// same N add up in the same order.
#pragma once
#include "../cross_entropy.h"
#include "../rnn.h"
#include "../softmax.h"

namespace hetkern::cuda {

struct Gpu {
  int capability = 90;  // 10 major + minor
  int processors = 132;
  int64_t shared_bytes = 232448;  // that a block may ask for
  bool clusters() const { return capability >= 90; }
};

constexpr int64_t kShortRow = 512;           // columns up to which a block takes several rows
constexpr int64_t kGoodSharedBytes = 65536;  // of a block, so that a multiprocessor still holds several
constexpr int kMaxCluster = 8;               // the most that every device with clusters takes
constexpr int kShortRowThreads = 128;
constexpr int kColumnRows = 32;  // rows a block of the columns path
constexpr int kColumnWarps = 8;
constexpr int kMaxWarps = 16;
constexpr int kMaxTasks = 1 << 30;
constexpr int kBackwardVectors = 4;  // of a row that a thread of a loss's backward takes at a time
constexpr int kBackwardBlocks = 16;  // a multiprocessor
constexpr int kMostWords = 24;       // of a total that threads exchange
constexpr int kExchangeHeader = 2 * kMostWords * (kMaxWarps + 1) * 4;  // bytes

constexpr int kUnitThreads = 128;  // of a block that takes units of an RNN's states
constexpr int kUnitBlocks = 16;    // a multiprocessor, at most

constexpr int kMaxThreads = 256;  // of a block; with three of them on a multiprocessor a thread has 80 registers

HETKERN_HOST_DEVICE inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int power_of_two_from(int64_t a, int most) {
  int p = 1;
  while (p < a && p < most) p *= 2;
  return p;
}

// Elements that a thread takes at a time: 16 bytes of the wider type.
HETKERN_HOST_DEVICE constexpr int vector_of(int64_t widest_bytes) { return static_cast<int>(16 / widest_bytes); }

struct RowShares {
  RowPath path;
  int tasks;
  bool keep;
  BlockShape block;
};

// M rows of N, of which `reads` tensors are read; `widest` is the larger element's size in bytes.
inline RowShares share_rows(int64_t M, int64_t N, bool columns, int64_t widest, bool float64, int reads,
                            const Gpu& gpu) {
  const int vector = vector_of(widest);
  const int64_t accumulator = float64 ? 8 : 4;
  const int64_t vectors = N > vector ? divided_up(N, vector) : 1;
  const auto kept_bytes = [&](int64_t lanes, int64_t in_block) {
    return divided_up(vectors, lanes) * in_block * vector * accumulator * reads;
  };

  // The leaves of the tree.
  RowShares s{RowPath::whole_rows, 1, true, {}};
  if (N <= kShortRow) {
    s.block.threads = kShortRowThreads;
    s.block.lanes = power_of_two_from(divided_up(vectors, 2), 32);
    if (vectors > 1 && s.block.lanes < 2) s.block.lanes = 2;
  } else {
    const int threads = power_of_two_from(divided_up(vectors, 4), kMaxThreads);
    s.block.threads = s.block.lanes = threads < 64 ? 64 : threads;
    if (gpu.clusters())
      while (s.block.cluster < kMaxCluster && kept_bytes(s.block.lanes, threads) > kGoodSharedBytes)
        s.block.cluster *= 2, s.block.lanes *= 2;
    if (s.block.cluster > 1) s.path = RowPath::split_rows;
  }

  // Who takes them.
  int64_t kept, rows = 1, groups;
  int64_t header = kExchangeHeader;
  if (columns) {
    const int warps = s.block.lanes < kColumnWarps ? s.block.lanes : kColumnWarps;
    s.path = RowPath::columns, s.block.cluster = 1, s.block.threads = 32 * warps;
    kept = kept_bytes(s.block.lanes, s.block.lanes) * kColumnRows;
    header = kMostWords * 4 * s.block.threads;
    rows = kColumnRows;
    s.keep = header + kept <= gpu.shared_bytes / 2;
  } else {
    kept = kept_bytes(s.block.lanes, s.block.threads);
    if (s.block.lanes < s.block.threads) rows = s.block.threads / s.block.lanes;
    s.keep = header + kept <= gpu.shared_bytes;
  }
  s.block.shared = static_cast<int>(header + (s.keep ? kept : 0));
  groups = divided_up(M, rows);
  if (groups > kMaxTasks / s.block.cluster) groups = kMaxTasks / s.block.cluster;
  s.tasks = static_cast<int>(groups) * s.block.cluster;
  return s;
}

inline SoftmaxPlan softmax_plan(const SoftmaxShape& shape, const Gpu& gpu) {
  const int64_t x = size_of(shape.x_type), y = size_of(shape.y_type);
  const RowShares s =
      share_rows(shape.M, shape.N, shape.columns, x > y ? x : y, shape.x_type == DType::f64, shape.reads, gpu);
  return {s.path, s.tasks, s.keep, s.block};
}

inline CrossEntropyPlan cross_entropy_plan(const CrossEntropyShape& shape, const Gpu& gpu) {
  // Nothing is kept: a loss reads its rows once.
  const RowShares s =
      share_rows(shape.M, shape.N, shape.columns, size_of(shape.x_type), shape.x_type == DType::f64, 1, gpu);
  CrossEntropyPlan plan{s.path, s.tasks, s.block};
  plan.block.shared = shape.columns ? kMostWords * 4 * s.block.threads : kExchangeHeader;
  return plan;
}

// Blocks for `rows` of H units, of which a thread takes 16 bytes of the accumulator.
inline int64_t unit_blocks(int64_t rows, int64_t H, int64_t accumulator, int processors) {
  const int64_t wanted = divided_up(rows * divided_up(H, vector_of(accumulator)), kUnitThreads);
  const int64_t most = int64_t{kUnitBlocks} * processors;
  return wanted < most ? wanted : most;
}

// A step's kernel.
inline RnnPlan rnn_plan(const RnnShape& shape, const Gpu& gpu) {
  const int64_t A = shape.type == DType::f64 ? 8 : 4;
  BlockShape block;
  block.threads = kUnitThreads, block.lanes = static_cast<int>(divided_up(shape.H, vector_of(A)));
  return {
      RnnPath::step_by_step, static_cast<int>(unit_blocks(shape.B, shape.H, A, gpu.processors)), 1, Product::fma, 0, block};
}

}  // namespace hetkern::cuda
