// A sequence's arguments, checked, in the form that kernels read: what rnn_sequence.cpp and rnn_layer.cpp share.
#pragma once
#include "common/operands.h"
#include "rnn.h"

namespace hetkern {
namespace {

// The shape of a tensor with a row for each step and sequence.
struct RowsShape {
  int64_t size[3];
  size_t rank;
  RowsShape(Sizes rows, int64_t columns) : rank(rows.size()) {
    for (size_t d = 0; d + 1 < rank; ++d) size[d] = rows[d];
    size[rank - 1] = columns;
  }
  RowsShape(int64_t rows, int64_t columns) : size{rows, columns, 0}, rank(2) {}
  operator Sizes() const { return {size, rank}; }
};

inline Cell checked_cell(const char* op, int64_t number) {
  if (number < 0 || number >= kCells)
    value_error(op, ": cell: wanted 0 (tanh), 1 (relu), 2 (lstm) or 3 (gru), got ", number);
  return static_cast<Cell>(number);
}

// Memory for a kernel while it runs; torch's is 64-byte aligned.
inline Tensor workspace_like(const Tensor& x, int64_t bytes) {
  const int64_t words = bytes / 4 + 1;
  return empty(x, {&words, 1}, ScalarType::Float);
}

struct Sequence {
  const char* op;
  Cell cell;
  DType type;
  ScalarType storage, accumulator;
  int64_t T = 0, B = 0, H = 0, columns = 0;
  bool packed, lstm;
  Tensor x;
  // Kept alive in the form that kernels read.
  Tensor w_hh;
  OptionalTensor b_hh, h0, c0, lengths, batch_sizes, h_mask, reset;

  Sequence(const char* op, int64_t number, const Tensor& x_gates, const Tensor& w, OptionalTensor b, const Tensor& h,
           OptionalTensor c, OptionalTensor lengths_, OptionalTensor sizes_, OptionalTensor mask, OptionalTensor reset_,
           bool host_reads_lengths)
      : op(op),
        packed(sizes_.has_value()),
        x(x_gates),
        w_hh(w),
        b_hh(b),
        h0(h),
        c0(c),
        lengths(lengths_),
        batch_sizes(sizes_),
        h_mask(mask),
        reset(reset_) {
    cell = checked_cell(op, number), lstm = cell == Cell::lstm;
    type = checked_float(op, "x_gates", x_gates);
    storage = x_gates.scalar_type(), accumulator = accumulator_of(storage);
    const Sizes sizes = x_gates.sizes();
    const int64_t gates = gates_of(cell);
    if (sizes.size() != (packed ? 2u : 3u) || sizes[sizes.size() - 1] % gates != 0)
      value_error(op, ": x_gates: wanted shape ", packed ? "(rows, " : "(T, B, ", gates, " H), got ", sizes);
    columns = sizes[sizes.size() - 1], H = columns / gates;
    check_like(op, "h0", h, x, storage);
    if (h.sizes().size() != 2) value_error(op, ": h0: wanted shape (B, H), got ", h.sizes());
    B = packed ? h.size(0) : sizes[1];
    check_shape(op, "h0", h, RowsShape(B, H));
    T = packed ? checked_batch_sizes(sizes[0]) : sizes[0];
    check_like(op, "w_hh", w, x, storage), check_shape(op, "w_hh", w, RowsShape(columns, H));
    if (b) check_like(op, "b_hh", *b, x, storage), check_shape(op, "b_hh", *b, {&columns, 1});
    if (c.has_value() != lstm) value_error(op, ": c0: wanted ", lstm ? "a tensor" : "none", " for this cell");
    if (c) check_like(op, "c0", *c, x, accumulator), check_shape(op, "c0", *c, RowsShape(B, H));
    if (mask) check_like(op, "h_mask", *mask, x, storage), check_shape(op, "h_mask", *mask, RowsShape(B, H));
    if (reset) {
      check_like(op, "reset", *reset, x, ScalarType::Bool);
      check_shape(op, "reset", *reset, {sizes.data(), sizes.size() - 1});
    }
    check_lengths(host_reads_lengths);

    w_hh = torch::stable::contiguous(w_hh);
    for (OptionalTensor* t : {&b_hh, &h0, &c0, &h_mask})
      if (*t) *t = torch::stable::contiguous(**t);
  }

