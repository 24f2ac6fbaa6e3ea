// From tensors to rows: merges the outer dimensions that can be walked with one stride for every operand.
#pragma once
#include <array>
#include <initializer_list>

#include "tensor.h"

namespace hetkern {

// A tensor that broadcasts to the reduced one's shape, and where its view goes. `reduced` says whether it has the reduced
// dimension itself (a bias has, a sink has not); its size there is its own affair.
struct View {
  const Tensor* tensor;  // null: absent
  Operand* operand;
  bool reduced = true;
};

// Rows of a tensor of `sizes` over `dim` (0 <= dim < max(rank, 1)), and the same rows of every view.
// False if more than kMaxOuter dimensions remain: make the operands contiguous and ask again.
bool view_rows(Sizes sizes, int64_t dim, std::initializer_list<View> views, Rows& rows);

[[noreturn]] void too_many_dims(const char* op);

// How the reduced dimension lies in a contiguous tensor, and so in the output: rows of neighbouring elements, or
// neighbouring rows.
struct Layout {
  bool columns = false;
  int64_t unit_dim;  // the dimension along which kernels want unit stride
  Layout(Sizes sizes, int64_t dim);
  // Copied only if its stride there is another; 0 will do for an operand whose kernel knows `broadcast_rows`.
  Tensor ready(const Tensor& t, bool broadcast_rows = false) const;
};

}  // namespace hetkern
