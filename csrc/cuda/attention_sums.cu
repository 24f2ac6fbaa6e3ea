// Attention's gradients that are sums of those of scores: by bias, sink and slopes.                    (the contract: csrc/attention.h)
//
//   dbias = ds, summed over what was broadcast      dsink = -sum_i exp(sink - lse_i) delta_i      dslope = sums of rows' own
//
// Work:    dbias: a block takes a tile of the bias and goes through all that was broadcast to it, in order. dsink, dslopes: a
//          block takes a number.
// Traffic: dbias reads q and dout once a tile of keys, k and v once a tile of queries.
// Edges:   an emptied row adds nothing.
#include "attention_backward.h"
#include "device/attention_scores.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

constexpr int kThreads = 32 * kAttentionWarps;
constexpr int kSumThreads = 256;

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

// ---- dbias. ---------------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    dbias_kernel(const __grid_constant__ AttentionBackward p, const __grid_constant__ AttentionTiles tiles,
                 const AccumulatorOf<T>* const delta, const int row_tiles, const int column_tiles) {
  using A = AccumulatorOf<T>;
  constexpr int kColumns = attention_columns(AttentionPass::dbias, sizeof(T), 64), N = kColumns / 8;
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps;
  const int D = static_cast<int>(p.D), Dv = static_cast<int>(p.Dv);

  // Which tile of the bias: what was broadcast has one of all.
  const int column_tile = static_cast<int>(blockIdx.x % column_tiles);
  const int64_t task = blockIdx.x / column_tiles;
  const int row_tile = static_cast<int>(task % row_tiles);
  const int head = static_cast<int>(task / row_tiles % p.bias_size[1]);
  const int batch = static_cast<int>(task / row_tiles / p.bias_size[1]);
  const bool all_b = p.bias_size[0] == 1, all_h = p.bias_size[1] == 1;
  const bool all_i = p.bias_size[2] == 1, all_j = p.bias_size[3] == 1;

  T* const q_tile = memory.of;
  T* const dout_tile = q_tile + rows * tiles.ld_d;
  T* const k_tile = dout_tile + rows * tiles.ld_v;
  T* const v_tile = k_tile + kColumns * tiles.ld_d;

  A sum[N][4];
  clear(sum);
  for (int b = all_b ? 0 : batch; b < (all_b ? static_cast<int>(p.B) : batch + 1); ++b) {
    const Sequence seq = sequence_of(p, b);
    Scores<T, false> scores(p, tiles, seq);
    for (int h = all_h ? 0 : head; h < (all_h ? static_cast<int>(p.Hq) : head + 1); ++h) {
      scores.take_head(h);
      for (int x0 = row_tile * rows; x0 < seq.Lq; x0 += rows) {
        const int x = x0 + 16 * warp + fragment_row();
        const int begin = scores.band.from(x0, kColumns), end = scores.band.to(x0, rows);
        for (int y0 = all_j ? begin : column_tile * kColumns; y0 < end; y0 += kColumns) {
          if (y0 >= begin) {
            const int have = seq.Lq - x0, have_k = min(kColumns, seq.Lk - y0);
            __syncthreads();
            load_tile(q_tile, tiles.ld_d, rows_of<const T>(p.q, b, h, x0, tiles.q), rows, have, D);
            load_tile(dout_tile, tiles.ld_v, rows_of<const T>(p.dout, b, h, x0, tiles.dout), rows, have, Dv);
            load_tile(k_tile, tiles.ld_d, rows_of<const T>(p.k, b, key_head(p, h), y0, tiles.k), kColumns, have_k, D);
            load_tile(v_tile, tiles.ld_v, rows_of<const T>(p.v, b, key_head(p, h), y0, tiles.v), kColumns, have_k, Dv);
            ptx::copy_async_commit();
            RowStats<A> stats[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              stats[half] = {A(0), A(-1), A(0)};
              if (x + 8 * half < seq.Lq)
                stats[half] = row_stats(p.row_max, p.log_sum, delta, stat_of(p, seq, h, x + 8 * half));
            }
            ptx::copy_async_wait<0>();
            __syncthreads();
            scores.template gradients_of_tiles<N>(q_tile, dout_tile, k_tile, v_tile, x0, rows, y0, stats,
                                                  [&](int t, int e, A ds, int, int) { sum[t][e] += ds; });
          }
          if (!all_j) break;
        }
        if (!all_i) break;
      }
    }
  }

  // Sums over a tile's columns and rows, where the bias has one for all.
  if (all_j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      A whole = 0;
#pragma unroll
      for (int t = 0; t < N; ++t) whole += sum[t][2 * half] + sum[t][2 * half + 1];
      whole += __shfl_xor_sync(0xffffffffu, whole, 1);
      whole += __shfl_xor_sync(0xffffffffu, whole, 2);
      sum[0][2 * half] = whole;
    }
  }
  if (all_i) {
    A* const parts = reinterpret_cast<A*>(memory.of);  // warps by columns
    __syncthreads();
#pragma unroll
    for (int t = 0; t < N; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        A whole = sum[t][e] + sum[t][2 + e];
#pragma unroll
        for (int by = 4; by < 32; by *= 2) whole += __shfl_xor_sync(0xffffffffu, whole, by);
        if (fragment_row() == 0) parts[warp * kColumns + 8 * t + fragment_column() + e] = whole;
      }
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int t = 0; t < N; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        A whole = 0;
        for (int w = 0; w < tiles.warps; ++w) whole += parts[w * kColumns + 8 * t + fragment_column() + e];
        sum[t][e] = whole;
      }
  }

  // Store.
  T* const to = at<T>(p.dbias, batch, head, 0);
