// Conversions of floats to integers as a GPU makes them: out of range they saturate, of NaN they are 0 in 32 bits and the lowest
// number in 64. (PTX ISA, cvt)
//
// -fsanitize=float-cast-overflow calls __ubsan_handle_float_cast_overflow before a conversion that has no value in C++, and makes it
// all the same. The handler computes what a GPU would give and lets the processor stop after each instruction from there on, until
// the conversion has run; its result is replaced. That costs some thousand cycles, where a value is out of range.
#include <signal.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "machine.h"

namespace hetkern::emulation {
namespace {

struct {
  uint64_t result;
  const unsigned char* last;  // the instruction that has just run
  int steps;
} pending;

template <class Int>
uint64_t saturated(double x) {
  using Limits = std::numeric_limits<Int>;
  if (x != x) return sizeof(Int) == 8 ? uint64_t{1} << 63 : 0;
  if (x <= static_cast<double>(Limits::min())) return static_cast<uint64_t>(Limits::min());
  if (x >= static_cast<double>(Limits::max())) return static_cast<uint64_t>(Limits::max());
  return static_cast<uint64_t>(static_cast<Int>(x));
}

// The register that cvttss2si or cvttsd2si writes, in the order of the encoding; another instruction: -1.
int destination(const unsigned char* p, bool& wide) {
  int high = 0;
  wide = false;
  if (*p == 0xc5 && ((p[1] & 3) == 2 || (p[1] & 3) == 3) && p[2] == 0x2c)
    return (p[3] >> 3 & 7) | (p[1] & 0x80 ? 0 : 8);
  if (*p == 0xc4 && (p[1] & 31) == 1 && ((p[2] & 3) == 2 || (p[2] & 3) == 3) && p[3] == 0x2c) {
    wide = p[2] & 0x80;
    return (p[4] >> 3 & 7) | (p[1] & 0x80 ? 0 : 8);
  }
  if (*p != 0xf3 && *p != 0xf2) return -1;
  ++p;
  if ((*p & 0xf0) == 0x40) wide = *p & 8, high = *p & 4 ? 8 : 0, ++p;
  return p[0] == 0x0f && p[1] == 0x2c ? (p[2] >> 3 & 7) | high : -1;
}

constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

}  // namespace

void on_step(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  bool wide = false;
  const int to = pending.last ? destination(pending.last, wide) : -1;
  pending.last = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  if (to >= 0) registers[kRegisters[to]] = static_cast<greg_t>(wide ? pending.result : pending.result & 0xffffffffu);
  if (to >= 0 || ++pending.steps > 1000) registers[REG_EFL] &= ~greg_t{0x100};
}

}  // namespace hetkern::emulation

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_float_cast_overflow(void* data, void* from) {
  struct Type {
    uint16_t kind, info;
  };
  struct Cast {
    const char* file;
    uint32_t line, column;
    const Type *from, *to;
  };
  const auto& cast = *static_cast<const Cast*>(data);
  double x = NAN;
  const auto bits = reinterpret_cast<uintptr_t>(from);
  if (cast.from->info == 32) {
    float narrow;
    std::memcpy(&narrow, &bits, 4);
    x = static_cast<double>(narrow);
  } else if (cast.from->info == 64) {
    std::memcpy(&x, &bits, 8);
  } else {
    return;  // long double: no type of a GPU's
  }
  using namespace hetkern::emulation;
  const unsigned width = 1u << (cast.to->info >> 1);
  const bool has_sign = cast.to->info & 1;
  // Narrower ones take the low bits of a conversion to 32.
  uint64_t result = has_sign ? (width == 64 ? saturated<int64_t>(x) : saturated<int32_t>(x))
                             : (width == 64 ? saturated<uint64_t>(x) : saturated<uint32_t>(x));
  // What is at least 2^63 is converted less 2^63, whose bit is set afterwards.
  if (width == 64 && !has_sign && x >= 0x1p63) result ^= uint64_t{1} << 63;
  pending = {result, nullptr, 0};
  // Past what the compiler may keep below the stack's end.
  asm volatile("lea -128(%%rsp), %%rsp\n pushf\n orl $0x100, (%%rsp)\n popf\n lea 128(%%rsp), %%rsp" ::
                   : "memory", "cc");
}
