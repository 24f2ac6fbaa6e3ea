// Crashes, threads that run on and on, Ctrl-C.                                                  (words: machine.h, signals.h)
//
// A crash in a kernel's thread goes on in that thread, as a call of abandon_launch; in a launcher it goes back to guarded(). A timer
// counts the CPU time of a thread's turn: past its end the handler itself waits, and another thread's turn comes. It does so in the
// kernel's own code alone, where nothing of the machine's (Quiet) or of a library's is half done.
#include "signals.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "machine.h"
#include "memory.h"

// Of this library or program, from the linker.
extern "C" {
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _etext[] __attribute__((visibility("hidden")));
// Not sigaction, which ThreadSanitizer takes for itself: its own handlers come late.
int __sigaction(int, const struct sigaction*, struct sigaction*) noexcept;
}

namespace hetkern::emulation {

using sanitize::Quiet;

namespace {

// ---- Crashes. --------------------------------------------------------------------------------------------------------------

constexpr int kCrashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction before[4];
int nested = 0;
sigjmp_buf host;
bool host_waits = false;

struct {
  int number, code;
  void* address;
  bool writes;
  const char* place;
  char thread_text[8];
} crash;

void describe(char (&text)[256]) {
  const char* what = crash.number == SIGFPE   ? "an integer division by zero, or of the lowest number by -1"
                     : crash.number == SIGILL ? "an illegal instruction"
                                              : nullptr;
  char memory[96];
  if (!what && crash.code == SI_KERNEL)
    what = "an access at an address that none can have";
  else if (!what)
    std::snprintf(memory, sizeof memory, "%s at address %p, where there is no memory",
                  crash.writes ? "a store" : "a load", crash.address),
        what = memory;
  std::snprintf(text, sizeof text, "%s, at instruction +0x%zx", what, offset_of(crash.place));
}

// Where a thread goes on that has crashed, on an empty stack: nobody returns from it.
void landed() {
  Quiet quiet;
  char text[256];
  describe(text);
  fail({}, "%s", text);
}

void on_crash(int number, siginfo_t* info, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  if (!current && !host_waits) {  // nobody's but Python's
    for (int i = 0; i < 4; ++i)
      if (kCrashes[i] == number) __sigaction(number, &before[i], nullptr);
    return;
  }
  crash.number = number, crash.code = info->si_code, crash.address = info->si_addr;
  crash.writes = registers[REG_ERR] & 2;
  crash.place = reinterpret_cast<const char*>(registers[REG_RIP]);
  if (!current) siglongjmp(host, 1);
  Fiber& f = machine.me();
  registers[REG_RIP] = reinterpret_cast<greg_t>(&landed);
  registers[REG_RSP] = reinterpret_cast<greg_t>(f.stack.low + f.stack.size - 128 - 8);
  registers[REG_EFL] &= ~0x500;  // no single steps, no direction
}

// ---- Turns. ----------------------------------------------------------------------------------------------------------------

constexpr int kTicks = 4;  // of 5 ms each
volatile sig_atomic_t ticks = 0, pressed = 0;
int tick_signal() { return SIGRTMIN + 5; }
timer_t timer;
bool timing = false;
struct sigaction ctrl_c_before;

uint64_t mixed(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x9e3779b97f4a7c15u ^ hash >> 29; }

// Of a thread's registers and the upper part of its stack. Where they come again and again, it reads the same memory again and
// again, and only another thread can end that.
uint64_t state_of(const mcontext_t& m, const Fiber& f) {
  uint64_t hash = 1;
  for (int i = REG_R8; i <= REG_RIP; ++i) hash = mixed(hash, static_cast<uint64_t>(m.gregs[i]));
  uint64_t words[32];
  std::memcpy(words, m.fpregs->_xmm, sizeof words);
  for (const uint64_t word : words) hash = mixed(hash, word);
  const auto* at = reinterpret_cast<const uint64_t*>(m.gregs[REG_RSP] & ~greg_t{7});
  const auto* const top = reinterpret_cast<const uint64_t*>(f.stack.low + f.stack.size);
  for (int i = 0; i < 4096 && at < top; ++i) hash = mixed(hash, *at++);
  return hash;
}

// Where a library is linked in statically, what lies between these is the kernel's. (tsan_fibers.cpp, emulation/build.py)
extern "C" __attribute__((weak, visibility("hidden"))) char hetkern_kernel_begins[], hetkern_kernel_ends[];
const char* first_of_ours() { return hetkern_kernel_begins ? hetkern_kernel_begins : __ehdr_start; }
const char* past_ours() { return hetkern_kernel_ends ? hetkern_kernel_ends : _etext; }

void on_tick(int, siginfo_t*, void* context) {
  if (!current || sanitize::quiet_depth || (++ticks < kTicks && !pressed)) return;
  const mcontext_t& m = static_cast<ucontext_t*>(context)->uc_mcontext;
  const auto* const place = reinterpret_cast<const char*>(m.gregs[REG_RIP]);
  // Not in a library, which may hold a lock, nor in single steps. (casts.cpp)
  if (place < first_of_ours() || place >= past_ours() || m.gregs[REG_EFL] & 0x100) return;
  const int error = errno;
  {
    const Quiet quiet;
    Fiber& f = machine.me();
    const uint64_t state = state_of(m, f);
    for (const uint64_t seen : f.seen) f.same += seen == state;
    f.seen[f.interruptions++ % 4] = state;
    wait_as(State::interrupted, f.site);
  }
  errno = error;
}

void on_ctrl_c(int number, siginfo_t* info, void* context) {
  pressed = 1;
  if (ctrl_c_before.sa_flags & SA_SIGINFO)
    ctrl_c_before.sa_sigaction(number, info, context);
  else if (ctrl_c_before.sa_handler != SIG_DFL && ctrl_c_before.sa_handler != SIG_IGN)
    ctrl_c_before.sa_handler(number);
}

void handle(int number, void (*handler)(int, siginfo_t*, void*), int flags, struct sigaction* old) {
  struct sigaction action{};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | flags;
  sigemptyset(&action.sa_mask);
  __sigaction(number, &action, old);
}

stack_t stack_before;
struct sigaction step_before;
std::unique_ptr<char[]> crash_stack;
constexpr size_t kCrashStack = 64 << 10;

void install() {
  if (nested++) return;
  if (!crash_stack) crash_stack.reset(new char[kCrashStack]);
  const stack_t stack{crash_stack.get(), 0, kCrashStack};
  sigaltstack(&stack, &stack_before);
  for (int i = 0; i < 4; ++i) handle(kCrashes[i], on_crash, SA_ONSTACK | SA_NODEFER, &before[i]);
  handle(SIGTRAP, on_step, SA_ONSTACK, &step_before);
}

void uninstall() {
  if (--nested) return;
  for (int i = 0; i < 4; ++i) __sigaction(kCrashes[i], &before[i], nullptr);
  __sigaction(SIGTRAP, &step_before, nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace

Signals::Signals() {
  install();
  pressed = 0, ticks = 0;
  handle(tick_signal(), on_tick, SA_RESTART | SA_NODEFER, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = tick_signal();
#ifdef sigev_notify_thread_id
  event.sigev_notify_thread_id = static_cast<pid_t>(syscall(SYS_gettid));
#else
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
#endif
  timing = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0;
  const itimerspec each{{0, 5'000'000}, {0, 5'000'000}};
  if (timing) timer_settime(timer, 0, &each, nullptr);
  __sigaction(SIGINT, nullptr, &ctrl_c_before);
  const bool default_one = !(ctrl_c_before.sa_flags & SA_SIGINFO) &&
                           (ctrl_c_before.sa_handler == SIG_DFL || ctrl_c_before.sa_handler == SIG_IGN);
  if (!default_one) handle(SIGINT, on_ctrl_c, SA_ONSTACK, nullptr);
}

Signals::~Signals() {
  if (timing) timer_delete(timer);
  struct sigaction ignore{};  // a last one may be on its way
  ignore.sa_handler = SIG_IGN;
  __sigaction(tick_signal(), &ignore, nullptr);
  __sigaction(SIGINT, &ctrl_c_before, nullptr);
  uninstall();
}

bool ctrl_c() { return pressed; }
void turn_begins() { ticks = 0; }

double seconds_used() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

size_t offset_of(const void* instruction) {
  return static_cast<size_t>(static_cast<const char*>(instruction) - __ehdr_start);
}

void guarded(void (*call)(void*), void* argument) {
  struct Installed {
    Installed() { install(), host_waits = true; }
    ~Installed() { host_waits = false, uninstall(); }
  };
  const Installed here;
  if (sigsetjmp(host, 1) == 0) {
    call(argument);
    return;
  }
  Crash error;
  describe(error.text);
  throw error;
}

}  // namespace hetkern::emulation
