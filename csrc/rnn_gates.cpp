// The gates of one RNN step, host side: written once for every device.  (contract: rnn.h; schemas and derivatives: hetkern/ops/rnn.py)
//
// Each function goes: check, guard, sizes, allocate, return if empty, launch.
#include <tuple>

#include "common/operands.h"
#include "ops.h"
#include "rnn.h"

namespace hetkern {
namespace {

// What every op of the gates has: sizes, dtypes and the four inputs of a step.
struct Step {
  const char* op;
  Cell cell;
  DType type;
  ScalarType storage, accumulator;
  int64_t B = 0, H = 0, columns = 0;
  bool gru = false, lstm = false;
  Tensor x;

  Step(const char* op, int64_t number, const Tensor& x_gates) : op(op), x(x_gates) {
    if (number < 0 || number >= kCells)
      value_error(op, ": cell: wanted 0 (tanh), 1 (relu), 2 (lstm) or 3 (gru), got ", number);
    cell = static_cast<Cell>(number), gru = cell == Cell::gru, lstm = cell == Cell::lstm;
    type = checked_float(op, "x_gates", x_gates);
    storage = x_gates.scalar_type(), accumulator = accumulator_of(storage);
    const Sizes sizes = x_gates.sizes();
    const int64_t gates = gates_of(cell);
    if (sizes.size() != 2 || sizes[1] % gates != 0)
      value_error(op, ": x_gates: wanted shape (B, ", gates, " H), got ", sizes);
    B = sizes[0], columns = sizes[1], H = columns / gates;
  }

  RowsOf rows(Tensor& t) const {
    if (t.stride(1) != 1 && t.size(1) > 1) t = torch::stable::contiguous(t);
    return {t.mutable_data_ptr(), t.stride(0)};
  }
  // An input of this shape, wanted if `there`.
  RowsOf operand(const char* name, OptionalTensor& t, bool there, int64_t wide, ScalarType wanted) const {
    if (t.has_value() != there) value_error(op, ": ", name, ": wanted ", there ? "a tensor" : "none", " for this cell");
    return t ? maybe(name, t, wide, wanted) : RowsOf{};
  }
  // One that may be absent.
  RowsOf maybe(const char* name, OptionalTensor& t, int64_t wide, ScalarType wanted) const {
    if (!t) return {};
    check_like(op, name, *t, x, wanted), check_shape(op, name, *t, wide_shape(wide));
    return rows(*t);
  }
  RowsOf result(Tensor& t, bool there, int64_t wide, ScalarType wanted) const {
    const int64_t none[] = {0};
    t = there ? empty(x, wide_shape(wide), wanted) : empty(x, {none, 1}, wanted);
    return there && t.numel() > 0 ? RowsOf{t.mutable_data_ptr(), wide} : RowsOf{};
  }

