// Attention on a GPU: forward, and what the family's table offers.                                     (the contract: csrc/attention.h)
//
//   s_ij = scale q_i k_j, capped, biased, masked      p_ij = exp(s_ij - lse_i)      out_i = sum_j p_ij drop_ij v_j
//
// Work:    a block takes up to 64 queries of a head, 16 a warp, and the keys that these see, a tile after another; scores stay in
//          registers, and a row's maximum and sum go along (Milakov & Gimelshein 2018, Algorithm 3; Dao et al. 2022). Every 1024
//          keys begin anew, and are put together with those before. Few queries are folded: the heads of a group stand in one tile's
//          rows, and blocks take one such part of the keys each (but heads of more than 128 columns in 16 bits, whose sums leave
//          no registers for it).
// Traffic: q is read once, k and v once a block of queries (of float's heads of more than 128 columns, k once a slice of them),
//          folded so once a group; out, row_max and log_sum are written once. Beyond 1024 keys a block's sums go aside and come
//          back once a part.
// Edges:   lengths are checked by a kernel that runs before; an emptied row gives 0.
#include "attention_backward.h"
#include "device/attention_parts.cuh"
#include "device/check.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

constexpr int kThreads = 32 * kAttentionWarps;

// ---- Lengths. -------------------------------------------------------------------------------------------------------------

// A kernel of its own: a check's message costs registers.
__global__ void __launch_bounds__(kThreads, 1)
    attention_lengths_kernel(const __grid_constant__ AttentionProblem p, const bool backward) {
  const char* const suffix = backward ? "_backward" : "";
  const auto shown = [](int64_t n) { return static_cast<long long>(n); };
  for (int64_t b = threadIdx.x; b < p.B; b += kThreads) {
    if (p.seqlens_k) {
      HETKERN_DEVICE_CHECK_VALUE(
          p.seqlens_k[b] >= 0 && p.seqlens_k[b] <= p.Lk,
          "hetkern::attention%s: seqlens_k: wanted lengths in [0, %lld], got %lld for row %lld\n", suffix, shown(p.Lk),
          shown(p.seqlens_k[b]), shown(b));
      continue;
    }
    for (int side = 0; side < 2; ++side) {
      const int32_t* const ends = side ? p.cu_seqlens_k : p.cu_seqlens_q;
      const char name = side ? 'k' : 'q';
      const int64_t most = side ? p.Lk : p.Lq, length = int64_t{ends[b + 1]} - ends[b];
      HETKERN_DEVICE_CHECK_VALUE(b > 0 || ends[0] == 0,
                                 "hetkern::attention%s: cu_seqlens_%c: wanted 0 first, got %lld\n", suffix, name,
                                 shown(ends[0]));
      HETKERN_DEVICE_CHECK_VALUE(
          length >= 0, "hetkern::attention%s: cu_seqlens_%c: wanted rising numbers, got %lld before %lld at %lld\n",
          suffix, name, shown(ends[b]), shown(ends[b + 1]), shown(b + 1));
      HETKERN_DEVICE_CHECK_VALUE(
          length <= most,
          "hetkern::attention%s: max_seqlen_%c: wanted at least %lld, sequence %lld's length, got %lld\n", suffix, name,
          shown(length), shown(b), shown(most));
    }
  }
  if (threadIdx.x != 0 || !p.cu_seqlens_q) return;
  for (int side = 0; side < 2; ++side) {
    const int64_t last = side ? p.cu_seqlens_k[p.B] : p.cu_seqlens_q[p.B], rows = side ? p.rows_k : p.rows_q;
    HETKERN_DEVICE_CHECK_VALUE(last == rows,
                               "hetkern::attention%s: cu_seqlens_%c: wanted %lld, the number of rows, last, got %lld\n",
                               suffix, side ? 'k' : 'q', shown(rows), shown(last));
  }
}

// ---- Forward. -------------------------------------------------------------------------------------------------------------

