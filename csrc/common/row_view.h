// From tensors to rows: merges the outer dimensions that can be walked with one stride for every operand.
#pragma once
#include <array>
#include <initializer_list>

#include "tensor.h"

namespace hetkern {

// A tensor that broadcasts to the reduced one's shape, and where its view goes. `reduced` says whether it has the reduced
// dimension itself (a bias has, a sink has not).
struct View {
  const Tensor* tensor;    // null: absent
  Operand* operand;
  bool reduced = true;
};

// Rows of a tensor of `sizes` over `dim` (0 <= dim < max(rank, 1)), and the same rows of every view.
// False if more than kMaxOuter dimensions remain: make the operands contiguous and ask again.
bool view_rows(Sizes sizes, int64_t dim, std::initializer_list<View> views, Rows& rows);

// `dim` counted from the front; IndexError past the rank, as torch. A scalar has one dimension.
int64_t checked_dim(const char* op, int64_t dim, int64_t rank);

// ValueError unless `t` broadcasts to `sizes`.
void check_broadcasts(const char* op, const char* name, Sizes shape, Sizes sizes);

}  // namespace hetkern