 private:
  mutable int64_t shape_[2];
  Sizes wide_shape(int64_t wide) const {
    shape_[0] = B, shape_[1] = wide;
    return {shape_, 2};
  }
};

// Inputs of a step into the fields of the same names.
template <class Params>
void read_step(const Step& s, Params& p, OptionalTensor& x_gates, OptionalTensor& h_gates, OptionalTensor& h,
               OptionalTensor& c) {
  p.cell = s.cell, p.type = s.type, p.B = s.B, p.H = s.H;
  p.x_gates = s.operand("x_gates", x_gates, true, s.columns, s.storage);
  p.h_gates = s.operand("h_gates", h_gates, true, s.columns, s.storage);
  p.h = s.operand("h", h, s.gru, s.H, s.storage);
  p.c = s.operand("c", c, s.lstm, s.H, s.accumulator);
}

}  // namespace

template <GetRnnKernels kernels>
std::tuple<Tensor, Tensor> rnn_gates(int64_t cell, const Tensor& x_gates, const Tensor& h_gates, OptionalTensor h,
                                     OptionalTensor c) {
  const Step s("hetkern::rnn_gates", cell, x_gates);
  GatesForward p{};
  OptionalTensor x = x_gates, hg = h_gates;
  read_step(s, p, x, hg, h, c);
  const OnDevice on(x_gates);
  Tensor h_next, c_next;
  p.h_next = s.result(h_next, true, s.H, s.storage);
  p.c_next = s.result(c_next, s.lstm, s.H, s.accumulator);
  if (h_next.numel() > 0) kernels().gates(p, on.stream);
  return {h_next, c_next};
}

template <GetRnnKernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_gates_backward(int64_t cell, OptionalTensor dh_next,
                                                              OptionalTensor dc_next, const Tensor& x_gates,
                                                              const Tensor& h_gates, OptionalTensor h,
                                                              OptionalTensor c) {
  const Step s("hetkern::rnn_gates_backward", cell, x_gates);
  GatesBackward p{};
  OptionalTensor x = x_gates, hg = h_gates;
  read_step(s, p, x, hg, h, c);
  p.dh_next = s.maybe("dh_next", dh_next, s.H, s.storage);
  if (s.lstm) p.dc_next = s.maybe("dc_next", dc_next, s.H, s.accumulator);
  const OnDevice on(x_gates);
  Tensor dx_gates, dh_gates, dh, dc;
  p.dx_gates = s.result(dx_gates, true, s.columns, s.storage);
  p.dh_gates = s.result(dh_gates, s.gru, s.columns, s.storage);
  p.dh = s.result(dh, s.gru, s.H, s.storage);
  p.dc = s.result(dc, s.lstm, s.H, s.accumulator);
  if (dx_gates.numel() > 0) kernels().gates_backward(p, on.stream);
  return {dx_gates, dh_gates, dh, dc};
}

template <GetRnnKernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rnn_gates_double_backward(
    int64_t cell, OptionalTensor g_dx_gates, OptionalTensor g_dh_gates, OptionalTensor g_dh, OptionalTensor g_dc,
    OptionalTensor dh_next, OptionalTensor dc_next, const Tensor& x_gates, const Tensor& h_gates, OptionalTensor h,
    OptionalTensor c) {
  const Step s("hetkern::rnn_gates_double_backward", cell, x_gates);
  GatesDoubleBackward p{};
  OptionalTensor x = x_gates, hg = h_gates;
  read_step(s, p, x, hg, h, c);
  p.g_dx_gates = s.maybe("g_dx_gates", g_dx_gates, s.columns, s.storage);
  if (s.gru) {
    p.g_dh_gates = s.maybe("g_dh_gates", g_dh_gates, s.columns, s.storage);
    p.g_dh = s.maybe("g_dh", g_dh, s.H, s.storage);
  }
  p.dh_next = s.maybe("dh_next", dh_next, s.H, s.storage);
  if (s.lstm) {
    p.g_dc = s.maybe("g_dc", g_dc, s.H, s.accumulator);
    p.dc_next = s.maybe("dc_next", dc_next, s.H, s.accumulator);
  }
  const OnDevice on(x_gates);
  Tensor by_dh_next, by_dc_next, by_x_gates, by_h_gates, by_h, by_c;
  p.by_dh_next = s.result(by_dh_next, true, s.H, s.storage);
  p.by_dc_next = s.result(by_dc_next, s.lstm, s.H, s.accumulator);
  p.by_x_gates = s.result(by_x_gates, true, s.columns, s.storage);
  p.by_h_gates = s.result(by_h_gates, s.gru, s.columns, s.storage);
  p.by_h = s.result(by_h, s.gru, s.H, s.storage);
  p.by_c = s.result(by_c, s.lstm, s.H, s.accumulator);
  if (by_x_gates.numel() > 0) kernels().gates_double_backward(p, on.stream);
  return {by_dh_next, by_dc_next, by_x_gates, by_h_gates, by_h, by_c};
}

template <GetRnnKernels kernels>
void serve_rnn_gates(StableLibrary& m) {
  m.impl("rnn_gates", TORCH_BOX((&rnn_gates<kernels>)));
  m.impl("rnn_gates_backward", TORCH_BOX((&rnn_gates_backward<kernels>)));
  m.impl("rnn_gates_double_backward", TORCH_BOX((&rnn_gates_double_backward<kernels>)));
}
template void serve_rnn_gates<cpu::rnn_kernels>(StableLibrary&);
#ifdef HETKERN_WITH_CUDA
template void serve_rnn_gates<cuda::rnn_kernels>(StableLibrary&);
#endif

}  // namespace hetkern
