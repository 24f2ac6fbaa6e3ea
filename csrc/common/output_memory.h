// Memory for large results on the CPU: huge pages and, on request, kept from one call to the next.
//
// A fresh 400 MB result costs more in pages that the kernel zeroes than in arithmetic; in huge pages it costs a fifth of that. And
// malloc gives such a block back to the system as soon as its tensor dies. With HETKERN_KEEP_MB it stays: in huge pages, and marked
// as free to take (MADV_FREE), so that a system short of memory takes it without asking. That is not the default, because torch can
// then not resize the storage: the stable ABI makes a tensor of foreign memory without an allocator, and of torch's own memory
// nobody hears when it dies.
#pragma once
#include <cstddef>

namespace hetkern {

constexpr size_t kLargeOutput = size_t{4} << 20;  // bytes from which a result is one of them

struct Block {
  void* data;  // null: the system has no memory
  size_t bytes;
};

// Whether HETKERN_KEEP_MB asks for it; read once.
bool memory_is_kept();

// Advice on fresh memory, before anything is written to it; a refusal costs only time.
void advise_huge_pages(void* data, size_t bytes);

// At least so many bytes, contents unspecified; thread-safe.
Block take_block(size_t bytes);
void give_block(Block block);

}  // namespace hetkern
