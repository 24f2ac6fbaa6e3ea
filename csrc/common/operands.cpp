#include "operands.h"

namespace hetkern {

DType checked_float(const char* op, const char* name, const Tensor& t) {
  if (const auto type = float_dtype(t.scalar_type())) return *type;
  value_error(op, ": ", name, ": wanted float32, float64, float16 or bfloat16, got ", name_of(t.scalar_type()));
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x, ScalarType type) {
  if (t.scalar_type() != type)
    value_error(op, ": ", name, ": wanted ", name_of(type), ", got ", name_of(t.scalar_type()));
  if (t.is_cpu() != x.is_cpu() || t.get_device_index() != x.get_device_index())
    value_error(op, ": ", name, ": wanted a tensor on the first argument's device, got one on another");
}

void check_shape(const char* op, const char* name, const Tensor& t, Sizes wanted) {
  const Sizes got = t.sizes();
  bool same = got.size() == wanted.size();
  for (size_t d = 0; same && d < got.size(); ++d) same = got[d] == wanted[d];
  if (!same) value_error(op, ": ", name, ": wanted shape ", wanted, ", got ", got);
}

void check_softcap(const char* op, double softcap) {
  if (!(softcap >= 0)) value_error(op, ": softcap: wanted a value above 0, or 0 for none, got ", softcap);
}

int64_t checked_dim(const char* op, int64_t dim, int64_t rank) {
  const int64_t dims = rank > 0 ? rank : 1;
  if (dim < -dims || dim >= dims) index_error(op, ": dim: wanted a value in [", -dims, ", ", dims - 1, "], got ", dim);
  return dim < 0 ? dim + dims : dim;
}

void check_broadcasts(const char* op, const char* name, Sizes shape, Sizes sizes) {
  bool fits = shape.size() <= sizes.size();
  for (size_t d = 0; fits && d < shape.size(); ++d) {
    const int64_t have = shape[shape.size() - 1 - d];
    fits = have == 1 || have == sizes[sizes.size() - 1 - d];
  }
  if (!fits) value_error(op, ": ", name, ": wanted a shape that broadcasts to ", sizes, ", got ", shape);
}

}  // namespace hetkern
