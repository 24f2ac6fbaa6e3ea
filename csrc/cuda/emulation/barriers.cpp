// Barriers, warp exchanges, votes.                                                                           (words: threads.h)
#include <algorithm>
#include <cstring>

#include "machine.h"
#include "memory.h"
#include "traffic.h"

namespace hetkern::emulation {

using sanitize::Quiet;

namespace {
bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
}  // namespace

bool complete_block_barrier() {
  BlockBarrier& b = machine.team().barrier;
  if (b.arrived == 0 || b.arrived < current->block->alive) return false;
  b.arrived = 0, ++b.phase, ++machine.team().meetings;
  for (unsigned i = 0; i < machine.block_threads(); ++i)
    if (Fiber& f = machine.of_block(i); f.state == State::at_block_barrier) f.state = State::ready;
  return true;
}

int block_barrier(Site site, Vote vote, bool mine) {
  traffic::thread_waits();  // the last one goes on without
  BlockBarrier& b = machine.team().barrier;
  const unsigned phase = b.phase % 2;
  {
    Quiet quiet;
    if (b.arrived == 0)
      b.first = site, b.vote[phase] = vote == Vote::all;
    else if (!same(b.first, site))
      fail(site, "divergent __syncthreads: other threads of the block wait at %s:%d", b.first.file, b.first.line);
  }
  int& sum = b.vote[phase];
  sum = vote == Vote::all ? sum && mine : vote == Vote::any ? sum || mine : sum + mine;
  sanitize::release(&b.order[phase]);
  Quiet quiet;
  ++b.arrived;
  if (!complete_block_barrier()) wait_as(State::at_block_barrier, site);
  sanitize::acquire(&b.order[phase]);
  return sum;
}

namespace {

unsigned lanes_of(unsigned warp) { return std::min(32u, machine.block_threads() - warp * 32); }

// Lanes of this thread's warp that have not returned.
unsigned alive_lanes() {
  unsigned alive = 0;
  const unsigned warp = current->warp;
  if (current->block->alive == machine.block_threads()) return ~0u;
  for (unsigned lane = 0; lane < lanes_of(warp); ++lane)
    if (machine.of_block(warp * 32 + lane).state != State::returned) alive |= 1u << lane;
  return alive;
}

bool complete(Exchange& e) {
  const unsigned warp = current->warp;
  if (e.arrived == 0 || e.arrived != (e.mask & alive_lanes())) return false;
  e.present[e.phase % 2] = e.arrived;
  e.arrived = 0, ++e.phase;
  for (unsigned lane = 0; lane < lanes_of(warp); ++lane) {
    Fiber& f = machine.of_block(warp * 32 + lane);
    if (f.state == State::at_exchange && f.mask == e.mask) f.state = State::ready;
  }
  return true;
}

// Brings a value to the lanes of mask; returns once all are there, with the phase that holds their values.
Exchange& meet(unsigned mask, const void* mine, size_t size, Site site, unsigned& phase, bool orders) {
  const unsigned lane = current->lane, warp = current->warp;
  if (!(mask >> lane & 1)) fail(site, "a warp operation's mask %08x leaves out lane %u, which calls it", mask, lane);
  const unsigned lanes = lanes_of(warp);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  auto& known = machine.team().warps[warp];
  auto it = std::find_if(known.begin(), known.end(), [&](const auto& e) { return e->mask == mask; });
  if (it == known.end()) it = known.insert(it, std::make_unique<Exchange>()), (*it)->mask = mask;
  Exchange& e = **it;
  phase = e.phase % 2;
  if (e.arrived == 0)
    e.first = site;
  else if (!same(e.first, site))
    fail(site, "a warp operation diverges: other lanes wait at %s:%d", e.first.file, e.first.line);
  if (size) std::memcpy(e.value[phase][lane], mine, size);
  if (orders) sanitize::release(&e.order[phase]), ++machine.team().meetings;
  e.arrived |= 1u << lane;
  if (!complete(e)) {
    machine.me().mask = mask;
    wait_as(State::at_exchange, site);
  }
  if (orders) sanitize::acquire(&e.order[phase]);
  return e;
}

}  // namespace

void complete_exchanges() {
  for (const auto& e : machine.team().warps[current->warp]) complete(*e);
}

UndefinedValues undefined_values;

void exchange(unsigned mask, const void* mine, void* taken, size_t size, unsigned source, Site site) {
  Quiet quiet;
  unsigned phase;
  const Exchange& e = meet(mask, mine, size, site, phase, false);
  if (e.present[phase] >> source & 1) {
    std::memcpy(taken, e.value[phase][source], size);
    return;
  }
  UndefinedValues& u = undefined_values;
  if (!u.allowed)
    fail(site, "a shuffle takes lane %u's value, and mask %08x has no such lane, or it has returned", source, e.mask);
  if (u.taken++ == 0) u.first = site, u.kernel = grid->kernel;
  for (size_t i = 0; i < size; ++i) static_cast<unsigned char*>(taken)[i] = u.fill[i % sizeof u.fill];
}

unsigned gather(unsigned mask, const void* mine, void* all, size_t size, Site site) {
  Quiet quiet;
  unsigned phase;
  const Exchange& e = meet(mask, mine, size, site, phase, false);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (e.present[phase] >> lane & 1) std::memcpy(static_cast<char*>(all) + lane * size, e.value[phase][lane], size);
  return e.present[phase];
}

unsigned ballot(unsigned mask, bool mine, Site site) {
  Quiet quiet;
  unsigned phase, votes = 0;
  const Exchange& e = meet(mask, &mine, 1, site, phase, false);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (e.present[phase] >> lane & 1) votes |= static_cast<unsigned>(e.value[phase][lane][0]) << lane;
  return votes;
}

void warp_barrier(unsigned mask, Site site) {
  traffic::thread_waits();
  Quiet quiet;
  unsigned phase;
  meet(mask, nullptr, 0, site, phase, true);
}

// ---- Clusters. -------------------------------------------------------------------------------------------------------------

void complete_cluster_barrier() {
  Cluster& c = machine.group().cluster;
  if (c.arrived == 0 || c.arrived < c.alive) return;
  c.arrived = 0, ++c.phase;
  for (Fiber& f : machine.group().fibers)
    if (f.state == State::at_cluster_barrier) f.state = State::ready;
}

void cluster_arrive(Site site) {
  Fiber& f = machine.me();
  if (f.owes_wait) fail(site, "a thread arrives at a cluster barrier again without having waited");
  f.site = site, f.owes_wait = true;
  Cluster& c = machine.group().cluster;
  f.clusters_arrived = c.phase;
  sanitize::release(&c.order[c.phase % 2]);
  Quiet quiet;
  ++c.arrived;
  complete_cluster_barrier();
}

void cluster_wait(Site site) {
  Fiber& f = machine.me();
  if (!f.owes_wait) fail(site, "a thread waits at a cluster barrier without having arrived");
  const Cluster& c = machine.group().cluster;
  {
    Quiet quiet;
    while (c.phase == f.clusters_arrived) wait_as(State::at_cluster_barrier, site);
  }
  f.owes_wait = false;
  sanitize::acquire(&c.order[f.clusters_arrived % 2]);
}

// ---- The grid. -------------------------------------------------------------------------------------------------------------

void grid_barrier(Site site) {
  if (!grid->cooperative)
    fail(site, "a barrier of the grid, and the launch is not cooperative: launch with HETKERN_LAUNCH_COOPERATIVE");
  GridBarrier& b = machine.whole_grid;
  const unsigned phase = b.phase;
  sanitize::release(&b.order[phase % 2]);
  const dim3 g = grid->blocks;
  if (++b.arrived == 1ul * g.x * g.y * g.z * machine.block_threads())
    b.arrived = 0, ++b.phase;
  else
    while (b.phase == phase) yield(site);
  sanitize::acquire(&b.order[phase % 2]);
}

unsigned clusters_passed() { return machine.group().cluster.phase; }

}  // namespace hetkern::emulation
