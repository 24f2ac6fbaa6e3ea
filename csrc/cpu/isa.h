// Which instruction set the CPU kernels use, and the machine facts their plans depend on.
#pragma once
#include <cstdint>

namespace hetkern::cpu {

enum class Isa : int8_t { base, avx2, avx512 };
inline const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "base"; }

#if defined(HETKERN_HAS_BASE)
constexpr Isa kLeastBuilt = Isa::base;
#elif defined(HETKERN_HAS_AVX2)
constexpr Isa kLeastBuilt = Isa::avx2;
#else
constexpr Isa kLeastBuilt = Isa::avx512;
#endif

Isa best_isa();            // that was built and that this processor can run
Isa isa();                 // in force: the best, clamped by HETKERN_ISA and clamp_isa
void clamp_isa(Isa most);  // affects calls that start afterwards

struct Machine {
  int threads;       // torch's, now
  int64_t l2_bytes;  // of one core
};
Machine machine();

}  // namespace hetkern::cpu
