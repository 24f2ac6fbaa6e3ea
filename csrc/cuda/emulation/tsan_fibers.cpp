// Cheap fibers under GCC 11's and 12's ThreadSanitizer.                              (linked in statically: emulation/build.py)
//
// Nine tenths of what a fiber costs there are pages. The runtime maps 0.8 MB for it and then writes zeros over all of them, where
// the mapping is zero already; it maps its trace, constructs it, and gives more than half of that back untouched by anybody else.
// Here those zeros are not written, and what is given back lies on one piece of memory that all fibers share for that moment. The
// linker brings the runtime's calls here (--wrap); nothing is changed but while a fiber is made.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

asm(".text\n.globl hetkern_kernel_ends\n.hidden hetkern_kernel_ends\nhetkern_kernel_ends:");  // linked after the kernel

#define REAL_SET __real__ZN11__sanitizer15internal_memsetEPvim
#define REAL_MAP __real__ZN11__sanitizer13internal_mmapEPvmiiiy
#define SET __wrap__ZN11__sanitizer15internal_memsetEPvim
#define MAP __wrap__ZN11__sanitizer13internal_mmapEPvmiiiy

namespace {

constexpr size_t kPage = 4096, kLarge = 16 * kPage;
bool making = false;            // a fiber
uintptr_t fresh = 0, past = 0;  // memory that is zero: mapped for this fiber, and written to below `fresh` alone
uintptr_t trace = 0;            // where this fiber's is
size_t trace_bytes = 0;
size_t given_back = 0;  // of the trace's end, as the first fiber did
bool laid_over = false;
int shared = -1;

size_t in_pages(size_t n) { return (n + kPage - 1) / kPage * kPage; }

}  // namespace

extern "C" {

__attribute__((weak)) void* REAL_SET(void* p, int value, size_t n);
__attribute__((weak)) uintptr_t REAL_MAP(void* p, size_t n, int rights, int flags, int file, unsigned long long at);

// The runtime clears the whole of it, then parts of it in the order of their addresses.
__attribute__((visibility("default"))) void* SET(void* p, int value, size_t n) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (!making || value != 0 || n < kLarge || at < fresh || at + n > past) return REAL_SET(p, value, n);
  // A piece of memory that begins with a page of the allocator's own, or a part of it that is cleared for the first time.
  static uintptr_t whole = 0;
  if (whole != past)
    whole = past, fresh = at;
  else
    fresh = at + n;
  return p;
}

__attribute__((visibility("default"))) uintptr_t MAP(void* p, size_t n, int rights, int flags, int file,
                                                     unsigned long long offset) {
  const uintptr_t at = REAL_MAP(p, n, rights, flags, file, offset);
  if (!making || file != -1 || at > uintptr_t{0} - kPage) return at;
  constexpr int kUsed = PROT_READ | PROT_WRITE;
  if (!p && rights == kUsed) {
    fresh = at, past = at + n;
  } else if (p && rights == kUsed) {
    trace = at, trace_bytes = in_pages(n);
    if (given_back && trace_bytes > given_back && n > (1 << 20)) {
      if (shared < 0) shared = memfd_create("hetkern", 0);
      if (shared < 0 || ftruncate(shared, static_cast<off_t>(given_back))) return at;
      void* const end = reinterpret_cast<void*>(at + trace_bytes - given_back);
      laid_over = REAL_MAP(end, given_back, kUsed, MAP_SHARED | MAP_FIXED | MAP_POPULATE, shared, 0) ==
                  reinterpret_cast<uintptr_t>(end);
    }
  } else if (p && rights == PROT_NONE && trace && at > trace && at + in_pages(n) == trace + trace_bytes) {
    if (laid_over && in_pages(n) < given_back) return at;  // found out below
    given_back = in_pages(n), laid_over = false;
  }
  return at;
}

void hetkern_fiber_is_made(bool begins) {
  making = begins;
  fresh = past = trace = 0;
  if (!begins && laid_over) {  // what is shared would be this fiber's own
    std::fputs("hetkern: this ThreadSanitizer keeps what others give back; link it dynamically\n", stderr);
    std::abort();
  }
}
}
