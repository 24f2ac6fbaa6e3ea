// The kernels of the instruction set in force, and the plans they follow.
#include "../attention.h"
#include "../cross_entropy.h"
#include "../rnn.h"
#include "../rnn_layer.h"
#include "../softmax.h"
#include "isa.h"
#include "parallel.h"
#include "plan.h"

namespace hetkern::cpu {

#ifdef HETKERN_HAS_BASE
namespace base {
extern const SoftmaxKernels softmax;
extern const CrossEntropyKernels cross_entropy;
extern const RnnKernels rnn;
extern const LayerKernels layer;
extern const AttentionKernels attention;
}  // namespace base
#endif
#ifdef HETKERN_HAS_AVX2
namespace avx2 {
extern const SoftmaxKernels softmax;
extern const CrossEntropyKernels cross_entropy;
extern const RnnKernels rnn;
extern const LayerKernels layer;
extern const AttentionKernels attention;
}  // namespace avx2
#endif
#ifdef HETKERN_HAS_AVX512
namespace avx512 {
extern const SoftmaxKernels softmax;
extern const CrossEntropyKernels cross_entropy;
extern const RnnKernels rnn;
extern const LayerKernels layer;
extern const AttentionKernels attention;
}  // namespace avx512
#endif

// A build may leave levels out (sanitizers take one): the next one below stands in, or the least one there is.
#if !defined(HETKERN_HAS_AVX2) && defined(HETKERN_HAS_BASE)
namespace avx2 = base;
#elif !defined(HETKERN_HAS_AVX2)
namespace avx2 = avx512;
#endif
#ifndef HETKERN_HAS_AVX512
namespace avx512 = avx2;
#endif
#ifndef HETKERN_HAS_BASE
namespace base = avx2;
#endif

const SoftmaxKernels& softmax_kernels() {
  return isa() == Isa::avx512 ? avx512::softmax : isa() == Isa::avx2 ? avx2::softmax : base::softmax;
}
const CrossEntropyKernels& cross_entropy_kernels() {
  return isa() == Isa::avx512 ? avx512::cross_entropy : isa() == Isa::avx2 ? avx2::cross_entropy : base::cross_entropy;
}
const RnnKernels& rnn_kernels() {
  return isa() == Isa::avx512 ? avx512::rnn : isa() == Isa::avx2 ? avx2::rnn : base::rnn;
}
const LayerKernels& layer_kernels() {
  return isa() == Isa::avx512 ? avx512::layer : isa() == Isa::avx2 ? avx2::layer : base::layer;
}
const AttentionKernels& attention_kernels() {
  return isa() == Isa::avx512 ? avx512::attention : isa() == Isa::avx2 ? avx2::attention : base::attention;
}

#ifdef HETKERN_STD_THREADS
constexpr int kLessWork = 16;  // calls are small under a sanitizer, and races want threads
#else
constexpr int kLessWork = 1;
#endif

RowShares share_rows(int64_t M, int64_t N, bool columns, const Machine& machine) {
  const int64_t work = M * (N + (columns ? 0 : kElementsOfRow)) * kLessWork;   // columns go a vector of rows at a time
  const int64_t worth = work < kElementsToFork ? 1 : work / kElementsPerTask;  // tasks that have enough to do
  const int64_t threads = worth < machine.threads ? worth : machine.threads;
  if (columns) return {RowPath::columns, static_cast<int>(threads)};
  if (M < threads && N * kLessWork >= kLongRow) return {RowPath::split_rows, static_cast<int>(threads)};
  return {RowPath::whole_rows, static_cast<int>(M < threads ? M : threads)};
}

SoftmaxPlan softmax_plan(const SoftmaxShape& shape) { return softmax_plan(shape, machine()); }

SoftmaxPlan softmax_plan(const SoftmaxShape& shape, const Machine& machine) {
  const auto [path, tasks] = share_rows(shape.M, shape.N, shape.columns, machine);
  // What one task keeps at a time: a row, or a vector of rows.
  const int64_t accumulator = shape.x_type == DType::f64 ? 8 : 4;
  const int64_t bytes = shape.N * (path == RowPath::columns ? kWidestVectorBytes : accumulator);
  const bool keep = path != RowPath::split_rows && bytes <= kScratchBytes && bytes <= machine.l2_bytes / 2;
  return {path, tasks, keep};
}

CrossEntropyPlan cross_entropy_plan(const CrossEntropyShape& shape) { return cross_entropy_plan(shape, machine()); }

CrossEntropyPlan cross_entropy_plan(const CrossEntropyShape& shape, const Machine& machine) {
  const auto [path, tasks] = share_rows(shape.M, shape.N, shape.columns, machine);
  return {path, tasks};
}

}  // namespace hetkern::cpu
