// Shared memory, asynchronous copies, and how a check fails.                                                       (bodies: memory.cpp)
//
// A block's dynamic shared memory is an allocation of its own, full of NaN until the kernel writes it, and again when the block
// has ended while its cluster has not. What a cp.async copies is NaN until its group, or its barrier, is waited for.
#pragma once
#include <cstddef>

#include "threads.h"

namespace hetkern::emulation {

// This block's dynamic shared memory, at least that much.
void* shared_memory(size_t bytes);

// A part of it, which begins after `begin` bytes of others; under AddressSanitizer with a gap of its own behind it.
void* shared_part(size_t begin, unsigned number, size_t bytes, Site site);

// The same place in the shared memory of the block of that rank in the cluster.
void* map_shared(const void* mine, unsigned rank, Site site);

// For the scheduler: before a block's first thread, after its last one, and once its cluster has ended.
// `place`: a number that it shares with no block that runs beside it.
void begin_block(Block& block, size_t bytes, unsigned place);
void end_block(Block& block, size_t bytes, bool peers_live);
void release_block(Block& block);

// ---- cp.async: the twin has read `bytes` of global memory; they arrive in `shared` when their group is waited for. ----------

void check_copy_async(const void* shared, const void* global, unsigned bytes, unsigned source_bytes, Site site);
void begin_copy_async(void* shared, const void* value, unsigned bytes, Site site);
void commit_copies();
void wait_copies(unsigned pending);

void forget_copies(unsigned first, unsigned count);  // of threads that have ended, by their numbers

void check_aligned(const void* p, unsigned bytes, Site site);
void check_shared(const void* p, unsigned bytes, const char* what, Site site);  // of this block

// ---- Failing: the launch ends, and the launcher throws. ----------------------------------------------------------------------

// std::runtime_error: text, kernel, block, thread and line.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// std::out_of_range: the text alone.
[[noreturn]] void fail_check(const char* format, ...) __attribute__((format(printf, 1, 2)));
// std::invalid_argument: the text alone.
[[noreturn]] void fail_value(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace hetkern::emulation
