// A whole layer on the CPU in float32 or float64: what stands around a sequence's walk (rnn.h).  No torch here.
//
//   x_gates = x W_ih^T + b_ih                              before the walk forward
//   dx = dgates_x W_ih                                     behind the walk back, as are:
//   dW_ih = dgates_x^T x,   dW_hh = dgates_h^T h~          h~: the state that each row's step reads
//   db_ih = sum dgates_x,   db_hh = sum dgates_h           over all rows
//
// dgates_x and dgates_h are the blocks of dgates that belong to x_gates and to h_gates.
// Bits: a row of x_gates and of dx depends on that row and the weights alone. Sums over rows are cut in chunks, each added in
// the order of rows: they depend on no number of threads.
#pragma once
#include "rnn.h"

namespace hetkern {

// Row m of `rows` is at (m / inner) step + (m mod inner) row.
struct LayerRows {
  void* data;
  int64_t inner, step, row;
  HETKERN_HOST_DEVICE int64_t at(int64_t m) const { return m / inner * step + m % inner * row; }
  bool evenly() const { return step == inner * row; }
};

// out[m][n] = bias[n] + sum_k left[m][k] w[n][k], or w[k][n].
struct LayerProduct {
  DType type;
  int64_t rows, K, N;
  LayerRows left, out;
  const void* w;  // contiguous
  bool w_by_columns;
  const void* bias;  // (N); may be null
  int tasks;
  void* workspace;  // as layer_product_workspace says, 64-byte aligned
};

struct LayerGradients {
  SequenceBackward walk;  // as the walk had it, of lengths, y and dgates; h0 null: zeros
  int64_t rows, I;
  LayerRows x;
  void* dw_ih;  // (gates H, I), contiguous; null where nobody asks, as are the three below
  void* db_ih;  // (gates H)
  void* dw_hh;  // (gates H, H)
  void* db_hh;
  int tasks;
  void* workspace;
};

struct LayerKernels {
  int64_t (*product_workspace)(const LayerProduct&);  // bytes
  void (*product)(const LayerProduct&);
  int64_t (*gradients_workspace)(const LayerGradients&);
  void (*gradients)(const LayerGradients&);
};
namespace cpu {
const LayerKernels& layer_kernels();
// Tasks for so many multiply-adds.
int layer_tasks(int64_t multiply_adds);
}  // namespace cpu

}  // namespace hetkern
