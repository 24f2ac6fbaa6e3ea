// Counting memory traffic as the hardware does it, a warp's request at a time.                          (bodies: traffic.cpp)
#pragma once
#include "threads.h"

namespace hetkern::emulation::traffic {

#ifdef HETKERN_EMULATION_TRAFFIC
void begin_launch(const Grid& grid, const void* arguments, size_t argument_bytes);
void watch(const char* name, const void* p, size_t bytes);        // names a tensor; before or after the launch
void read(const void* instruction, const void* p, size_t bytes);  // by the copy engine: one request
void report(const char* file);                                    // writes what was counted, and forgets it
void packs(const char* file);                                     // instructions that touch fields of packs, by offset
void thread_waits();                                              // the one that runs
#else
inline void begin_launch(const Grid&, const void*, size_t) {}
inline void watch(const char*, const void*, size_t) {}
inline void read(const void*, const void*, size_t) {}
inline void report(const char*) {}
inline void packs(const char*) {}
inline void thread_waits() {}
#endif

// While one lives, halves of an aligned word that the thread takes one after the other are one access: what CUDA's headers copy as
// a word on a GPU and field by field on the CPU, __half2 and __nv_bfloat162 (counted_words.h).
struct OneWord {
  OneWord();
  ~OneWord();
};

// What the emulation itself keeps in memory: stacks, threads, blocks.
bool is_machinery(const void* p);

}  // namespace hetkern::emulation::traffic
