// Softmax, host side: written once for every device.  (contract: softmax.h; schemas and derivatives: hetkern/ops/softmax.py)
//
// Each function goes: check, guard, sizes, allocate, return if empty, plan, launch.
#include "softmax.h"

#include <tuple>
#include <utility>

#include "common/operands.h"
#include "common/row_view.h"
#include "ops.h"

namespace hetkern {
namespace {

// The type of y for x of this type: the same, or float32 for 16-bit x.
ScalarType checked_output_type(const char* op, ScalarType x, std::optional<ScalarType> wanted) {
  if (!wanted || *wanted == x) return x;
  if (*wanted == ScalarType::Float && (x == ScalarType::Half || x == ScalarType::BFloat16)) return *wanted;
  value_error(op, ": dtype: wanted ", name_of(x), " or, for a 16-bit x, float32, got ", name_of(*wanted));
}

int64_t checked_queries(const char* op, bool causal, int64_t dim, Sizes sizes) {
  if (!causal) return 0;
  const auto rank = static_cast<int64_t>(sizes.size());
  if (rank < 2 || dim != rank - 1)
    value_error(op, ": causal: wanted dim = -1 and at least two dimensions, got dim ", dim, " of shape ", sizes);
  return sizes[rank - 2];
}

// A shape without the reduced dimension.
struct RowsShape {
  int64_t size[64];
  size_t rank = 0;
  RowsShape(Sizes sizes, int64_t dim) {
    for (size_t d = 0; d < sizes.size(); ++d)
      if (static_cast<int64_t>(d) != dim) size[rank++] = sizes[d];
  }
  operator Sizes() const { return {size, rank}; }
};

}  // namespace

// y, and y_sink if there is a sink.
template <GetSoftmaxKernels kernels>
std::pair<Tensor, OptionalTensor> softmax_of(const char* op, const Tensor& x_any, int64_t any_dim,
                                             std::optional<ScalarType> dtype, double scale, double softcap,
                                             const OptionalTensor& bias, const OptionalTensor& mask, bool causal,
                                             bool log, const OptionalTensor& sink) {
  const Sizes sizes = x_any.sizes();
  const auto rank = static_cast<int64_t>(sizes.size());

  // Check.
  SoftmaxForward p{};
  p.x_type = checked_float(op, "x", x_any);
  const ScalarType x_type = x_any.scalar_type(), y_type = checked_output_type(op, x_type, dtype);
  const int64_t dim = checked_dim(op, any_dim, rank);
  check_softcap(op, softcap);
  p.queries = checked_queries(op, causal, dim, sizes);
  if (bias) check_like(op, "bias", *bias, x_any, x_type), check_broadcasts(op, "bias", bias->sizes(), sizes);
  if (mask) check_like(op, "mask", *mask, x_any, ScalarType::Bool), check_broadcasts(op, "mask", mask->sizes(), sizes);
  const RowsShape rows_of_shape(sizes, dim);
  const Sizes rows_shape = rows_of_shape;
  if (sink) check_like(op, "sink", *sink, x_any, x_type), check_broadcasts(op, "sink", sink->sizes(), rows_shape);

  // Guard, allocate, return if empty.
  const OnDevice on(x_any);
  Tensor y = empty(x_any, sizes, y_type);
  OptionalTensor y_sink;
  if (sink) y_sink = empty(x_any, rows_shape, accumulator_of(x_type));
  if (y.numel() == 0 && !(y_sink && y_sink->numel() > 0)) return {y, y_sink};

  // Rows.
  const Layout layout(sizes, dim);
  Tensor x = layout.ready(x_any);
  const auto view = [&] {
    return view_rows(sizes, dim,
                     {{&x, &p.x},
                      {&y, &p.y},
                      {pointer(bias), &p.bias},
                      {pointer(mask), &p.mask},
                      {pointer(sink), &p.sink, false},
                      {pointer(y_sink), &p.y_sink, false}},
                     p.rows);
  };
  if (!view()) {
    x = torch::stable::contiguous(x);
    if (!view()) too_many_dims(op);
  }
  p.y_type = *float_dtype(y_type);
  p.scale = scale, p.softcap = softcap, p.log = log;

  // Plan and launch.
  const SoftmaxKernels& k = kernels();
  k.forward(p, k.plan({p.rows.M, p.rows.N, layout.columns, p.x_type, p.y_type}), on.stream);
  return {y, y_sink};
}

template <GetSoftmaxKernels kernels>
Tensor softmax(const Tensor& x, int64_t dim, std::optional<ScalarType> dtype, double scale, double softcap,
               OptionalTensor bias, OptionalTensor mask, bool causal, bool log) {
  return softmax_of<kernels>("hetkern::softmax", x, dim, dtype, scale, softcap, bias, mask, causal, log, std::nullopt)
      .first;
}

template <GetSoftmaxKernels kernels>
std::tuple<Tensor, Tensor> softmax_sink(const Tensor& x, int64_t dim, std::optional<ScalarType> dtype, double scale,
                                        double softcap, OptionalTensor bias, OptionalTensor mask, bool causal, bool log,
                                        const Tensor& sink) {
  auto [y, y_sink] =
      softmax_of<kernels>("hetkern::softmax", x, dim, dtype, scale, softcap, bias, mask, causal, log, sink);
  return {y, *y_sink};
}

template <GetSoftmaxKernels kernels>
Tensor softmax_backward(const Tensor& dy_any, const Tensor& y_any, OptionalTensor x_any, int64_t any_dim,
                        ScalarType x_type, double scale, double softcap, OptionalTensor mask, bool causal, bool log,
                        OptionalTensor y_sink) {
  constexpr const char* op = "hetkern::softmax_backward";
  const Sizes sizes = y_any.sizes();

  // Check.
  SoftmaxBackward p{};
  p.y_type = checked_float(op, "y", y_any);
  const int64_t dim = checked_dim(op, any_dim, static_cast<int64_t>(sizes.size()));
  check_softcap(op, softcap);
  p.queries = checked_queries(op, causal, dim, sizes);
  checked_output_type(op, x_type, y_any.scalar_type());
  check_like(op, "dy", dy_any, y_any, y_any.scalar_type()), check_shape(op, "dy", dy_any, sizes);
  if ((softcap > 0) != x_any.has_value()) value_error(op, ": x: wanted with a softcap, and only then");
  if (x_any) check_like(op, "x", *x_any, y_any, x_type), check_shape(op, "x", *x_any, sizes);
  if (mask) check_like(op, "mask", *mask, y_any, ScalarType::Bool), check_broadcasts(op, "mask", mask->sizes(), sizes);
  if (y_sink) {
    check_like(op, "y_sink", *y_sink, y_any, accumulator_of(x_type));
    check_shape(op, "y_sink", *y_sink, RowsShape(sizes, dim));
  }

  // Guard, allocate, return if empty.
  const OnDevice on(y_any);
  Tensor dx = empty(y_any, sizes, x_type);
  if (dx.numel() == 0) return dx;

  // Rows.
  const Layout layout(sizes, dim);
  Tensor dy = layout.ready(dy_any, true), y = layout.ready(y_any);
  OptionalTensor x;
  if (x_any) x = layout.ready(*x_any);
  const auto view = [&] {
    return view_rows(sizes, dim,
                     {{&dy, &p.dy},
                      {&y, &p.y},
                      {&dx, &p.dx},
                      {pointer(x), &p.x},
                      {pointer(mask), &p.mask},
                      {pointer(y_sink), &p.y_sink, false}},
                     p.rows);
  };
  if (!view()) {
    dy = torch::stable::contiguous(dy), y = torch::stable::contiguous(y);
    if (x) x = torch::stable::contiguous(*x);
    if (!view()) too_many_dims(op);
  }
  p.x_type = *float_dtype(x_type);
  p.scale = scale, p.softcap = softcap, p.log = log;

  // Plan and launch.
  const SoftmaxKernels& k = kernels();
  k.backward(p, k.plan({p.rows.M, p.rows.N, layout.columns, p.y_type, p.x_type, 2}), on.stream);
  return dx;
}

template <GetSoftmaxKernels kernels>
std::tuple<Tensor, Tensor> softmax_double_backward(const Tensor& g_any, const Tensor& dy_any, const Tensor& y_any,
                                                   int64_t any_dim, double scale, bool log) {
  constexpr const char* op = "hetkern::softmax_double_backward";
  const Sizes sizes = y_any.sizes();

  // Check.
  SoftmaxDoubleBackward p{};
  p.y_type = checked_float(op, "y", y_any);
  p.x_type = checked_float(op, "g", g_any);
  const int64_t dim = checked_dim(op, any_dim, static_cast<int64_t>(sizes.size()));
  checked_output_type(op, g_any.scalar_type(), y_any.scalar_type());
  check_like(op, "g", g_any, y_any, g_any.scalar_type()), check_shape(op, "g", g_any, sizes);
  check_like(op, "dy", dy_any, y_any, y_any.scalar_type()), check_shape(op, "dy", dy_any, sizes);

  // Guard, allocate, return if empty.
  const OnDevice on(y_any);
  Tensor g_dy = empty(y_any, sizes, y_any.scalar_type()), g_y = empty(y_any, sizes, y_any.scalar_type());
  if (g_y.numel() == 0) return {g_dy, g_y};

  // Rows.
  const Layout layout(sizes, dim);
  Tensor g = layout.ready(g_any), dy = layout.ready(dy_any), y = layout.ready(y_any);
  const auto view = [&] {
    return view_rows(sizes, dim, {{&g, &p.g}, {&dy, &p.dy}, {&y, &p.y}, {&g_dy, &p.g_dy}, {&g_y, &p.g_y}}, p.rows);
  };
  if (!view()) {
    g = torch::stable::contiguous(g), dy = torch::stable::contiguous(dy), y = torch::stable::contiguous(y);
    if (!view()) too_many_dims(op);
  }
  p.scale = scale, p.log = log;

  // Plan and launch.
  const SoftmaxKernels& k = kernels();
  k.double_backward(p, k.plan({p.rows.M, p.rows.N, layout.columns, p.y_type, p.x_type, 3}), on.stream);
  return {g_dy, g_y};
}

template <GetSoftmaxKernels kernels>
void serve_softmax(StableLibrary& m) {
  m.impl("softmax", TORCH_BOX((&softmax<kernels>)));
  m.impl("softmax_sink", TORCH_BOX((&softmax_sink<kernels>)));
  m.impl("softmax_backward", TORCH_BOX((&softmax_backward<kernels>)));
  m.impl("softmax_double_backward", TORCH_BOX((&softmax_double_backward<kernels>)));
}
template void serve_softmax<cpu::softmax_kernels>(StableLibrary&);
#ifdef HETKERN_WITH_CUDA
template void serve_softmax<cuda::softmax_kernels>(StableLibrary&);
#endif

}  // namespace hetkern
