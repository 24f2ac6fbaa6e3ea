// Attention on a GPU: forward, and what the family's table offers.                                     (the contract: csrc/attention.h)
//
//   s_ij = scale q_i k_j, capped, biased, masked      p_ij = exp(s_ij - lse_i)      out_i = sum_j p_ij drop_ij v_j
//
// Work:    a block takes up to 64 queries of a head, 16 a warp, and the keys that these see, a tile after another; scores stay in
//          registers, and a row's maximum and sum go along (Milakov & Gimelshein 2018, Algorithm 3; Dao et al. 2022).
// Traffic: q is read once, k and v once a block of queries (a head of more than 256 columns, or 128 of float, once a slice of
//          them); out, row_max and log_sum are written once.
// Edges:   lengths are checked by a kernel that runs before; an emptied row gives 0.
#include "attention_backward.h"
#include "device/attention_scores.cuh"
#include "device/check.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

constexpr int kThreads = 32 * kAttentionWarps;

// ---- Lengths. -------------------------------------------------------------------------------------------------------------

// A kernel of its own: a check's message costs registers.
__global__ void __launch_bounds__(kThreads, 1)
    lengths_kernel(const __grid_constant__ AttentionProblem p, const bool backward) {
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

template <class T, int W>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ AttentionTiles tiles) {
  using A = AccumulatorOf<T>;
  constexpr int kColumns = attention_columns(AttentionPass::forward, sizeof(T), W), N = kColumns / 8, O = W / 8;
  struct Memory {
    alignas(16) T of[8];
  };
  HETKERN_SHARED(Memory, memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = 16 * tiles.warps;

  // Which rows.
  const int slice = static_cast<int>(blockIdx.x % tiles.slices);
  const int64_t task = blockIdx.x / tiles.slices;
  const int x0 = (tiles.blocks - 1 - static_cast<int>(task % tiles.blocks)) * rows;  // causal: the longest first
  const int64_t b = task / tiles.blocks / p.Hq, h = task / tiles.blocks % p.Hq;
  const Sequence seq = sequence_of(p, b);
  if (x0 >= seq.Lq) return;
  Scores<T, false> scores(p, seq);
  scores.take_head(h);
  const int x = x0 + 16 * warp + fragment_row(), depth = (static_cast<int>(p.D) + 15) / 16 * 16;
  const int columns = min(static_cast<int>(p.Dv) - slice * W, W);

  // Shared memory: queries | keys, values of a stage | …
  T* const q_tile = memory.of;
  T* const stages = q_tile + rows * tiles.ld_d;
  const int stage_size = kColumns * (tiles.ld_d + tiles.ld_v);
  const auto request = [&](int stage, int y) {
    T* const k_tile = stages + stage * stage_size;
    const int have = min(kColumns, seq.Lk - y);
    load_tile(k_tile, tiles.ld_d, source<T>(p.k, b, key_head(p, h), seq.k0 + y, tiles.k), kColumns, have,
              static_cast<int>(p.D));
    Source<T> v = source<T>(p.v, b, key_head(p, h), seq.k0 + y, tiles.v);
    v.at += slice * W * v.step;
    load_tile(k_tile + kColumns * tiles.ld_d, tiles.ld_v, v, kColumns, have, columns);
    ptx::copy_async_commit();
  };

  A o[O][4], m[2] = {-kInfinity<A>, -kInfinity<A>}, l[2] = {0, 0};  // l: the sum of what this lane has
  clear(o);
  const int begin = scores.band.from(x0, kColumns), end = scores.band.to(x0, rows);
  load_tile(q_tile, tiles.ld_d, source<T>(p.q, b, h, seq.q0 + x0, tiles.q), rows, seq.Lq - x0, static_cast<int>(p.D));
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

    // Scores.
    A s[N][4];
    clear(s);
    multiply_rows<T>(s, q_tile + 16 * warp * tiles.ld_d, tiles.ld_d, k_tile, tiles.ld_d, depth);
    const int y = y0 + fragment_column();
    const bool cut = scores.band.cuts(x0, rows, y0, kColumns);
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
        const A drop = !p.seed ? A(1) : stay >> (4 * t + e) & 1 ? scores.kept : A(0);
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
  ptx::copy_async_wait<0>();
  __syncthreads();  // results go by way of the tiles' memory

  // The sink, and the rows' ends.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    A& total = l[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    A factor = 1;
    if (p.sink) {
      const A sink = get<A>(static_cast<const T*>(p.sink)[h]), largest = larger(m[half], sink);
      const A zero = largest == -kInfinity<A> ? A(0) : largest;
      factor = exp_one(m[half] - zero), total = total * factor + exp_one(sink - zero), m[half] = largest;
    }
    const bool emptied = total == A(0);
    const int i = x + 8 * half;
    if (i < seq.Lq && slice == 0 && lane_of_warp() % 4 == 0) {
      const int64_t at = stat_of(p, seq, h, i);
      static_cast<A*>(p.row_max)[at] = m[half];
      static_cast<A*>(p.log_sum)[at] = emptied ? A(0) : log_one(total);
    }
    factor /= total;
#pragma unroll
    for (int u = 0; u < O; ++u)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) o[u][e] = emptied ? A(0) : o[u][e] * factor;
  }
  if (columns > 0) {
    const int first = x0 + 16 * warp;
    T* const to = at<T>(p.out, b, h, seq.q0 + first) + slice * W * p.out.step;
    store_rows(memory.of + 16 * warp * (W + kChunk<T>), o, A(1), A(1), to, p.out.row, p.out.step, tiles.out,
               seq.Lq - first, columns);
  }
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
void run_forward(const AttentionForward& p, const AttentionTiles& tiles, void* stream) {
  const int64_t tasks = p.B * p.Hq * tiles.blocks * tiles.slices;
  if (tasks > 0) HETKERN_LAUNCH((forward_kernel<T, W>), tasks, 32 * tiles.warps, tiles.shared, stream, p, tiles);
}

void forward(const AttentionForward& p, AttentionPlan, void* stream) {
  check_attention_lengths(p, false, stream);
  AttentionTiles tiles = attention_tiles(AttentionPass::forward, size_of(p.type), p.D, p.Dv, p.Lq, gpu());
  meet_inputs(tiles, p);
  tiles.out = moves_by_16(p.out, size_of(p.type));
  with_type_and_width(p.type, tiles.width,
                      [&](auto type, auto width) { run_forward<decltype(type), width.value>(p, tiles, stream); });
}

}  // namespace

void check_attention_lengths(const AttentionProblem& p, bool backward, void* stream) {
  if (p.cu_seqlens_q || p.seqlens_k) HETKERN_LAUNCH(lengths_kernel, 1, kThreads, 0, stream, p, backward);
}

const AttentionKernels& attention_kernels() {
  static const AttentionKernels kernels{plan, forward, attention_backward};
  return kernels;
}

}  // namespace hetkern::cuda
