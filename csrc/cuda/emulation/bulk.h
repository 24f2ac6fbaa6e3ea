// What memory.cpp asks of bulk.cpp.
#pragma once

namespace hetkern::emulation {

void forget_barriers();  // of blocks that have ended

}  // namespace hetkern::emulation
