// Fibers, their turns, launches.                                                      (words: threads.h)
#include "threads.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.h"
#include "memory.h"
#include "traffic.h"

#if !defined(__x86_64__)
#error "the CUDA emulation switches stacks in x86-64 assembly; another processor needs its own switch_stack"
#endif

namespace hetkern::emulation {

const Grid* grid = nullptr;
Thread* current = nullptr;
Machine machine;

unsigned most_together() {
  if (!sanitize::kThread) return 16 * 1024;
  static const char* const wanted = std::getenv("HETKERN_EMULATION_THREADS");
  static const int fewer = wanted ? std::atoi(wanted) : 0;
  return fewer > 0 && fewer < 8000 ? static_cast<unsigned>(fewer) : 8000;
}

void Stacks::hold(size_t count) {
  if (count <= count_) return;
  if (!sanitize::kThread || !memory_) {
    if (memory_) munmap(memory_, count_ * kStack);
    const size_t places = sanitize::kThread ? most_together() : count;
    count_ = 0;
    memory_ = static_cast<char*>(
        mmap(nullptr, places * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) memory_ = nullptr, throw std::bad_alloc();
  }
  for (size_t i = count_; i < count; ++i) mprotect(memory_ + i * kStack, kGuard, PROT_NONE);
  count_ = count;
}

namespace {
std::vector<void*> identities;  // by number
unsigned made = 0;              // in all
}  // namespace

void* Identities::fiber(unsigned number) {
  if (identities.size() <= number) identities.resize(number + 1);
  if (!identities[number] && made < most_together()) identities[number] = sanitize::new_identity(), ++made;
  return identities[number];
}

void Identities::forget(unsigned number) { identities[number] = nullptr; }

namespace {

using sanitize::Quiet;

// ---- Fibers. ---------------------------------------------------------------------------------------------------------------

// Saves what a call must preserve, and goes on where the other stack stopped.
__attribute__((naked, noinline)) void switch_stack(void** /*save*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

// ---- Taking turns. ---------------------------------------------------------------------------------------------------------

void end_early(Fiber& f);

void to_scheduler(Fiber& from) {
  sanitize::leaving(from.stack, machine.host, from.state == State::returned);
  switch_stack(&from.stack.pointer, machine.host.pointer);
  sanitize::arrived(from.stack, &machine.host);
  if (machine.failed) end_early(from);
}

// The launch has failed elsewhere. What this thread did is over for whoever comes after the launch.
void end_early(Fiber& f) {
  f.state = State::returned, f.stopped = true;
  sanitize::release(&machine.launch_ended);
  to_scheduler(f);
}

void resume(Fiber& f) {
  current = &f;
  sanitize::leaving(machine.host, f.stack, false);
  switch_stack(&machine.host.pointer, f.stack.pointer);
  sanitize::arrived(machine.host, nullptr);
  current = nullptr;
}

// The bottom of every fiber's stack.
void fiber_main() {
  sanitize::arrived(machine.me().stack, &machine.host);
  sanitize::acquire(&machine.group_begins);
  if (machine.failed) end_early(machine.me());
  machine.body(machine.arguments);
  Fiber& f = machine.me();
  if (f.owes_wait) fail(f.site, "a thread arrived at a cluster barrier and returned without waiting");
  sanitize::release(&machine.launch_ended);
  sanitize::release(machine.team().ended.get());
  {
    Quiet quiet;
    f.state = State::returned;
    --machine.cluster.alive;
    complete_cluster_barrier();
  }
  if (--f.block->alive == 0) {
    sanitize::acquire(machine.team().ended.get());
    end_block(*f.block, grid->shared_bytes, machine.cluster.alive > 0);
  } else {
    Quiet quiet;
    complete_block_barrier();
  }
  to_scheduler(f);
}

std::string where(const Fiber& f) {
  const uint3 b = f.block->index;
  std::string text = "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) +
                     ") thread " + std::to_string(f.linear);
  if (f.site.file) text += " at " + std::string(f.site.file) + ":" + std::to_string(f.site.line);
  return text;
}

[[noreturn]] void deadlock() {
  size_t waiting = 0;
  const Fiber* first = nullptr;
  for (const Fiber& f : machine.fibers)
    if (f.state != State::returned) ++waiting, first = first ? first : &f;
  throw std::runtime_error(std::string("deadlock in ") + grid->kernel + ": " + where(*first) + " waits, as do " +
                           std::to_string(waiting - 1) + " others; " + std::to_string(machine.fibers.size() - waiting) +
                           " have returned");
}

// HETKERN_EMULATION_SEED=n lets the threads take turns in a random order: what depends on the order shows in the values.
void shuffle_if_asked(std::vector<unsigned>& order) {
  static const char* const seed = std::getenv("HETKERN_EMULATION_SEED");
  static std::mt19937 random(seed ? static_cast<unsigned>(std::atoi(seed)) : 0);
  if (seed) std::shuffle(order.begin(), order.end(), random);
}

// Runs the resident threads until all have returned.
void run_resident() {
  std::vector<unsigned> order(machine.fibers.size());
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  for (int idle = 0; machine.cluster.alive;) {
    shuffle_if_asked(order);
    bool ran = false, moved = false;
    for (const unsigned i : order) {
      Fiber& f = machine.fibers[i];
      if (f.state != State::ready && f.state != State::spinning) continue;
      const bool spun = f.state == State::spinning;
      f.state = State::ready, ran = true;
      resume(f);
      if (machine.error) std::rethrow_exception(machine.error);
      moved |= !(spun && f.state == State::spinning);
    }
    idle = moved ? 0 : idle + 1;
    if (!ran || idle > 100) deadlock();
  }
}

}  // namespace

void wait_as(State state, Site site) {
  Fiber& f = machine.me();
  f.state = state, f.site = site;
  to_scheduler(f);
}

namespace {

// ---- Launch. ---------------------------------------------------------------------------------------------------------------

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

// Starts the threads of the blocks from `first` on.
void make_resident(unsigned first, unsigned count) {
  const dim3 g = grid->blocks, t = grid->threads;
  const unsigned threads = machine.block_threads();
  const unsigned number = Identities(count * threads).first(first / count);
  for (unsigned i = number; sanitize::kThread && i < number + count * threads; ++i)
    if (!Identities::fiber(i)) bad_launch(*grid, "launches that failed have left ThreadSanitizer without threads");
  machine.stacks.hold(size_t{number} + count * threads);
  machine.blocks.assign(count, {});
  machine.teams.clear(), machine.teams.resize(count);
  machine.fibers.assign(size_t{count} * threads, {});
  machine.cluster = {};
  machine.cluster.alive = count * threads;
  for (unsigned b = 0; b < count; ++b) {
    const unsigned i = first + b;
    machine.blocks[b] = {{i % g.x, i / g.x % g.y, i / (g.x * g.y)}, b, threads, nullptr};
    machine.teams[b].warps.resize((threads + 31) / 32);
    begin_block(machine.blocks[b], grid->shared_bytes);
  }
  sanitize::release(&machine.group_begins);  // the host's own past, which knows none of this launch's blocks
  for (unsigned i = 0; i < machine.fibers.size(); ++i) {
    Fiber& f = machine.fibers[i];
    const unsigned n = i % threads;
    static_cast<Thread&>(f) = {
        {n % t.x, n / t.x % t.y, n / (t.x * t.y)}, n, n / 32, n % 32, i, &machine.blocks[i / threads]};
    f.state = State::ready;
    f.stack.low = machine.stacks.low(number + i), f.stack.size = Stacks::size();
    f.number = number + i;
    f.stack.state = sanitize::kThread ? Identities::fiber(f.number) : nullptr;
    sanitize::created(f.stack);
    void** top = reinterpret_cast<void**>(f.stack.low + f.stack.size) - 2;  // aligned as at a function's entry
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fiber_main);
    top -= 6;  // the registers that switch_stack pops
    f.stack.pointer = top;
  }
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

}  // namespace

void run(const Grid& launched, void (*body)(const void*), const void* arguments, size_t argument_bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  check_limits(launched);
  Quiet quiet;
  grid = &launched;
  machine.body = body, machine.arguments = arguments, machine.error = nullptr, machine.failed = false;
  sanitize::adopt(machine.host);
  traffic::begin_launch(launched, arguments, argument_bytes);
  const auto end_group = [](bool finished) {
    machine.failed = !finished;
    for (Fiber& f : machine.fibers)
      if (sanitize::kThread && f.state != State::returned) resume(f);
    for (const Fiber& f : machine.fibers)
      if (sanitize::kThread && f.stopped) Identities::forget(f.number);  // TSan is left inside a Quiet, or a call
    for (Block& b : machine.blocks) release_block(b);
    forget_copies();
    if (!finished) sanitize::acquire(&machine.launch_ended);
    machine.fibers.clear();
    current = nullptr;
  };
  const unsigned blocks = launched.blocks.x * launched.blocks.y * launched.blocks.z;
  announce(launched, launched.cluster * machine.block_threads(), blocks / launched.cluster);
  for (unsigned first = 0; first < blocks; first += launched.cluster) {
    try {
      make_resident(first, launched.cluster);
      run_resident();
    } catch (...) {
      end_group(false);
      throw;
    }
    end_group(true);
  }
  sanitize::acquire(&machine.launch_ended);  // not earlier: blocks are in no order
}

Block* block_of_rank(unsigned rank) { return rank < machine.blocks.size() ? &machine.blocks[rank] : nullptr; }

void abandon_launch(std::exception_ptr error) {
  Fiber& f = machine.me();
  machine.error = std::move(error);
  end_early(f);
  __builtin_unreachable();
}

void yield(Site site) {
  Quiet quiet;
  wait_as(State::spinning, site);
}

bool traffic::is_machinery(const void* p) {
  const auto in = [p](const auto& v) { return p >= v.data() && p < v.data() + v.size(); };
  return machine.stacks.has(p) || in(machine.fibers) || in(machine.blocks);
}

void order_release(const void* address) { sanitize::release(address); }
void order_acquire(const void* address) { sanitize::acquire(address); }

}  // namespace hetkern::emulation
