// CUDA's threads on one CPU thread: each is a fiber that runs until it must wait for others.            (bodies: threads.cpp, barriers.cpp)
//
// Resident together is one block, or one cluster of blocks, until all of its threads wait for other blocks: then the next one
// joins. A barrier met at two places and a wait that nobody ends are refused, with block, thread and line. As since Volta,
// barriers and warps wait for the threads that have not returned. A shuffle from a lane that takes no part is refused, or gives
// what undefined_value() fills in.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <exception>
#include <tuple>
#include <type_traits>
#include <utility>

namespace hetkern::emulation {

// A line of the kernel. As a default argument it is the caller's.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Grid {
  const char* kernel;
  dim3 blocks, threads;
  unsigned cluster;  // blocks along x
  size_t shared_bytes;
  bool cooperative;  // its blocks may wait for one another
};

struct Group;  // the blocks of one cluster, or one block

struct Block {
  uint3 index;
  unsigned rank;   // in its cluster
  unsigned alive;  // threads that have not returned
  char* shared;    // its dynamic shared memory
  Group* group;
};

struct Thread {
  uint3 index;
  unsigned linear, warp, lane;
  unsigned resident;  // its number among the threads that run together
  Block* block;
};

extern const Grid* grid;              // the one that runs
extern Thread* current;               // the thread that runs
Block* block_of_rank(unsigned rank);  // in the current cluster; null: there is none

// ---- What a thread may ask for. --------------------------------------------------------------------------------------------

enum class Vote { none, all, any, count };
int block_barrier(Site site, Vote vote = Vote::none, bool mine = false);

// Every lane of mask brings `size` bytes and takes those that lane `source` brought. Orders no memory, as in CUDA.
void exchange(unsigned mask, const void* mine, void* taken, size_t size, unsigned source, Site site);
// The values of all lanes of mask that have not returned, each at its lane's place in `all`; returns which lanes they are.
unsigned gather(unsigned mask, const void* mine, void* all, size_t size, Site site);
unsigned ballot(unsigned mask, bool mine, Site site);
void warp_barrier(unsigned mask, Site site);  // orders memory

void cluster_arrive(Site site);
void cluster_wait(Site site);
unsigned clusters_passed();  // barriers of this cluster that all its threads have arrived at

void grid_barrier(Site site);  // of a cooperative launch

[[noreturn]] void abandon_launch(std::exception_ptr error);  // thrown by the launch in the thread's place

void yield(Site site);  // for loops that wait for another thread's store

// A read of `p` for which nothing has changed: many in a row are a loop that waits, and another thread's turn comes.
void polled(const void* p);

// What a shuffle gives of a lane that takes no part, and what shared memory holds that nobody has written: CUDA gives no value, and
// a right kernel does not use it.
struct UndefinedValues {
  bool allowed;           // not: such a shuffle is refused, shared memory is NaN
  unsigned char fill[8];  // repeated
  unsigned long taken;    // how many, by shuffles
  Site first;             // where the first one was
  const char* kernel;
  bool shared;  // a kernel had shared memory
};
extern UndefinedValues undefined_values;

// What orders memory besides barriers: everything before a release is seen after an acquire of the same address.
void order_release(const void* address);
void order_acquire(const void* address);

// ---- Fences, and the atomics that they stand beside. (bodies: fences.cpp) -----------------------------------------------------

enum class Scope { block, device };
void fence(Scope scope);
void atomic_is_made(const void* p, bool reads, bool writes);  // or a volatile access of global memory

// ---- Launch. ---------------------------------------------------------------------------------------------------------------

void run(const Grid& grid, void (*body)(const void*), const void* arguments, size_t argument_bytes);

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned cluster, bool cooperative, dim3 blocks,
            dim3 threads, size_t shared_bytes, Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::decay_t<Parameters>...> values;
  };
  const Call call{kernel, std::tuple<std::decay_t<Parameters>...>(std::forward<Arguments>(arguments)...)};
  run(
      {name, blocks, threads, cluster, shared_bytes, cooperative},
      [](const void* any) {
        const Call& call = *static_cast<const Call*>(any);
        std::apply(call.kernel, call.values);
      },
      &call, sizeof call);
}

}  // namespace hetkern::emulation
