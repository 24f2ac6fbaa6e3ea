#include "facts.h"

#include "common/check.h"
#include "cpu/attention_plan.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "cpu/rnn_plan.h"
#include "cuda/attention_plan.h"
#include "cuda/gpu.h"

namespace hetkern {
namespace {
constexpr cpu::Isa kLevels[] = {cpu::Isa::base, cpu::Isa::avx2, cpu::Isa::avx512};
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::string why_no_cuda() {
#ifdef HETKERN_WITH_CUDA
  return "";
#else
  return HETKERN_NO_CUDA;  // from cmake/CudaKernels.cmake
#endif
}

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const cpu::Isa level : kLevels)
    if (level <= cpu::best_isa()) names.emplace_back(cpu::name_of(level));
  return names;
}

std::string isa_in_force() { return cpu::name_of(cpu::isa()); }

std::string clamp_isa(const std::string& most) {
  for (const cpu::Isa level : kLevels)
    if (most == cpu::name_of(level)) {
      cpu::clamp_isa(level);
      return isa_in_force();
    }
  value_error("hetkern._C.set_isa: wanted base, avx2 or avx512, got ", most);
}

int threads() { return cpu::num_threads(); }

std::string bf16_product() { return cpu::bf16_dot() ? "dot" : "fma"; }

std::string set_bf16_product(const std::string& wanted) {
  if (wanted != "dot" && wanted != "fma") value_error("hetkern._C.set_bf16_product: wanted fma or dot, got ", wanted);
  cpu::set_bf16_dot(wanted == "dot");
  return bf16_product();
}

namespace {
cpu::Machine completed(const AnyMachine& any) {
  cpu::Machine machine = cpu::machine();
  if (any.threads) machine.threads = any.threads;
  if (any.l2_bytes) machine.l2_bytes = any.l2_bytes;
  return machine;
}
}  // namespace

SoftmaxPlan softmax_plan_cpu(const SoftmaxShape& shape, const AnyMachine& machine) {
  return cpu::softmax_plan(shape, completed(machine));
}

CrossEntropyPlan cross_entropy_plan_cpu(const CrossEntropyShape& shape, const AnyMachine& machine) {
  return cpu::cross_entropy_plan(shape, completed(machine));
}

RnnPlan rnn_plan_cpu(const RnnShape& shape, const AnyMachine& machine) {
  return cpu::rnn_plan(shape, completed(machine), cpu::vectors_in_force());
}

AttentionPlan attention_plan_cpu(const AttentionShape& shape, const AnyMachine& machine) {
  return cpu::attention_plan(shape, completed(machine), cpu::vectors_in_force());
}

namespace {
cuda::Gpu completed(const AnyGpu& any) {
  cuda::Gpu gpu;
#ifdef HETKERN_WITH_CUDA
  try {
    gpu = cuda::gpu();
  } catch (const std::runtime_error&) {  // no driver, no GPU
  }
#endif
  if (any.capability) gpu.capability = any.capability;
  if (any.processors) gpu.processors = any.processors;
  if (any.shared_bytes) gpu.shared_bytes = any.shared_bytes;
  return gpu;
}
}  // namespace

SoftmaxPlan softmax_plan_cuda(const SoftmaxShape& shape, const AnyGpu& gpu) {
  return cuda::softmax_plan(shape, completed(gpu));
}

CrossEntropyPlan cross_entropy_plan_cuda(const CrossEntropyShape& shape, const AnyGpu& gpu) {
  return cuda::cross_entropy_plan(shape, completed(gpu));
}

RnnPlan rnn_plan_cuda(const RnnShape& shape, const AnyGpu& gpu) { return cuda::rnn_plan(shape, completed(gpu)); }

AttentionPlan attention_plan_cuda(const AttentionShape& shape, const AnyGpu& gpu) {
  return cuda::attention_plan(shape, completed(gpu));
}

}  // namespace hetkern
