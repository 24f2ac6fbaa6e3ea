// Pieces of a workspace, 64-byte aligned beside one another.
#pragma once
#include <cstdint>

namespace hetkern::cpu {
namespace {

struct Carver {
  char* at;
  template <class X>
  X* take(int64_t n) {
    X* const taken = reinterpret_cast<X*>(at);
    at += (n * static_cast<int64_t>(sizeof(X)) + 63) / 64 * 64;
    return taken;
  }
};

}  // namespace
}  // namespace hetkern::cpu
