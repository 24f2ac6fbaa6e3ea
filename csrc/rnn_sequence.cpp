// A sequence through one RNN layer in one direction, host side.  (contract: rnn.h; schemas and derivatives: hetkern/ops/rnn.py)
//
// Each function goes: check, guard, sizes, allocate, return if empty, plan, launch.
#include "rnn_sequence.h"

#include <tuple>

#include "ops.h"
#include "rnn_steps.h"

namespace hetkern {
namespace {

template <GetRnnKernels kernels>
constexpr bool host_reads_lengths = false;
template <>
constexpr bool host_reads_lengths<cpu::rnn_kernels> = true;

}  // namespace

template <GetRnnKernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rnn_sequence(int64_t cell, const Tensor& x_gates, const Tensor& w_hh,
                                                                OptionalTensor b_hh, const Tensor& h0,
                                                                OptionalTensor c0, OptionalTensor lengths,
                                                                OptionalTensor batch_sizes, OptionalTensor h_mask,
                                                                OptionalTensor reset, bool reverse, bool save) {
  const Sequence s("hetkern::rnn_sequence", cell, x_gates, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset,
                   host_reads_lengths<kernels>);

  // Guard, allocate, return if empty.
  const OnDevice on(x_gates);
  const int64_t saved = save ? saved_gates_of(s.cell) : 0;
  Tensor y = s.by_row(s.H, s.storage), h_n = s.by_sequence(true, s.storage), c_n = s.by_sequence(s.lstm, s.accumulator);
  Tensor gates = saved ? s.by_row(saved * s.H, s.storage) : s.nothing(s.storage);
  Tensor cells = save && s.lstm ? s.by_row(s.H, s.accumulator) : s.nothing(s.accumulator);
  if (s.B * s.H == 0) return {y, h_n, c_n, gates, cells};

  SequenceForward p{};
  s.fill(p, reverse);
  OptionalTensor x = x_gates;
  p.x_gates = s.ready(x);
  p.b_hh = Sequence::data(s.b_hh);
  p.y = s.steps(y), p.gates = s.steps(gates), p.cells = s.steps(cells);
  p.h_n = h_n.mutable_data_ptr(), p.c_n = s.lstm ? c_n.mutable_data_ptr() : nullptr;

  // Plan and launch.
  const RnnKernels& k = kernels();
  const RnnPlan plan = k.plan(s.shape(false));
  if (plan.path == RnnPath::step_by_step) {
    run_steps(p, k, x_gates, on.stream);
  } else {
    const Tensor workspace = workspace_like(x_gates, plan.workspace);
    p.workspace = workspace.mutable_data_ptr();
    k.sequence(p, plan, on.stream);
  }
  return {y, h_n, c_n, gates, cells};
}

template <GetRnnKernels kernels>
std::tuple<Tensor, Tensor, Tensor> rnn_sequence_backward(int64_t cell, OptionalTensor dy, OptionalTensor dh_n,
                                                         OptionalTensor dc_n, const Tensor& y, const Tensor& gates,
                                                         const Tensor& cells, const Tensor& x_gates, const Tensor& w_hh,
                                                         OptionalTensor b_hh, const Tensor& h0, OptionalTensor c0,
                                                         OptionalTensor lengths, OptionalTensor batch_sizes,
                                                         OptionalTensor h_mask, OptionalTensor reset, bool reverse) {
  constexpr const char* op = "hetkern::rnn_sequence_backward";
  const Sequence s(op, cell, x_gates, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset,
                   host_reads_lengths<kernels>);

  // Check.
  s.check_by_row("y", y, s.H, s.storage);
  if (saved_gates_of(s.cell)) s.check_by_row("gates", gates, saved_gates_of(s.cell) * s.H, s.storage);
  if (s.lstm) s.check_by_row("cells", cells, s.H, s.accumulator);
  if (dy) s.check_by_row("dy", *dy, s.H, s.storage);
  if (dh_n) check_like(op, "dh_n", *dh_n, s.x, s.storage), check_shape(op, "dh_n", *dh_n, RowsShape(s.B, s.H));
  if (!s.lstm) dc_n.reset();
  if (dc_n) check_like(op, "dc_n", *dc_n, s.x, s.accumulator), check_shape(op, "dc_n", *dc_n, RowsShape(s.B, s.H));

  // Guard, allocate, return if empty.
  const OnDevice on(x_gates);
  Tensor dgates = s.by_row(gradient_gates_of(s.cell) * s.H, s.storage);
  Tensor dh0 = s.by_sequence(true, s.storage), dc0 = s.by_sequence(s.lstm, s.accumulator);
  if (s.B * s.H == 0) return {dgates, dh0, dc0};

  SequenceBackward p{};
  s.fill(p, reverse);
  OptionalTensor y_ready = y, gates_ready = gates, cells_ready = cells;
  p.dy = s.ready(dy), p.y = s.ready(y_ready);
  if (saved_gates_of(s.cell)) p.gates = s.ready(gates_ready);
  if (s.lstm) p.cells = s.ready(cells_ready);
  if (dh_n) dh_n = torch::stable::contiguous(*dh_n);
  if (dc_n) dc_n = torch::stable::contiguous(*dc_n);
  p.dh_n = Sequence::data(dh_n), p.dc_n = Sequence::data(dc_n);
  p.dgates = s.steps(dgates);
  p.dh0 = dh0.mutable_data_ptr(), p.dc0 = s.lstm ? dc0.mutable_data_ptr() : nullptr;

  // Plan and launch.
  const RnnKernels& k = kernels();
  const RnnPlan plan = k.plan(s.shape(true));
  if (plan.path == RnnPath::step_by_step) {
    run_steps_backward(p, k, x_gates, on.stream);
  } else {
    const Tensor workspace = workspace_like(x_gates, plan.workspace);
    p.workspace = workspace.mutable_data_ptr();
    k.sequence_backward(p, plan, on.stream);
  }
  return {dgates, dh0, dc0};
}

template <GetRnnKernels kernels>
void serve_rnn_sequence(StableLibrary& m) {
  m.impl("rnn_sequence", TORCH_BOX((&rnn_sequence<kernels>)));
  m.impl("rnn_sequence_backward", TORCH_BOX((&rnn_sequence_backward<kernels>)));
}
template void serve_rnn_sequence<cpu::rnn_kernels>(StableLibrary&);
#ifdef HETKERN_WITH_CUDA
template void serve_rnn_sequence<cuda::rnn_kernels>(StableLibrary&);
#endif

}  // namespace hetkern
