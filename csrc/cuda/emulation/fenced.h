// Memory that ends where nobody may go on: a load or store past its end is a crash, which the launch reports.  (bodies: fenced.cpp)
//
// What of its pages is not asked for lies before its begin, and a little behind its end where its alignment wants that. It holds
// marks, which are NaN as floats: a store there shows afterwards.
#pragma once
#include <cstddef>

namespace hetkern::emulation::fenced {

// `begin`: of the memory's first byte, modulo `alignment`. `apart`: how far from it nothing lies, if there is room. Null: there is none.
constexpr size_t kFar = size_t{1} << 36, kNear = size_t{1} << 21;
char* take(size_t bytes, size_t alignment, size_t begin = 0, size_t apart = kFar);
bool give_back(char* p);  // false: it is none of these

// A byte beside the memory that somebody has stored to, the nearest; null: there is none.
const char* touched(const char* p);

}  // namespace hetkern::emulation::fenced
