// What the sanitizers must be told of fibers. The emulation itself is compiled without instrumentation.
//
// For TSan, a fiber switch orders nothing: only order_release and order_acquire do, which stand where CUDA orders memory. It tells
// fibers apart by numbers, which it gives again once a fiber is destroyed, and then takes what the old one did for the new one's
// past. So no fiber is destroyed: a launch's threads have one each while TSan has numbers. (Identities, machine.h)
#pragma once
#include <cstddef>

#if defined(HETKERN_EMULATION_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(HETKERN_EMULATION_THREAD)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_func_entry(void* caller);
void __tsan_func_exit();
void __tsan_read_range(void* address, size_t bytes);
void __tsan_write_range(void* address, size_t bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
__attribute__((weak)) void hetkern_fiber_is_made(bool begins);  // tsan_fibers.cpp, where it is linked in
__attribute__((weak)) void hetkern_stores_are_made();           // races.cpp, where it is linked in
}
#endif

namespace hetkern::emulation::sanitize {

#if defined(HETKERN_EMULATION_THREAD)
constexpr bool kThread = true;
#else
constexpr bool kThread = false;
#endif

// How many Quiets the running thread is inside: the machine's own doing, in which no thread is interrupted (signals.cpp).
inline int quiet_depth = 0;

// A stack, and what the sanitizer keeps of it.
struct Stack {
  void* pointer = nullptr;  // where it was left
  char* low = nullptr;
  size_t size = 0;
  void* state = nullptr;
};

#if defined(HETKERN_EMULATION_THREAD)

inline void* new_identity() {
  if (!hetkern_fiber_is_made) return __tsan_create_fiber(0);
  hetkern_fiber_is_made(true);
  void* const fiber = __tsan_create_fiber(0);
  hetkern_fiber_is_made(false);
  return fiber;
}
inline void created(Stack&) {}
template <class Name>
inline void name(Stack& s, Name name) {  // for reports
  __tsan_set_fiber_name(s.state, name().c_str());
}
inline void adopt(Stack& s) { s.state = __tsan_get_current_fiber(); }
inline void leaving(Stack&, Stack& to, bool) { __tsan_switch_to_fiber(to.state, 1); }  // 1: orders nothing
inline void arrived(Stack&, Stack*) {}
// While it lives, the running stack counts as another fiber's.
struct As {
  As(void* other, const Stack& mine) : mine_(mine.state) { __tsan_switch_to_fiber(other, 1); }
  ~As() { __tsan_switch_to_fiber(mine_, 1); }
  As(const As&) = delete;
  As& operator=(const As&) = delete;

 private:
  void* mine_;
};
inline void release(const void* p) { __tsan_release(const_cast<void*>(p)); }
inline void acquire(const void* p) { __tsan_acquire(const_cast<void*>(p)); }
inline void written(void* p, size_t bytes, void* caller) {
  __tsan_func_entry(caller);
  __tsan_write_range(p, bytes);
  __tsan_func_exit();
}
inline void read(const void* p, size_t bytes, void* caller) {
  __tsan_func_entry(caller);
  __tsan_read_range(const_cast<void*>(p), bytes);
  __tsan_func_exit();
}
// Before the machine does something for the running thread: what the thread stored so far is in memory.
inline void stores_are_made() {
  if (hetkern_stores_are_made && quiet_depth == 0) hetkern_stores_are_made();
}
// Within it, calls that TSan intercepts (memcpy, free, …) count for nothing.
struct Quiet {
  Quiet() { stores_are_made(), ++quiet_depth, AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Quiet() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0), --quiet_depth; }
};

#else

#if defined(HETKERN_EMULATION_ADDRESS)
inline void created(Stack& s) { __asan_unpoison_memory_region(s.low, s.size); }  // frames that never returned
inline void leaving(Stack& from, Stack& to, bool for_ever) {
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &from.state, to.low, to.size);
}
// `host`: filled in with the stack that we came from, where that is not known.
inline void arrived(Stack& here, Stack* host) {
  const void* low = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.state, &low, &size);
  if (host) host->low = static_cast<char*>(const_cast<void*>(low)), host->size = size;
}
#else
inline void created(Stack&) {}
inline void leaving(Stack&, Stack&, bool) {}
inline void arrived(Stack&, Stack*) {}
#endif
template <class Name>
inline void name(Stack&, Name) {}
inline void stores_are_made() {}
inline void* new_identity() { return nullptr; }
inline void adopt(Stack&) {}
struct As {
  As(void*, const Stack&) {}
};
inline void release(const void*) {}
inline void acquire(const void*) {}
inline void written(void*, size_t, void*) {}
inline void read(const void*, size_t, void*) {}
struct Quiet {
  Quiet() { ++quiet_depth; }
  ~Quiet() { --quiet_depth; }
};

#endif

}  // namespace hetkern::emulation::sanitize
