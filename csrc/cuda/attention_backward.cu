// Attention's gradients on a GPU: by q, and by k and v.                                                (the contract: csrc/attention.h)
//
//   p_ij = exp(s_ij - lse_i)      ds_ij = p_ij (drop_ij dout_i v_j - delta_i)      dr_ij = ds_ij (1 - tanh^2)
//   dq_i = scale sum_j dr_ij k_j      dk_j = scale sum_i dr_ij q_i      dv_j = sum_i p_ij drop_ij dout_i
//
// Work:    one pass gives dq, a block for some queries of a head; another gives dk and dv, a block for some keys of a key head,
//          which goes through the group's query heads and their queries in order. No two blocks add to one number: same bits always.
// Traffic: dq's pass reads q and dout once and k and v once a block of queries; the other one reads k and v once, and q and dout
//          once a block of keys. Results are written once.
// Edges:   as forward; a gradient that nobody wants is not computed.
#include "attention_backward.h"
#include "device/attention_scores.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

constexpr int kThreads = 32 * kAttentionWarps;

// ---- dq, and each row's sum for dslopes. ----------------------------------------------------------------------------------

template <class T, int W>
__global__ void __launch_bounds__(kThreads, 1)
    dq_kernel(const __grid_constant__ AttentionBackward p, const __grid_constant__ AttentionTiles tiles,
              const AccumulatorOf<T>* const delta, AccumulatorOf<T>* const slope_sums) {
  using A = AccumulatorOf<T>;
  constexpr int kColumns = attention_columns(AttentionPass::dq, sizeof(T), W), N = kColumns / 8, O = W / 8;
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps;

  // Which rows.
  const int slice = static_cast<int>(blockIdx.x % tiles.slices);
  const int64_t task = blockIdx.x / tiles.slices;
  const int x0 = (tiles.blocks - 1 - static_cast<int>(task % tiles.blocks)) * rows;
  const int b = static_cast<int>(task / tiles.blocks / p.Hq), h = static_cast<int>(task / tiles.blocks % p.Hq);
  const Sequence seq = sequence_of(p, b);
  if (x0 >= seq.Lq) return;
  Scores<T, false> scores(p, tiles, seq);
  scores.take_head(h);
  const int x = x0 + 16 * warp + fragment_row(), D = static_cast<int>(p.D), Dv = static_cast<int>(p.Dv);
  const int depth = (D + 15) / 16 * 16, depth_v = (Dv + 15) / 16 * 16, columns = min(D - slice * W, W);
  RowStats<A> stats[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = x + 8 * half;
    stats[half] = {A(0), A(-1), A(0)};
    if (i < seq.Lq) stats[half] = row_stats(p.row_max, p.log_sum, delta, stat_of(p, seq, h, i));
  }

  // Shared memory: queries, dout | keys, values of a stage | …
  T* const q_tile = memory.of;
  T* const dout_tile = q_tile + rows * tiles.ld_d;
  T* const stages = dout_tile + rows * tiles.ld_v;
  const int stage_size = kColumns * (tiles.ld_d + tiles.ld_v);
  const auto request = [&](int stage, int y) {
    T* const k_tile = stages + stage * stage_size;
    const int have = min(kColumns, seq.Lk - y);
    load_tile(k_tile, tiles.ld_d, rows_of<const T>(p.k, b, key_head(p, h), seq.k0 + y, tiles.k), kColumns, have, D);
    load_tile(k_tile + kColumns * tiles.ld_d, tiles.ld_v, rows_of<const T>(p.v, b, key_head(p, h), seq.k0 + y, tiles.v),
              kColumns, have, Dv);
    ptx::copy_async_commit();
  };

  A o[O][4], slope_sum[2] = {0, 0};
  clear(o);
  const int begin = scores.band.from(x0, kColumns), end = scores.band.to(x0, rows);
  load_tile(q_tile, tiles.ld_d, rows_of<const T>(p.q, b, h, seq.q0 + x0, tiles.q), rows, seq.Lq - x0, D);
  load_tile(dout_tile, tiles.ld_v, rows_of<const T>(p.dout, b, h, seq.q0 + x0, tiles.dout), rows, seq.Lq - x0, Dv);
  ptx::copy_async_commit();
  if (begin < end) request(0, begin);
  for (int y0 = begin, stage = 0; y0 < end; y0 += kColumns) {
    const bool more = y0 + kColumns < end;
    if (more && tiles.stages == 2)
      request(stage ^ 1, y0 + kColumns), ptx::copy_async_wait<1>();
    else
      ptx::copy_async_wait<0>();
    __syncthreads();
    const T* const k_tile = stages + stage * stage_size;

    A s[N][4], dp[N][4];
    clear(s), clear(dp);
    multiply_rows<T>(s, q_tile + 16 * warp * tiles.ld_d, tiles.ld_d, k_tile, tiles.ld_d, depth);
    multiply_rows<T>(dp, dout_tile + 16 * warp * tiles.ld_v, tiles.ld_v, k_tile + kColumns * tiles.ld_d, tiles.ld_v,
                     depth_v);
    const int y = y0 + fragment_column();
    const bool cut = scores.band.cuts(x0, rows, y0, kColumns);
    uint32_t seen = scores.template seen<N>(x, y, cut);
    const uint32_t stay = scores.template stays<N>(x, y);
    scores.gradients(
        s, dp, x, y, seen, stay, [&](int e, int) { return stats[e / 2]; },
        [&](int, int e, A ds, int row, int column) {
          if (p.dslopes) slope_sum[e / 2] -= ds * scores.distance(row, column);
        });
    if (p.dq) multiply_columns<T>(o, s, seen, k_tile + slice * W, tiles.ld_d, columns, scores.careful(cut));
    __syncthreads();
    if (tiles.stages == 2)
      stage ^= 1;
    else if (more)
      request(0, y0 + kColumns);
  }
  ptx::copy_async_wait<0>();
  __syncthreads();  // results go by way of the tiles' memory

  if (p.dslopes && slice == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      A sum = slope_sum[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int i = x + 8 * half;
      if (i < seq.Lq && lane_of_warp() % 4 == 0) slope_sums[stat_of(p, seq, h, i)] = sum;
    }
  }
  if (p.dq && columns > 0) {
    const int first = x0 + 16 * warp;
    TileRows<T> to = rows_of<T>(p.dq, b, h, seq.q0 + first, tiles.dq);
    to.at += slice * W * p.dq.step;
    store_rows(memory.of + 16 * warp * (W + kChunk<T>), o, scores.scale(), scores.scale(), to, seq.Lq - first, columns);
  }
}

