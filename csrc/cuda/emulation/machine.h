// The state of the emulated GPU: what threads.cpp and barriers.cpp share.
#pragma once
#include <signal.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "sanitizers.h"
#include "threads.h"

namespace hetkern::emulation {

// ---- Fibers. ---------------------------------------------------------------------------------------------------------------

// spinning: waits by ptx::spin_until; polling: has found the same value many times; interrupted: its turn took too long.
enum class State : char {
  ready,
  at_block_barrier,
  at_exchange,
  at_cluster_barrier,
  spinning,
  polling,
  interrupted,
  returned
};
inline bool runs_on(State s) {
  return s == State::ready || s == State::spinning || s == State::polling || s == State::interrupted;
}

struct Fiber : Thread {
  sanitize::Stack stack;
  State state;
  unsigned number;  // its identity's and its stack's
  Site site;
  unsigned mask;              // of the exchange that it waits for
  unsigned clusters_arrived;  // barriers
  bool owes_wait;             // has arrived and not waited
  bool stopped;               // in the middle, since the launch has failed
  int quiet;                  // how deep in the machine it is
  const void* polls;          // which address, how often in a row
  unsigned polled;
  unsigned interruptions;
  uint64_t seen[4];  // its registers and stack when it was interrupted; how often they were the same again
  unsigned same;
};

// Fibers that there may be at once: TSan knows some 8100 threads in a process. HETKERN_EMULATION_THREADS=n lets it know fewer.
unsigned most_together();

// Stacks side by side, a guard page below each.
class Stacks {
 public:
  void hold(size_t count);  // those handed out before keep their place, where TSan knows their fibers
  bool has(const void* p) const { return p >= memory_ && p < memory_ + count_ * kStack; }
  char* low(size_t i) const { return memory_ + i * kStack + kGuard; }
  static constexpr size_t size() { return kStack - kGuard; }

 private:
  static constexpr size_t kStack = 256 << 10, kGuard = 4096;
  char* memory_ = nullptr;
  size_t count_ = 0;
};

// Who TSan takes a thread for: a fiber of its own, with a stack that no other fiber uses.
//
// A launch's groups of blocks (a block or a cluster each) take theirs in turn, so that all of its threads are different ones. A
// launch of more than most_together() begins again: group i + n then counts as coming after group i, and after no other.
class Identities {
 public:
  explicit Identities(unsigned group_threads) : threads_(group_threads), groups_(most_together() / group_threads) {}
  unsigned groups() const { return groups_; }  // that are told apart
  unsigned first(unsigned group) const { return sanitize::kThread ? group % groups_ * threads_ : 0; }
  static void* fiber(unsigned number);  // null: TSan has no more of them
  static unsigned known();              // that there are
  static void forget(unsigned number);  // its fiber has stopped where TSan does not take it back

 private:
  unsigned threads_, groups_;
};

// ---- Barriers. -------------------------------------------------------------------------------------------------------------

// Addresses that TSan orders threads by. Each group of blocks has new memory for them, since what is released to an address
// stays there until it is freed: a later block would seem to come after an earlier one.
using Order = std::unique_ptr<char[]>;
inline Order new_order() { return std::make_unique<char[]>(2); }

struct BlockBarrier {
  unsigned arrived = 0, phase = 0;
  Site first{};
  int vote[2] = {};
  Order order = new_order();
};

// One set of lanes that exchange values; two phases, so that a fast lane cannot overwrite what a slow one has yet to read.
struct Exchange {
  unsigned mask = 0, arrived = 0, phase = 0;
  unsigned present[2] = {};  // of mask those that had not returned, by phase
  Site first{};
  Order order = new_order();
  alignas(16) unsigned char value[2][32][16];
};

// What the fences of a block's threads have made known, to its own threads or to the device's.                        (fences.cpp)
struct Fences {
  unsigned number = 0;           // in the launch; 0: there was none
  std::vector<Order> of_thread;  // what each has fenced itself
  struct Made {
    unsigned meetings;  // of the block's threads, before the fence
    Order order;
  };
  std::vector<Made> made;
};

struct Team {  // what a block's threads share
  BlockBarrier barrier;
  std::vector<std::vector<std::unique_ptr<Exchange>>> warps;
  Order ended = new_order();
  Fences fences[2];       // by scope
  unsigned meetings = 0;  // barriers, of the block and of its warps
};

struct Cluster {
  unsigned arrived = 0, phase = 0, alive = 0;
  Order order = new_order();
};

struct Group {
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::vector<Team> teams;
  Cluster cluster;
  unsigned slot = 0;   // its place among those that run together
  unsigned first = 0;  // the number of its first thread
};

struct GridBarrier {
  unsigned long arrived = 0;
  unsigned phase = 0;
  Order order = new_order();
};

struct Machine {
  std::vector<std::unique_ptr<Group>> groups;  // that run together
  GridBarrier whole_grid;
  sanitize::Stack host;
  Stacks stacks;
  std::exception_ptr error;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  char group_begins = 0, launch_ended = 0;  // addresses for TSan
  bool failed = false;

  unsigned block_threads() const { return grid->threads.x * grid->threads.y * grid->threads.z; }
  Fiber& me() { return static_cast<Fiber&>(*current); }
  Group& group() { return *current->block->group; }
  Team& team() { return group().teams[current->block->rank]; }
  Fiber& of_block(unsigned i) { return group().fibers[current->block->rank * block_threads() + i]; }
};
extern Machine machine;

void wait_as(State state, Site site);  // until another thread makes this one ready
bool complete_block_barrier();         // if all of the block that live have arrived
void complete_cluster_barrier();       // if all that live have arrived
void complete_exchanges();             // of this thread's warp, likewise
void begin_fences();                   // of a launch: there were none
void forget_fences(const Block&);      // which has ended
bool is_handed_over(const void* p);    // to this thread's block, what atomics behind a fence made of p

// ---- Turns. ----------------------------------------------------------------------------------------------------------------

void prepare(Fiber& f);  // to begin the kernel
void resume(Fiber& f);   // until it waits
std::string where(const Fiber&);

// Signals while a launch runs: a crash in a thread ends the launch, a thread that runs on and on is interrupted so that others
// have their turn, Ctrl-C ends the launch.                                                                    (bodies: signals.cpp)
struct Signals {
  Signals();
  ~Signals();
};
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};
void on_step(int, siginfo_t*, void* context);  // after each instruction of a conversion                  (casts.cpp)
bool ctrl_c();                                 // pressed since the launch began
void turn_begins();
double seconds_used();  // by this CPU thread

}  // namespace hetkern::emulation
