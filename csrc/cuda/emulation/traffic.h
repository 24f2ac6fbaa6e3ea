// Counting memory traffic as the hardware does it, a warp's request at a time.                          (bodies: traffic.cpp)
#pragma once
#include "threads.h"

namespace hetkern::emulation::traffic {

#ifdef HETKERN_EMULATION_TRAFFIC
void begin_launch(const Grid& grid, const void* arguments, size_t argument_bytes);
#else
inline void begin_launch(const Grid&, const void*, size_t) {}
#endif

}  // namespace hetkern::emulation::traffic
