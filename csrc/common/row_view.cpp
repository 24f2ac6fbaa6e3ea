#include "row_view.h"

namespace hetkern {

bool view_rows(Sizes sizes, int64_t dim, std::initializer_list<View> views, Rows& rows) {
  const auto rank = static_cast<int64_t>(sizes.size());
  rows.N = rank == 0 ? 1 : sizes[dim];
  rows.M = 1;
  rows.outer_dims = 0;

  // A view's stride along dimension d of the reduced tensor; 0 where it is broadcast or has one element.
  const auto stride_of = [&](const View& view, int64_t d) -> int64_t {
    const Sizes shape = view.tensor->sizes();
    const auto view_rank = static_cast<int64_t>(shape.size()) + (view.reduced ? 0 : 1);
    int64_t at = d - (rank - view_rank);  // counted in the view, its missing reduced dimension put back
    if (at < 0) return 0;
    if (!view.reduced && d > dim) --at;
    return at < 0 || shape[at] == 1 ? 0 : view.tensor->strides()[at];
  };

  for (const View& view : views) {
    *view.operand = Operand{};
    if (!view.tensor) continue;
    view.operand->data = const_cast<void*>(view.tensor->const_data_ptr());
    // With one element a row, only a view that has more than the reduced tensor there has a step.
    const int64_t step = rank > 0 && view.reduced ? stride_of(view, dim) : 1;
    view.operand->step = rows.N > 1 || step != 0 ? step : 1;
  }
  for (int64_t d = 0; d < rank; ++d) {
    if (d == dim) continue;
    rows.M *= sizes[d];
    if (sizes[d] == 1) continue;
    // Merge with the dimension before if every operand walks the pair with one stride.
    const int last = rows.outer_dims - 1;
    bool merges = last >= 0;
    for (const View& view : views)
      if (view.tensor && merges) merges = view.operand->stride[last] == stride_of(view, d) * sizes[d];
    if (!merges && rows.outer_dims == kMaxOuter) return false;
    const int slot = merges ? last : rows.outer_dims++;
    rows.size[slot] = merges ? rows.size[slot] * sizes[d] : sizes[d];
    for (const View& view : views)
      if (view.tensor) view.operand->stride[slot] = stride_of(view, d);
  }
  return true;
}

Layout::Layout(Sizes sizes, int64_t dim) : unit_dim(dim) {
  for (int64_t d = dim + 1; d < static_cast<int64_t>(sizes.size()); ++d)
    if (sizes[d] > 1) columns = true, unit_dim = d;
}

Tensor Layout::ready(const Tensor& t, bool broadcast_rows) const {
  if (t.dim() == 0 || t.size(unit_dim) <= 1 || t.stride(unit_dim) == 1) return t;
  if (broadcast_rows && !columns && t.stride(unit_dim) == 0) return t;
  return torch::stable::contiguous(t);
}

void too_many_dims(const char* op) {
  value_error(op, ": wanted operands whose strides leave at most ", kMaxOuter,
              " separate outer dimensions, got more: call contiguous()");
}

}  // namespace hetkern
