// Softmax and log-softmax over one dimension: the contract of every implementation.  No torch here: kernels include this file.
//
//   z_ij  = softcap tanh(scale x_ij / softcap) + bias_ij     (scale x_ij + bias_ij without a softcap); -inf where masked
//   m_i   = max(max_j z_ij, sink_i)         d_i = sum_j exp(z_ij - m_i) + exp(sink_i - m_i)
//   y_ij  = exp(z_ij - m_i) / d_i           log: z_ij - m_i - log d_i
//   dz_ij = y_ij (dy_ij - sum_k dy_ik y_ik) log: dy_ij - exp(y_ij) sum_k dy_ik
//   dx_ij = dz_ij scale (1 - tanh^2(scale x_ij / softcap))
//
// x, y, dy, dx: M rows of N. Row i of a causal call sees columns j <= i mod L + N - L, L the number of queries.
// y_sink_i is what a further column holding sink_i would have got (its log for log-softmax); the column itself is not returned.
// Edges: a row emptied by mask or causal gives 0 (log: -inf) and no gradient; a row of -inf gives NaN, as torch does.
#pragma once
#include "rows.h"

namespace hetkern {

struct SoftmaxForward {
  Rows rows;
  Operand x;       // x_type
  Operand y;       // y_type
  Operand bias;    // x_type; may be absent, as may the three below
  Operand mask;    // bool, true = keep
  Operand sink;    // x_type, one a row
  Operand y_sink;  // float, double for double; one a row; present if sink is
  double scale;
  double softcap;   // 0: none
  int64_t queries;  // L of a causal call; 0: not causal
  DType x_type, y_type;
  bool log;
};

struct SoftmaxBackward {
  Rows rows;
  Operand dy;      // y_type; its step may be 0: the gradient of a sum
  Operand y;       // y_type
  Operand dx;      // x_type
  Operand x;       // x_type; present with a softcap
  Operand mask;    // bool; may be absent
  Operand y_sink;  // float, double for double; one a row; what y lacks to 1, absent without a sink and for log
  double scale;
  double softcap;
  int64_t queries;
  DType x_type, y_type;
  bool log;
};

namespace {  // of every instruction set's own

// sum_k dy_k y_k (log: sum_k dy_k). A y above a half, of which a softmax has one at most, stands apart: where it is nearly 1,
// dy - sum loses all its digits, and dy_k - dy_top - sum_{j != top} (dy_j - dy_top) y_j, the same number, loses none.
// The rounded y do not add up to 1, which they are divided by; but only if they can have been meant to, whatever y holds.
template <class A>
struct GradientSum {
  A rest = 0, y_rest = 0;  // sums without the one apart
  A top_dy = 0, top_y = 0;
  // The last one stays apart, whatever y holds.
  HETKERN_HOST_DEVICE void set_apart(A dy, A y) { rest += top_dy * top_y, y_rest += top_y, top_dy = dy, top_y = y; }
  // What is subtracted from dy_k - top_dy.
  HETKERN_HOST_DEVICE A mean(A y_sink, DType y_type) const {
    const A beside = y_rest + y_sink, all = beside + top_y, lacks = all - A(1);
    // The top's half ulp and the others'; a float's y has some more.
    const A rounding = A(eps_of(y_type)) * (size_of(y_type) == 2 ? A(0.25) + beside / 2 : A(4));
    if (!(lacks <= rounding && lacks >= -rounding)) return rest - (A(1) - top_y) * top_dy;
    return (rest - beside * top_dy) / all;
  }
};
template <class A>
HETKERN_HOST_DEVICE inline GradientSum<A> combine(GradientSum<A> a, const GradientSum<A>& b) {
  a.rest += b.rest, a.y_rest += b.y_rest;
  if (b.top_y > 0) a.set_apart(b.top_dy, b.top_y);
  return a;
}

}  // namespace

// g: gradient of the loss by dx, where dx = scale dz.
//   g_dy = scale y (g - sum g y)                        log: scale (g - sum g exp(y))
//   g_y  = scale (g (dy - sum dy y) - dy sum g y)       log: -scale g exp(y) sum dy
struct SoftmaxDoubleBackward {
  Rows rows;
  Operand g;          // x_type
  Operand dy, y;      // y_type
  Operand g_dy, g_y;  // y_type
  double scale;
  DType x_type, y_type;
  bool log;
};

// Which path runs.
struct SoftmaxPlan {
  RowPath path;
  int tasks;  // run in parallel
  bool keep;  // exponentials wait in scratch memory for their sum, or they are computed twice; a GPU keeps all it read
  BlockShape block{};
};

// What the plan depends on.
struct SoftmaxShape {
  int64_t M, N;
  bool columns;  // neighbouring rows, not neighbouring elements, lie side by side
  DType x_type, y_type;
  int reads = 1;  // tensors of M rows of N that are read: forward 1, backward 2, double backward 3
};

// What an implementation provides. `stream` is null on the CPU.
struct SoftmaxKernels {
  SoftmaxPlan (*plan)(const SoftmaxShape&);
  void (*forward)(const SoftmaxForward&, SoftmaxPlan, void* stream);
  void (*backward)(const SoftmaxBackward&, SoftmaxPlan, void* stream);
  void (*double_backward)(const SoftmaxDoubleBackward&, SoftmaxPlan, void* stream);
};
namespace cpu {
const SoftmaxKernels& softmax_kernels();
}  // namespace cpu
namespace cuda {
const SoftmaxKernels& softmax_kernels();
}  // namespace cuda

}  // namespace hetkern
