// RNN cells and whole sequences: the contract of every implementation.  No torch here: kernels include this file.
//
//   x' = x_gates, h' = h_gates = W_hh h~ + b_hh, one column block of H a gate; sigma is the logistic function
//   tanh, relu   h_next = tanh(x' + h') or max(x' + h', 0)
//   lstm         i, f, o = sigma(x' + h'), g = tanh(x'_g + h'_g);  c_next = f c + i g;  h_next = o tanh(c_next)
//   gru          r, z = sigma(x' + h');  n = tanh(x'_n + r h'_n);  h_next = n + z (h - n)
//
// Gate order is torch's: i f g o, and r z n. h~ is h, or h times h_mask (one row of it a sequence: recurrent dropout).
// A sequence begins at h0, c0; a step with `reset` begins at zeros; a step that a row has outlived leaves its state alone.
// Storage is T (float, double, half, bfloat16). c and all gate arithmetic are A: float, double for double. h is rounded to T
// at each step: what step t + 1 reads is y_t.
// Edges: a row of length 0 gives h_n = h0, c_n = c0 and passes their gradients on; outside a row's length y and dgates are 0,
// and what x_gates or dy hold there, NaN included, changes no bit.
#pragma once
#include "bf16_product.h"
#include "rows.h"

namespace hetkern {

enum class Cell : int8_t { tanh, relu, lstm, gru };
constexpr int kCells = 4;

// Column blocks of H: of x_gates and h_gates; of what a sequence saves of its gates (lstm: i f g o; gru: r z n h'_n; the
// others find all in y); of the gradient that a sequence's backward gives.
HETKERN_HOST_DEVICE constexpr int gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }
HETKERN_HOST_DEVICE constexpr int saved_gates_of(Cell cell) { return cell == Cell::lstm || cell == Cell::gru ? 4 : 0; }
HETKERN_HOST_DEVICE constexpr int gradient_gates_of(Cell cell) {
  return cell == Cell::lstm || cell == Cell::gru ? 4 : 1;
}

// ---- Gates: what follows the two products of one step, for B rows. Nothing is saved: backward takes the same inputs. ------

