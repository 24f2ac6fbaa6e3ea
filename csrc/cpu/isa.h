// Which instruction set the CPU kernels use, and the machine facts their plans depend on.
#pragma once
#include <cstdint>

namespace hetkern::cpu {

enum class Isa : int8_t { base, avx2, avx512 };
inline const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "base"; }

Isa best_isa();              // that was built and that this processor can run
Isa isa();                   // in force: the best, clamped by HETKERN_ISA and clamp_isa
void clamp_isa(Isa most);    // affects calls that start afterwards

struct Machine {
  int threads;               // torch's, now
  int64_t l2_bytes;          // of one core
  int64_t l3_bytes;          // shared
};
Machine machine();

}  // namespace hetkern::cpu
