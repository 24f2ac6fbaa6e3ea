// Bugs planted on purpose, so that a test can show that each checker still sees: the sanitizers the first three, the error
// budget the others. Sanitizer builds have them, switched on by HETKERN_PLANT; elsewhere planted() is the constant false and
// nothing of them is compiled.
#pragma once

namespace hetkern::cpu {

enum class Bug { out_of_bounds, misaligned, race, dropped_tail, zero_output, dropped_target };

#ifdef HETKERN_PLANTED_BUGS
bool planted(Bug bug);
#else
constexpr bool planted(Bug) { return false; }
#endif

}  // namespace hetkern::cpu
