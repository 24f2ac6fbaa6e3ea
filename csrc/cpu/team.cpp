#include "team.h"

#include <atomic>
#include <thread>

#include "parallel.h"

#ifdef HETKERN_STD_THREADS
#include <vector>
#else
#include <torch/csrc/stable/ops.h>
#endif

namespace hetkern::cpu {
namespace {

constexpr int kPatience = 32;  // pauses, a microsecond or so: another's weights are in another core's cache
constexpr int kSpins =
    200;  // pauses before the core is given away: more cost a step where cores are shared, fewer as well

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct Team {
  struct alignas(64) Place {
    std::atomic<uint64_t> share{
        0};  // step + 1, first chunk nobody has, end: 32, 16, 16 bits; an earlier step's: all are left
  };
  Place place[kMostMembers];
  alignas(64) std::atomic<int64_t> done{0};  // chunks of all steps; those of a step begin when all before it are done
  const int64_t steps, chunks;
  const int members;
  Team(int members, int64_t steps, int64_t chunks) : steps(steps), chunks(chunks), members(members) {}
};

// The first chunk of a share goes to its owner, the last to another.
bool Member::claim(int whose) {
  const Share share(team.chunks, whose, team.members);
  const auto tag = static_cast<uint64_t>(step + 1);
  std::atomic<uint64_t>& word = team.place[whose].share;
  uint64_t seen = word.load(std::memory_order_relaxed);
  for (;;) {
    if (seen >> 32 > tag) return false;  // this member has been away
    const bool untouched = seen >> 32 < tag;
    int64_t begin = untouched ? share.begin : static_cast<int64_t>(seen >> 16 & 0xffff);
    int64_t end = untouched ? share.end : static_cast<int64_t>(seen & 0xffff);
    if (begin == end) return false;
    chunk = whose == home ? begin++ : --end;
    const uint64_t left = tag << 32 | static_cast<uint64_t>(begin) << 16 | static_cast<uint64_t>(end);
    if (word.compare_exchange_weak(seen, left, std::memory_order_relaxed)) return true;
  }
}

bool Member::next() {
  if (chunk >= 0)
    ++finished;
  else
    patience = kPatience;
  for (int spins = 0;; ++spins) {
    if (spins == 0 && claim(home)) return true;
    if (finished) team.done.fetch_add(finished, std::memory_order_acq_rel), finished = 0;
    const int64_t now = team.done.load(std::memory_order_acquire) / team.chunks;
    if (now > step) {
      if (now >= team.steps) return false;
      step = now, spins = -1;
      patience = took ? 0 : kPatience, took = false;
      continue;
    }
    if (spins >= patience)
      for (int k = 1; k < team.members; ++k)
        if (claim((home + k) % team.members)) {
          patience = 0, took = true;
          return true;
        }
    if (spins < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
}

void run_team(int tasks, int64_t steps, int64_t chunks, void (*body)(const void*, Member&), const void* context) {
  if (chunks == 0 || steps == 0) return;
  Team team(tasks < kMostMembers ? tasks : kMostMembers, steps, chunks);
  const auto join = [&](int64_t home) {
    Member member(team, static_cast<int>(home));
    body(context, member);
  };
#ifdef HETKERN_STD_THREADS
  std::vector<std::thread> threads;
  for (int task = 1; task < team.members; ++task) threads.emplace_back(join, task);
  join(0);
  for (std::thread& thread : threads) thread.join();
#else
  const FloatMode mode;
  torch::stable::parallel_for(0, team.members, 1, [&](int64_t begin, int64_t) {
    const FloatMode::Held held(mode);
    join(begin);
  });
#endif
}

}  // namespace hetkern::cpu
