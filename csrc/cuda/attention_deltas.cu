// Attention's deltas, which the gradients of scores are taken from.                                    (the contract: csrc/attention.h)
//
//   delta_i = dout_i out_i - dlse_i      ds_ij = p_ij (drop_ij dout_i v_j - delta_i)
//
// Where one key has more than half of a row, the difference is small beside both terms, and out, rounded to 16 bits, is too
// coarse for it: such a row's delta is sum_j p_ij drop_ij (dout_i v_j), of the same products that it is taken from.
//
// Work:    a warp takes 16 rows. The rows that go by products are another kernel's, whose blocks leave where they have none.
// Traffic: dout and out are read once; by products q and dout once, k and v once a block of queries that has such a row.
// Edges:   an emptied row's delta is not looked at.
#include "attention_backward.h"
#include "device/attention_scores.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

constexpr int kThreads = 32 * kAttentionWarps;

// ---- Of two rows. ---------------------------------------------------------------------------------------------------------

// By the product that gives dout v: where a row sees one key, out is its v, and the two must cancel to nothing.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    delta_kernel(const __grid_constant__ AttentionBackward p, const __grid_constant__ AttentionTiles tiles,
                 AccumulatorOf<T>* const delta, const int in_head) {
  using A = AccumulatorOf<T>;
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps, Dv = static_cast<int>(p.Dv);
  const int x0 = static_cast<int>(blockIdx.x % tiles.blocks) * rows, have = in_head - x0;
  const int64_t head = blockIdx.x / tiles.blocks, b = head / p.Hq, h = head % p.Hq;
  T* const dout_tile = memory.of;
  T* const out_tile = dout_tile + rows * tiles.ld_v;
  load_tile(dout_tile, tiles.ld_v, rows_of<const T>(p.dout, b, h, x0, tiles.dout), rows, have, Dv);
  load_tile(out_tile, tiles.ld_v, rows_of<const T>(p.out, b, h, x0, tiles.out), rows, have, Dv);
  ptx::copy_async_commit(), ptx::copy_async_wait<0>();
  __syncthreads();
  A s[2][4];
  clear(s);
  const int first = 16 * warp * tiles.ld_v;
  multiply_rows<T>(s, dout_tile + first, tiles.ld_v, out_tile + first, tiles.ld_v, (Dv + 15) / 16 * 16);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int e = 0; e < 2; ++e) {  // the diagonal
      const int i = x0 + 16 * warp + 8 * half + fragment_row();
      if (fragment_row() != fragment_column() + e || i >= in_head) continue;
      const int64_t at = head * in_head + i;
      delta[at] = s[half][2 * half + e] - (p.dlse ? static_cast<const A*>(p.dlse)[at] : A(0));
    }
}

// ---- Of the products. -----------------------------------------------------------------------------------------------------

