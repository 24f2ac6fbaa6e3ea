// What every family checks of its operands. Messages: op, argument, wanted, got.
#pragma once
#include "tensor.h"

namespace hetkern {

// ValueError unless `t` is float32, float64, float16 or bfloat16.
DType checked_float(const char* op, const char* name, const Tensor& t);

// ValueError unless `t` has this dtype and stands on `x`'s device.
void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x, ScalarType type);

// ValueError unless `t` has this shape.
void check_shape(const char* op, const char* name, const Tensor& t, Sizes wanted);

// ValueError unless `shape` broadcasts to `sizes`.
void check_broadcasts(const char* op, const char* name, Sizes shape, Sizes sizes);

// `dim` counted from the front; IndexError past the rank, as torch. A scalar has one dimension.
int64_t checked_dim(const char* op, int64_t dim, int64_t rank);

void check_softcap(const char* op, double softcap);

inline const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

}  // namespace hetkern
