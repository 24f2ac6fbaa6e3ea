// Fences: what a thread did before one is seen by who reads what an atomic of that thread made later.             (words: threads.h)
//
//   data[b] = …;  __threadfence();  if (atomicInc(&count, n) == n - 1) … data[i] …
//
// A fence and an atomic behind it are a release, an atomic and a fence behind it an acquire (PTX ISA, Memory Consistency Model). Of
// the second half the fence is not asked for: NVIDIA's own examples leave it out and read with volatile. A barrier hands on what the
// threads before it have fenced, so that one thread may count for its block. Volatile accesses of global memory and ld.relaxed and
// st.relaxed are atomics here.
//
// The atomics themselves are handed over too: the last block may set the counter back by a plain store. (races.cpp)
//
// TSan knows neither fences nor a release of what was before them. So a fence is a release to an address of the thread's own. At
// the atomic a fiber that runs no code acquires that address and releases another one, that of the atomic's place in memory.
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "machine.h"
#include "memory.h"

namespace hetkern::emulation {
namespace {

using sanitize::Quiet;

constexpr unsigned kMostPlaces =
    64;  // with a fiber of their own; further ones share them, and a race there may go unseen

struct Place {
  Order order = new_order();
  void* fiber = nullptr;
  std::map<unsigned, size_t> taken;  // how many fences of each block
  std::set<const Block*> readers;    // that run
};
using Key = std::pair<const void*, unsigned>;  // an atomic's place, and which block's threads may see it: 0: any
std::map<Key, Place> places;
unsigned fenced_blocks = 0;

void* fiber_of_place(size_t number) {
  static std::vector<void*> fibers;  // they stay, as all do (sanitizers.h); one launch comes after another
  number %= kMostPlaces;
  while (fibers.size() <= number) fibers.push_back(sanitize::new_identity());
  return fibers[number];
}

// What the running thread, and who it has met since, have fenced becomes known to who reads this place.
void hand_over(Place& place, const Fences& fences, const Team& team) {
  std::vector<const void*> known;
  if (const Order& mine = fences.of_thread[current->linear]) known.push_back(mine.get());
  size_t& taken = place.taken[fences.number];
  for (; taken < fences.made.size() && fences.made[taken].meetings < team.meetings; ++taken)
    known.push_back(fences.made[taken].order.get());
  if (known.empty()) return;
  const sanitize::As other(place.fiber, machine.me().stack);
  for (const void* p : known) sanitize::acquire(p);
  sanitize::release(place.order.get());
}

}  // namespace

void begin_fences() { places.clear(), fenced_blocks = 0; }

void fence(Scope scope) {
  if (!sanitize::kThread || !current) return;
  Quiet quiet;
  for (const Scope s : {Scope::block, Scope::device}) {
    if (s > scope) break;  // what the device may know the block may know
    Team& team = machine.team();
    Fences& fences = team.fences[static_cast<int>(s)];
    if (!fences.number) fences.number = ++fenced_blocks, fences.of_thread.resize(machine.block_threads());
    Order& mine = fences.of_thread[current->linear];
    if (!mine) mine = new_order();
    if (fences.made.empty() || fences.made.back().meetings != team.meetings)
      fences.made.push_back({team.meetings, new_order()});
    sanitize::release(mine.get());
    sanitize::release(fences.made.back().order.get());
  }
}

void atomic_is_made(const void* p, bool reads, bool writes) {
  if (!sanitize::kThread || !current || !fenced_blocks) return;
  Quiet quiet;
  const Team& team = machine.team();
  for (const Scope s : {Scope::block, Scope::device}) {
    const Fences& fences = team.fences[static_cast<int>(s)];
    const Key key{p, s == Scope::block ? fences.number : 0};
    auto place = places.find(key);
    if (writes && fences.number) {
      if (place == places.end()) {
        void* const fiber = fiber_of_place(places.size());
        place = places.try_emplace(key).first;
        place->second.fiber = fiber;
      }
      hand_over(place->second, fences, team);
    }
    if (!reads || place == places.end() || (s == Scope::block && !fences.number)) continue;
    sanitize::acquire(place->second.order.get());
    place->second.readers.insert(current->block);
  }
}

bool is_handed_over(const void* p) {
  const auto place = places.find({p, 0});
  return place != places.end() && place->second.readers.count(current->block);
}

void forget_fences(const Block& block) {
  for (auto& [key, place] : places) place.readers.erase(&block);
}

}  // namespace hetkern::emulation