#pragma unroll
  for (int t = 0; t < N; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t i =
          all_i ? fragment_row() + e / 2 * 8 : int64_t{row_tile} * rows + 16 * warp + fragment_row() + e / 2 * 8;
      const int64_t j = all_j ? 8 * t + fragment_column() + e % 2
                              : int64_t{column_tile} * kColumns + 8 * t + fragment_column() + e % 2;
      if (i < p.bias_size[2] && j < p.bias_size[3]) to[i * p.dbias.row + j * p.dbias.step] = To<T>::from(sum[t][e]);
    }
}

// ---- dsink and dslopes. ---------------------------------------------------------------------------------------------------

// A block's sum of value(row of row_max) over the rows of head h, of all sequences or of b alone (b < 0: all).
template <class A, class Value>
__device__ __forceinline__ A sum_of_rows(const AttentionProblem& p, int64_t h, int64_t b, A* parts,
                                         const Value& value) {
  const bool packed = p.cu_seqlens_q != nullptr;
  int64_t begin = 0, end = packed ? p.stat_head : b < 0 ? p.B * p.Lq : p.Lq;
  if (packed && b >= 0) begin = p.cu_seqlens_q[b], end = p.cu_seqlens_q[b + 1];
  A sum = 0;
  for (int64_t n = begin + threadIdx.x; n < end; n += kSumThreads) {
    const int64_t row = packed  ? h * p.stat_head + n
                        : b < 0 ? n / p.Lq * p.stat_batch + h * p.stat_head + n % p.Lq
                                : b * p.stat_batch + h * p.stat_head + n;
    sum += value(row);
  }
  sum = warp_sum(sum);
  if (lane_of_warp() == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kSumThreads / 32; ++w) sum += parts[w];
  return sum;
}

// Blocks 0 … Hq - 1 have the sinks, those behind them the slopes.
template <class T>
__global__ void __launch_bounds__(kSumThreads, 1)
    sums_kernel(const __grid_constant__ AttentionBackward p, const AccumulatorOf<T>* const delta,
                const AccumulatorOf<T>* const slope_sums) {
  using A = AccumulatorOf<T>;
  struct Memory {
    A parts[kSumThreads / 32];
  };
  HETKERN_SHARED(Memory, memory);
  const int64_t sinks = p.dsink ? p.Hq : 0;
  if (blockIdx.x < sinks) {
    const int64_t h = blockIdx.x;
    const A sink = get<A>(static_cast<const T*>(p.sink)[h]);
    const A sum = sum_of_rows<A>(p, h, -1, memory.parts, [&](int64_t row) {
      const RowStats<A> stat = row_stats(p.row_max, p.log_sum, delta, row);
      return stat.of_sum < 0 ? A(0) : -exp_one(sink - stat.max) * stat.of_sum * stat.delta;
    });
    if (threadIdx.x == 0) static_cast<T*>(p.dsink)[h] = To<T>::from(sum);
  } else {
    const int64_t n = blockIdx.x - sinks;
    const int64_t b = p.slope_batch ? n / p.Hq : -1;
    const A sum = sum_of_rows<A>(p, n % p.Hq, b, memory.parts, [&](int64_t row) { return slope_sums[row]; });
    if (threadIdx.x == 0) static_cast<A*>(p.dslopes)[n] = sum;
  }
}

}  // namespace

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

void attention_dbias(const AttentionBackward& p, const void* delta, void* stream) {
  const int64_t bytes = size_of(p.type);
  AttentionTiles tiles = attention_tiles(AttentionPass::dbias, bytes, p.D, p.Dv, p.Lq, gpu());
  meet_inputs(tiles, p);
  tiles.dout = moves_by_16(p.dout, bytes);
  const auto tiles_for = [](int64_t size, int64_t in_tile) {
    return static_cast<int>(size == 1 ? 1 : divided_up(size, in_tile));
  };
  const int row_tiles = tiles_for(p.bias_size[2], 16 * tiles.warps),
            column_tiles = tiles_for(p.bias_size[3], tiles.columns);
  const int64_t tasks = p.bias_size[0] * p.bias_size[1] * row_tiles * column_tiles;
  if (tasks > 0)
    with_type(p.type, [&](auto type) {
      using T = decltype(type);
      HETKERN_LAUNCH((dbias_kernel<T>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles,
                     static_cast<const AccumulatorOf<T>*>(delta), row_tiles, column_tiles);
    });
}

void attention_sums(const AttentionBackward& p, const void* delta, const void* slope_sums, void* stream) {
  const int64_t tasks = (p.dsink ? p.Hq : 0) + (p.dslopes ? (p.slope_batch ? p.B * p.Hq : p.Hq) : 0);
  if (tasks > 0)
    with_type(p.type, [&](auto type) {
      using T = decltype(type);
      using A = AccumulatorOf<T>;
      HETKERN_LAUNCH((sums_kernel<T>), tasks, kSumThreads, sizeof(A) * kSumThreads / 32, stream, p,
                     static_cast<const A*>(delta), static_cast<const A*>(slope_sums));
    });
}

}  // namespace hetkern::cuda
