// Barriers in shared memory (mbarrier), and the bulk copies whose bytes they count.                                 (bodies: bulk.cpp)
#pragma once
#include "threads.h"

namespace hetkern::emulation {

void check_barrier(const void* barrier, Site site);
void barrier_init(const void* barrier, unsigned arrivals, Site site);
void barrier_arrive(const void* barrier, unsigned expected_bytes, Site site);
bool barrier_passed(const void* barrier, unsigned parity, Site site);

// cp.async.bulk: the bytes arrive in `shared` when somebody waits for `barrier`.
void check_copy_bulk(const void* shared, const void* global, unsigned bytes, const void* barrier, Site site);
void begin_copy_bulk(void* shared, const void* global, unsigned bytes, const void* barrier, Site site);

void forget_barriers(const char* from, size_t bytes);  // there

}  // namespace hetkern::emulation