// A key has more than half of the row where the sum, of which the largest weight is 1, is below 2.
constexpr float kConfident = 0.6931472f;

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    confident_delta_kernel(const __grid_constant__ AttentionBackward p, const __grid_constant__ AttentionTiles tiles,
                           float* const delta) {
  constexpr int kColumns = attention_columns(AttentionPass::dbias, sizeof(T), 64), N = kColumns / 8;
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps;

  // Which rows, and which of them are so.
  const int x0 = static_cast<int>(blockIdx.x % tiles.blocks) * rows;
  const int64_t head = blockIdx.x / tiles.blocks;
  const int b = static_cast<int>(head / p.Hq), h = static_cast<int>(head % p.Hq);
  const Sequence seq = sequence_of(p, b);
  if (x0 >= seq.Lq) return;
  const int x = x0 + 16 * warp + fragment_row();
  RowStats<float> stats[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = x + 8 * half;
    stats[half] = {0.0f, -1.0f, 0.0f};
    if (i >= seq.Lq) continue;
    const int64_t at = stat_of(p, seq, h, i);
    const float max = static_cast<const float*>(p.row_max)[at], log = static_cast<const float*>(p.log_sum)[at];
    if (log < kConfident && max > -kInfinity<float>) stats[half] = {max, exp_one(-log), 0.0f};
  }
  const bool mine = __any_sync(0xffffffffu, !(stats[0].of_sum < 0) || !(stats[1].of_sum < 0));
  if (!__syncthreads_or(mine)) return;

  Scores<T, false> scores(p, tiles, seq);
  scores.take_head(h);
  const int D = static_cast<int>(p.D), Dv = static_cast<int>(p.Dv);
  T* const q_tile = memory.of;
  T* const dout_tile = q_tile + rows * tiles.ld_d;
  T* const k_tile = dout_tile + rows * tiles.ld_v;
  T* const v_tile = k_tile + kColumns * tiles.ld_d;
  load_tile(q_tile, tiles.ld_d, rows_of<const T>(p.q, b, h, seq.q0 + x0, tiles.q), rows, seq.Lq - x0, D);
  load_tile(dout_tile, tiles.ld_v, rows_of<const T>(p.dout, b, h, seq.q0 + x0, tiles.dout), rows, seq.Lq - x0, Dv);

  float sum[2] = {0, 0};
  const int begin = scores.band.from(x0, kColumns), end = scores.band.to(x0, rows);
  for (int y0 = begin; y0 < end; y0 += kColumns) {
    const int have = min(kColumns, seq.Lk - y0);
    load_tile(k_tile, tiles.ld_d, rows_of<const T>(p.k, b, key_head(p, h), seq.k0 + y0, tiles.k), kColumns, have, D);
    load_tile(v_tile, tiles.ld_v, rows_of<const T>(p.v, b, key_head(p, h), seq.k0 + y0, tiles.v), kColumns, have, Dv);
    ptx::copy_async_commit(), ptx::copy_async_wait<0>();
    __syncthreads();
    if (mine)  // of a delta of 0: ds is p drop dP
      scores.template gradients_of_tiles<N>(q_tile, dout_tile, k_tile, v_tile, x0, rows, y0, stats,
                                            [&](int, int e, float ds, int, int) { sum[e / 2] += ds; });
    __syncthreads();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    if (stats[half].of_sum < 0 || lane_of_warp() % 4 != 0) continue;
    const int64_t at = stat_of(p, seq, h, x + 8 * half);
    delta[at] = sum[half] - (p.dlse ? static_cast<const float*>(p.dlse)[at] : 0.0f);
  }
}

template <class T>
void run_confident(const AttentionBackward& p, void* delta, void* stream) {
  AttentionTiles tiles = attention_tiles(AttentionPass::dbias, sizeof(T), p.D, p.Dv, p.Lq, gpu());
  meet_inputs(tiles, p);
  tiles.dout = moves_by_16(p.dout, sizeof(T));
  const int64_t tasks = p.B * p.Hq * tiles.blocks;
  if (tasks > 0)
    HETKERN_LAUNCH((confident_delta_kernel<T>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles,
                   static_cast<float*>(delta));
}

}  // namespace

// ---- Launcher. ------------------------------------------------------------------------------------------------------------

void attention_deltas(const AttentionBackward& p, void* delta, void* stream) {
  const int64_t in_head = p.cu_seqlens_q ? p.rows_q : p.Lq, heads = p.cu_seqlens_q ? p.Hq : p.B * p.Hq;
  const int64_t bytes = size_of(p.type);
  AttentionTiles tiles = attention_tiles(AttentionPass::delta, bytes, 0, p.Dv, in_head, gpu());
  tiles.dout = moves_by_16(p.dout, bytes), tiles.out = moves_by_16(p.out, bytes);
  if (heads * tiles.blocks > 0)
    with_type(p.type, [&](auto type) {
      using T = decltype(type);
      HETKERN_LAUNCH((delta_kernel<T>), heads * tiles.blocks, 32 * tiles.warps, tiles.shared, stream, p, tiles,
                     static_cast<AccumulatorOf<T>*>(delta), static_cast<int>(in_head));
      if constexpr (kTensorCores<T>) run_confident<T>(p, delta, stream);
    });
}

}  // namespace hetkern::cuda
