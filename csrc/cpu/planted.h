// Bugs planted on purpose, so that a test can show that each sanitizer still sees. Sanitizer builds have them, switched on by
// HETKERN_PLANT; elsewhere planted() is the constant false and nothing of them is compiled.
#pragma once

namespace hetkern::cpu {

enum class Bug { out_of_bounds, misaligned, race };

#ifdef HETKERN_PLANTED_BUGS
bool planted(Bug bug);
#else
constexpr bool planted(Bug) { return false; }
#endif

}  // namespace hetkern::cpu
