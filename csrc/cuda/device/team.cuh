// The threads that share a row, and the reduction tree over its lanes.                        (shapes: BlockShape in csrc/rows.h)
//
// Vector v of a row belongs to lane v mod lanes. Lanes combine with their neighbours, then pairs with pairs, and so on, by
// shuffles in a warp, shared memory in a block and distributed shared memory in a cluster. Over columns a thread runs through the
// lanes of its own row and combines them in the same order. The lower lane is always the left operand.
//
// A job, as in cpu/row_job.h:
//   Row row(int64_t r)                                     where row r lies
//   void add(Terms&, const Row&, int64_t j, int count, Kept)   the part of elements [j, j + count) in the reduction
//   Total total(const Terms&)                              a lane's whole part
//   Total finish(const Row&, Total, bool leader)           what follows the last one; the leader alone writes
//   void write(const Row&, j, count, Kept, Total)          absent where a row's results are few: finish writes them
#pragma once
#include <cstring>

#include "../plan.h"
#include "planted.cuh"
#include "ptx.cuh"

namespace hetkern::cuda {

// ---- Totals as words. -----------------------------------------------------------------------------------------------------

template <class Total>
struct Words {
  static constexpr int kCount = sizeof(Total) / 4;
  static_assert(sizeof(Total) % 4 == 0 && kCount <= kMostWords);
  uint32_t word[kCount];
  Words() = default;
  __device__ explicit Words(const Total& t) { memcpy(word, &t, sizeof(Total)); }
  __device__ Total total() const {
    Total t;
    memcpy(&t, word, sizeof(Total));
    return t;
  }
};

// ---- Lanes of a warp. -----------------------------------------------------------------------------------------------------

// Of groups of `lanes` neighbours; every one gets the whole.
template <class Total>
__device__ __forceinline__ Total combine_lanes(Total t, int lanes) {
  for (int other = 1; other < lanes; other *= 2) {
    Words<Total> words(t);
#pragma unroll
    for (int i = 0; i < Words<Total>::kCount; ++i) words.word[i] = __shfl_xor_sync(0xffffffffu, words.word[i], other);
    t = threadIdx.x & other ? combine(words.total(), t) : combine(t, words.total());
  }
  return t;
}

// ---- Warps of a block, blocks of a cluster. -------------------------------------------------------------------------------

// The front of a block's shared memory; kept elements follow. Rows take turns, so that one barrier a row suffices.
struct Exchange {
  uint32_t word[2][kMostWords][kMaxWarps + 1];  // one total a warp, then the block's
  template <class Total>
  __device__ void put(int turn, int slot, const Total& t) {
    const Words<Total> words(t);
#pragma unroll
    for (int i = 0; i < Words<Total>::kCount; ++i) word[turn][i][slot] = words.word[i];
  }
  template <class Total>
  __device__ Total take(int turn, int slot) const {
    Words<Total> words;
#pragma unroll
    for (int i = 0; i < Words<Total>::kCount; ++i) words.word[i] = word[turn][i][slot];
    return words.total();
  }
};
static_assert(sizeof(Exchange) == kExchangeHeader && kExchangeHeader % 16 == 0);

template <class Total>
__device__ __forceinline__ Total combine_team(Total t, const BlockShape& shape, Exchange& exchange, int turn) {
  t = combine_lanes(t, shape.lanes < 32 ? shape.lanes : 32);
  if (shape.lanes <= 32) return t;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) exchange.put(turn, warp, t);
  if (!planted(Bug::race)) __syncthreads();
  t = combine_lanes(exchange.take<Total>(turn, static_cast<int>(threadIdx.x) % warps), warps);
  if (shape.cluster == 1) return t;
  if (threadIdx.x == 0) exchange.put(turn, kMaxWarps, t);
  ptx::cluster_sync();
  const Exchange* const peer = ptx::map_shared(&exchange, threadIdx.x % shape.cluster);
  return combine_lanes(peer->take<Total>(turn, kMaxWarps), shape.cluster);
}

