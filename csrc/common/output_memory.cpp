#include "output_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>

namespace hetkern {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kMostBlocks = 16;

size_t rounded(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

void* map(size_t bytes) {
  // One huge page more than needed, so that the block can begin at one.
  void* const raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t block = rounded(begin);
  if (block > begin) munmap(raw, block - begin);
  if (const size_t after = begin + kHugePage - block) munmap(reinterpret_cast<void*>(block + bytes), after);
  advise_huge_pages(reinterpret_cast<void*>(block), bytes);
  return reinterpret_cast<void*>(block);
}

size_t most_kept() {
  const char* const megabytes = std::getenv("HETKERN_KEEP_MB");
  return megabytes ? std::strtoull(megabytes, nullptr, 10) << 20 : 0;
}

struct Kept {
  std::mutex mutex;
  Block blocks[kMostBlocks];  // the one given back last stands last
  int count = 0;
  size_t bytes = 0;
  const size_t most = most_kept();

  Block remove(int i) {
    const Block block = blocks[i];
    for (--count; i < count; ++i) blocks[i] = blocks[i + 1];
    bytes -= block.bytes;
    return block;
  }
};

Kept& kept() {
  static auto* const blocks = new Kept;  // never destroyed: a tensor may die after the library's statics
  return *blocks;
}

}  // namespace

bool memory_is_kept() { return kept().most > 0; }

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = rounded(begin), last = (begin + bytes) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Block take_block(size_t wanted) {
  const size_t bytes = rounded(wanted);
  // A lock that is taken is not waited for: after a fork it may stay so.
  if (const std::unique_lock lock(kept().mutex, std::try_to_lock); lock) {
    for (int i = kept().count; i-- > 0;)
      if (kept().blocks[i].bytes >= bytes && kept().blocks[i].bytes - bytes <= bytes / 4) return kept().remove(i);
  }
  return {map(bytes), bytes};
}

void give_block(Block block) {
#ifdef MADV_FREE
  if (const std::unique_lock lock(kept().mutex, std::try_to_lock); lock && block.bytes <= kept().most) {
    while (kept().count == kMostBlocks || kept().bytes + block.bytes > kept().most) {
      const Block oldest = kept().remove(0);
      munmap(oldest.data, oldest.bytes);
    }
    if (madvise(block.data, block.bytes, MADV_FREE) == 0) {
      kept().blocks[kept().count++] = block;
      kept().bytes += block.bytes;
      return;
    }
  }
#endif
  munmap(block.data, block.bytes);
}

}  // namespace hetkern
