// Cooperative groups as most kernels use them: the block, tiles of a warp, the grid of a cooperative launch, clusters.
//
// A tile is its lanes' mask; what it does is what the warp's functions do. coalesced_threads is the calling thread alone: which lanes
// run together only a GPU decides.
#pragma once
#include "../cuda_words.h"

namespace cooperative_groups {

using hetkern::emulation::Site;

namespace details {

inline unsigned linear(uint3 i, dim3 n) { return (i.z * n.y + i.y) * n.x + i.x; }
inline unsigned count(dim3 n) { return n.x * n.y * n.z; }

// What warp's functions take goes as it is, another value in words of four bytes.
template <class T, class Each>
T by_pieces(T value, Each each) {
  if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || hetkern::emulation::is_half<T> ||
                hetkern::emulation::is_half2<T>) {
    return static_cast<T>(each(value));
  } else {
    static_assert(std::is_trivially_copyable_v<T>, "a group's shuffles take what memcpy may copy");
    unsigned words[(sizeof(T) + 3) / 4] = {};
    std::memcpy(words, &value, sizeof value);
    for (unsigned& word : words) word = each(word);
    std::memcpy(static_cast<void*>(&value), words, sizeof value);
    return value;
  }
}

// The n-th lane of a mask.
inline unsigned lane_of(unsigned mask, unsigned n) {
  while (n--) mask &= mask - 1;
  return static_cast<unsigned>(__builtin_ctz(mask));
}

}  // namespace details

class thread_block {
 public:
  static constexpr bool is_tile = false;
  static void sync(Site site = Site::here()) { hetkern::emulation::block_barrier(site); }
  static unsigned thread_rank() { return hetkern::emulation::current->linear; }
  static unsigned size() { return details::count(blockDim); }
  static unsigned num_threads() { return size(); }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  static dim3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
  static dim3 group_dim() { return blockDim; }
  static dim3 dim_threads() { return blockDim; }
};

inline thread_block this_thread_block() { return {}; }

class coalesced_group;

// Lanes of one warp: N side by side.
class tile_of_lanes {
 public:
  static constexpr bool is_tile = true;
  explicit tile_of_lanes(unsigned lanes) : lanes_(lanes) {
    const unsigned lane = hetkern::emulation::current->lane, first = lane & ~(lanes - 1);
    mask_ = (lanes == 32 ? ~0u : (1u << lanes) - 1) << first;
    first_ = first;
  }
  void sync(Site site = Site::here()) const { hetkern::emulation::warp_barrier(mask_, site); }
  unsigned thread_rank() const { return hetkern::emulation::current->lane - first_; }
  unsigned size() const { return lanes_; }
  unsigned num_threads() const { return lanes_; }
  unsigned meta_group_rank() const { return hetkern::emulation::current->linear / lanes_; }
  unsigned meta_group_size() const { return (details::count(blockDim) + lanes_ - 1) / lanes_; }

  // Of a struct they take each piece, as CUDA's do.
  template <class T>
  T shfl(T value, int rank, Site site = Site::here()) const {
    return details::by_pieces(value, [&](auto v) { return __shfl_sync(mask_, v, rank, width(), site); });
  }
  template <class T>
  T shfl_up(T value, unsigned by, Site site = Site::here()) const {
    return details::by_pieces(value, [&](auto v) { return __shfl_up_sync(mask_, v, by, width(), site); });
  }
  template <class T>
  T shfl_down(T value, unsigned by, Site site = Site::here()) const {
    return details::by_pieces(value, [&](auto v) { return __shfl_down_sync(mask_, v, by, width(), site); });
  }
  template <class T>
  T shfl_xor(T value, unsigned bits, Site site = Site::here()) const {
    return details::by_pieces(value,
                              [&](auto v) { return __shfl_xor_sync(mask_, v, static_cast<int>(bits), width(), site); });
  }
  int any(int mine, Site site = Site::here()) const { return ballot(mine, site) != 0; }
  int all(int mine, Site site = Site::here()) const { return __ballot_sync(mask_, !mine, site) == 0; }
  unsigned ballot(int mine, Site site = Site::here()) const { return __ballot_sync(mask_, mine, site) >> first_; }
  template <class T>
  unsigned match_any(T value, Site site = Site::here()) const {
    return __match_any_sync(mask_, value, site) >> first_;
  }
  template <class T>
  unsigned match_all(T value, int& same, Site site = Site::here()) const {
    return __match_all_sync(mask_, value, &same, site) >> first_;
  }
  template <class Label>
  coalesced_group partition(Label label, Site site) const;

 private:
  int width() const { return static_cast<int>(lanes_); }
  unsigned lanes_, mask_, first_;
};

// Parent: the group that it is a part of, void where nobody says which.
template <unsigned N, class Parent = void>
class thread_block_tile : public tile_of_lanes {
 public:
  static_assert(N >= 1 && N <= 32 && (N & (N - 1)) == 0, "a tile has 1, 2, 4, 8, 16 or 32 threads here");
  thread_block_tile() : tile_of_lanes(N) {}
  template <class Other>
  thread_block_tile(const thread_block_tile<N, Other>&) : tile_of_lanes(N) {}
  static constexpr unsigned size() { return N; }
  static constexpr unsigned num_threads() { return N; }
};

template <unsigned N, class Parent>
thread_block_tile<N, Parent> tiled_partition(const Parent&) {
  return {};
}

