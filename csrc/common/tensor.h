// The host side's view of a torch tensor through the stable ABI.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "../rows.h"
#include "check.h"

// Absent from a CPU build of torch, hence weak: one library serves both.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace hetkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Makes the tensor's device current and knows its stream; does nothing for the CPU.
struct OnDevice {
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  void* stream = nullptr;
  explicit OnDevice(const Tensor& t) {
    if (!t.is_cuda()) return;
    guard.emplace(t.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  }
};

inline std::optional<DType> float_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      return std::nullopt;
  }
}

// The type that sums over elements of this one have.
constexpr ScalarType accumulator_of(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The usual name of a dtype, for messages.
const char* name_of(ScalarType type);

// A new contiguous tensor on `like`'s device. A large one on the CPU asks for huge pages; where HETKERN_KEEP_MB says so, it lies in memory
// that is kept between calls.
Tensor empty(const Tensor& like, Sizes sizes, ScalarType type);

}  // namespace hetkern
