// What ThreadSanitizer is told of volatile accesses.                                                        (linked in under TSan)
//
// A volatile read goes to memory each time, and is a relaxed one in PTX's memory model (ld.volatile; __ldcg and __ldcv are volatile
// here): with another thread's atomic it is in no race, with a plain store it is. A volatile store is likewise a relaxed one in
// global memory. In shared memory it stays a plain one: there volatile was meant to hold a warp together, and does not.
#include <cstdint>

#include "machine.h"
#include "sanitizers.h"

extern "C" {
uint8_t __tsan_atomic8_load(const volatile uint8_t* p, int order);
uint16_t __tsan_atomic16_load(const volatile uint16_t* p, int order);
uint32_t __tsan_atomic32_load(const volatile uint32_t* p, int order);
uint64_t __tsan_atomic64_load(const volatile uint64_t* p, int order);
uint8_t __tsan_atomic8_fetch_or(volatile uint8_t* p, uint8_t bits, int order);
uint16_t __tsan_atomic16_fetch_or(volatile uint16_t* p, uint16_t bits, int order);
uint32_t __tsan_atomic32_fetch_or(volatile uint32_t* p, uint32_t bits, int order);
uint64_t __tsan_atomic64_fetch_or(volatile uint64_t* p, uint64_t bits, int order);
void __tsan_write1(void* p);
void __tsan_write2(void* p);
void __tsan_write4(void* p);
void __tsan_write8(void* p);
}

namespace {
using namespace hetkern::emulation;

constexpr int kRelaxed = __ATOMIC_RELAXED;

// In a thread's shared memory or on its stack.
bool is_of_block(const void* p) {
  if (!current) return true;
  const auto offset = static_cast<size_t>(static_cast<const char*>(p) - current->block->shared);
  return machine.stacks.has(p) || (current->block->shared && offset < grid->shared_bytes);
}

// Stands in a report where the kernel's instruction does.
struct Called {
  explicit Called(void* caller) { __tsan_func_entry(caller); }
  ~Called() { __tsan_func_exit(); }
};

}  // namespace

// The compiler's calls, under --param=tsan-distinguish-volatile=1.
#define HETKERN_VOLATILE(bytes, bits)                                                   \
  extern "C" void __tsan_volatile_read##bytes(void* p) {                                \
    const Called here(__builtin_return_address(0));                                     \
    (void)__tsan_atomic##bits##_load(static_cast<uint##bits##_t*>(p), kRelaxed);        \
    if (current) atomic_is_made(p, true, false);                                        \
  }                                                                                     \
  extern "C" void __tsan_volatile_write##bytes(void* p) {                               \
    const Called here(__builtin_return_address(0));                                     \
    if (is_of_block(p)) return __tsan_write##bytes(p);                                  \
    (void)__tsan_atomic##bits##_fetch_or(static_cast<uint##bits##_t*>(p), 0, kRelaxed); \
    if (current) atomic_is_made(p, false, true);                                        \
  }
HETKERN_VOLATILE(1, 8)
HETKERN_VOLATILE(2, 16)
HETKERN_VOLATILE(4, 32)
HETKERN_VOLATILE(8, 64)
#undef HETKERN_VOLATILE

extern "C" void __tsan_volatile_read16(void* p) {
  const Called here(__builtin_return_address(0));
  for (int i = 0; i < 2; ++i) (void)__tsan_atomic64_load(static_cast<uint64_t*>(p) + i, kRelaxed);
}
extern "C" void __tsan_volatile_write16(void* p) {
  const Called here(__builtin_return_address(0));
  if (is_of_block(p)) return __tsan_write_range(p, 16);
  for (int i = 0; i < 2; ++i) (void)__tsan_atomic64_fetch_or(static_cast<uint64_t*>(p) + i, 0, kRelaxed);
}