// Which rows a block takes; causal: the longest first. Folded: of the group that h begins.
struct Share {
  int slice, x0, b, h;
};
template <class T, bool kFold>
__device__ __forceinline__ Share share_of(const AttentionProblem& p, const AttentionTiles& tiles, int64_t task) {
  const int64_t block = task / tiles.slices, head = block / tiles.blocks;
  const int64_t heads = kFold ? p.Hkv : p.Hq;
  constexpr bool kSlices = attention_widest(AttentionPass::forward, sizeof(T)) < kMostHeadSize;
  return {kSlices ? static_cast<int>(task % tiles.slices) : 0,
          (tiles.blocks - 1 - static_cast<int>(block % tiles.blocks)) * 16 * tiles.warps,
          static_cast<int>(head / heads), static_cast<int>(head % heads) * (kFold ? tiles.heads : 1)};
}
template <bool kFold>
__device__ __forceinline__ int rows_of_sequence(const AttentionTiles& tiles, const Sequence& seq) {
  return kFold ? seq.Lq * tiles.heads : seq.Lq;
}

// The sink, and the rows' ends, by way of shared memory that is the warp's own.
template <class T, bool kFold, class A, int W>
__device__ __forceinline__ void finish(const AttentionForward& p, const AttentionTiles& tiles, const Sequence& seq,
                                       const Share& share, Partial<A, W>& rows, T* stage) {
  const int first = share.x0 + 16 * (static_cast<int>(threadIdx.x) / 32);
  const int have = rows_of_sequence<kFold>(tiles, seq) - first;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    A &total = rows.l[half], &largest = rows.m[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    A factor = 1;
    const int row = fragment_row() + 8 * half, x = row < have ? first + row : 0;
    const int i = kFold ? x / tiles.heads : x, h = share.h + (kFold ? x % tiles.heads : 0);
    if (p.sink) {
      const A sink = get<A>(static_cast<const T*>(p.sink)[h]), top = larger(largest, sink);
      const A zero = top == -kInfinity<A> ? A(0) : top;
      factor = exp_one(largest - zero), total = total * factor + exp_one(sink - zero), largest = top;
    }
    const bool emptied = total == A(0);
    if (row < have && share.slice == 0 && lane_of_warp() % 4 == 0) {
      const int64_t at = stat_of(p, seq, h, i);
      static_cast<A*>(p.row_max)[at] = largest;
      static_cast<A*>(p.log_sum)[at] = emptied ? A(0) : log_one(total);
    }
    factor /= total;
#pragma unroll
    for (int u = 0; u < W / 8; ++u)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) rows.o[u][e] = emptied ? A(0) : rows.o[u][e] * factor;
  }
  const int columns = min(static_cast<int>(p.Dv) - share.slice * W, W);
  if (columns > 0) {
    TileRows<T, kFold> to = queries_of<T, kFold>(p.out, tiles, seq, share.h, first, tiles.out);
    to.at += share.slice * W * p.out.step;
    store_rows(stage, rows.o, A(1), A(1), to, have, columns);
  }
}

