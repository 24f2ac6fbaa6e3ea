// Calling a launcher so that a crash in it ends the call, and not the process.                          (bodies: signals.cpp)
#pragma once
#include <cstddef>
#include <exception>

namespace hetkern::emulation {

struct Crash : std::exception {  // outside of a kernel's threads
  char text[256];
  const char* what() const noexcept override { return text; }
};

size_t offset_of(const void* instruction);  // in this library or program

// Throws what `call` throws, or Crash.
void guarded(void (*call)(void*), void* argument);

}  // namespace hetkern::emulation
