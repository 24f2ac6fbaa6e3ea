// Fibers and their turns.                                                             (words: threads.h; launches: launch.cpp)
#include "threads.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.h"
#include "memory.h"
#include "traffic.h"

#if !defined(__x86_64__)
#error "the CUDA emulation switches stacks in x86-64 assembly; another processor needs its own switch_stack"
#endif

__attribute__((visibility("hidden"))) uint3 threadIdx, blockIdx;  // as cuda_words.h has them

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
  if (!memory_) {  // room for all at once, of which what is used becomes memory
    const size_t places = most_together();
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

unsigned Identities::known() { return made; }

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
  traffic::thread_waits();
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

// The bottom of every fiber's stack.
void fiber_main() {
  sanitize::arrived(machine.me().stack, &machine.host);
  sanitize::acquire(&machine.group_begins);
  if (machine.failed) end_early(machine.me());
  machine.body(machine.arguments);
  sanitize::stores_are_made();
  ++sanitize::quiet_depth;  // nobody interrupts what has returned
  Fiber& f = machine.me();
  {
    const Quiet quiet;  // which ends: the next thread of this number is seen again
    if (f.owes_wait) fail(f.site, "a thread arrived at a cluster barrier and returned without waiting");
    sanitize::release(&machine.launch_ended);
    sanitize::release(machine.team().ended.get());
    BlockBarrier& barrier = machine.team().barrier;  // which waits for who has not returned: to return is to arrive
    sanitize::release(&barrier.order[barrier.phase % 2]);
    f.state = State::returned;
    Cluster& cluster = machine.group().cluster;
    --cluster.alive;
    complete_cluster_barrier();
    if (--f.block->alive == 0) {
      sanitize::acquire(machine.team().ended.get());
      end_block(*f.block, grid->shared_bytes, cluster.alive > 0);
    } else {
      complete_block_barrier();
      complete_exchanges();
    }
  }
  to_scheduler(f);
}

}  // namespace

void resume(Fiber& f) {
  const int mine = sanitize::quiet_depth;
  turn_begins();
  sanitize::leaving(machine.host, f.stack, false);
  current = &f;
  threadIdx = f.index, blockIdx = f.block->index;
  sanitize::quiet_depth = f.quiet;
  switch_stack(&machine.host.pointer, f.stack.pointer);
  f.quiet = sanitize::quiet_depth;
  sanitize::quiet_depth = mine;
  current = nullptr;
  sanitize::arrived(machine.host, nullptr);
}

void prepare(Fiber& f) {
  f.state = State::ready;
  sanitize::created(f.stack);
  void** top = reinterpret_cast<void**>(f.stack.low + f.stack.size) - 2;  // aligned as at a function's entry
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  top -= 6;  // the registers that switch_stack pops
  f.stack.pointer = top;
}

std::string where(const Fiber& f) {
  const uint3 b = f.block->index;
  std::string text = "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) +
                     ") thread " + std::to_string(f.linear);
  if (f.site.file) text += " at " + std::string(f.site.file) + ":" + std::to_string(f.site.line);
  return text;
}

void wait_as(State state, Site site) {
  Quiet quiet;
  Fiber& f = machine.me();
  f.state = state, f.site = site;
  to_scheduler(f);
}

Block* block_of_rank(unsigned rank) {
  auto& blocks = machine.group().blocks;
  return rank < blocks.size() ? &blocks[rank] : nullptr;
}

void abandon_launch(std::exception_ptr error) {
  Quiet quiet;
  Fiber& f = machine.me();
  machine.error = std::move(error);
  end_early(f);
  __builtin_unreachable();
}

void yield(Site site) {
  Quiet quiet;
  machine.me().polled = 0;
  wait_as(State::spinning, site);
}

void polled(const void* p) {
  if (!current) return;
  Fiber& f = machine.me();
  f.polled = f.polls == p ? f.polled + 1 : 0, f.polls = p;
  if (f.polled < 64) return;
  f.polled = 0;
  wait_as(State::polling, f.site);
}

bool traffic::is_machinery(const void* p) {
  const auto in = [p](const auto& v) { return p >= v.data() && p < v.data() + v.size(); };
  for (const auto& g : machine.groups)
    if (in(g->fibers) || in(g->blocks)) return true;
  return machine.stacks.has(p);
}

void order_release(const void* address) { sanitize::release(address); }
void order_acquire(const void* address) { sanitize::acquire(address); }

}  // namespace hetkern::emulation
