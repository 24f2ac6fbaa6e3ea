// Attention, dense, packed and over a cache: the contract of every implementation.  No torch here: kernels include this file.
//
//   s_ij = softcap tanh(scale q_i k_j / softcap) - slope |i + Lk - Lq - j| + bias_ij      (scale q_i k_j without a softcap)
//   s_ij = -inf where mask_ij is false, where causal and j > i + Lk - Lq, and outside the window
//          i + Lk - Lq - left <= j <= i + Lk - Lq + right
//   row_max_i = max(max_j s_ij, sink)      log_sum_i = log(sum_j exp(s_ij - row_max_i) + exp(sink - row_max_i))
//   p_ij  = exp(s_ij - row_max_i - log_sum_i)      drop_ij = 0 or 1 / (1 - dropout_p)      out_i = sum_j p_ij drop_ij v_j
//
//   delta_i = dout_i out_i - dlse_i        ds_ij = p_ij (drop_ij dout_i v_j - delta_i)      dv_j = sum_i p_ij drop_ij dout_i
//   dr_ij = ds_ij (1 - tanh^2)             dq_i = scale sum_j dr_ij k_j                     dk_j = scale sum_i dr_ij q_i
//   dbias = ds, summed over what was broadcast     dslope = -sum_ij ds_ij |i + Lk - Lq - j|  dsink = -sum_i exp(sink - lse_i) delta_i
//
// q: (B, Hq, Lq, D), k: (B, Hkv, Lk, D), v: (B, Hkv, Lk, Dv), out: (B, Hq, Lq, Dv): T (float, double, half, bfloat16); query head
// h reads key head h / (Hq / Hkv). Everything else is A: float, double for double. Packed: (rows, heads, columns), sequence n
// has rows cu_seqlens[n] … cu_seqlens[n + 1] - 1. A cache: row b of the batch has seqlens_k[b] keys for Lk; what lies behind
// them is not read.
// 16 bits: operands of a product are rounded to T, so the weights beside v and dout are, on the scale of their row's largest (a
// key that has a row for itself weighs 1), and dr is beside q and k; sums, and l among them, are A. With u = eps / 2, that is
//   |out_i - exact| <= u (sum_j p_ij drop_ij |v_j| + |out_i|)      |dq_i - exact| <= u (scale sum_j |dr_ij| |k_j| + |dq_i|)
// and dk, dv likewise: as close as a result's own rounding, but where values cancel. An implementation may do without.
// Dropout: Philox4x32-10, the key is the seed's low and high word, the counter (j / 4, i, b Hq + h, 0); word j mod 4 of the
// result stays if it is at least dropout_p 2^32. i and j count within the sequence, b is the sequence.
// Edges: an emptied row without a sink gives out 0, row_max -inf, log_sum 0 and no gradient; with one, lse is the sink. NaN in a
// query stays in its row; NaN in k or v reaches the rows that see that key, and no others.
#pragma once
#include "bf16_product.h"
#include "rows.h"

namespace hetkern {

// A tensor with a row for each batch, head and position; strides are in elements, 0 where it is broadcast.
struct Heads {
  void* data;  // null: absent
  int64_t batch, head, row, step;
  HETKERN_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// What a row attends to, and what it adds to scores.
struct AttentionProblem {
  DType type;                         // T
  int64_t B, Hq, Hkv, Lq, Lk, D, Dv;  // packed: B sequences, of at most Lq queries and Lk keys
  Heads q, k, v;                      // T; packed: no batch stride, rows count from the first sequence's
  double scale, softcap;              // softcap 0: none
  bool causal;
  int64_t window_left, window_right;  // -1: unbounded
  const void* slopes;                 // A; may be null, as may all that follow
  int64_t slope_batch, slope_head;    // its strides
  Heads bias;                         // T, broadcast to (B, Hq, Lq, Lk)
  Heads mask;                         // bool, true = keep, broadcast likewise
  const void* sink;                   // T (Hq), contiguous
  double dropout_p;                   // 0: none
  const int64_t* seed;                // one number; present with dropout
  const int32_t* cu_seqlens_q;        // (B + 1): packed alone
  const int32_t* cu_seqlens_k;
  int64_t rows_q, rows_k;         // of packed tensors, which cu_seqlens end with
  const int32_t* seqlens_k;       // (B): a cache alone
  int64_t stat_batch, stat_head;  // strides of row_max, log_sum, dlse, whose rows are neighbours; packed: 0, rows
};

struct AttentionForward : AttentionProblem {
  Heads out;      // T
  void* row_max;  // A
  void* log_sum;  // A
  void* workspace;
};

struct AttentionBackward : AttentionProblem {
  Heads dout, out;       // T
  const void* dlse;      // A, laid out as row_max; may be null: 0
  const void* row_max;   // A
  const void* log_sum;   // A
  Heads dq, dk, dv;      // T, contiguous; absent where not wanted, as are the others
  Heads dbias;           // T, contiguous, of the bias' shape
  int64_t bias_size[4];  // 1, or B, Hq, Lq, Lk
  void* dsink;           // T (Hq)
  void* dslopes;         // A, (Hq), or (B, Hq) where slope_batch is not 0
  void* workspace;
};

// How a call is shared out.
enum class AttentionPath : int8_t {
  one_task,
  split_queries,  // tasks take blocks of queries, of every head and row of the batch
  split_keys,     // few queries: tasks take parts of the keys as well, which are put together in their order
  split_heads     // backward: tasks take key heads, and a fixed number of parts of their keys
};

struct AttentionPlan {
  AttentionPath path;
  int tasks;
  int parts;          // of the keys: forward's fixed by the longest Lk; backward's dq is added up over them
  bool fold;          // all queries of a key head's group, and their heads, stand in one panel
  Product product;    // of bfloat16 by bfloat16: CPU
  int64_t workspace;  // bytes
  BlockShape block{};
  int chunk = 0;  // panels of queries that a backward task meets a block of keys with: CPU
};

// What the plan depends on.
struct AttentionShape {
  DType type;
  int64_t B, Hq, Hkv, Lq, Lk, D, Dv;
  bool causal;
  int64_t window;    // keys a query sees at most; 0: all
  int64_t rows = 0;  // queries in all, of a packed batch; 0: B Lq
  bool backward = false;
  bool dbias = false;
};

// What an implementation provides. `stream` is null on the CPU.
struct AttentionKernels {
  AttentionPlan (*plan)(const AttentionShape&);
  void (*forward)(const AttentionForward&, AttentionPlan, void* stream);
  void (*backward)(const AttentionBackward&, AttentionPlan, void* stream);
};
namespace cpu {
const AttentionKernels& attention_kernels();
}  // namespace cpu
namespace cuda {
const AttentionKernels& attention_kernels();
}  // namespace cuda

}  // namespace hetkern
