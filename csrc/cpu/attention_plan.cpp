#include "attention_plan.h"

#include "parallel.h"
#include "plan.h"

namespace hetkern::cpu {
namespace {

// Multiply-adds that one core makes while it reads an element.
constexpr int64_t kProductsOfElement = 16;

#ifdef HETKERN_STD_THREADS
constexpr int64_t kLessWork = 16;  // as in kernels.cpp
#else
constexpr int64_t kLessWork = 1;
#endif

}  // namespace

AttentionPlan attention_plan(const AttentionShape& shape) {
  return attention_plan(shape, machine(), vectors_in_force());
}

namespace {
AttentionPlan shared_out(const AttentionShape& shape, const Machine& machine) {
  const auto [type, B, Hq, Hkv, Lq, Lk, D, Dv, causal, window, rows, backward, dbias] = shape;
  const int64_t A = type == DType::f64 ? 8 : 4;
  const int64_t queries = rows > 0 ? rows : B * Lq, seen = window > 0 && window < Lk ? window : Lk;
  const int64_t work =
      Hq * queries * seen * (D + Dv) / (causal && seen == Lk && Lq == Lk ? 2 : 1) * (backward ? 5 : 2) / 2;
  const int64_t elements = queries * Hq * (D + Dv) + (rows > 0 ? queries : B * Lk) * Hkv * (D + Dv);
  const bool alone = (work / kProductsOfElement + elements) * kLessWork < kElementsToFork;
  const int64_t threads = alone ? 1 : machine.threads;

  if (backward) {
    const int64_t parts = backward_parts(Lk), items = B * Hkv * parts, tasks = threads < items ? threads : items;
    const int64_t words = (tasks > 0 ? tasks : 1) * backward_scratch(Lq, Lk, D, Dv) + queries * Hq +
                          (parts > 1 ? parts * queries * Hq * D : 0) + B * Hq * (4 * parts + 4);
    const AttentionPath path = tasks > 1 ? AttentionPath::split_heads : AttentionPath::one_task;
    AttentionPlan plan{
        path, static_cast<int>(tasks > 0 ? tasks : 1), static_cast<int>(parts), false, Product::fma, words * A + 4096};
    plan.chunk = static_cast<int>(panels_of_chunk(D, Dv, A, machine.l2_bytes));
    return plan;
  }

  const int64_t group = Hkv ? Hq / Hkv : 1, parts = ceil_div(Lk, kPart);
  const bool fold = group > 1 && Lq < kPanel;
  const int64_t units = fold ? B * Hkv : B * Hq, unit_rows = fold ? group * Lq : Lq;
  const int64_t chunks = units * ceil_div(unit_rows, panels_of_task(units, unit_rows, threads) * kPanel);
  // Parts of the keys are tasks' own where there are few panels: their results wait in memory.
  const bool split = parts > 1 && threads > 1 && unit_rows <= kPanel && chunks < 4 * threads;
  const int64_t items = split ? units * parts : chunks, tasks = threads < items ? threads : items > 0 ? items : 1;
  const int64_t words = tasks * forward_scratch(D, Dv) + (split ? items * part_result(part_rows(unit_rows), Dv) : 0);
  const AttentionPath path = tasks < 2 ? AttentionPath::one_task
                             : split   ? AttentionPath::split_keys
                                       : AttentionPath::split_queries;
  if (path == AttentionPath::one_task)
    return {path, 1, static_cast<int>(parts), fold, Product::fma, forward_scratch(D, Dv) * A + 4096};
  return {path, static_cast<int>(tasks), static_cast<int>(parts), fold, Product::fma, words * A + 4096};
}
}  // namespace

AttentionPlan attention_plan(const AttentionShape& shape, const Machine& machine, const Vectors& vectors) {
  AttentionPlan plan = shared_out(shape, machine);
  if (shape.type == DType::bf16) plan.product = vectors.product;
  return plan;
}

}  // namespace hetkern::cpu
