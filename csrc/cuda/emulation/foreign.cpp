// What the test kit calls in a library, or the driver in a program: a launcher by its name.                      (words: foreign.h)
#include "foreign.h"

#include <xmmintrin.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "fenced.h"
#include "signals.h"
#include "threads.h"

extern "C" __attribute__((visibility("hidden"))) const hetkern::emulation::Entry hetkern_launchers[];
extern "C" __attribute__((visibility("hidden"))) const bool hetkern_fast_math;

namespace hetkern::emulation {
namespace {

const Entry& named(const char* name) {
  const Entry* e = hetkern_launchers;
  while (e->name && std::strcmp(e->name, name) != 0) ++e;
  return *e;
}

// Bits that are NaN and -1; a large number in each type; a lowest one; 0.
constexpr uint64_t kFills[] = {~uint64_t{0}, 0x7bff7bff7bff7bffu, 0xfbfffbfffbfffbffu, 0};

struct Call {
  const Entry& entry;
  const unsigned char* slots;
};

}  // namespace

std::string listed(const Parameter* first, size_t count) {
  std::string text;
  for (const Parameter* p = first; p != first + count; ++p)
    text.append(p->element).append(p->pointer ? p->constant ? " const*" : "*" : "").append("\n");
  return text;
}

}  // namespace hetkern::emulation

using namespace hetkern::emulation;

#define VISIBLE extern "C" __attribute__((visibility("default")))

// The launcher's parameter types, one a line; null: the file has no such launcher.
VISIBLE const char* hetkern_parameters(const char* launcher) {
  const Entry& e = named(launcher);
  return e.name ? e.parameters() : nullptr;
}

// What was thrown: 0 nothing, 1 std::out_of_range, 2 std::invalid_argument, 3 anything else, 4 Ctrl-C.
// `fill`: which of some values undefined ones have.
VISIBLE int hetkern_call(const char* launcher, const unsigned char* slots, unsigned fill, char* error,
                         size_t error_size) {
  const auto failed = [&](int kind, const char* what) {
    std::snprintf(error, error_size, "%s", what);
    return kind;
  };
  UndefinedValues& u = undefined_values;
  u = {true, {}, 0, {}, "", false};
  std::memcpy(u.fill, &kFills[fill % 4], sizeof u.fill);
  struct After {
    const unsigned mode = _mm_getcsr();
    ~After() { _mm_setcsr(mode), undefined_values.allowed = false, std::fflush(stdout); }
  } after;
  if (hetkern_fast_math) _mm_setcsr(after.mode | 0x8040);  // subnormals are 0
  try {
    Call call{named(launcher), slots};
    guarded([](void* any) { static_cast<Call*>(any)->entry.call(static_cast<Call*>(any)->slots); }, &call);
    return 0;
  } catch (const std::out_of_range& e) {
    return failed(1, e.what());
  } catch (const std::invalid_argument& e) {
    return failed(2, e.what());
  } catch (const std::exception& e) {
    return failed(std::strcmp(e.what(), "interrupted") == 0 ? 4 : 3, e.what());
  }
}

// Of the call before: how many undefined values its shuffles took, and where the first one.
VISIBLE unsigned long hetkern_undefined(char* place, size_t size) {
  const UndefinedValues& u = undefined_values;
  if (u.taken) std::snprintf(place, size, "%s at %s:%d", u.kernel, u.first.file, u.first.line);
  return u.taken;
}

// Memory for a tensor's copy, and a byte beside it that a kernel has stored to.
VISIBLE void* hetkern_take(size_t bytes, size_t alignment, size_t begin) {
  return fenced::take(bytes, alignment, begin);
}
VISIBLE void hetkern_give_back(void* p) { fenced::give_back(static_cast<char*>(p)); }
VISIBLE const void* hetkern_touched(const void* p) { return fenced::touched(static_cast<const char*>(p)); }
