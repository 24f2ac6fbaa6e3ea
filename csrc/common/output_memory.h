// Memory for large results on the CPU, kept from one call to the next.
//
// A fresh 400 MB result costs more in pages that the kernel zeroes than in arithmetic, and malloc gives such a block back to
// the system as soon as its tensor dies. Here it stays: in huge pages, and marked as free to take (MADV_FREE), so that a
// system short of memory takes it without asking.
#pragma once
#include <cstddef>

namespace hetkern {

constexpr size_t kLargeOutput = size_t{4} << 20;  // bytes from which a result lives here

struct Block {
  void* data;  // null: the system has no memory
  size_t bytes;
};

// At least so many bytes, contents unspecified; thread-safe.
Block take_block(size_t bytes);
void give_block(Block block);

}  // namespace hetkern