// The same tree in one thread, which brings 2^n totals in their order.
template <class Total>
struct Tree {
  static constexpr int kDepth = 13;  // 2^12 lanes
  Total part[kDepth];
  unsigned count = 0;
  __device__ Total push(Total t) {
    int level = 0;
    for (unsigned n = count++; n & 1; n >>= 1) t = combine(part[level++], t);
    return part[level] = t;
  }
};

// ---- Kept elements. -------------------------------------------------------------------------------------------------------

// Where this thread keeps what it made of its vectors: planes of them, 16 bytes a thread side by side, so that no two threads
// meet in a bank. Absent if the row is read twice.
struct Kept {
  char* at = nullptr;
  __device__ explicit operator bool() const { return at != nullptr; }
  template <class A, int V>
  __device__ __forceinline__ void store(int plane, const A (&value)[V]) const {
    constexpr int kEach = 16 / sizeof(A), kParts = V / kEach;
    auto* to = reinterpret_cast<Vector<A, kEach>*>(at) + plane * kParts * static_cast<int>(blockDim.x);
#pragma unroll
    for (int h = 0; h < kParts; ++h) {
      Vector<A, kEach> part;
#pragma unroll
      for (int i = 0; i < kEach; ++i) part.e[i] = value[h * kEach + i];
      to[h * static_cast<int>(blockDim.x)] = part;
    }
  }
  template <class A, int V>
  __device__ __forceinline__ void load(int plane, A (&value)[V]) const {
    constexpr int kEach = 16 / sizeof(A), kParts = V / kEach;
    const auto* from = reinterpret_cast<const Vector<A, kEach>*>(at) + plane * kParts * static_cast<int>(blockDim.x);
#pragma unroll
    for (int h = 0; h < kParts; ++h) {
      const Vector<A, kEach> part = from[h * static_cast<int>(blockDim.x)];
#pragma unroll
      for (int i = 0; i < kEach; ++i) value[h * kEach + i] = part.e[i];
    }
  }
};

// This thread's k-th vector.
template <class Job>
__device__ __forceinline__ Kept kept(char* memory, int64_t k) {
  constexpr int kBytes = Job::V * static_cast<int>(sizeof(typename Job::A)) * Job::kPlanes;
  return {memory ? memory + (k * kBytes * static_cast<int>(blockDim.x) + 16 * static_cast<int>(threadIdx.x)) : nullptr};
}

// Blocks that a multiprocessor shall hold: fewer where doubles, a long total or many elements take registers.
template <class Job>
constexpr int kMinBlocks =
    3 - (sizeof(typename Job::A) == 8) - (sizeof(typename Job::Total) > 32) - (Job::V * Job::kPlanes >= 16);

template <class Job>
constexpr bool kWrites = Job::kPlanes > 0;

// ---- Rows: neighbouring threads take neighbouring vectors. ----------------------------------------------------------------

template <class Job>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Job>)
    rows_kernel(const __grid_constant__ typename Job::Params p, const BlockShape shape, const bool keep) {
  HETKERN_SHARED(Exchange, exchange);
  constexpr int V = Job::V;
  const int in_block = shape.lanes < static_cast<int>(blockDim.x) ? shape.lanes : static_cast<int>(blockDim.x);
  const int rows = static_cast<int>(blockDim.x) / in_block;
  const int block = shape.cluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  const int lane = block * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x) % in_block;
  const int64_t groups = gridDim.x / shape.cluster;
  char* const memory = keep ? reinterpret_cast<char*>(&exchange + 1) : nullptr;
  const Job job(p);

  int turn = 0;
  for (int64_t group = blockIdx.x / shape.cluster; group * rows < p.rows.M; group += groups, turn ^= 1) {
    const int64_t r = group * rows + static_cast<int>(threadIdx.x) / in_block;
    const int64_t n = r < p.rows.M ? p.rows.N : 0;  // an idle team takes part in the shuffles alone
    const auto row = job.row(n > 0 ? r : 0);
    const int64_t step = static_cast<int64_t>(shape.lanes) * V;

    // Reduce.
    typename Job::Terms terms{};
    int64_t k = 0;
    for (int64_t j = lane * V; j - lane * V < p.rows.N; j += step, ++k)  // whole warps
      job.add(terms, row, j, clamped(n - j, V), kept<Job>(memory, k));
    auto total = combine_team(job.total(terms), shape, exchange, turn);
    total = job.finish(row, total, lane == 0 && n > 0);

    // Write the row.
    if constexpr (kWrites<Job>) {
      k = 0;
      for (int64_t j = lane * V; j - lane * V < p.rows.N; j += step, ++k)
        job.write(row, j, clamped(n - j, V), kept<Job>(memory, k), total);
    }
  }
  if (shape.cluster > 1) ptx::cluster_sync();  // nobody leaves while others read his memory
}