  // The number of steps.
  int64_t checked_batch_sizes(int64_t rows) {
    if (batch_sizes->scalar_type() != ScalarType::Long || !batch_sizes->is_cpu() || batch_sizes->sizes().size() != 1)
      value_error(op, ": batch_sizes: wanted int64 of shape (T,) on the CPU, got ", name_of(batch_sizes->scalar_type()),
                  " of shape ", batch_sizes->sizes());
    if (lengths) value_error(op, ": lengths: wanted none beside batch_sizes");
    batch_sizes = torch::stable::contiguous(*batch_sizes);
    const auto* n = static_cast<const int64_t*>(batch_sizes->const_data_ptr());
    const int64_t steps = batch_sizes->size(0);
    int64_t sum = 0;
    for (int64_t t = 0; t < steps; ++t) {
      if (n[t] < 0 || n[t] > (t ? n[t - 1] : B))
        value_error(op, ": batch_sizes: wanted ", t ? "no more than the step before has, " : "at most B, ",
                    t ? n[t - 1] : B, ", at step ", t, ", got ", n[t]);
      sum += n[t];
    }
    if (sum != rows) value_error(op, ": batch_sizes: wanted a sum of ", rows, ", x_gates' rows, got ", sum);
    return steps;
  }

  void check_lengths(bool host_reads_lengths) {
    if (!lengths) return;
    check_like(op, "lengths", *lengths, x, ScalarType::Long), check_shape(op, "lengths", *lengths, {&B, 1});
    lengths = torch::stable::contiguous(*lengths);
    if (!host_reads_lengths) return;  // a GPU's are checked by the kernel: the host does not wait for them
    const auto* n = static_cast<const int64_t*>(lengths->const_data_ptr());
    for (int64_t b = 0; b < B; ++b)
      if (n[b] < 0 || n[b] > T) value_error(op, ": lengths: wanted values in [0, ", T, "], got ", n[b], " for row ", b);
  }

  Steps steps(const Tensor& t) const {
    if (t.numel() == 0) return {};
    return {const_cast<void*>(t.const_data_ptr()), packed ? 0 : t.stride(0), t.stride(packed ? 0 : 1)};
  }
  // With neighbouring elements in a row.
  Steps ready(OptionalTensor& t) const {
    if (!t) return {};
    const auto last = static_cast<int64_t>(t->sizes().size()) - 1;
    if (t->stride(last) != 1 && t->size(last) > 1) t = torch::stable::contiguous(*t);
    return steps(*t);
  }
  Tensor by_row(int64_t wide, ScalarType wanted) const { return empty(x, RowsShape(x.sizes(), wide), wanted); }
  Tensor nothing(ScalarType wanted) const {
    const int64_t none[] = {0};
    return empty(x, {none, 1}, wanted);
  }
  Tensor by_sequence(bool there, ScalarType wanted) const {
    return there ? empty(x, RowsShape(B, H), wanted) : nothing(wanted);
  }
  void check_by_row(const char* name, const Tensor& t, int64_t wide, ScalarType wanted) const {
    check_like(op, name, t, x, wanted), check_shape(op, name, t, RowsShape(x.sizes(), wide));
  }
  static const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

  template <class Params>
  void fill(Params& p, bool reverse) const {
    p.cell = cell, p.type = type, p.T = T, p.B = B, p.H = H, p.reverse = reverse;
    p.lengths = static_cast<const int64_t*>(data(lengths));
    p.batch_sizes = static_cast<const int64_t*>(data(batch_sizes));
    p.w_hh = w_hh.const_data_ptr();
    p.h0 = data(h0), p.c0 = data(c0), p.h_mask = data(h_mask);
    if (reset) p.reset = steps(*reset);
  }
  RnnShape shape(bool backward) const { return {cell, type, T, B, H, lengths || batch_sizes, backward}; }
};

}  // namespace
}  // namespace hetkern