// ---- dk and dv. -----------------------------------------------------------------------------------------------------------

template <class T, int W>
__global__ void __launch_bounds__(kThreads, 1)
    dk_dv_kernel(const __grid_constant__ AttentionBackward p, const __grid_constant__ AttentionTiles tiles,
                 const AccumulatorOf<T>* const delta) {
  using A = AccumulatorOf<T>;
  constexpr int kColumns = attention_columns(AttentionPass::dk_dv, sizeof(T), W), N = kColumns / 8, O = W / 8;
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps;

  // Which rows.
  const int slice = static_cast<int>(blockIdx.x % tiles.slices);
  const int64_t task = blockIdx.x / tiles.slices;
  const int x0 = static_cast<int>(task % tiles.blocks) * rows;  // causal: the longest first
  const int b = static_cast<int>(task / tiles.blocks / p.Hkv), h_k = static_cast<int>(task / tiles.blocks % p.Hkv);
  const int group = static_cast<int>(p.Hq / p.Hkv);
  const Sequence seq = sequence_of(p, b);
  Scores<T, true> scores(p, tiles, seq);
  const int x = x0 + 16 * warp + fragment_row(), D = static_cast<int>(p.D), Dv = static_cast<int>(p.Dv);
  const int depth = (D + 15) / 16 * 16, depth_v = (Dv + 15) / 16 * 16;
  const int columns = min(D - slice * W, W), columns_v = min(Dv - slice * W, W);
  // Keys of a cache behind its sequence's get zeros.
  const int room = p.cu_seqlens_q ? seq.Lk : static_cast<int>(p.Lk);
  if (x0 >= room) return;

  // Shared memory: keys, values | queries, dout, their rows' numbers of a stage | …
  T* const k_tile = memory.of;
  T* const v_tile = k_tile + rows * tiles.ld_d;
  T* const stages = v_tile + rows * tiles.ld_v;
  constexpr int kStats = 3 * kColumns * static_cast<int>(sizeof(A) / sizeof(T));
  const int stage_size = kColumns * (tiles.ld_d + tiles.ld_v) + kStats;
  const int begin = scores.band.from(x0, kColumns), end = x0 < seq.Lk ? scores.band.to(x0, rows) : 0;
  const auto stats_of = [&](int stage) {
    return reinterpret_cast<A*>(stages + stage * stage_size + kColumns * (tiles.ld_d + tiles.ld_v));
  };
  const auto request = [&](int stage, int h, int y) {
    const int have = min(kColumns, seq.Lq - y);
    T* const q_tile = stages + stage * stage_size;
    load_tile(q_tile, tiles.ld_d, rows_of<const T>(p.q, b, h, seq.q0 + y, tiles.q), kColumns, have, D);
    load_tile(q_tile + kColumns * tiles.ld_d, tiles.ld_v, rows_of<const T>(p.dout, b, h, seq.q0 + y, tiles.dout),
              kColumns, have, Dv);
    ptx::copy_async_commit();
    for (int c = static_cast<int>(threadIdx.x); c < kColumns; c += static_cast<int>(blockDim.x)) {
      RowStats<A> stat{A(0), A(-1), A(0)};
      if (c < have) stat = row_stats(p.row_max, p.log_sum, delta, stat_of(p, seq, h, y + c));
      A* const to = stats_of(stage) + c;
      to[0] = stat.max, to[kColumns] = stat.of_sum, to[2 * kColumns] = stat.delta;
    }
  };

  A dk[O][4], dv[O][4];
  clear(dk), clear(dv);
  load_tile(k_tile, tiles.ld_d, rows_of<const T>(p.k, b, h_k, seq.k0 + x0, tiles.k), rows, seq.Lk - x0, D);
  load_tile(v_tile, tiles.ld_v, rows_of<const T>(p.v, b, h_k, seq.k0 + x0, tiles.v), rows, seq.Lk - x0, Dv);
  ptx::copy_async_commit();
  // The group's heads one after another, and of each its queries.
  const int end_head = begin < end ? h_k * group + group : 0;
  int h = h_k * group, y0 = begin, stage = 0;
  if (h < end_head) request(0, h, y0);
  while (h < end_head) {
    const bool same_head = y0 + kColumns < end;
    const int next_h = same_head ? h : h + 1, next_y0 = same_head ? y0 + kColumns : begin;
    const bool more = next_h < end_head;
    if (more && tiles.stages == 2)
      request(stage ^ 1, next_h, next_y0), ptx::copy_async_wait<1>();
    else
      ptx::copy_async_wait<0>();
    __syncthreads();
    const T* const q_tile = stages + stage * stage_size;
    const T* const dout_tile = q_tile + kColumns * tiles.ld_d;
    const A* const stats = stats_of(stage) + fragment_column();
    scores.take_head(h);

    A s[N][4], dp[N][4];
    clear(s), clear(dp);
    multiply_rows<T>(s, k_tile + 16 * warp * tiles.ld_d, tiles.ld_d, q_tile, tiles.ld_d, depth);
    multiply_rows<T>(dp, v_tile + 16 * warp * tiles.ld_v, tiles.ld_v, dout_tile, tiles.ld_v, depth_v);
    const int y = y0 + fragment_column();
    const bool cut = scores.band.cuts(x0, rows, y0, kColumns);
    uint32_t seen = scores.template seen<N>(x, y, cut);
    const uint32_t stay = scores.template stays<N>(x, y);
    scores.gradients(
        s, dp, x, y, seen, stay,
        [&](int, int column) {
          return RowStats<A>{stats[column], stats[kColumns + column], stats[2 * kColumns + column]};
        },
        [](int, int, A, int, int) {});
    const bool careful = scores.careful(cut);
    if (p.dv) multiply_columns<T>(dv, dp, seen, dout_tile + slice * W, tiles.ld_v, columns_v, careful);
    if (p.dk) multiply_columns<T>(dk, s, seen, q_tile + slice * W, tiles.ld_d, columns, careful);
    __syncthreads();
    if (tiles.stages == 2)
      stage ^= 1;
    else if (more)
      request(0, next_h, next_y0);
    h = next_h, y0 = next_y0;
  }
  ptx::copy_async_wait<0>();
  __syncthreads();  // results go by way of the tiles' memory

  const int first = x0 + 16 * warp;
  T* const staged = memory.of + 16 * warp * (W + kChunk<T>);
  if (p.dv && columns_v > 0) {
    TileRows<T> to = rows_of<T>(p.dv, b, h_k, seq.k0 + first, tiles.dv);
    to.at += slice * W * p.dv.step;
    store_rows(staged, dv, A(1), A(1), to, room - first, columns_v);
  }
  __syncwarp();
  if (p.dk && columns > 0) {
    TileRows<T> to = rows_of<T>(p.dk, b, h_k, seq.k0 + first, tiles.dk);
    to.at += slice * W * p.dk.step;
    store_rows(staged, dk, scores.scale(), scores.scale(), to, room - first, columns);
  }
}

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