// ---- Columns: neighbouring threads take neighbouring rows. ----------------------------------------------------------------

template <class Job>
__global__ void __launch_bounds__(32 * kColumnWarps, 1)
    columns_kernel(const __grid_constant__ typename Job::Params p, const BlockShape shape, const bool keep) {
  using Total = typename Job::Total;
  constexpr int V = Job::V;
  struct Parts {
    uint32_t word[1];
  };
  HETKERN_SHARED(Parts, parts);
  uint32_t* const words = parts.word;
  const int threads = static_cast<int>(blockDim.x), warps = threads / kColumnRows;
  const int warp = static_cast<int>(threadIdx.x) / kColumnRows, column = static_cast<int>(threadIdx.x) % kColumnRows;
  const int lanes = shape.lanes / warps;  // that this thread runs through
  char* const memory = keep ? reinterpret_cast<char*>(words + kMostWords * threads) : nullptr;
  const Job job(p);

  for (int64_t group = blockIdx.x; group * kColumnRows < p.rows.M; group += gridDim.x) {
    const int64_t r = group * kColumnRows + column;
    const int64_t n = r < p.rows.M ? p.rows.N : 0;
    const auto row = job.row(n > 0 ? r : 0);
    const int64_t step = static_cast<int64_t>(shape.lanes) * V;

    // Reduce.
    Tree<Total> tree;
    Total total{};
    int64_t k = 0;
    for (int lane = warp * lanes; lane < (warp + 1) * lanes; ++lane) {
      typename Job::Terms terms{};
      for (int64_t j = lane * V; j < p.rows.N; j += step, ++k)
        job.add(terms, row, j, clamped(n - j, V), kept<Job>(memory, k));
      total = tree.push(job.total(terms));
    }
    const Words<Total> mine(total);
#pragma unroll
    for (int i = 0; i < Words<Total>::kCount; ++i) words[i * threads + static_cast<int>(threadIdx.x)] = mine.word[i];
    __syncthreads();
    Tree<Total> whole;
    for (int w = 0; w < warps; ++w) {
      Words<Total> theirs;
#pragma unroll
      for (int i = 0; i < Words<Total>::kCount; ++i) theirs.word[i] = words[i * threads + w * kColumnRows + column];
      total = whole.push(theirs.total());
    }
    __syncthreads();
    total = job.finish(row, total, warp == 0 && n > 0);

    // Write the row.
    if constexpr (kWrites<Job>) {
      k = 0;
      for (int lane = warp * lanes; lane < (warp + 1) * lanes; ++lane)
        for (int64_t j = lane * V; j < p.rows.N; j += step, ++k)
          job.write(row, j, clamped(n - j, V), kept<Job>(memory, k), total);
    }
  }
}

template <class Job, class Plan>
void launch_rows(const typename Job::Params& p, const Plan& plan, bool keep, void* stream) {
  const BlockShape& b = plan.block;
  if (plan.path == RowPath::columns)
    HETKERN_LAUNCH((columns_kernel<Job>), plan.tasks, b.threads, b.shared, stream, p, b, keep);
  else if (b.cluster > 1)
    HETKERN_LAUNCH_CLUSTER((rows_kernel<Job>), b.cluster, plan.tasks, b.threads, b.shared, stream, p, b, keep);
  else
    HETKERN_LAUNCH((rows_kernel<Job>), plan.tasks, b.threads, b.shared, stream, p, b, keep);
}

}  // namespace hetkern::cuda
