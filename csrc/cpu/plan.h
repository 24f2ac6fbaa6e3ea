// How the CPU shares out its work: pure functions of the shape and the machine.
#pragma once
#include "../cross_entropy.h"
#include "../softmax.h"
#include "isa.h"

namespace hetkern::cpu {

constexpr int64_t kElementsPerTask = 1 << 14;  // below this a thread's wake-up costs more than its share
constexpr int64_t kLongRow = 1 << 14;          // columns from which one row is worth splitting

// The path and the tasks of M rows of N.
struct RowShares {
  RowPath path;
  int tasks;
};
RowShares share_rows(int64_t M, int64_t N, bool columns, const Machine& machine);

SoftmaxPlan softmax_plan(const SoftmaxShape& shape, const Machine& machine);
SoftmaxPlan softmax_plan(const SoftmaxShape& shape);  // on this machine, now

CrossEntropyPlan cross_entropy_plan(const CrossEntropyShape& shape, const Machine& machine);
CrossEntropyPlan cross_entropy_plan(const CrossEntropyShape& shape);  // on this machine, now

}  // namespace hetkern::cpu
