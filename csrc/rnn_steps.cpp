// A sequence step by step: a product by torch, then the kernel of the step.                              (the contract: csrc/rnn.h)
//
// Nothing here waits for the device or reads its memory: a walk can be captured in a CUDA graph. Rows that a step does not have
// are computed by the product and left alone by the kernel.
#include "rnn_steps.h"

#include <array>
#include <vector>

namespace hetkern {
namespace {

// The steps in the order in which they are walked.
class Walk {
 public:
  template <class Params>
  Walk(const Params& p, bool last_first) : T_(p.T), B_(p.B), sizes_(p.batch_sizes), last_first_(last_first) {
    if (!sizes_) return;
    offsets_.resize(static_cast<size_t>(T_));
    int64_t before = 0;
    for (int64_t t = 0; t < T_; ++t) offsets_[static_cast<size_t>(t)] = before, before += sizes_[t];
  }
  StepRows operator[](int64_t s) const {
    if (s < 0 || s >= T_) return {-1, 0, 0};
    const int64_t t = last_first_ ? T_ - 1 - s : s;
    return sizes_ ? StepRows{t, sizes_[t], offsets_[static_cast<size_t>(t)]} : StepRows{t, B_, 0};
  }

 private:
  int64_t T_, B_;
  const int64_t* sizes_;
  bool last_first_;
  std::vector<int64_t> offsets_;
};

// Matrices in the memory of others, unknown to autograd.
struct Matrices {
  const Tensor& like;
  ScalarType type = like.scalar_type();
  int64_t bytes = size_of(*float_dtype(type));

  Tensor of(const void* data, int64_t rows, int64_t columns, int64_t row, int64_t column = 1) const {
    const int64_t sizes[] = {rows, columns}, strides[] = {row, column};
    return torch::stable::from_blob(const_cast<void*>(data), {sizes, 2}, {strides, 2}, like.device(), type);
  }
  Tensor made(int64_t rows, int64_t columns) const {
    const int64_t sizes[] = {rows, columns};
    return empty(like, {sizes, 2}, type);
  }
  // The rows of a step, their first columns.
  Tensor rows_of(const Steps& s, const StepRows& at, int64_t columns) const {
    const int64_t first = at.t * s.step + at.offset * s.row;
    return of(static_cast<const char*>(s.data) + first * bytes, at.rows, columns, s.row);
  }
};

void multiply(const Tensor& left, const Tensor& right, const Tensor& product) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(left), from(right), from(product)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // `product` once more
}

}  // namespace

void run_steps(const SequenceForward& p, const RnnKernels& kernels, const Tensor& like, void* stream) {
  const Walk walk(p, p.reverse);
  const Matrices m{like};
  const int64_t columns = gates_of(p.cell) * p.H;
  // What a product reads is y of the step before, unless rows begin on the way or something changes h.
  const bool ragged = p.lengths || p.batch_sizes, own_left = p.h_mask || p.reset || (p.reverse && ragged);
  const Tensor left = m.made(own_left ? p.B : 0, p.H), products = m.made(p.B, columns);
  const Tensor w = m.of(p.w_hh, p.H, columns, 1, p.H);  // transposed

  SequenceStep step{walk[-1], walk[-1], walk[0], nullptr, own_left ? left.mutable_data_ptr() : nullptr, nullptr};
  kernels.step(p, step, stream);
  step.product = products.const_data_ptr();
  for (int64_t s = 0; s < p.T; ++s) {
    step.before = walk[s - 1], step.now = walk[s], step.after = walk[s + 1];
    const int64_t rows = step.now.rows;
    if (rows > 0) {
      const Tensor product = m.of(step.product, rows, columns, columns);
      if (own_left || s == 0)
        multiply(m.of(own_left ? step.left : p.h0, rows, p.H, p.H), w, product);
      else
        multiply(m.rows_of(p.y, {step.before.t, rows, step.before.offset}, p.H), w, product);
    }
    kernels.step(p, step, stream);
  }
}

void run_steps_backward(const SequenceBackward& p, const RnnKernels& kernels, const Tensor& like, void* stream) {
  const Walk walk(p, !p.reverse);
  const Matrices m{like};
  const int64_t columns = gates_of(p.cell) * p.H, H = p.H;
  const bool gru = p.cell == Cell::gru;

  // W_hh in the order of dgates: a GRU's begin with n.
  Tensor w = m.of(p.w_hh, columns, H, H);
  if (gru) {
    const Tensor turned = m.made(columns, H);
    const auto part = [&](const Tensor& t, int64_t row, int64_t rows) {
      return m.of(static_cast<const char*>(t.const_data_ptr()) + row * H * m.bytes, rows, H, H);
    };
    Tensor n = part(turned, 0, H), r_z = part(turned, H, 2 * H);
    torch::stable::copy_(n, part(w, 2 * H, H)), torch::stable::copy_(r_z, part(w, 0, 2 * H));
    w = turned;
  }
  const Tensor products = m.made(p.B, H);
  const int64_t passed_shape[] = {gru ? p.B : 0, H};
  const Tensor passed = empty(like, {passed_shape, 2}, accumulator_of(m.type));

  SequenceStep step{walk[-1], walk[-1], walk[0], nullptr, nullptr, gru ? passed.mutable_data_ptr() : nullptr};
  kernels.step_backward(p, step, stream);
  step.product = products.const_data_ptr();
  for (int64_t s = 0; p.T > 0 && s <= p.T; ++s) {  // the last one: rows that are left give dh0
    step.before = walk[s - 1], step.now = walk[s], step.after = walk[s + 1];
    kernels.step_backward(p, step, stream);
    if (step.now.rows > 0) multiply(m.rows_of(p.dgates, step.now, columns), w, m.of(step.product, step.now.rows, H, H));
  }
}

}  // namespace hetkern
