// Threads that go through steps together, each of which needs all of the one before. No torch here: team.cpp has torch's pool.
#pragma once
#include <cstdint>

namespace hetkern::cpu {

// A member takes one chunk of a step after another, from its own share of them first, then from the shares of members that
// are behind. So a step waits for no thread that has no processor, unless that thread holds a chunk, and one thread can do
// all: whether the pool gives fewer threads than wanted, or only the caller's inside another parallel region.
struct Team;
class Member {
 public:
  Member(Team& team, int home) : team(team), home(home) {}
  int64_t step = 0, chunk = -1;  // what next() gave; steps may be skipped, none is gone back to
  bool next();                   // whether there is a chunk to compute; the one before has been computed
 private:
  bool claim(int whose);
  Team& team;
  const int home;
  int64_t finished = 0;  // chunks not yet reported
  int patience = 0;      // looks at the others before taking from their shares
  bool took = false;     // from another's share, in this step
};
constexpr int kMostMembers = 64;
constexpr int64_t kMostChunks = 0xffff;

// Runs body(context, member) on as many threads as there are now, at most `tasks` and kMostMembers.
void run_team(int tasks, int64_t steps, int64_t chunks, void (*body)(const void* context, Member& member),
              const void* context);

template <class Body>
void run_team(int tasks, int64_t steps, int64_t chunks, const Body& body) {
  run_team(
      tasks, steps, chunks, [](const void* context, Member& member) { (*static_cast<const Body*>(context))(member); },
      &body);
}

}  // namespace hetkern::cpu
