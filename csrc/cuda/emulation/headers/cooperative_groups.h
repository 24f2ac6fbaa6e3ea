// Cooperative groups as most kernels use them: the block, tiles of a warp, the grid of a cooperative launch, clusters.
//
// A tile is its lanes' mask; what it does is what the warp's functions do. coalesced_threads and the partitions by a value are not
// here: which lanes run together only a GPU decides.
#pragma once
#include "../cuda_words.h"

namespace cooperative_groups {

using hetkern::emulation::Site;

namespace details {

inline unsigned linear(uint3 i, dim3 n) { return (i.z * n.y + i.y) * n.x + i.x; }
inline unsigned count(dim3 n) { return n.x * n.y * n.z; }

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

  template <class T>
  T shfl(T value, int rank, Site site = Site::here()) const {
    return __shfl_sync(mask_, value, rank, width(), site);
  }
  template <class T>
  T shfl_up(T value, unsigned by, Site site = Site::here()) const {
    return __shfl_up_sync(mask_, value, by, width(), site);
  }
  template <class T>
  T shfl_down(T value, unsigned by, Site site = Site::here()) const {
    return __shfl_down_sync(mask_, value, by, width(), site);
  }
  template <class T>
  T shfl_xor(T value, unsigned bits, Site site = Site::here()) const {
    return __shfl_xor_sync(mask_, value, static_cast<int>(bits), width(), site);
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
