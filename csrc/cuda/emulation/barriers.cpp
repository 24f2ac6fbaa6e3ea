// Barriers, warp exchanges, votes.                                                                           (words: threads.h)
#include <algorithm>
#include <cstring>

#include "machine.h"
#include "memory.h"

namespace hetkern::emulation {

using sanitize::Quiet;

namespace {
bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
}  // namespace

bool complete_block_barrier() {
  BlockBarrier& b = machine.team().barrier;
  if (b.arrived == 0 || b.arrived < current->block->alive) return false;
  b.arrived = 0, ++b.phase;
  const unsigned first = current->block->rank * machine.block_threads();
  for (unsigned i = first; i < first + machine.block_threads(); ++i)
    if (machine.fibers[i].state == State::at_block_barrier) machine.fibers[i].state = State::ready;
  return true;
}

int block_barrier(Site site, Vote vote, bool mine) {
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

// Brings a value to the lanes of mask; returns once all are there, with the phase that holds their values.
Exchange& meet(unsigned mask, const void* mine, size_t size, Site site, unsigned& phase, bool orders) {
  const unsigned lane = current->lane, warp = current->warp;
  if (!(mask >> lane & 1)) fail(site, "a warp operation's mask %08x leaves out lane %u, which calls it", mask, lane);
  const unsigned lanes = std::min(32u, machine.block_threads() - warp * 32);
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
  if (orders) sanitize::release(&e.order[phase]);
  e.arrived |= 1u << lane;
  if (e.arrived == mask) {
    e.arrived = 0, ++e.phase;
    const unsigned first = current->block->rank * machine.block_threads() + warp * 32;
    for (unsigned i = first; i < first + lanes; ++i) {
      Fiber& f = machine.fibers[i];
      if (f.state == State::at_exchange && f.mask == mask) f.state = State::ready;
    }
  } else {
    machine.me().mask = mask;
    wait_as(State::at_exchange, site);
  }
  if (orders) sanitize::acquire(&e.order[phase]);
  return e;
}

}  // namespace

void exchange(unsigned mask, const void* mine, void* taken, size_t size, unsigned source, Site site) {
  Quiet quiet;
  unsigned phase;
  const Exchange& e = meet(mask, mine, size, site, phase, false);
  // Of a lane outside the mask CUDA gives no defined value, and a right kernel may take one that it does not use.
  if (e.mask >> source & 1)
    std::memcpy(taken, e.value[phase][source], size);
  else
    std::memset(taken, 0xff, size);  // NaN
}

unsigned ballot(unsigned mask, bool mine, Site site) {
  Quiet quiet;
  unsigned phase, votes = 0;
  const Exchange& e = meet(mask, &mine, 1, site, phase, false);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (e.mask >> lane & 1) votes |= static_cast<unsigned>(e.value[phase][lane][0]) << lane;
  return votes;
}

void warp_barrier(unsigned mask, Site site) {
  Quiet quiet;
  unsigned phase;
  meet(mask, nullptr, 0, site, phase, true);
}

// ---- Clusters. -------------------------------------------------------------------------------------------------------------

void complete_cluster_barrier() {
  Cluster& c = machine.cluster;
  if (c.arrived == 0 || c.arrived < c.alive) return;
  c.arrived = 0, ++c.phase;
  for (Fiber& f : machine.fibers)
    if (f.state == State::at_cluster_barrier) f.state = State::ready;
}

void cluster_arrive(Site site) {
  Fiber& f = machine.me();
  if (f.owes_wait) fail(site, "a thread arrives at a cluster barrier again without having waited");
  f.site = site, f.owes_wait = true;
  Cluster& c = machine.cluster;
  f.clusters_arrived = c.phase;
  sanitize::release(&c.order[c.phase % 2]);
  Quiet quiet;
  ++c.arrived;
  complete_cluster_barrier();
}

void cluster_wait(Site site) {
  Fiber& f = machine.me();
  if (!f.owes_wait) fail(site, "a thread waits at a cluster barrier without having arrived");
  const Cluster& c = machine.cluster;
  {
    Quiet quiet;
    while (c.phase == f.clusters_arrived) wait_as(State::at_cluster_barrier, site);
  }
  f.owes_wait = false;
  sanitize::acquire(&c.order[f.clusters_arrived % 2]);
}

unsigned clusters_passed() { return machine.cluster.phase; }

}  // namespace hetkern::emulation
