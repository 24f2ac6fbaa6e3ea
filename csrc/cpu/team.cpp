#include "team.h"

#include <atomic>
#include <chrono>
#include <thread>

#ifdef HETKERN_STD_THREADS
#include <vector>
#else
#include <torch/csrc/stable/ops.h>
#endif

namespace hetkern::cpu {
namespace {

constexpr int kSpins = 200;                           // more cost a step where cores are shared, fewer as well
constexpr std::chrono::microseconds kLateness{2000};  // after which a team begins without those who are missing

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins a while, then gives the core away, until `done`.
template <class Done>
void wait_until(const Done& done) {
  for (int spin = 0; !done(); ++spin) {
    if (spin < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
}

}  // namespace

struct Meeting {
  struct alignas(64) Place {
    std::atomic<int64_t> step{0};
  };
  Place place[kMostMembers];
  // Members in the low half, the tasks they brought above, and whether the door is closed: one word, so that all agree.
  static constexpr uint64_t kClosed = uint64_t{1} << 63, kTask = uint64_t{1} << 32;
  std::atomic<uint64_t> door{0};
  uint64_t tasks;
  explicit Meeting(int tasks) : tasks(static_cast<uint64_t>(tasks)) {}

  static int members(uint64_t state) { return static_cast<int>(state & 0xffffffffu); }

  // A member's place, or -1: the door is closed.
  int enter(int64_t brought) {
    uint64_t state = door.load(std::memory_order_acquire);
    for (;;) {
      if (state & kClosed) return -1;
      uint64_t next = state + 1 + static_cast<uint64_t>(brought) * kTask;
      if (((next & ~kClosed) >> 32) == tasks) next |= kClosed;
      if (door.compare_exchange_weak(state, next, std::memory_order_acq_rel)) return members(state);
    }
  }
  // How many have come, once nobody can any more.
  int close() {
    const auto late = std::chrono::steady_clock::now() + kLateness;
    for (int spin = 0;; ++spin) {
      const uint64_t state = door.load(std::memory_order_acquire);
      if (state & kClosed) return members(state);
      if (spin < kSpins) {
        relax();
        continue;
      }
      std::this_thread::yield();
      if (std::chrono::steady_clock::now() > late) door.fetch_or(kClosed, std::memory_order_acq_rel);
    }
  }
};

void Member::wait() {
  ++step;
  if (of == 1) return;
  meeting->place[index].step.store(step, std::memory_order_release);
  for (int other = 0; other < of; ++other)
    wait_until([&] { return meeting->place[other].step.load(std::memory_order_acquire) >= step; });
}

void run_team(int tasks, void (*body)(const void*, Member&), const void* context) {
  if (tasks > kMostMembers) tasks = kMostMembers;
  if (tasks == 1) {
    Member alone{0, 1, 0, nullptr};
    return body(context, alone);
  }
  Meeting meeting(tasks);
  const auto come = [&](int64_t brought) {
    const int index = meeting.enter(brought);
    if (index < 0) return;
    Member member{index, meeting.close(), 0, &meeting};
    body(context, member);
  };
#ifdef HETKERN_STD_THREADS
  std::vector<std::thread> threads;
  for (int task = 1; task < tasks; ++task) threads.emplace_back(come, 1);
  come(1);
  for (std::thread& thread : threads) thread.join();
#else
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { come(end - begin); });
#endif
}

}  // namespace hetkern::cpu
