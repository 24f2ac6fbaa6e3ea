#include "rnn_plan.h"

#include <initializer_list>

#include "../rnn_layer.h"
#include "bf16_product.h"
#include "team.h"

namespace hetkern::cpu {
namespace {

// Multiply-adds of a step below which tasks that wait for one another are no gain: some 2 us of one core. Where cores are
// shared a step may cost them a time slice.
constexpr int64_t kWorthWaiting = 1 << 16;
constexpr int64_t kWorthATile = 64;         // units below which AMX's set-up costs more than it saves
constexpr int64_t kWorthSharing = 1 << 20;  // of a whole call, below which another thread's wake-up is none

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors of units in a panel: as many as waste no more than fewer would.
int unit_vectors(int64_t units, int64_t tasks) {
  int best = 1;
  int64_t least = ceil_div(units, tasks);
  for (const int vectors : {2, 4}) {
    const int64_t cost = ceil_div(ceil_div(units, vectors), tasks) * vectors;
    if (cost <= least) best = vectors, least = cost;
  }
  return best;
}

}  // namespace

Vectors vectors_in_force() {
  const int64_t bytes = isa() == Isa::avx512 ? 64 : isa() == Isa::avx2 ? 32 : 16;
  return {bytes, bf16_product()};
}

RnnPlan rnn_plan(const RnnShape& shape) { return rnn_plan(shape, machine(), vectors_in_force()); }

RnnPlan rnn_plan(const RnnShape& shape, const Machine& machine, const Vectors& vectors) {
  const auto [cell, type, T, B, H, ragged, backward] = shape;
  const bool worth_a_tile = vectors.product != Product::amx || H >= kWorthATile;
  const Product product = type == DType::bf16 && worth_a_tile ? vectors.product : Product::fma;
  const int64_t G = gates_of(cell), A = type == DType::f64 ? 8 : 4, word = product == Product::fma ? A : 2;  // bytes
  const int64_t lanes = vectors.bytes / A, units = ceil_div(H, lanes);
  const int64_t step = B * G * H * H, panels = G * H * H * word;
  const int64_t threads = machine.threads < kMostMembers ? machine.threads : kMostMembers;

  // Rows, where each task keeps two with all weights in its own cache, or enough for a tile where units are too few for the
  // tasks; else units, so that each task has a share of the weights in its cache. An AMX tile takes as long for one row as
  // for 16, and is so quick that only weights in the task's own cache keep up with it.
  RnnPath path = RnnPath::one_task;
  int64_t tasks = 1;
  const bool by_rows = product == Product::amx ? B >= 16 * threads && 2 * panels <= machine.l2_bytes
                                               : (B >= 2 * threads && panels <= machine.l2_bytes) ||
                                                     (B >= 4 * threads && units < 2 * threads);
  if (threads > 1 && T * step >= kWorthSharing) {
    if ((ragged || !by_rows) && step >= kWorthWaiting && units >= 2 && units <= kMostChunks) {
      path = RnnPath::split_units, tasks = units < threads ? units : threads;
    } else if (B >= 2) {
      path = RnnPath::split_rows, tasks = B < threads ? B : threads;
    }
  }
  const int64_t sharing_units = path == RnnPath::split_units ? tasks : 1;
  const int wide = backward || G == 1 ? unit_vectors(units, sharing_units) : 1;

  // As rnn_walk.h lays it out.
  const int64_t K = backward ? G * H : H, columns = (backward ? 1 : G) * wide * lanes;
  const int64_t stride = ceil_div(K, 32) * 32 * word, blocks = ceil_div(units, wide);
  const int64_t bytes = blocks * columns * stride + 2 * B * stride + B * H * A + (3 * B + T + 2) * 8 + 16 * 64;
  return {path, static_cast<int>(tasks), wide, product, bytes};
}

int layer_tasks(int64_t multiply_adds) { return multiply_adds < kWorthSharing ? 1 : machine().threads; }

}  // namespace hetkern::cpu