// Rows of neighbouring elements.
struct RowsOf {
  void* data;      // null: absent
  int64_t stride;  // from row to row, in elements
  HETKERN_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

struct GatesForward {
  Cell cell;
  DType type;  // T
  int64_t B, H;
  RowsOf x_gates, h_gates;  // T (B, gates H)
  RowsOf h;                 // T (B, H): gru alone
  RowsOf c;                 // A (B, H): lstm alone
  RowsOf h_next;            // T (B, H)
  RowsOf c_next;            // A (B, H): lstm alone
};

struct GatesBackward {
  Cell cell;
  DType type;
  int64_t B, H;
  RowsOf dh_next, dc_next;  // T, A (B, H): absent where they are 0
  RowsOf x_gates, h_gates, h, c;
  RowsOf dx_gates;  // T (B, gates H)
  RowsOf dh_gates;  // T (B, gates H): gru alone, elsewhere it is dx_gates
  RowsOf dh;        // T (B, H): gru alone; what does not pass through h_gates
  RowsOf dc;        // A (B, H): lstm alone
};

// g_…: gradients by the outputs of backward, absent where they are 0 (g_dh_gates, g_dh: gru; g_dc: lstm). Results: gradients
// by dh_next and dc_next, which are also the tangents of h_next and c_next where g_… are tangents, and by the four inputs.
struct GatesDoubleBackward {
  Cell cell;
  DType type;
  int64_t B, H;
  RowsOf g_dx_gates, g_dh_gates, g_dh, g_dc;
  RowsOf dh_next, dc_next;  // absent where they are 0
  RowsOf x_gates, h_gates, h, c;
  RowsOf by_dh_next;  // T (B, H)
  RowsOf by_dc_next;  // A (B, H): lstm alone
  RowsOf by_x_gates;  // T (B, gates H)
  RowsOf by_h_gates;  // T (B, gates H): gru alone, elsewhere it is by_x_gates
  RowsOf by_h;        // T (B, H): gru alone
  RowsOf by_c;        // A (B, H): lstm alone
};

// ---- Sequences: one layer in one direction. --------------------------------------------------------------------------------

// A tensor of one row a step and sequence, elements of a row side by side.
//   padded: row (t, b) lies at t step + b row
//   packed: row (t, b) lies at (offset_t + b) row, b < batch_sizes_t, offset_t = the sum of the batch sizes before
struct Steps {
  void* data;         // null: absent
  int64_t step, row;  // strides in elements
  HETKERN_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

struct SequenceForward {
  Cell cell;
  DType type;
  int64_t T, B, H;
  const int64_t* lengths;      // (B) on the device, in [0, T]; null: all are T
  const int64_t* batch_sizes;  // (T) on the host, falling, the first is B or less; null: padded. Packed has no lengths.
  bool reverse;                // step T - 1 first: each row begins at its own end
  Steps x_gates;               // T, gates H a row
  const void* w_hh;            // T (gates H, H), contiguous
  const void* b_hh;            // T (gates H); may be null
  const void* h0;              // T (B, H), contiguous
  const void* c0;              // A (B, H): lstm alone
  const void* h_mask;          // T (B, H); may be null
  Steps reset;                 // bool, one a row; may be absent
  Steps y;                     // T, H a row, contiguous as are the two below
  Steps gates;                 // T, saved_gates H a row; absent where nothing is saved
  Steps cells;                 // A, c of each step, H a row: lstm that saves, alone
  void* h_n;                   // T (B, H)
  void* c_n;                   // A (B, H): lstm alone
  void* workspace;             // of the plan's size, 64-byte aligned
};

// dgates, by row: tanh, relu, lstm: of x_gates, and of h_gates alike; gru: dn r, dr, dz, dn, of which the last three blocks
// belong to x_gates and the first three, as n r z, to h_gates.
struct SequenceBackward {
  Cell cell;
  DType type;
  int64_t T, B, H;
  const int64_t* lengths;
  const int64_t* batch_sizes;
  bool reverse;
  Steps dy;          // T, H a row; absent where it is 0
  const void* dh_n;  // T (B, H), contiguous; may be null, as may dc_n
  const void* dc_n;  // A (B, H)
  Steps y, gates, cells;
  const void* w_hh;
  const void* h0;
  const void* c0;
  const void* h_mask;
  Steps reset;
  Steps dgates;  // T, gradient_gates H a row, contiguous
  void* dh0;     // T (B, H)
  void* dc0;     // A (B, H): lstm alone
  void* workspace;
};

// ---- A sequence step by step: what stands between the products, for which the host file asks torch (rnn_steps.cpp). ---------

// The rows of one step.
struct StepRows {
  int64_t t;       // -1: no step
  int64_t rows;    // B, or where rows are packed those of the step
  int64_t offset;  // packed rows before them
};

// Three steps in the order of the walk, which goes backwards for the gradient. Neither before nor now: the walk begins; before
// and no now: it ends (backward alone).
struct SequenceStep {
  StepRows before, now, after;
  const void* product;  // T: forward W_hh h~ of now, gates H a row; backward dgates W_hh of before, H a row; contiguous
  void* left;           // T (B, H): h~ of after; absent where the product reads y. Forward
  void* passed;         // A (B, H): what of dh does not pass W_hh; gru. Backward
};

// How a sequence is shared out.
enum class RnnPath : int8_t {
  one_task,
  split_rows,   // tasks take rows and never wait
  split_units,  // tasks take units of the state and wait for one another at each step
  step_by_step  // a product and the gates' kernel a step, from the host
};

struct RnnPlan {
  RnnPath path;
  int tasks;
  int unit_vectors;   // vectors of units in a panel of weights: CPU
  Product product;    // of bfloat16 by bfloat16: CPU
  int64_t workspace;  // bytes
  BlockShape block{};
};

// What the plan depends on.
struct RnnShape {
  Cell cell;
  DType type;
  int64_t T, B, H;
  bool ragged;  // rows end at different steps
  bool backward;
};

// What an implementation provides. `stream` is null on the CPU.
struct RnnKernels {
  RnnPlan (*plan)(const RnnShape&);
  void (*gates)(const GatesForward&, void* stream);
  void (*gates_backward)(const GatesBackward&, void* stream);
  void (*gates_double_backward)(const GatesDoubleBackward&, void* stream);
  void (*sequence)(const SequenceForward&, RnnPlan, void* stream);  // null where every plan is step_by_step
  void (*sequence_backward)(const SequenceBackward&, RnnPlan, void* stream);
  void (*step)(const SequenceForward&, const SequenceStep&, void* stream) = nullptr;  // null where no plan is
  void (*step_backward)(const SequenceBackward&, const SequenceStep&, void* stream) = nullptr;
};
namespace cpu {
const RnnKernels& rnn_kernels();
}  // namespace cpu
namespace cuda {
const RnnKernels& rnn_kernels();
}  // namespace cuda

}  // namespace hetkern