AttentionTiles tiles_of(AttentionPass pass, const AttentionBackward& p, int64_t rows) {
  const int64_t bytes = size_of(p.type);
  AttentionTiles tiles = attention_tiles(pass, bytes, p.D, p.Dv, rows, gpu());
  meet_inputs(tiles, p);
  tiles.dout = moves_by_16(p.dout, bytes);
  tiles.dq = moves_by_16(p.dq, bytes), tiles.dk = moves_by_16(p.dk, bytes), tiles.dv = moves_by_16(p.dv, bytes);
  return tiles;
}

template <class T, int W>
void run_dq(const AttentionBackward& p, const AttentionTiles& tiles, const void* delta, void* slope_sums,
            void* stream) {
  using A = AccumulatorOf<T>;
  const int64_t tasks = p.B * p.Hq * tiles.blocks * tiles.slices;
  if (tasks > 0)
    HETKERN_LAUNCH((dq_kernel<T, W>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles,
                   static_cast<const A*>(delta), static_cast<A*>(slope_sums));
}

template <class T, int W>
void run_dk_dv(const AttentionBackward& p, const AttentionTiles& tiles, const void* delta, void* stream) {
  const int64_t tasks = p.B * p.Hkv * tiles.blocks * tiles.slices;
  if (tasks > 0)
    HETKERN_LAUNCH((dk_dv_kernel<T, W>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles,
                   static_cast<const AccumulatorOf<T>*>(delta));
}

}  // namespace

void attention_backward(const AttentionBackward& p, AttentionPlan, void* stream) {
  check_attention_lengths(p, true, stream);
  void* const delta = p.workspace;
  void* const slope_sums =
      static_cast<char*>(p.workspace) + attention_rows(p) * (p.type == DType::f64 ? sizeof(double) : sizeof(float));
  attention_deltas(p, delta, stream);
  if (p.dq || p.dslopes) {
    const AttentionTiles tiles = tiles_of(AttentionPass::dq, p, p.Lq);
    with_type_and_width<AttentionPass::dq>(p.type, tiles.width, [&](auto type, auto width) {
      run_dq<decltype(type), width.value>(p, tiles, delta, slope_sums, stream);
    });
  }
  if (p.dk || p.dv) {
    const AttentionTiles tiles = tiles_of(AttentionPass::dk_dv, p, p.Lk);
    with_type_and_width<AttentionPass::dk_dv>(p.type, tiles.width, [&](auto type, auto width) {
      run_dk_dv<decltype(type), width.value>(p, tiles, delta, stream);
    });
  }
  if (p.dbias) attention_dbias(p, delta, stream);
  if (p.dsink || p.dslopes) attention_sums(p, delta, slope_sums, stream);
}

}  // namespace hetkern::cuda
