// A layer of a recurrent network on the CPU in one call each way, host side.  (contract: rnn_layer.h; schemas: hetkern/ops/rnn_fused_layer.py)
//
// x_gates lies where the walk writes what it leaves: in `gates` where they are saved, else a plain RNN's in y; a step reads its
// row before it writes there.
#include "rnn_layer.h"

#include <cstring>
#include <tuple>

#include "ops.h"
#include "rnn_sequence.h"

namespace hetkern {
namespace {

// A view of t's first columns, for as long as t lives.
Tensor first_columns(const Tensor& t, int64_t columns) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  return torch::stable::from_blob(const_cast<void*>(t.const_data_ptr()), RowsShape(sizes, columns), strides, t.device(),
                                  t.scalar_type());
}

// x, or a gradient like it.
struct Input {
  const char* op;
  Cell cell;
  Tensor x;
  bool packed;
  int64_t I;
  Input(const char* op, int64_t number, const Tensor& given, const Tensor& w_ih, const Tensor& w_hh, bool packed)
      : op(op), cell(checked_cell(op, number)), x(given), packed(packed) {
    const size_t rank = packed ? 2 : 3;
    if (x.sizes().size() != rank) value_error(op, ": x: wanted ", rank, " dimensions, got shape ", x.sizes());
    if (x.scalar_type() != ScalarType::Float && x.scalar_type() != ScalarType::Double)
      value_error(op, ": x: wanted float32 or float64, got ", name_of(x.scalar_type()));
    I = x.size(static_cast<int64_t>(rank) - 1);
    if (w_hh.sizes().size() != 2) value_error(op, ": w_hh: wanted 2 dimensions, got shape ", w_hh.sizes());
    const int64_t wanted[] = {gates_of(cell) * w_hh.size(1), I};
    check_like(op, "w_ih", w_ih, x, x.scalar_type()), check_shape(op, "w_ih", w_ih, {wanted, 2});
    if (I > 1 && x.stride(static_cast<int64_t>(rank) - 1) != 1) x = torch::stable::contiguous(x);
  }
  int64_t rows() const { return packed ? x.size(0) : x.size(0) * x.size(1); }
  int64_t sequences(const OptionalTensor& batch_sizes) const {
    if (!packed) return x.size(1);
    if (batch_sizes->scalar_type() != ScalarType::Long || !batch_sizes->is_cpu() || batch_sizes->numel() == 0) return 0;
    return *static_cast<const int64_t*>(batch_sizes->const_data_ptr());
  }
  LayerRows rows_of(const Tensor& t) const {
    void* const data = const_cast<void*>(t.const_data_ptr());
    if (packed || t.size(1) <= 1) return {data, 1, t.stride(0), t.stride(0)};  // a stride of one element is any number
    return {data, t.size(1), t.size(0) == 1 ? t.size(1) * t.stride(1) : t.stride(0), t.stride(1)};
  }
};

OptionalTensor zeros_unless(const OptionalTensor& given, const Tensor& x, bool wanted, int64_t B, int64_t H) {
  if (given || !wanted) return given;
  const int64_t sizes[] = {B, H};
  Tensor made = empty(x, {sizes, 2}, x.scalar_type());
  std::memset(made.mutable_data_ptr(), 0, static_cast<size_t>(B * H * size_of(*float_dtype(x.scalar_type()))));
  return made;
}

void multiply(LayerProduct p, const Tensor& like) {
  p.tasks = cpu::layer_tasks(p.rows * p.K * p.N);
  const LayerKernels& k = cpu::layer_kernels();
  const Tensor workspace = workspace_like(like, k.product_workspace(p));
  p.workspace = workspace.mutable_data_ptr();
  k.product(p);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rnn_layer(int64_t cell, const Tensor& x, const Tensor& w_ih,
                                                             OptionalTensor b_ih, const Tensor& w_hh,
                                                             OptionalTensor b_hh, OptionalTensor h0, OptionalTensor c0,
                                                             OptionalTensor lengths, OptionalTensor batch_sizes,
                                                             OptionalTensor reset, bool reverse, bool save) {
  constexpr const char* op = "hetkern::rnn_layer";
  const Input in(op, cell, x, w_ih, w_hh, batch_sizes.has_value());
  const Cell kind = in.cell;
  const bool lstm = kind == Cell::lstm;
  const int64_t H = w_hh.size(1), columns = gates_of(kind) * H, B = in.sequences(batch_sizes);
  const int64_t saved = save ? saved_gates_of(kind) : 0;

  // Allocate, with x_gates in what it becomes.
  const ScalarType type = x.scalar_type();
  const auto by_row = [&](int64_t wide) { return empty(x, RowsShape(x.sizes(), wide), type); };
  Tensor y = by_row(H);
  Tensor held = saved ? by_row(saved * H) : columns == H ? y : by_row(columns);
  const Tensor x_gates = saved * H > columns ? first_columns(held, columns) : held;
  const Sequence s(op, cell, x_gates, w_hh, b_hh, *zeros_unless(h0, x, true, B, H), zeros_unless(c0, x, lstm, B, H),
                   lengths, batch_sizes, std::nullopt, reset, true);
  if (b_ih) {
    check_like(op, "b_ih", *b_ih, x, type), check_shape(op, "b_ih", *b_ih, {&columns, 1});
    b_ih = torch::stable::contiguous(*b_ih);
  }
  Tensor h_n = s.by_sequence(true, type), c_n = s.by_sequence(lstm, type);
  Tensor gates = saved ? held : s.nothing(type), cells = save && lstm ? by_row(H) : s.nothing(type);
  if (s.B * H == 0) return {y, h_n, c_n, gates, cells};

  // The input product.
  const Tensor w = torch::stable::contiguous(w_ih);
  LayerProduct product{};
  product.type = s.type, product.rows = in.rows(), product.K = in.I, product.N = columns;
  product.left = in.rows_of(in.x), product.out = in.rows_of(x_gates);
  product.w = w.const_data_ptr(), product.bias = Sequence::data(b_ih);
  if (product.rows > 0) multiply(product, x);

  // The walk.
  SequenceForward p{};
  s.fill(p, reverse);
  p.x_gates = s.steps(x_gates), p.b_hh = Sequence::data(s.b_hh);
  p.y = s.steps(y), p.gates = s.steps(gates), p.cells = s.steps(cells);
  p.h_n = h_n.mutable_data_ptr(), p.c_n = lstm ? c_n.mutable_data_ptr() : nullptr;
  const RnnKernels& k = cpu::rnn_kernels();
  const RnnPlan plan = k.plan(s.shape(false));
  const Tensor workspace = workspace_like(x, plan.workspace);
  p.workspace = workspace.mutable_data_ptr();
  k.sequence(p, plan, nullptr);
  return {y, h_n, c_n, gates, cells};
}

// `asked`, by bits from the lowest: x, w_ih, b_ih, w_hh, b_hh.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rnn_layer_backward(
    int64_t cell, OptionalTensor dy, OptionalTensor dh_n, OptionalTensor dc_n, const Tensor& y, const Tensor& gates,
    const Tensor& cells, const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, OptionalTensor h0, OptionalTensor c0,
    OptionalTensor lengths, OptionalTensor batch_sizes, OptionalTensor reset, bool reverse, int64_t asked) {
  constexpr const char* op = "hetkern::rnn_layer_backward";
  const Input in(op, cell, x, w_ih, w_hh, batch_sizes.has_value());
  const Cell kind = in.cell;
  const bool lstm = kind == Cell::lstm;
  const int64_t H = w_hh.size(1), columns = gates_of(kind) * H, B = in.sequences(batch_sizes);
  const ScalarType type = x.scalar_type();
  if (saved_gates_of(kind)) check_shape(op, "gates", gates, RowsShape(x.sizes(), saved_gates_of(kind) * H));
  const Tensor like_x_gates = saved_gates_of(kind) ? first_columns(gates, columns) : y;
  const Sequence s(op, cell, like_x_gates, w_hh, std::nullopt, *zeros_unless(h0, x, true, B, H),
                   zeros_unless(c0, x, lstm, B, H), lengths, batch_sizes, std::nullopt, reset, true);

  // Check.
  s.check_by_row("y", y, H, type);
  if (lstm) s.check_by_row("cells", cells, H, type);
  if (dy) s.check_by_row("dy", *dy, H, type);
  if (!lstm) dc_n.reset();
  for (OptionalTensor* d : {&dh_n, &dc_n})
    if (*d) {
      const char* name = d == &dh_n ? "dh_n" : "dc_n";
      check_like(op, name, **d, x, type), check_shape(op, name, **d, RowsShape(s.B, H));
      *d = torch::stable::contiguous(**d);
    }

  // Allocate.
  const auto wants = [&](int bit) { return (asked >> bit & 1) != 0; };
  const auto matrix = [&](bool wanted, int64_t wide) {
    return wanted ? empty(x, RowsShape(columns, wide), type) : s.nothing(type);
  };
  const auto vector = [&](bool wanted) { return wanted ? empty(x, {&columns, 1}, type) : s.nothing(type); };
  Tensor dx = wants(0) ? empty(x, x.sizes(), type) : s.nothing(type);
  Tensor dw_ih = matrix(wants(1), in.I), db_ih = vector(wants(2)), dw_hh = matrix(wants(3), H),
         db_hh = vector(wants(4));
  Tensor dh0 = s.by_sequence(true, type), dc0 = s.by_sequence(lstm, type);
  const auto results = [&] { return std::tuple{dx, dw_ih, db_ih, dw_hh, db_hh, dh0, dc0}; };
  if (in.rows() == 0) {
    for (const Tensor& t : {dw_ih, db_ih, dw_hh, db_hh})
      if (t.numel() > 0) std::memset(t.mutable_data_ptr(), 0, static_cast<size_t>(t.numel() * size_of(s.type)));
    asked = 0;
  }
  const int64_t blocks = gradient_gates_of(kind);
  Tensor dgates = s.by_row(blocks * H, type);

  // The walk back.
  SequenceBackward p{};
  s.fill(p, reverse);
  OptionalTensor y_ready = y, gates_ready = gates, cells_ready = cells;
  p.dy = s.ready(dy), p.y = s.ready(y_ready);
  if (saved_gates_of(kind)) p.gates = s.ready(gates_ready);
  if (lstm) p.cells = s.ready(cells_ready);
  p.dh_n = Sequence::data(dh_n), p.dc_n = Sequence::data(dc_n);
  p.dgates = s.steps(dgates);
  p.dh0 = dh0.mutable_data_ptr(), p.dc0 = lstm ? dc0.mutable_data_ptr() : nullptr;
  if (s.B * H > 0) {
    const RnnKernels& k = cpu::rnn_kernels();
    const RnnPlan plan = k.plan(s.shape(true));
    const Tensor workspace = workspace_like(x, plan.workspace);
    p.workspace = workspace.mutable_data_ptr();
    k.sequence_backward(p, plan, nullptr);
  }

  // dx.
  const Tensor w = torch::stable::contiguous(w_ih);
  const bool gru = kind == Cell::gru;
  if (wants(0) && in.rows() > 0) {
    LayerProduct product{};
    product.type = s.type, product.rows = in.rows(), product.K = columns, product.N = in.I;
    product.left = in.rows_of(dgates), product.out = in.rows_of(dx);
    if (gru) product.left.data = static_cast<char*>(product.left.data) + H * size_of(s.type);
    product.w = w.const_data_ptr(), product.w_by_columns = true;
    multiply(product, x);
  }

  // Weights and biases.
  if (asked & ~int64_t{1}) {
    LayerGradients g{};
    g.walk = p, g.rows = in.rows(), g.I = in.I, g.x = in.rows_of(in.x);
    if (!h0) g.walk.h0 = nullptr;
    const auto data = [](bool wanted, const Tensor& t) { return wanted ? t.mutable_data_ptr() : nullptr; };
    g.dw_ih = data(wants(1), dw_ih), g.db_ih = data(wants(2), db_ih);
    g.dw_hh = data(wants(3), dw_hh), g.db_hh = data(wants(4), db_hh);
    g.tasks = cpu::layer_tasks(g.rows * blocks * H * (in.I + H));
    const LayerKernels& k = cpu::layer_kernels();
    const Tensor workspace = workspace_like(x, k.gradients_workspace(g));
    g.workspace = workspace.mutable_data_ptr();
    k.gradients(g);
  }
  return results();
}

}  // namespace

void serve_rnn_layer(StableLibrary& m) {
  m.impl("rnn_layer", TORCH_BOX(&rnn_layer));
  m.impl("rnn_layer_backward", TORCH_BOX(&rnn_layer_backward));
}

}  // namespace hetkern
