// Shared memory, asynchronous copies, failing.                                                                (words: memory.h)
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "bulk.h"
#include "fenced.h"
#include "machine.h"
#include "sanitizers.h"
#include "signals.h"

namespace hetkern::emulation {

using sanitize::Quiet;

// ---- Shared memory. --------------------------------------------------------------------------------------------------------

namespace {

void fill_with_nan(char* p, size_t bytes) { std::memset(p, 0xff, bytes); }

// What nobody has written yet.
void fill(char* p, size_t bytes) {
  const UndefinedValues& u = undefined_values;
  if (!u.allowed) return fill_with_nan(p, bytes);
  for (size_t i = 0; i < bytes; i += sizeof u.fill) std::memcpy(p + i, u.fill, std::min(bytes - i, sizeof u.fill));
}

}  // namespace

#ifdef HETKERN_EMULATION_ADDRESS
namespace {

// Blocks' memories lie far apart under AddressSanitizer, with nothing between: an index far too large meets no other block's.
constexpr size_t kApart = size_t{1} << 36, kMost = 256 << 10;
// Parts that a kernel takes lie behind all that, that far apart, and are that many at most. (shared_part)
constexpr size_t kGap = 4096, kParts = 64, kRoom = 2 * kMost + kParts * kGap;
bool parts_taken = false;
std::vector<char*> places;

char* place_of(unsigned number, size_t bytes) {
  if (places.size() <= number) places.resize(number + 1);
  char*& at = places[number];
  if (!at) {
    void* const p = mmap(nullptr, kApart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    at = static_cast<char*>(p) + kApart / 2;
    mprotect(at - 4096, kRoom + 8192, PROT_READ | PROT_WRITE);
    __asan_poison_memory_region(at - 4096, kRoom + 8192);
  }
  __asan_unpoison_memory_region(at, bytes);
  return at;
}

}  // namespace
#elif defined(HETKERN_EMULATION_PLAIN)
namespace {

// Blocks that run beside one another have a place each, which the next ones take again.
struct Place {
  char* at = nullptr;
  size_t bytes = 0;
};
std::vector<Place> places;

char* place_of(unsigned number, size_t bytes) {
  if (places.size() <= number) places.resize(number + 1);
  Place& p = places[number];
  if (p.at && p.bytes != bytes) fenced::give_back(p.at), p = {};
  if (!p.at) p = {fenced::take(bytes, 1024, 0, fenced::kNear), bytes};
  if (!p.at) throw std::bad_alloc();
  return p.at;
}

// After a launch that has failed: what it did to the marks is no fault of the next one's.
void leave(const Block& block) {
  fenced::give_back(block.shared);
  for (Place& p : places)
    if (p.at == block.shared) p = {};
}

// By the last thread of a block.
void check_marks(const Block& block, size_t bytes) {
  const char* const touched = fenced::touched(block.shared);
  if (!touched) return;
  fail({}, "out of bounds: a store at byte %td of the block's shared memory, which has %zu", touched - block.shared,
       bytes);
}

}  // namespace
#endif

namespace {

// Nobody may touch a block's memory any more.
void close([[maybe_unused]] Block& block, [[maybe_unused]] size_t bytes) {
#ifdef HETKERN_EMULATION_ADDRESS
  __asan_poison_memory_region(block.shared, bytes);
  if (parts_taken) __asan_poison_memory_region(block.shared + kMost, kRoom - kMost);
#endif
}

// Whether something lies in this block's memory, or in what parts of it are apart.
bool is_shared(const void* p, size_t bytes) {
  const auto offset = static_cast<size_t>(static_cast<const char*>(p) - current->block->shared);
#ifdef HETKERN_EMULATION_ADDRESS
  if (parts_taken && offset >= kMost && offset < kRoom) return offset + bytes <= kRoom;
#endif
  return offset <= grid->shared_bytes && offset + bytes <= grid->shared_bytes;
}

}  // namespace

void begin_block(Block& block, size_t bytes, [[maybe_unused]] unsigned place) {
  block.shared = nullptr;
  if (bytes == 0) return;
#if defined(HETKERN_EMULATION_ADDRESS) || defined(HETKERN_EMULATION_PLAIN)
  block.shared = place_of(place, bytes);
#else
  void* p = nullptr;
  if (posix_memalign(&p, 1024, bytes)) throw std::bad_alloc();
  block.shared = static_cast<char*>(p);
#endif
  if (undefined_values.allowed && !undefined_values.shared && !undefined_values.taken)
    undefined_values.kernel = grid->kernel;
  undefined_values.shared |= undefined_values.allowed;
  fill(block.shared, bytes);
}

void end_block(Block& block, size_t bytes, bool peers_live) {
#ifdef HETKERN_EMULATION_PLAIN
  if (bytes) check_marks(block, bytes);
#endif
  if (!peers_live || bytes == 0) return;
  sanitize::written(block.shared, bytes, __builtin_return_address(0));  // a peer that still reads it is in a race
  Quiet quiet;
  fill_with_nan(block.shared, bytes);
  close(block, bytes);
}

void release_block(Block& block) {
  if (!block.shared) return;
#ifdef HETKERN_EMULATION_ADDRESS
  forget_barriers(block.shared, parts_taken ? kRoom : grid->shared_bytes);
  close(block, grid->shared_bytes);
#else
  forget_barriers(block.shared, grid->shared_bytes);
#ifndef HETKERN_EMULATION_PLAIN
  std::free(block.shared);
#else
  if (machine.failed) leave(block);
#endif
#endif
  block.shared = nullptr;
}

void* shared_memory(size_t bytes) {
  if (bytes > grid->shared_bytes)
    fail({}, "the kernel wants %zu bytes of shared memory, its launch gives %zu", bytes, grid->shared_bytes);
  return current->block->shared;
}

void* shared_part(size_t begin, [[maybe_unused]] unsigned number, size_t bytes, Site site) {
  if (begin + bytes > grid->shared_bytes)
    fail(site, "the kernel takes %zu bytes of shared memory so far, its launch gives %zu", begin + bytes,
         grid->shared_bytes);
  char* const shared = current->block->shared;
#ifdef HETKERN_EMULATION_ADDRESS
  if (number >= kParts) fail(site, "the emulation tells at most %zu parts of shared memory apart", kParts);
  char* const apart = shared + kMost + (begin + 15) / 16 * 16 + number * kGap;
  if (bytes && __asan_address_is_poisoned(apart)) {  // whoever comes first makes it one
    __asan_poison_memory_region(shared + begin, bytes);
    __asan_unpoison_memory_region(apart, bytes);
    fill(apart, bytes);
    parts_taken = true;
  }
  return apart;
#else
  return shared + begin;
#endif
}

void* map_shared(const void* mine, unsigned rank, Site site) {
  const Block* const peer = block_of_rank(rank);
  if (!peer) fail(site, "map_shared: the cluster has %u blocks, and none of rank %u", grid->cluster, rank);
  const auto offset = static_cast<size_t>(static_cast<const char*>(mine) - current->block->shared);
  if (!is_shared(mine, 1)) fail(site, "map_shared: the address is not in this block's dynamic shared memory");
  if (peer == current->block) return peer->shared + offset;
  if (clusters_passed() == 0)
    fail(site, "map_shared: shared memory of block %u before the first cluster barrier: it may not have started", rank);
  if (peer->alive == 0) fail(site, "map_shared: shared memory of block %u, which has ended", rank);
  return peer->shared + offset;
}

// ---- cp.async. -------------------------------------------------------------------------------------------------------------

namespace {

struct Copy {
  char* to;
  unsigned char value[16];
  unsigned bytes;
  Site site;
};
struct Copies {  // one thread's
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
std::vector<Copies> copies;  // by the threads' numbers

Copies& mine() {
  if (copies.size() <= current->resident) copies.resize(current->resident + 1);
  return copies[current->resident];
}

}  // namespace

void check_copy_async(const void* shared, const void* global, unsigned bytes, unsigned source_bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
    fail(site, "cp.async of %u bytes: misaligned address, %p to %p", bytes, global, shared);
  if (source_bytes > bytes)
    fail(site, "cp.async of %u bytes: wanted at most as many source bytes, got %u", bytes, source_bytes);
  check_shared(shared, bytes, "cp.async: the destination", site);
}

void begin_copy_async(void* shared, const void* value, unsigned bytes, Site site) {
  Quiet quiet;
  Copy copy{static_cast<char*>(shared), {}, bytes, site};
  std::memcpy(copy.value, value, bytes);
  mine().open.push_back(copy);
}

void commit_copies() {
  Quiet quiet;
  Copies& c = mine();
  c.groups.push_back(std::move(c.open));
  c.open.clear();
}

void wait_copies(unsigned pending) {
  Quiet all;
  Copies& c = mine();
  while (c.groups.size() > pending) {
    for (const Copy& copy : c.groups.front()) {
      sanitize::written(copy.to, copy.bytes, __builtin_return_address(0));
      Quiet quiet;
      std::memcpy(copy.to, copy.value, copy.bytes);
    }
    Quiet quiet;
    c.groups.erase(c.groups.begin());
  }
}

void check_aligned(const void* p, unsigned bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail(site, "misaligned address %p: wanted a multiple of %u", p, bytes);
}

void check_shared(const void* p, unsigned bytes, const char* what, Site site) {
  if (!is_shared(p, bytes)) fail(site, "%s: %u bytes at %p are not in this block's shared memory", what, bytes, p);
}

void forget_copies(unsigned first, unsigned count) {
  for (unsigned i = first; i < std::min<size_t>(first + count, copies.size()); ++i) copies[i] = {};
}

// ---- Failing. --------------------------------------------------------------------------------------------------------------

namespace {

std::string formatted(const char* format, va_list values) {
  char text[1024];
  std::vsnprintf(text, sizeof text, format, values);
  return text;
}

}  // namespace

void fail(Site site, const char* format, ...) {
  Quiet quiet;
  va_list values;
  va_start(values, format);
  std::string text = formatted(format, values);
  va_end(values);
  const uint3 b = current->block->index;
  char place[256];
  std::snprintf(place, sizeof place, " [%s, block (%u, %u, %u) thread %u", grid->kernel, b.x, b.y, b.z,
                current->linear);
  text += place;
  if (site.file) text += " at " + std::string(site.file) + ":" + std::to_string(site.line);
  abandon_launch(std::make_exception_ptr(std::runtime_error(text + "]")));
}

namespace {

// Without the line's end, which an exception does not want.
std::string message(const char* format, va_list values) {
  std::string text = formatted(format, values);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

void fail_check(const char* format, ...) {
  Quiet quiet;
  va_list values;
  va_start(values, format);
  const std::string text = message(format, values);
  va_end(values);
  abandon_launch(std::make_exception_ptr(std::out_of_range(text)));
}

void fail_value(const char* format, ...) {
  Quiet quiet;
  va_list values;
  va_start(values, format);
  const std::string text = message(format, values);
  va_end(values);
  abandon_launch(std::make_exception_ptr(std::invalid_argument(text)));
}

}  // namespace hetkern::emulation

// What -fsanitize=alignment calls, outside the builds that bring UBSan's own runtime: a vector load at an odd address.
#ifndef HETKERN_EMULATION_ADDRESS
extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(void* data, void* pointer) {
  struct Mismatch {
    const char* file;
    unsigned line, column;
    const void* type;
    unsigned char log_alignment, kind;
  };
  const auto& m = *static_cast<const Mismatch*>(data);
  const hetkern::emulation::Site site{m.file, static_cast<int>(m.line)};
  if (hetkern::emulation::current)
    hetkern::emulation::fail(site, "misaligned address %p: wanted a multiple of %u", pointer, 1u << m.log_alignment);
  std::fprintf(stderr, "%s:%u: misaligned address %p, outside a kernel\n", m.file, m.line, pointer);
  std::abort();
}
#endif

// What -fstack-protector calls, in the kernels of a plain call. (hetkern/testing/emulation/build.py)
extern "C" [[noreturn]] __attribute__((visibility("hidden"))) void __stack_chk_fail() {
  if (hetkern::emulation::current)
    hetkern::emulation::fail({}, "out of bounds: a store past the end of a local array, at instruction +0x%zx",
                             hetkern::emulation::offset_of(__builtin_return_address(0)));
  std::fprintf(stderr, "a store past the end of a local array, outside a kernel\n");
  std::abort();
}

// assert in a kernel.
extern "C" [[noreturn]] __attribute__((visibility("hidden"))) void __assert_fail(const char* expression,
                                                                                 const char* file, unsigned line,
                                                                                 const char* function) noexcept {
  if (hetkern::emulation::current)
    hetkern::emulation::fail({file, static_cast<int>(line)}, "assertion `%s' failed", expression);
  std::fprintf(stderr, "%s:%u: %s: assertion `%s' failed\n", file, line, function, expression);
  std::abort();
}