// Any lanes of a warp, in their order: what a partition by a value gives. Ranks outside the group are undefined in CUDA and refused
// here.
class coalesced_group {
 public:
  static constexpr bool is_tile = false, is_coalesced = true;
  coalesced_group(unsigned mask, unsigned groups, unsigned group) : mask_(mask), groups_(groups), group_(group) {}
  void sync(Site site = Site::here()) const { hetkern::emulation::warp_barrier(mask_, site); }
  unsigned thread_rank() const { return static_cast<unsigned>(__builtin_popcount(mask_ & (own() - 1))); }
  unsigned size() const { return static_cast<unsigned>(__builtin_popcount(mask_)); }
  unsigned num_threads() const { return size(); }
  unsigned meta_group_rank() const { return group_; }
  unsigned meta_group_size() const { return groups_; }

  template <class T>
  T shfl(T value, unsigned rank, Site site = Site::here()) const {
    if (rank >= size()) hetkern::emulation::fail(site, "shfl from rank %u of a group of %u threads", rank, size());
    const int lane = static_cast<int>(details::lane_of(mask_, rank));
    return details::by_pieces(value, [&](auto v) { return __shfl_sync(mask_, v, lane, 32, site); });
  }
  // Past the group a thread takes its own.
  template <class T>
  T shfl_up(T value, unsigned by, Site site = Site::here()) const {
    return shfl(value, by > thread_rank() ? thread_rank() : thread_rank() - by, site);
  }
  template <class T>
  T shfl_down(T value, unsigned by, Site site = Site::here()) const {
    return shfl(value, by >= size() - thread_rank() ? thread_rank() : thread_rank() + by, site);
  }
  int any(int mine, Site site = Site::here()) const { return __any_sync(mask_, mine, site); }
  int all(int mine, Site site = Site::here()) const { return __all_sync(mask_, mine, site); }
  unsigned ballot(int mine, Site site = Site::here()) const { return packed(__ballot_sync(mask_, mine, site)); }
  template <class T>
  unsigned match_any(T value, Site site = Site::here()) const {
    return packed(__match_any_sync(mask_, value, site));
  }
  unsigned mask() const { return mask_; }  // of lanes

 private:
  static unsigned own() { return 1u << hetkern::emulation::current->lane; }
  unsigned packed(unsigned lanes) const {
    unsigned bits = 0;
    for (unsigned rank = 0; rank < size(); ++rank) bits |= (lanes >> details::lane_of(mask_, rank) & 1) << rank;
    return bits;
  }
  unsigned mask_, groups_, group_;
};

inline coalesced_group coalesced_threads() { return {__activemask(), 1, 0}; }

// The threads that bring the same label; all of the group call it.
template <class Label>
coalesced_group labeled_partition(const tile_of_lanes& tile, Label label, Site site = Site::here()) {
  static_assert(std::is_integral_v<Label>, "a label is an integer");
  return tile.partition(label, site);
}
inline coalesced_group binary_partition(const tile_of_lanes& tile, bool mine, Site site = Site::here()) {
  return tile.partition(mine, site);
}
template <class Label>
coalesced_group tile_of_lanes::partition(Label label, Site site) const {
  Label all[32];
  const unsigned present = hetkern::emulation::gather(mask_, &label, all, sizeof label, site);
  unsigned mine = 0, groups = 0, group = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(present >> lane & 1)) continue;
    bool first = true;
    for (unsigned before = 0; before < lane; ++before) first &= !(present >> before & 1) || all[before] != all[lane];
    if (all[lane] == label) mine |= 1u << lane, group = first ? groups : group;
    groups += first;
  }
  return {mine, groups, group};
}

// Any of them.
class thread_group {
 public:
  thread_group(const thread_block&) {}
  thread_group(const tile_of_lanes& tile) : lanes_(tile.size()) {}
  void sync(Site site = Site::here()) const { lanes_ ? tile_of_lanes(lanes_).sync(site) : thread_block::sync(site); }
  unsigned size() const { return lanes_ ? lanes_ : thread_block::size(); }
  unsigned num_threads() const { return size(); }
  unsigned thread_rank() const { return lanes_ ? tile_of_lanes(lanes_).thread_rank() : thread_block::thread_rank(); }

 private:
  unsigned lanes_ = 0;
};

inline thread_group tiled_partition(const thread_group&, unsigned lanes) { return tile_of_lanes(lanes); }

// Of a launch by HETKERN_LAUNCH_COOPERATIVE.
class grid_group {
 public:
  void sync(Site site = Site::here()) const { hetkern::emulation::grid_barrier(site); }
  bool is_valid() const { return hetkern::emulation::grid->cooperative; }
  unsigned long long thread_rank() const {
    return block_rank() * details::count(blockDim) + thread_block::thread_rank();
  }
  unsigned long long size() const { return num_threads(); }
  unsigned long long num_threads() const { return num_blocks() * details::count(blockDim); }
  unsigned long long num_blocks() const { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  unsigned long long block_rank() const { return details::linear(blockIdx, gridDim); }
  dim3 group_dim() const { return gridDim; }
  dim3 dim_blocks() const { return gridDim; }
  dim3 block_index() const { return thread_block::group_index(); }
};

inline grid_group this_grid() { return {}; }

template <class Group>
void sync(const Group& group, Site site = Site::here()) {
  group.sync(site);
}

}  // namespace cooperative_groups
