// Cross-entropy, host side: written once for every device.  (contract: cross_entropy.h; schemas and derivatives:
// hetkern/ops/cross_entropy.py)
//
// Each function goes: check, guard, sizes, allocate, return if empty, plan, launch.
#include "cross_entropy.h"

#include <array>
#include <tuple>
#include <vector>

#include "common/operands.h"
#include "common/row_view.h"
#include "ops.h"

namespace hetkern {
namespace {

Sizes sizes_of(const std::vector<int64_t>& sizes) { return {sizes.data(), sizes.size()}; }

// What x, target and weight have in common, once they fit together.
struct Arguments {
  int64_t dim = 0;
  bool probabilities = false;
  ScalarType accumulator = ScalarType::Float;
  std::vector<int64_t> rows;      // x's shape without the classes
  std::vector<int64_t> saved;     // with saved_elements in their place
  std::vector<int64_t> divisors;  // with two in their place
};

Arguments checked_arguments(const char* op, const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                            int64_t any_dim, int64_t ignore_index, double label_smoothing, double softcap) {
  const Sizes sizes = x.sizes();
  Arguments a;
  if (sizes.size() == 0) value_error(op, ": input: wanted a class dimension, got a scalar");
  a.dim = checked_dim(op, any_dim, static_cast<int64_t>(sizes.size()));
  if (sizes[a.dim] == 0) value_error(op, ": input: wanted at least one class, got shape ", sizes);
  a.probabilities = float_dtype(target.scalar_type()).has_value();
  a.accumulator = accumulator_of(x.scalar_type());
  a.rows.reserve(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d)
    if (static_cast<int64_t>(d) != a.dim) a.rows.push_back(sizes[d]);
  a.saved.assign(sizes.begin(), sizes.end()), a.saved[a.dim] = saved_elements(a.probabilities);
  a.divisors.assign(sizes.begin(), sizes.end()), a.divisors[a.dim] = 2;

  if (a.probabilities) {
    check_like(op, "target", target, x, x.scalar_type());
    check_shape(op, "target", target, sizes);
    if (ignore_index >= 0)
      value_error(op, ": ignore_index: wanted a negative one beside class probabilities, got ", ignore_index);
  } else {
    if (target.scalar_type() != ScalarType::Long)
      value_error(op, ": target: wanted int64 class indices, or class probabilities of input's dtype, got ",
                  name_of(target.scalar_type()));
    check_like(op, "target", target, x, ScalarType::Long);
    check_shape(op, "target", target, sizes_of(a.rows));
  }
  if (weight) {
    check_like(op, "weight", *weight, x, a.accumulator);
    check_shape(op, "weight", *weight, Sizes(&sizes[a.dim], 1));
  }
  check_softcap(op, softcap);
  if (!(label_smoothing >= 0 && label_smoothing <= 1))
    value_error(op, ": label_smoothing: wanted a value in [0, 1], got ", label_smoothing);
  return a;
}

Reduction checked_reduction(const char* op, int64_t reduction) {
  if (reduction < 0 || reduction > 2)
    value_error(op, ": reduction: wanted 0 for none, 1 for mean or 2 for sum, got ", reduction);
  return static_cast<Reduction>(reduction);
}

void check_target(const char* op, const BadTarget& bad, int64_t classes, int64_t ignore_index) {
  if (bad.row >= 0)
    index_error(op, ": target: wanted a class in [0, ", classes, ") or ignore_index ", ignore_index, ", got ",
                bad.value, " in row ", bad.row);
}

// Forward. `statistics` are row_loss, lse, z_loss, entropy, log_prob and correct, or null.
template <GetCrossEntropyKernels kernels>
std::tuple<Tensor, Tensor, Tensor> forward(const char* op, const Tensor& x_any, const Tensor& target_any,
                                           const OptionalTensor& weight_any, int64_t any_dim, int64_t ignore_index,
                                           int64_t reduction, double label_smoothing, double scale, double softcap,
                                           double z_loss, std::array<std::optional<Tensor>, 6>* statistics) {
  const Sizes sizes = x_any.sizes();

  // Check.
  CrossEntropyForward p{};
  p.x_type = checked_float(op, "input", x_any);
  Arguments a = checked_arguments(op, x_any, target_any, weight_any, any_dim, ignore_index, label_smoothing, softcap);
  p.reduction = checked_reduction(op, reduction);
  const bool reduced = p.reduction != Reduction::none;

  // Guard, allocate.
  const OnDevice on(x_any);
  const Sizes rows = sizes_of(a.rows);
  Tensor loss = empty(x_any, reduced ? Sizes(rows.data(), size_t{0}) : rows, a.accumulator);
  Tensor saved = empty(x_any, sizes_of(a.saved), a.accumulator);
  for (size_t d = 0; d < sizes.size(); ++d)
    if (static_cast<int64_t>(d) != a.dim) a.divisors[d] = 1;  // the same for every row: a vmap may say otherwise
  Tensor divisors = empty(x_any, sizes_of(a.divisors), a.accumulator);
  if (statistics)
    for (auto& statistic : *statistics)
      statistic = empty(x_any, rows, &statistic == &statistics->back() ? ScalarType::Bool : a.accumulator);

  // Rows. Without any, a mean is still NaN and a sum 0.
  const Layout layout(sizes, a.dim);
  Tensor x = layout.ready(x_any), target = a.probabilities ? layout.ready(target_any) : target_any;
  OptionalTensor weight;
  if (weight_any) weight = torch::stable::contiguous(*weight_any);
  const auto statistic = [&](int i) { return statistics ? &*(*statistics)[i] : nullptr; };
  const auto view = [&] {
    return view_rows(sizes, a.dim,
                     {{&x, &p.x},
                      {a.probabilities ? &target : nullptr, &p.target.probability},
                      {a.probabilities ? nullptr : &target, &p.target.index, false},
                      {&saved, &p.saved},
                      {reduced ? nullptr : &loss, &p.loss, false},
                      {statistic(0), &p.row_loss, false},
                      {statistic(1), &p.lse, false},
                      {statistic(2), &p.z_loss, false},
                      {statistic(3), &p.entropy, false},
                      {statistic(4), &p.log_prob, false},
                      {statistic(5), &p.correct, false}},
                     p.rows);
  };
  if (!view()) {
    x = torch::stable::contiguous(x), target = torch::stable::contiguous(target);
    if (!view()) too_many_dims(op);
  }
  p.target.weight = weight ? weight->const_data_ptr() : nullptr;
  p.target.ignore_index = ignore_index, p.target.label_smoothing = label_smoothing;
  p.scale = scale, p.softcap = softcap, p.z_loss_factor = z_loss;
  p.divisors = divisors.mutable_data_ptr();
  OptionalTensor terms;
  if (reduced) {
    const int64_t elements = p.term_planes() * p.rows.M;
    terms = empty(x_any, Sizes(&elements, 1), a.accumulator);
    p.terms = terms->mutable_data_ptr(), p.reduced = loss.mutable_data_ptr();
  }

  // Plan and launch.
  const CrossEntropyKernels& k = kernels();
  const BadTarget bad = k.forward(p, k.plan({p.rows.M, p.rows.N, layout.columns, p.x_type}), on.stream);
  check_target(op, bad, p.rows.N, ignore_index);
  return {loss, saved, divisors};
}

}  // namespace

template <GetCrossEntropyKernels kernels>
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& x, const Tensor& target, OptionalTensor weight,
                                                 int64_t dim, int64_t ignore_index, int64_t reduction,
                                                 double label_smoothing, double scale, double softcap, double z_loss) {
  return forward<kernels>("hetkern::cross_entropy", x, target, weight, dim, ignore_index, reduction, label_smoothing,
                          scale, softcap, z_loss, nullptr);
}

