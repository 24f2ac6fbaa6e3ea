// The kernels of the instruction set in force, and the plans they follow.
#include "../softmax.h"
#include "isa.h"
#include "parallel.h"
#include "plan.h"

namespace hetkern::cpu {

#ifdef HETKERN_HAS_BASE
namespace base { extern const SoftmaxKernels softmax; }
#endif
#ifdef HETKERN_HAS_AVX2
namespace avx2 { extern const SoftmaxKernels softmax; }
#endif
#ifdef HETKERN_HAS_AVX512
namespace avx512 { extern const SoftmaxKernels softmax; }
#endif

// A build may leave levels out (sanitizers take one); the least one it has stands in for those below it.
const SoftmaxKernels& softmax_kernels() {
#ifdef HETKERN_HAS_AVX512
  if (isa() == Isa::avx512 || kLeastBuilt == Isa::avx512) return avx512::softmax;
#endif
#ifdef HETKERN_HAS_AVX2
  if (isa() >= Isa::avx2 || kLeastBuilt == Isa::avx2) return avx2::softmax;
#endif
#ifdef HETKERN_HAS_BASE
  return base::softmax;
#endif
}

SoftmaxPlan softmax_plan(const SoftmaxShape& shape) { return softmax_plan(shape, machine()); }

SoftmaxPlan softmax_plan(const SoftmaxShape& shape, const Machine& machine) {
  const int64_t elements = shape.M * shape.N, accumulator = shape.x_type == DType::f64 ? 8 : 4;
  SoftmaxPlan plan{};
  const int64_t worth = elements / kElementsPerTask;                 // tasks that have enough to do
  const int64_t threads = worth < machine.threads ? (worth > 1 ? worth : 1) : machine.threads;
  if (shape.columns) {
    plan.path = SoftmaxPlan::columns;
    plan.tasks = static_cast<int>(threads);
  } else if (shape.M < threads && shape.N >= kLongRow) {
    plan.path = SoftmaxPlan::split_rows;
    plan.tasks = static_cast<int>(threads);
  } else {
    plan.path = SoftmaxPlan::whole_rows;
    plan.tasks = static_cast<int>(shape.M < threads ? shape.M : threads);
  }
  plan.keep = plan.path == SoftmaxPlan::whole_rows && shape.N * accumulator <= kScratchBytes && shape.N * accumulator <= machine.l2_bytes / 2;
  plan.stream = plan.path != SoftmaxPlan::columns && elements * size_of(shape.y_type) >= machine.l3_bytes;
  return plan;
}

}  // namespace hetkern::cpu
