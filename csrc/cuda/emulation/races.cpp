// Lanes of one warp that store one value to one place by one instruction, which CUDA allows ("which thread writes last is undefined"),
// are no race. They are a race if the values differ: then the result depends on the order.     (linked in under TSan)
//
// TSan finds the second store before it is made. So its report is held back until the lane asks the emulation for something, when
// memory holds the second value; if that is another one, the store is told to TSan once more, which reports it.
// Nor are a plain access and an atomic that a fence has handed over. (fences.cpp)
#include <cstdint>
#include <iterator>

#include "machine.h"
#include "sanitizers.h"

extern "C" {
int __tsan_get_report_data(void* report, const char** description, int* count, int* stacks, int* accesses, int* places,
                           int* mutexes, int* threads, int* unique, void** sleep, unsigned long depth);
int __tsan_get_report_mop(void* report, unsigned long i, int* thread, void** address, int* bytes, int* write,
                          int* atomic, void** trace, unsigned long depth);
int __tsan_get_report_thread(void* report, unsigned long i, int* thread, uint64_t* system, int* running,
                             const char** name, int* parent, void** trace, unsigned long depth);
void __tsan_func_entry(void* caller);
void __tsan_func_exit();
void __tsan_write1(void* address);
void __tsan_write2(void* address);
void __tsan_write4(void* address);
void __tsan_write8(void* address);
void hetkern_stores_are_made();
}

namespace hetkern::emulation {
namespace {

constexpr int kDepth = 16;

struct Access {
  void* trace[kDepth] = {};
  void* address = nullptr;
  int thread = 0, bytes = 0, write = 0, atomic = 0;
};

struct Held {
  Thread* lane;
  void *address, *instruction;
  int bytes;
  char old[8];
};
Held held[64];
int count = 0;
bool settling = false;

// TSan sees what memcpy and its kin do, and reports of this file's doing it does not want while it reports.
void copy(char* to, const void* from, int bytes) {
  for (int i = 0; i < bytes; ++i) to[i] = static_cast<const volatile char*>(from)[i];
}
bool same(const void* a, const void* b, int bytes) {
  for (int i = 0; i < bytes; ++i)
    if (static_cast<const volatile char*>(a)[i] != static_cast<const volatile char*>(b)[i]) return false;
  return true;
}

// The next number of a text, past which `text` is moved; -1: there is none.
int64_t number_in(const char*& text) {
  while (*text && (*text < '0' || *text > '9')) ++text;
  if (!*text) return -1;
  int64_t n = 0;
  while (*text >= '0' && *text <= '9') n = 10 * n + (*text++ - '0');
  return n;
}

// Whether a thread of TSan's is a lane of the running thread's warp.
bool of_this_warp(void* report, int thread, int threads) {
  for (int i = 0; i < threads; ++i) {
    int number = 0, running = 0, parent = 0;
    uint64_t system = 0;
    const char* name = nullptr;
    void* trace[1] = {};
    __tsan_get_report_thread(report, i, &number, &system, &running, &name, &parent, trace, 1);
    if (number != thread || !name) continue;
    const Fiber& me = machine.me();  // names: where(), threads.cpp
    const uint3 b = me.block->index;
    for (const unsigned mine : {b.x, b.y, b.z})
      if (number_in(name) != mine) return false;
    return number_in(name) / 32 == me.linear / 32;
  }
  return false;
}

// Tells TSan of a store that it has held back.
void store_again(const Held& h) {
  __tsan_func_entry(h.instruction);
  (h.bytes == 1   ? __tsan_write1
   : h.bytes == 2 ? __tsan_write2
   : h.bytes == 4 ? __tsan_write4
                  : __tsan_write8)(h.address);
  __tsan_func_exit();
}

// Whether the report is held back.
bool hold(void* report) {
  if (settling || !current || count == static_cast<int>(std::size(held))) return false;
  const char* description = nullptr;
  int numbers[8] = {};
  void* sleep[1] = {};
  __tsan_get_report_data(report, &description, &numbers[0], &numbers[1], &numbers[2], &numbers[3], &numbers[4],
                         &numbers[5], &numbers[6], sleep, 1);
  if (!description || !same(description, "data-race", sizeof "data-race") || numbers[2] != 2) return false;
  Access a[2];
  for (int i = 0; i < 2; ++i)
    __tsan_get_report_mop(report, i, &a[i].thread, &a[i].address, &a[i].bytes, &a[i].write, &a[i].atomic, a[i].trace,
                          kDepth);
  const bool alike =
      a[0].address == a[1].address && a[0].bytes == a[1].bytes && same(a[0].trace, a[1].trace, sizeof a[0].trace);
  if (a[0].address == a[1].address && !a[0].atomic && a[1].atomic && is_handed_over(a[0].address)) return true;
  const bool stores = a[0].write && a[1].write && !a[0].atomic && !a[1].atomic;
  if (!alike || !stores || !a[0].trace[0] || a[0].bytes > static_cast<int>(sizeof Held::old)) return false;
  if (!of_this_warp(report, a[1].thread, numbers[5])) return false;
  Held& h = held[count++];
  h.lane = current, h.address = a[0].address, h.instruction = a[0].trace[0], h.bytes = a[0].bytes;
  copy(h.old, h.address, h.bytes);
  return true;
}

}  // namespace
}  // namespace hetkern::emulation

namespace __tsan {
class ReportDesc;
bool OnReport(const ReportDesc* report, bool suppressed) {  // in the place of TSan's own, which is weak
  return suppressed || hetkern::emulation::hold(const_cast<ReportDesc*>(report));
}
}  // namespace __tsan

void hetkern_stores_are_made() {
  using namespace hetkern::emulation;
  if (!count) return;
  settling = true;
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const Held h = held[i];
    if (h.lane != current)
      held[kept++] = h;
    else if (!same(h.old, h.address, h.bytes))
      store_again(h);
  }
  count = kept;
  settling = false;
}