template <GetCrossEntropyKernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy_stats(
    const Tensor& x, const Tensor& target, OptionalTensor weight, int64_t dim, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double scale, double softcap, double z_loss) {
  std::array<std::optional<Tensor>, 6> s;
  auto [loss, saved, divisors] = forward<kernels>("hetkern::cross_entropy", x, target, weight, dim, ignore_index,
                                                  reduction, label_smoothing, scale, softcap, z_loss, &s);
  return {loss, saved, divisors, *s[0], *s[1], *s[2], *s[3], *s[4], *s[5]};
}

namespace {

// dx; the gradient of class probabilities goes to `d_target`, unless that is null.
template <GetCrossEntropyKernels kernels>
Tensor backward(const OptionalTensor& d_loss, const OptionalTensor& d_row_loss, const OptionalTensor& d_lse,
                const OptionalTensor& d_z_loss, const OptionalTensor& d_entropy, const OptionalTensor& d_log_prob,
                const Tensor& x_any, const Tensor& target_any, const OptionalTensor& weight_any, const Tensor& saved,
                const Tensor& divisors, const OptionalTensor& entropy, int64_t any_dim, int64_t ignore_index,
                double label_smoothing, double scale, double softcap, double z_loss, OptionalTensor* d_target) {
  constexpr const char* op = "hetkern::cross_entropy_backward";
  const Sizes sizes = x_any.sizes();

  // Check.
  CrossEntropyBackward p{};
  p.x_type = checked_float(op, "input", x_any);
  const Arguments a =
      checked_arguments(op, x_any, target_any, weight_any, any_dim, ignore_index, label_smoothing, softcap);
  if (d_target && !a.probabilities)
    value_error(op, ": target: wanted class probabilities, which have a gradient, got class indices");
  check_like(op, "saved", saved, x_any, a.accumulator), check_shape(op, "saved", saved, sizes_of(a.saved));
  check_like(op, "divisors", divisors, x_any, a.accumulator);
  check_broadcasts(op, "divisors", divisors.sizes(), sizes_of(a.divisors));
  if (d_entropy && !entropy) value_error(op, ": entropy: wanted beside its gradient, got none");
  const std::pair<const char*, const OptionalTensor*> upstream[] = {
      {"d_loss", &d_loss},       {"d_row_loss", &d_row_loss}, {"d_lse", &d_lse},    {"d_z_loss", &d_z_loss},
      {"d_entropy", &d_entropy}, {"d_log_prob", &d_log_prob}, {"entropy", &entropy}};
  for (const auto& [name, t] : upstream)
    if (*t)
      check_like(op, name, **t, x_any, a.accumulator), check_broadcasts(op, name, (*t)->sizes(), sizes_of(a.rows));

  // Guard, allocate, return if empty.
  const OnDevice on(x_any);
  Tensor dx = empty(x_any, sizes, x_any.scalar_type());
  if (d_target) *d_target = empty(x_any, sizes, x_any.scalar_type());
  if (dx.numel() == 0) return dx;

  // Rows.
  const Layout layout(sizes, a.dim);
  Tensor x = layout.ready(x_any), target = a.probabilities ? layout.ready(target_any) : target_any;
  OptionalTensor weight;
  if (weight_any) weight = torch::stable::contiguous(*weight_any);
  const auto view = [&] {
    return view_rows(sizes, a.dim,
                     {{&x, &p.x},
                      {a.probabilities ? &target : nullptr, &p.target.probability},
                      {a.probabilities ? nullptr : &target, &p.target.index, false},
                      {&saved, &p.saved},
                      {&divisors, &p.divisors},
                      {pointer(entropy), &p.entropy, false},
                      {pointer(d_loss), &p.d_loss, false},
                      {pointer(d_row_loss), &p.d_row_loss, false},
                      {pointer(d_lse), &p.d_lse, false},
                      {pointer(d_z_loss), &p.d_z_loss, false},
                      {pointer(d_entropy), &p.d_entropy, false},
                      {pointer(d_log_prob), &p.d_log_prob, false},
                      {&dx, &p.dx},
                      {d_target ? &**d_target : nullptr, &p.d_target}},
                     p.rows);
  };
  if (!view()) {
    x = torch::stable::contiguous(x), target = torch::stable::contiguous(target);
    if (!view()) too_many_dims(op);
  }
  p.target.weight = weight ? weight->const_data_ptr() : nullptr;
  p.target.ignore_index = ignore_index, p.target.label_smoothing = label_smoothing;
  p.scale = scale, p.softcap = softcap, p.z_loss_factor = z_loss;

  // Plan and launch.
  const CrossEntropyKernels& k = kernels();
  const BadTarget bad = k.backward(p, k.plan({p.rows.M, p.rows.N, layout.columns, p.x_type}), on.stream);
  check_target(op, bad, p.rows.N, ignore_index);
  return dx;
}

}  // namespace

