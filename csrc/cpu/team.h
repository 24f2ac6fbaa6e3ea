// Threads that wait for one another. No torch here: team.cpp has torch's pool.
#pragma once
#include <cstdint>

namespace hetkern::cpu {

// One of several members of a team, all of which run at the same time and wait for one another.
struct Meeting;
struct Member {
  int index, of;
  int64_t step;
  Meeting* meeting;
  void wait();  // until every member has come here as often as this one
};
constexpr int kMostMembers = 64;

// Runs body(context, member) on as many threads as there are now, at most `tasks` and kMostMembers: one, where this is
// already inside a parallel region. A thread that comes too late finds the door closed. So members never wait for nobody.
void run_team(int tasks, void (*body)(const void* context, Member& member), const void* context);

template <class Body>
void run_team(int tasks, const Body& body) {
  run_team(tasks, [](const void* context, Member& member) { (*static_cast<const Body*>(context))(member); }, &body);
}

}  // namespace hetkern::cpu
