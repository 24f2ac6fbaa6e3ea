// How the CPU shares out its work: pure functions of the shape and the machine.
#pragma once
#include "../cross_entropy.h"
#include "../softmax.h"
#include "isa.h"

namespace hetkern::cpu {

// A second thread is woken for some 100 us of work or more: on a machine with other work it is waited for that long, and an idle
// one loses 40 us at most. Once woken, each thread wants its share. In elements; a row costs some more.
constexpr int64_t kElementsToFork = 1 << 18;
constexpr int64_t kElementsPerTask = 1 << 15;
constexpr int64_t kElementsOfRow = 16;
constexpr int64_t kLongRow = kElementsToFork;  // columns from which one row is worth splitting: it forks twice

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