template <GetCrossEntropyKernels kernels>
Tensor cross_entropy_backward(OptionalTensor d_loss, OptionalTensor d_row_loss, OptionalTensor d_lse,
                              OptionalTensor d_z_loss, OptionalTensor d_entropy, OptionalTensor d_log_prob,
                              const Tensor& x, const Tensor& target, OptionalTensor weight, const Tensor& saved,
                              const Tensor& divisors, OptionalTensor entropy, int64_t dim, int64_t ignore_index,
                              double label_smoothing, double scale, double softcap, double z_loss) {
  return backward<kernels>(d_loss, d_row_loss, d_lse, d_z_loss, d_entropy, d_log_prob, x, target, weight, saved,
                           divisors, entropy, dim, ignore_index, label_smoothing, scale, softcap, z_loss, nullptr);
}

template <GetCrossEntropyKernels kernels>
std::tuple<Tensor, Tensor> cross_entropy_backward_target(
    OptionalTensor d_loss, OptionalTensor d_row_loss, OptionalTensor d_lse, OptionalTensor d_z_loss,
    OptionalTensor d_entropy, OptionalTensor d_log_prob, const Tensor& x, const Tensor& target, OptionalTensor weight,
    const Tensor& saved, const Tensor& divisors, OptionalTensor entropy, int64_t dim, int64_t ignore_index,
    double label_smoothing, double scale, double softcap, double z_loss) {
  OptionalTensor d_target;
  Tensor dx =
      backward<kernels>(d_loss, d_row_loss, d_lse, d_z_loss, d_entropy, d_log_prob, x, target, weight, saved, divisors,
                        entropy, dim, ignore_index, label_smoothing, scale, softcap, z_loss, &d_target);
  return {dx, *d_target};
}

template <GetCrossEntropyKernels kernels>
void serve_cross_entropy(StableLibrary& m) {
  m.impl("cross_entropy", TORCH_BOX((&cross_entropy<kernels>)));
  m.impl("cross_entropy_stats", TORCH_BOX((&cross_entropy_stats<kernels>)));
  m.impl("cross_entropy_backward", TORCH_BOX((&cross_entropy_backward<kernels>)));
  m.impl("cross_entropy_backward_target", TORCH_BOX((&cross_entropy_backward_target<kernels>)));
}
template void serve_cross_entropy<cpu::cross_entropy_kernels>(StableLibrary&);
#ifdef HETKERN_WITH_CUDA
template void serve_cross_entropy<cuda::cross_entropy_kernels>(StableLibrary&);
#endif

}  // namespace hetkern
