// cg::reduce over a tile, in the order of a butterfly.
#pragma once
#include "../cooperative_groups.h"

namespace cooperative_groups {

template <class T>
struct plus {
  T operator()(T x, T y) const { return x + y; }
};
template <class T>
struct less {
  T operator()(T x, T y) const { return y < x ? y : x; }
};
template <class T>
struct greater {
  T operator()(T x, T y) const { return x < y ? y : x; }
};
template <class T>
struct bit_and {
  T operator()(T x, T y) const { return x & y; }
};
template <class T>
struct bit_or {
  T operator()(T x, T y) const { return x | y; }
};
template <class T>
struct bit_xor {
  T operator()(T x, T y) const { return x ^ y; }
};

template <class Tile, class T, class Fold>
T reduce(const Tile& tile, T value, Fold&& fold, Site site = Site::here()) {
  static_assert(Tile::is_tile || std::is_same_v<Tile, coalesced_group>,
                "cg::reduce over a block is not known here: reduce its tiles");
  if constexpr (std::is_same_v<Tile, coalesced_group>) {  // one after the other
    T result = tile.shfl(value, 0, site);
    for (unsigned rank = 1; rank < tile.size(); ++rank) result = fold(result, tile.shfl(value, rank, site));
    return result;
  } else {
    for (unsigned step = tile.num_threads() / 2; step > 0; step /= 2)
      value = fold(value, tile.shfl_xor(value, step, site));
    return value;
  }
}

}  // namespace cooperative_groups
