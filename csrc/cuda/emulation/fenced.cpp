// Memory between pages that nobody may touch.                                                                    (words: fenced.h)
#include "fenced.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>

namespace hetkern::emulation::fenced {
namespace {

constexpr size_t kPage = 4096;

struct Region {
  char *whole, *low, *high;  // what is reserved; its pages that may be touched
  size_t reserved, bytes;
};
std::map<const char*, Region>& regions() {
  static auto* const all = new std::map<const char*, Region>;  // for as long as the process
  return *all;
}

// By a byte's address: NaN in any float from two bytes on, and no number that kernels like to store.
unsigned char mark(const char* p) { return reinterpret_cast<uintptr_t>(p) & 1 ? 0xff : 0xc5; }
void set_marks(char* p, const char* end) {
  for (; p < end; ++p) *p = static_cast<char>(mark(p));
}
bool is_touched(const char* p) { return static_cast<unsigned char>(*p) != mark(p); }

bool are_marks(const char* p, const char* end) {
  static char marks[2 * kPage + 2];
  if (static_cast<unsigned char>(marks[0]) == 0) set_marks(marks, marks + sizeof marks);
  const char* const alike = marks + ((reinterpret_cast<uintptr_t>(p) ^ reinterpret_cast<uintptr_t>(marks)) & 1);
  const auto bytes = static_cast<size_t>(end - p);
  return bytes <= 2 * kPage && std::memcmp(p, alike, bytes) == 0;
}

// Where the next one would best lie: in the middle, so that an index far too large is still an address.
char* middle(size_t reserved) {
  constexpr uintptr_t kFirst = uintptr_t{1} << 44, kPast = uintptr_t{3} << 44;
  static uintptr_t next = kFirst;
  if (next + reserved > kPast) next = kFirst;
  return reinterpret_cast<char*>((next += reserved) - reserved);
}

}  // namespace

char* take(size_t bytes, size_t alignment, size_t begin, size_t wanted) {
  const size_t pages = (bytes + alignment + kPage - 1) / kPage * kPage;
  for (const size_t apart : {wanted, kNear}) {  // a process may be given less
    const size_t reserved = pages + 2 * apart;
    void* const p = mmap(middle(reserved), reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) continue;
    char* const whole = static_cast<char*>(p);
    char *const low = whole + apart, *const high = low + pages;
    if (mprotect(low, pages, PROT_READ | PROT_WRITE)) {
      munmap(p, reserved);
      continue;
    }
    const auto last = reinterpret_cast<uintptr_t>(high) - bytes;
    char* const at = high - bytes - (last - begin) % alignment;
    set_marks(low, at), set_marks(at + bytes, high);
    regions()[at] = {whole, low, high, reserved, bytes};
    return at;
  }
  return nullptr;
}

bool give_back(char* p) {
  const auto found = regions().find(p);
  if (found == regions().end()) return false;
  munmap(found->second.whole, found->second.reserved);
  regions().erase(found);
  return true;
}

const char* touched(const char* p) {
  const auto found = regions().find(p);
  if (found == regions().end()) return nullptr;
  const Region& r = found->second;
  if (are_marks(r.low, p) && are_marks(p + r.bytes, r.high)) return nullptr;
  for (const char* at = p + r.bytes; at < r.high; ++at)
    if (is_touched(at)) return at;
  for (const char* at = p; at-- > r.low;)
    if (is_touched(at)) return at;
  return nullptr;
}

}  // namespace hetkern::emulation::fenced