template <class T, int W, bool kFold>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ AttentionTiles tiles) {
  using A = AccumulatorOf<T>;
  constexpr int kColumns = attention_columns(AttentionPass::forward, sizeof(T), W), N = kColumns / 8, O = W / 8;
  constexpr int kPart = attention_part(W);
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps;

  // Which rows, and which of their keys.
  const bool split = kFold && kPart > 0 && tiles.split;
  const unsigned tasks = split ? gridDim.x / tiles.parts : gridDim.x;
  const int part = split ? static_cast<int>(blockIdx.x / tasks) : 0;
  const Share share = share_of<T, kFold>(p, tiles, split ? blockIdx.x % tasks : blockIdx.x);
  const int slice = share.slice, x0 = share.x0, b = share.b, h = share.h;
  const Sequence seq = sequence_of(p, b);
  const int there = rows_of_sequence<kFold>(tiles, seq);
  if (x0 >= there) return;
  Scores<T, false, kFold> scores(p, tiles, seq);
  scores.take_head(h);
  int begin = scores.from(x0, kColumns), end = scores.to(x0, rows);
  if (split) {
    begin = max(begin, part * kPart), end = min(end, (part + 1) * kPart);
    if (begin >= end) return;  // nor does the next kernel look here
  }
  const int x = x0 + 16 * warp + fragment_row(), depth = (static_cast<int>(p.D) + 15) / 16 * 16;
  const int columns = min(static_cast<int>(p.Dv) - slice * W, W);

  // Shared memory: queries | keys, values of a stage | …
  T* const q_tile = memory.of;
  T* const stages = q_tile + rows * tiles.ld_d;
  const int stage_size = kColumns * (tiles.ld_d + tiles.ld_v);
  const auto request = [&](int stage, int y) {
    T* const k_tile = stages + stage * stage_size;
    const int have = min(kColumns, seq.Lk - y);
    load_tile(k_tile, tiles.ld_d, rows_of<const T>(p.k, b, key_head(p, h), seq.k0 + y, tiles.k), kColumns, have,
              static_cast<int>(p.D));
    TileRows<const T> v = rows_of<const T>(p.v, b, key_head(p, h), seq.k0 + y, tiles.v);
    v.at += slice * W * v.step;
    load_tile(k_tile + kColumns * tiles.ld_d, tiles.ld_v, v, kColumns, have, columns);
    ptx::copy_async_commit();
  };

  Partial<A, W> held;
  held.reset();
  auto& o = held.o;
  auto &m = held.m, &l = held.l;
  load_tile(q_tile, tiles.ld_d, queries_of<const T, kFold>(p.q, tiles, seq, h, x0, tiles.q), rows, there - x0,
            static_cast<int>(p.D));
  ptx::copy_async_commit();
  if (begin < end) request(0, begin);
  int y0 = begin, stage = 0;
  do {  // a part of the keys
    int part_end = end;
    if constexpr (kPart > 0) part_end = min(end, (y0 / kPart + 1) * kPart);
    for (; y0 < part_end; y0 += kColumns) {
      const bool more = y0 + kColumns < end;
      if (more && tiles.stages == 2)
        request(stage ^ 1, y0 + kColumns), ptx::copy_async_wait<1>();
      else
        ptx::copy_async_wait<0>();
      __syncthreads();
      const T* const k_tile = stages + stage * stage_size;

      // Scores.
      A s[N][4];
      clear(s);
      multiply_rows<T>(s, q_tile + 16 * warp * tiles.ld_d, tiles.ld_d, k_tile, tiles.ld_d, depth);
      const int y = y0 + fragment_column();
      const bool cut = scores.cuts(x0, rows, y0, kColumns);
      const uint32_t seen = scores.template seen<N>(x, y, cut);
      A most[2] = {m[0], m[1]};
#pragma unroll
      for (int t = 0; t < N; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const bool is_seen = seen >> (4 * t + e) & 1;
          A by_cap;
          const A z = scores.score(s[t][e], x + e / 2 * 8, y + 8 * t + e % 2, is_seen, by_cap);
          s[t][e] = is_seen ? z : -kInfinity<A>;
          most[e / 2] = larger(most[e / 2], s[t][e]);
        }

      // Their weights, on the scale of the largest so far.
      A shift[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        A& largest = most[half];
        largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        shift[half] = largest == -kInfinity<A> ? A(0) : largest;
        const A factor = exp_nonpositive(m[half] - shift[half]);
        m[half] = largest, l[half] *= factor;
#pragma unroll
        for (int u = 0; u < O; ++u) o[u][2 * half] *= factor, o[u][2 * half + 1] *= factor;
      }
      const uint32_t stay = scores.template stays<N>(x, y);
      A sum[2] = {0, 0};
#pragma unroll
      for (int t = 0; t < N; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const A weight = exp_nonpositive(s[t][e] - shift[e / 2]);
          sum[e / 2] += weight;
          const A drop = !p.seed ? A(1) : stay >> (4 * t + e) & 1 ? scores.kept() : A(0);
          s[t][e] = seen >> (4 * t + e) & 1 ? weight * drop : A(kUnseen);
        }
      l[0] += sum[0], l[1] += sum[1];

      multiply_columns<T>(o, s, seen, k_tile + kColumns * tiles.ld_d, tiles.ld_v, columns, scores.careful(cut));
      __syncthreads();
      if (tiles.stages == 2)
        stage ^= 1;
      else if (more)
        request(0, y0 + kColumns);
    }
    if constexpr (kPart > 0) {
      // y0 is not negative: by it numbers are found here, not before the loop, where they would take registers.
      const int none = min(y0, 0);
      const bool first = split || part_end <= (scores.from(x0 + none, kColumns) / kPart + 1) * kPart;
      if (first && y0 >= end && !split) break;
      const Aside<A, W> aside(p, tiles, seq, h + none, x + none, there, slice, part);
      if (!first) aside.template add_to<true>(held);
      if (y0 < end || split) {
        aside.put(held);
        held.reset();
      }
    }
  } while (y0 < end);
  ptx::copy_async_wait<0>();
  __syncthreads();  // results go by way of the tiles' memory
  if (!split) finish<T, kFold>(p, tiles, seq, share, held, memory.of + 16 * warp * (W + kChunk<T>));
}

