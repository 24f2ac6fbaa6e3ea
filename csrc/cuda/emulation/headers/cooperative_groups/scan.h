// cg::inclusive_scan and cg::exclusive_scan over a tile.
#pragma once
#include "reduce.h"

namespace cooperative_groups {

template <class Tile, class T, class Fold = plus<T>>
T inclusive_scan(const Tile& tile, T value, Fold&& fold = {}, Site site = Site::here()) {
  for (unsigned step = 1; step < tile.num_threads(); step *= 2) {
    const T before = tile.shfl_up(value, step, site);
    if (tile.thread_rank() >= step) value = fold(before, value);
  }
  return value;
}
// The first thread has the sum of nothing.
template <class Tile, class T>
T exclusive_scan(const Tile& tile, T value, Site site = Site::here()) {
  const T before = tile.shfl_up(inclusive_scan(tile, value, plus<T>(), site), 1, site);
  return tile.thread_rank() == 0 ? T{} : before;
}

}  // namespace cooperative_groups
