// Bulk copies, and the barriers in shared memory that count their bytes.                                        (words: bulk.h)
//
// A copy's bytes are NaN from its request on, and come as late as the manual allows: when a thread would have to wait for them.
#include "bulk.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "memory.h"
#include "sanitizers.h"
#include "traffic.h"

namespace hetkern::emulation {

using sanitize::Quiet;

namespace {

struct BulkCopy {
  char* to;
  std::vector<char> value;
};
struct Barrier {
  unsigned arrivals = 0;  // of a phase
  unsigned missing = 0;   // of them, in the phase at hand
  int64_t bytes = 0;      // expected less come
  unsigned phase = 0;
  std::vector<BulkCopy> under_way;
  char order[2] = {};  // addresses for TSan: by the phase's parity
  char requested = 0;  // likewise: the engine writes after the request
};
constexpr unsigned kMost = (1u << 20) - 1;

std::map<const void*, Barrier> barriers;

Barrier& known(const void* barrier, Site site) {
  const auto at = barriers.find(barrier);
  if (at == barriers.end()) fail(site, "mbarrier %p: nobody has initialised it", barrier);
  return at->second;
}

void end_phase(Barrier& b) {
  if (b.missing > 0 || b.bytes != 0) return;
  ++b.phase, b.missing = b.arrivals;
}

}  // namespace

void check_barrier(const void* barrier, Site site) {
  check_aligned(barrier, 8, site);
  check_shared(barrier, 8, "mbarrier", site);
}

void barrier_init(const void* barrier, unsigned arrivals, Site site) {
  if (arrivals < 1 || arrivals > kMost) fail(site, "mbarrier.init: wanted 1 to %u arrivals, got %u", kMost, arrivals);
  Quiet quiet;
  Barrier& b = barriers[barrier];
  if (!b.under_way.empty()) fail(site, "mbarrier.init: copies are under way to this barrier");
  b = {};
  b.arrivals = b.missing = arrivals;
}

void barrier_arrive(const void* barrier, unsigned expected_bytes, Site site) {
  if (expected_bytes > kMost) fail(site, "mbarrier: wanted at most %u bytes expected, got %u", kMost, expected_bytes);
  Barrier& b = known(barrier, site);
  if (b.missing == 0) fail(site, "mbarrier: more arrivals than its %u in one phase", b.arrivals);
  sanitize::release(&b.order[b.phase % 2]);
  Quiet quiet;
  b.bytes += expected_bytes, --b.missing;
  end_phase(b);
}

bool barrier_passed(const void* barrier, unsigned parity, Site site) {
  if (parity > 1) fail(site, "mbarrier.try_wait: wanted a parity of 0 or 1, got %u", parity);
  Barrier& b = known(barrier, site);
  if (b.phase % 2 == parity) {
    if (!b.under_way.empty()) sanitize::acquire(&b.requested);
    for (const BulkCopy& copy : b.under_way) {
      sanitize::written(copy.to, copy.value.size(), __builtin_return_address(0));
      Quiet quiet;
      std::memcpy(copy.to, copy.value.data(), copy.value.size());
      b.bytes -= static_cast<int64_t>(copy.value.size());
    }
    sanitize::release(&b.order[b.phase % 2]);
    Quiet quiet;
    b.under_way.clear();
    end_phase(b);
  }
  if (b.phase % 2 == parity) return false;
  sanitize::acquire(&b.order[parity]);
  return true;
}

void check_copy_bulk(const void* shared, const void* global, unsigned bytes, const void* barrier, Site site) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail(site, "cp.async.bulk: wanted multiples of 16, got %u bytes, %p to %p", bytes, global, shared);
  check_shared(shared, bytes, "cp.async.bulk: the destination", site);
  check_barrier(barrier, site);
  known(barrier, site);
}

void begin_copy_bulk(void* shared, const void* global, unsigned bytes, const void* barrier, Site site) {
  Barrier& b = known(barrier, site);
  void* const caller = __builtin_return_address(0);
  sanitize::read(global, bytes, caller);
  traffic::read(caller, global, bytes);
  sanitize::written(shared, bytes, caller);  // whoever still reads it is in a race
  sanitize::release(&b.requested);
  Quiet quiet;
  const char* const from = static_cast<const char*>(global);
  b.under_way.push_back({static_cast<char*>(shared), {from, from + bytes}});
  std::memset(shared, 0xff, bytes);
}

void forget_barriers(const char* from, size_t bytes) {
  barriers.erase(barriers.lower_bound(from), barriers.lower_bound(from + bytes));
}

}  // namespace hetkern::emulation
