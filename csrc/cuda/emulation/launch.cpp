// Launches: which blocks are there together, whose turn it is, and when nobody will go on.        (words: threads.h)
//
// One group of blocks (one block, or a cluster) runs at a time. Where all of its threads wait, and one of them for a number in
// memory, it may be another block that will write it: the next group joins, and blocks take turns. So a barrier of the whole grid
// ends, if the emulation has room for the grid; a GPU has no more room for it than it can hold either.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.h"
#include "memory.h"
#include "traffic.h"

__attribute__((visibility("hidden"))) dim3 blockDim, gridDim;  // as cuda_words.h has them

namespace hetkern::emulation {
namespace {

using sanitize::Quiet;

[[noreturn]] void bad_launch(const Grid& g, const std::string& why) {
  throw std::runtime_error(std::string("hetkern: launch of ") + g.kernel + ": " + why);
}

// A launch whose threads TSan cannot all tell apart says so, where its report would stand: once a kernel.
void announce(const Grid& g, unsigned group_threads, unsigned groups) {
  const unsigned apart = Identities(group_threads).groups();
  static std::set<std::string> told;
  if (!sanitize::kThread || groups <= apart || !told.insert(g.kernel).second) return;
  std::fprintf(
      stderr,
      "hetkern: launch of %s: %zu threads, and ThreadSanitizer tells %u apart: of two %s whose numbers differ by a "
      "multiple of %u, no race is seen\n",
      g.kernel, size_t{groups} * group_threads, most_together(), g.cluster > 1 ? "clusters" : "blocks", apart);
}

// ThreadSanitizer is slow: a large launch says how slow before it begins. A thread that it has not met costs what a few of them just
// did, and every one of them its turns and its name.
void tell_cost(const Grid& g, size_t threads) {
  constexpr double kTurns = 1e-4;
  constexpr unsigned kTried = 32;
  static double each = 0;
  if (!sanitize::kThread || threads < 2048) return;
  const auto most = static_cast<unsigned>(std::min<size_t>(threads, most_together()));
  const unsigned known = Identities::known();
  if (known + kTried < most) {
    Identities::fiber(known);  // the first one costs more
    const double begin = seconds_used();
    for (unsigned i = 1; i <= kTried; ++i) Identities::fiber(known + i);
    each = (seconds_used() - begin) / kTried;
  }
  const double seconds = kTurns * static_cast<double>(threads) + each * (most - std::min(most, known));
  if (seconds > 1)
    std::fprintf(stderr, "hetkern: cost of %s: %zu threads under ThreadSanitizer take some %.0f s, and what they do\n",
                 g.kernel, threads, seconds);
}

void check_limits(const Grid& g) {
  const unsigned threads = g.threads.x * g.threads.y * g.threads.z, most = 227 * 1024;
  if (threads == 0 || threads > 1024 || g.threads.z > 64)
    bad_launch(g, "wanted 1 to 1024 threads a block, got " + std::to_string(threads));
  if (g.blocks.x == 0 || g.blocks.y == 0 || g.blocks.z == 0 || g.blocks.y > 65535 || g.blocks.z > 65535)
    bad_launch(g, "wanted a grid of 1 to 65535 blocks along y and z, and one along x at least");
  if (g.shared_bytes > most)
    bad_launch(
        g, "wanted at most " + std::to_string(most) + " bytes of shared memory, got " + std::to_string(g.shared_bytes));
  if (g.cluster == 0 || g.cluster > 16 || g.blocks.x % g.cluster)
    bad_launch(g, "wanted clusters of 1 to 16 blocks that divide the grid's x, got " + std::to_string(g.cluster));
  if (g.cluster * threads > most_together())
    bad_launch(g, "a cluster of " + std::to_string(g.cluster * threads) +
                      " threads is too much for the emulation, which runs " + std::to_string(most_together()) +
                      " together");
}

// ---- Groups of blocks. -----------------------------------------------------------------------------------------------------

unsigned group_threads() { return grid->cluster * machine.block_threads(); }

// A place for the group of that number; none: -1.
int free_slot(unsigned group) {
  const unsigned most = Identities(group_threads()).groups();
  std::vector<bool> taken(machine.groups.size() + 1);
  for (const auto& g : machine.groups) {
    if (sanitize::kThread && g->slot == group % most) return -1;
    if (g->slot < taken.size()) taken[g->slot] = true;
  }
  if (sanitize::kThread) return static_cast<int>(group % most);
  const auto slot = static_cast<unsigned>(std::find(taken.begin(), taken.end(), false) - taken.begin());
  return slot < most ? static_cast<int>(slot) : -1;
}

// Makes the threads of the group of that number.
void start(unsigned group, unsigned slot) {
  const dim3 g = grid->blocks, t = grid->threads;
  const unsigned threads = machine.block_threads(), count = grid->cluster, number = slot * count * threads;
  for (unsigned i = number; sanitize::kThread && i < number + count * threads; ++i)
    if (!Identities::fiber(i)) bad_launch(*grid, "launches that failed have left ThreadSanitizer without threads");
  machine.stacks.hold(size_t{number} + count * threads);
  machine.groups.push_back(std::make_unique<Group>());
  Group& made = *machine.groups.back();
  made.slot = slot, made.first = number;
  made.blocks.assign(count, {});
  made.teams.resize(count);
  made.fibers.assign(size_t{count} * threads, {});
  made.cluster.alive = count * threads;
  for (unsigned b = 0; b < count; ++b) {
    const unsigned i = group * count + b;
    made.blocks[b] = {{i % g.x, i / g.x % g.y, i / (g.x * g.y)}, b, threads, nullptr, &made};
    made.teams[b].warps.resize((threads + 31) / 32);
    begin_block(made.blocks[b], grid->shared_bytes, slot * count + b);
  }
  sanitize::release(&machine.group_begins);  // the host's own past, which knows none of this launch's blocks
  for (unsigned i = 0; i < made.fibers.size(); ++i) {
    Fiber& f = made.fibers[i];
    const unsigned n = i % threads;
    static_cast<Thread&>(f) = {
        {n % t.x, n / t.x % t.y, n / (t.x * t.y)}, n, n / 32, n % 32, number + i, &made.blocks[i / threads]};
    f.number = number + i;
    f.stack.low = machine.stacks.low(f.number), f.stack.size = Stacks::size();
    f.stack.state = sanitize::kThread ? Identities::fiber(f.number) : nullptr;
    prepare(f);
    sanitize::name(f.stack, [&] { return where(f); });
  }
}

void finish(Group& group) {
  for (Block& b : group.blocks) forget_fences(b), release_block(b);
  forget_copies(group.first, static_cast<unsigned>(group.fibers.size()));
}

// The launch has failed: TSan wants its fibers to end, wherever they are.
void abandon_all() {
  machine.failed = true;
  for (const auto& g : machine.groups)
    for (Fiber& f : g->fibers)
      if (sanitize::kThread && f.state != State::returned) resume(f);
  for (const auto& g : machine.groups) {
    for (const Fiber& f : g->fibers)
      if (sanitize::kThread && f.stopped) Identities::forget(f.number);  // TSan is left inside a Quiet, or a call
    finish(*g);
  }
  machine.groups.clear();
  sanitize::acquire(&machine.launch_ended);
}

// ---- Turns. ----------------------------------------------------------------------------------------------------------------

[[noreturn]] void deadlock(bool no_room) {
  size_t waiting = 0, all = 0;
  const Fiber* first = nullptr;
  for (const auto& g : machine.groups)
    for (const Fiber& f : g->fibers) {
      ++all;
      if (f.state != State::returned) ++waiting, first = first && first->state != State::returned ? first : &f;
    }
  std::string text = std::string("deadlock in ") + grid->kernel + ": " + where(*first) + " waits, as do " +
                     std::to_string(waiting - 1) + " others; " + std::to_string(all - waiting) + " have returned";
  if (no_room)
    text += "; blocks wait for one another, and the emulation has room for " + std::to_string(machine.groups.size()) +
            " of this grid at once";
  throw std::runtime_error(text);
}

// HETKERN_EMULATION_SEED=n lets the threads take turns in a random order: what depends on the order shows in the values.
void shuffle_if_asked(std::vector<unsigned>& order) {
  static const char* const seed = std::getenv("HETKERN_EMULATION_SEED");
  static std::mt19937 random(seed ? static_cast<unsigned>(std::atoi(seed)) : 0);
  if (seed) std::shuffle(order.begin(), order.end(), random);
}

struct Round {
  bool ran = false, moved = false;     // somebody; on
  bool waits = false, longer = false;  // for a number in memory; perhaps it only takes long
  bool interrupted = false;            // its turn took all its time
};

// A turn for each thread of the group.
void turns(Group& group, Round& round) {
  static std::vector<unsigned> order;
  order.resize(group.fibers.size());
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  shuffle_if_asked(order);
  for (const unsigned i : order) {
    Fiber& f = group.fibers[i];
    if (!runs_on(f.state)) continue;
    const bool waited = f.state != State::ready;
    f.state = State::ready, round.ran = true;
    resume(f);
    if (ctrl_c()) throw Interrupted();
    if (machine.error) std::rethrow_exception(machine.error);
    const bool waits = f.state == State::spinning || f.state == State::polling || f.state == State::interrupted;
    round.moved |= !(waited && waits);
    round.waits |= waits, round.interrupted |= f.state == State::interrupted;
    round.longer |= f.state == State::polling || (f.state == State::interrupted && f.same < 3);
  }
}

// A thread that has had this many seconds, while all others wait for it, will not come back.
double patience() {
  static const char* const wanted = std::getenv("HETKERN_EMULATION_PATIENCE");
  return wanted ? std::atof(wanted) : 60;
}

void run_groups(unsigned groups) {
  unsigned next = 0;
  int idle = 0;
  double moved = seconds_used();
  while (next < groups || !machine.groups.empty()) {
    if (machine.groups.empty()) start(next, static_cast<unsigned>(free_slot(next))), ++next;
    Round round;
    for (size_t g = 0; g < machine.groups.size();) {
      turns(*machine.groups[g], round);
      if (machine.groups[g]->cluster.alive) {
        ++g;
        continue;
      }
      finish(*machine.groups[g]);
      machine.groups.erase(machine.groups.begin() + static_cast<std::ptrdiff_t>(g));
      round.moved = true;
    }
    if (machine.groups.empty()) continue;
    if (!round.ran && !round.moved) deadlock(false);
    if (round.moved) idle = 0, moved = seconds_used();
    if (round.moved || ++idle < 3) continue;
    unsigned joined = 0;  // as many as are there already
    for (const size_t all = machine.groups.size(); round.waits && next < groups && joined < all; ++joined) {
      const int slot = free_slot(next);
      if (slot < 0) break;
      start(next++, static_cast<unsigned>(slot));
    }
    if (joined)
      idle = 0;
    else if (round.longer ? seconds_used() - moved > patience() : idle > (round.interrupted ? 8 : 100))
      deadlock(next < groups);
  }
}

}  // namespace

void run(const Grid& launched, void (*body)(const void*), const void* arguments, size_t argument_bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  check_limits(launched);
  Quiet quiet;
  const Signals signals;
  grid = &launched;
  blockDim = launched.threads, gridDim = launched.blocks;
  machine.body = body, machine.arguments = arguments, machine.error = nullptr, machine.failed = false;
  machine.whole_grid = {};
  sanitize::adopt(machine.host);
  begin_fences();
  traffic::begin_launch(launched, arguments, argument_bytes);
  const unsigned groups = launched.blocks.x * launched.blocks.y * launched.blocks.z / launched.cluster;
  announce(launched, group_threads(), groups);
  tell_cost(launched, size_t{groups} * group_threads());
  try {
    run_groups(groups);
  } catch (...) {
    abandon_all();
    current = nullptr;
    throw;
  }
  sanitize::acquire(&machine.launch_ended);  // not earlier: blocks are in no order
}

}  // namespace hetkern::emulation