// Puts the parts together that blocks took one each.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 1)
    parts_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ AttentionTiles tiles) {
  using A = AccumulatorOf<T>;
  constexpr int kColumns = attention_columns(AttentionPass::forward, sizeof(T), W), kPart = attention_part(W);
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Share share = share_of<T, true>(p, tiles, blockIdx.x);
  const Sequence seq = sequence_of(p, share.b);
  const int there = rows_of_sequence<true>(tiles, seq);
  if (share.x0 >= there) return;
  const Scores<T, false, true> scores(p, tiles, seq);
  const int begin = scores.from(share.x0, kColumns), end = scores.to(share.x0, 16 * tiles.warps);
  Partial<A, W> held;
  held.reset();
  for (int part = begin / kPart; begin < end && part * kPart < end; ++part)
    Aside<A, W>(p, tiles, seq, share.h, share.x0 + 16 * warp + fragment_row(), there, share.slice, part)
        .template add_to<false>(held);
  finish<T, true>(p, tiles, seq, share, held, memory.of + 16 * warp * (W + kChunk<T>));
}

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

// No torch here, nor its messages' helpers.
void check_head_size(const AttentionShape& shape, const char* name, int64_t columns) {
  if (columns > kMostHeadSize)
    throw std::invalid_argument(std::string("hetkern::attention") + (shape.backward ? "_backward: " : ": ") + name +
                                ": wanted at most " + std::to_string(kMostHeadSize) + " columns on a GPU, got " +
                                std::to_string(columns));
}

AttentionPlan plan(const AttentionShape& shape) {
  check_head_size(shape, "q", shape.D), check_head_size(shape, "v", shape.Dv);
  return attention_plan(shape, gpu());
}

template <class T, int W>
void run_forward(const AttentionForward& p, const AttentionTiles& tiles, bool fold, void* stream) {
  const int64_t tasks = p.B * p.Hq / tiles.heads * tiles.blocks * tiles.slices;
  if (tasks == 0) return;
  if (!fold) {
    HETKERN_LAUNCH((forward_kernel<T, W, false>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles);
    return;
  }
  HETKERN_LAUNCH((forward_kernel<T, W, true>), tiles.split ? tasks * tiles.parts : tasks, 32 * tiles.warps,
                 tiles.shared, stream, p, tiles);
  if constexpr (attention_part(W) > 0)
    if (tiles.split) HETKERN_LAUNCH((parts_kernel<T, W>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles);
}

void forward(const AttentionForward& p, AttentionPlan plan, void* stream) {
  check_attention_lengths(p, false, stream);
  const int heads = plan.fold ? static_cast<int>(p.Hq / p.Hkv) : 1;
  AttentionTiles tiles = attention_tiles(AttentionPass::forward, size_of(p.type), p.D, p.Dv, heads * p.Lq, gpu());
  tiles.heads = heads;
  meet_inputs(tiles, p);
  tiles.out = moves_by_16(p.out, size_of(p.type));
  tiles.rows = attention_rows(p), tiles.parts = plan.parts, tiles.split = plan.path == AttentionPath::split_keys;
  with_type_and_width<AttentionPass::forward>(p.type, tiles.width, [&](auto type, auto width) {
    run_forward<decltype(type), width.value>(p, tiles, plan.fold, stream);
  });
}

}  // namespace

void check_attention_lengths(const AttentionProblem& p, bool backward, void* stream) {
  if (p.cu_seqlens_q || p.seqlens_k) HETKERN_LAUNCH(attention_lengths_kernel, 1, kThreads, 0, stream, p, backward);
}

const AttentionKernels& attention_kernels() {
  static const AttentionKernels kernels{plan, forward, attention_backward};
  return kernels;
}

}  // namespace hetkern::cuda
