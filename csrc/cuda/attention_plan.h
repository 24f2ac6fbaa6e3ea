// How a GPU shares out attention: pure functions of the shape and the device.
//
// The columns of a tile, and so a result's bits, depend on the types and head sizes alone; how many warps stand in a block and
// how many tiles wait in shared memory does not change them.
#pragma once
#include "../attention.h"
#include "plan.h"

namespace hetkern::cuda {

enum class AttentionPass : int8_t { forward, dq, dk_dv, dbias, delta };

constexpr int64_t kMostHeadSize = 256;
constexpr int kAttentionWarps = 4;
// Keys with a maximum and a sum of their own, a multiple of every tile's columns. 0: all of them; beside 256 columns of output a
// warp has no registers left to put parts together.
HETKERN_HOST_DEVICE constexpr int attention_part(int width) { return width <= 128 ? 1024 : 0; }
// Queries at most that the heads of a group are folded for, and blocks take parts of the keys.
constexpr int64_t kFewQueries = 16;
// What a row puts aside between two parts: its sums, and of each of four lanes a maximum and a sum.
template <int W>
constexpr int kAsideWords = W + 8;

// Columns of the result that a warp keeps in registers; wider heads are done in slices.
HETKERN_HOST_DEVICE constexpr int attention_widest(AttentionPass pass, int64_t bytes) {
  const int widest = bytes == 8 ? 64 : bytes == 4 ? 128 : 256;
  const bool crowded =
      pass == AttentionPass::dk_dv || (pass == AttentionPass::dq && bytes == 8);  // the former: two sums
  return crowded ? widest / 2 : widest;
}
HETKERN_HOST_DEVICE constexpr int attention_width(AttentionPass pass, int64_t bytes, int64_t columns) {
  const int widest = attention_widest(pass, bytes), wanted = columns <= 64 ? 64 : columns <= 128 ? 128 : 256;
  return wanted < widest ? wanted : widest;
}
// Columns of a tile of scores.
HETKERN_HOST_DEVICE constexpr int attention_columns(AttentionPass pass, int64_t bytes, int width) {
  if (bytes == 8) return 8;
  if (bytes == 4 || pass == AttentionPass::dbias) return 32;
  return width <= (pass == AttentionPass::forward ? 128 : 64) ? 64 : 32;
}

struct AttentionTiles {
  int warps, width, columns, stages, slices;
  int ld_d, ld_v;              // of tiles with D and with Dv columns, in elements
  int shared;                  // bytes
  int blocks;                  // of rows a head
  int parts;                   // of the longest sequence's keys
  bool split;                  // a block each for them
  int heads;                   // whose rows stand in a tile: a group's, or 1
  int64_t rows;                // of all heads, in row_max
  float scale, softcap, kept;  // what kernels of float take from the problem's doubles: a constant is no register
  bool q, k, v, out, dout, dq, dk, dv;  // whether a tensor's rows move by 16 bytes
};

// `rows`: the longest sequence's, of what stands down the tiles.
inline AttentionTiles attention_tiles(AttentionPass pass, int64_t bytes, int64_t D, int64_t Dv, int64_t rows,
                                      const Gpu& gpu) {
  AttentionTiles t{};
  const bool forward = pass == AttentionPass::forward, delta = pass == AttentionPass::delta;
  const int64_t widest = pass == AttentionPass::forward ? Dv : pass == AttentionPass::dq ? D : D > Dv ? D : Dv;
  const auto ld = [&](int64_t columns) { return static_cast<int>(divided_up(columns, 16) * 16 + 16 / bytes); };
  t.width = attention_width(pass, bytes, widest);
  t.columns = attention_columns(pass, bytes, t.width);
  t.slices = widest > t.width && (forward || pass == AttentionPass::dq || pass == AttentionPass::dk_dv)
                 ? static_cast<int>(divided_up(widest, t.width))
                 : 1;
  t.ld_d = ld(D), t.ld_v = ld(forward && Dv > t.width ? t.width : Dv);
  const int64_t down = 16 * bytes * (delta ? 2 * t.ld_v : t.ld_d + (forward ? 0 : t.ld_v));  // a warp's
  const int64_t across =
      delta ? 0
            : t.columns * (bytes * (t.ld_d + t.ld_v) + (pass == AttentionPass::dk_dv ? 3 * (bytes == 8 ? 8 : 4) : 0));
  const int64_t staged = delta || pass == AttentionPass::dbias ? 0 : 16 * bytes * ld(t.width);
  for (t.warps = kAttentionWarps;; t.warps /= 2) {
    if (t.warps > 1 && 8 * t.warps >= rows) continue;
    for (t.stages = delta || pass == AttentionPass::dbias ? 1 : 2; t.stages > 0; --t.stages) {
      const int64_t tiles = t.warps * down + t.stages * across, results = t.warps * staged;
      const int64_t all = tiles > results ? tiles : results;
      if (all > (t.stages == 2 ? gpu.shared_bytes / 2 : gpu.shared_bytes) && (t.warps > 1 || t.stages > 1)) continue;
      t.shared = static_cast<int>(all);
      t.blocks = static_cast<int>(divided_up(rows, 16 * t.warps));
      return t;
    }
  }
}

inline AttentionPlan attention_plan(const AttentionShape& shape, const Gpu& gpu) {
  const int64_t bytes = size_of(shape.type);
  const bool few = !shape.backward && shape.Lq <= kFewQueries && shape.Hkv > 0;
  const int64_t group = few ? shape.Hq / shape.Hkv : 1;
  const AttentionTiles t = attention_tiles(shape.backward ? AttentionPass::dq : AttentionPass::forward, bytes, shape.D,
                                           shape.Dv, group * shape.Lq, gpu);
  AttentionPlan plan{AttentionPath::split_queries, 1, 1, false, Product::fma, 0};
  int64_t tasks = shape.B * shape.Hq / group * t.blocks * t.slices;
  plan.fold = group > 1;
  const int64_t rows = (shape.rows > 0 ? shape.rows : shape.B * shape.Lq) * shape.Hq;
  if (shape.backward) {
    plan.workspace = 2 * rows * (bytes == 8 ? 8 : 4);  // delta, and sums for dslopes
  } else if (const int part = attention_part(t.width); part > 0 && shape.Lk > part) {
    plan.parts = static_cast<int>(divided_up(shape.Lk, part));
    // Few queries would leave most of the device idle.
    if (few && tasks < 2 * gpu.processors) plan.path = AttentionPath::split_keys, plan.fold = true;
    const int64_t aside = plan.path == AttentionPath::split_keys ? plan.parts : 1;
    plan.workspace = aside * rows * t.slices * (t.width + 8) * (bytes == 8 ? 8 : 4);
    tasks *= aside;
  }
  plan.tasks = static_cast<int>(tasks < kMaxTasks ? tasks : kMaxTasks);
  plan.block.threads = 32 * t.warps, plan.block.lanes = t.columns, plan.block.shared = t.shared;
  return plan;
}

}  // namespace hetkern::cuda
