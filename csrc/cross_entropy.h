// Cross-entropy over one dimension: the contract of every implementation.  No torch here: kernels include this file.
//
//   z_ij  = softcap tanh(scale x_ij / softcap)   (scale x_ij without a softcap)
//   m_i   = max_j z_ij      d_i = log sum_j exp(z_ij - m_i)      lse_i = m_i + d_i      log p_ij = z_ij - m_i - d_i
//   t_ij  = (1 - eps) w_j [j = target_i] + eps w_j / N           class indices
//   t_ij  = w_j ((1 - eps) q_ij + eps / N)                       class probabilities q
//   row_i = -sum_j t_ij log p_ij        zl_i = z_loss lse_i^2    both 0 where target_i = ignore_index
//   loss  = row_i + zl_i  |  sum_i (row_i + zl_i)  |  mean: sum_i row_i / D_0 + sum_i zl_i / D_1
//   D_0   = sum of w at the counted rows' targets (probabilities: M)      D_1 = counted rows
//
// Statistics, one a row: row + zl, lse, zl, entropy H_i = -sum_j p_ij log p_ij, log_prob = sum_j q_ij log p_ij (q one-hot
// for indices; 0 where ignored), correct = the first largest z is at the target (the first largest q).
//
// Backward, with u and v the gradients that reach row_i and zl_i, g_* those that reach a statistic:
//   u  = (g_loss / D_0 + g_row) [counted]      v = (g_loss / D_1 + g_row + g_zl) [counted]      g_log_prob likewise [counted]
//   k_ij  = g_log_prob - u (1 - eps) w_j       T_i = sum_j t_ij       Q_i = sum_j q_ij
//   a_i   = u T_i + 2 z_loss lse_i v + g_lse - Q_i g_log_prob - g_H H_i
//   dz_ij = p_ij (a_i - g_H log p_ij) + q_ij k_ij - u eps w_j / N
//   dx_ij = dz_ij dz/dx         dq_ij = k_ij log p_ij
//
// x, dx, q, dq: M rows of N. eps is the label smoothing; w are class weights, 1 without them.
// Edges: nothing counted gives a mean of NaN; a row of -inf, or with +inf or NaN, has NaN loss, lse and entropy; an ignored row
// passes no gradient from the loss, whatever it holds.
#pragma once
#include "rows.h"

namespace hetkern {

// A is float, double for double x.
struct Targets {
  Operand index;        // int64, one a row; or absent
  Operand probability;  // x_type, q; or absent
  const void* weight;   // A, N of them; may be null: ones
  int64_t ignore_index;
  double label_smoothing;
};

enum class Reduction : int8_t { none, mean, sum };

// Elements of a row of `saved`: m and d, for probabilities T and Q too.
constexpr int64_t saved_elements(bool probabilities) { return probabilities ? 4 : 2; }

struct CrossEntropyForward {
  Rows rows;
  Operand x;  // x_type
  Targets target;
  Operand saved;   // A, rows of saved_elements
  Operand loss;    // A, one a row; absent unless the reduction is none
  void* reduced;   // A, one; null if the reduction is none
  void* terms;     // A, workspace of a reduction: term_planes() times M; null if the reduction is none
  void* divisors;  // A, D_0 and D_1; ones unless the reduction is mean
  Operand row_loss, lse, z_loss, entropy, log_prob;  // A, one a row; all absent without statistics
  Operand correct;                                   // bool, one a row; likewise
  double scale;
  double softcap;  // 0: none
  double z_loss_factor;
  Reduction reduction;
  DType x_type;
  int64_t term_planes() const { return 1 + (z_loss_factor != 0) + (target.weight && target.index); }
};

struct CrossEntropyBackward {
  Rows rows;
  Operand x;  // x_type
  Targets target;
  Operand saved;                                                       // A
  Operand divisors;                                                    // A, rows of two
  Operand entropy;                                                     // A, one a row; present if d_entropy is
  Operand d_loss, d_row_loss, d_lse, d_z_loss, d_entropy, d_log_prob;  // A, one a row; each may be absent
  Operand dx;                                                          // x_type
  Operand d_target;                                                    // x_type; may be absent
  double scale;
  double softcap;
  double z_loss_factor;
  DType x_type;
};

// The first row whose target is neither a class nor ignored. It was skipped: nothing was read or written out of bounds.
struct BadTarget {
  int64_t row = -1;  // none
  int64_t value = 0;
};

// Which path runs, forward and backward.
struct CrossEntropyPlan {
  RowPath path;
  int tasks;  // run in parallel
  BlockShape block{};
};

// What the plan depends on.
struct CrossEntropyShape {
  int64_t M, N;
  bool columns;  // neighbouring rows, not neighbouring elements, lie side by side
  DType x_type;
};

// What an implementation provides. `stream` is null on the CPU. A GPU reports a bad target by a trap, and returns none.
struct CrossEntropyKernels {
  CrossEntropyPlan (*plan)(const CrossEntropyShape&);
  BadTarget (*forward)(const CrossEntropyForward&, CrossEntropyPlan, void* stream);
  BadTarget (*backward)(const CrossEntropyBackward&, CrossEntropyPlan, void* stream);
};
namespace cpu {
const CrossEntropyKernels& cross_entropy_kernels();
}  // namespace cpu
namespace cuda {
const CrossEntropyKernels& cross_entropy_kernels();
}  // namespace cuda

}  // namespace hetkern
