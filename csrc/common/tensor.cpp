#include "tensor.h"

#include <vector>

#include "output_memory.h"

namespace hetkern {

const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "another dtype";
  }
}

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kKeepsMemory = false;  // the sanitizer's own malloc knows where a result ends
#else
constexpr bool kKeepsMemory = true;
#endif

}  // namespace

Tensor empty(const Tensor& like, Sizes sizes, ScalarType type) {
  constexpr size_t kUsualDims = 8;
  int64_t usual[kUsualDims];
  std::vector<int64_t> many;
  int64_t* strides = usual;
  if (sizes.size() > kUsualDims) {
    many.resize(sizes.size());
    strides = many.data();
  }
  int64_t numel = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = numel > 0 ? numel : 1;
    numel *= sizes[d];
  }
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto torch_type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  const auto bytes = static_cast<size_t>(numel) * (float_dtype(type) ? size_of(*float_dtype(type)) : 8);
  const bool large = bytes >= kLargeOutput && like.is_cpu();
  if (kKeepsMemory && large && memory_is_kept()) {
    if (const Block block = take_block(bytes); block.data)
      return torch::stable::from_blob(block.data, sizes, Sizes(strides, sizes.size()),
                                      torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                      [size = block.bytes](void* data) { give_block({data, size}); });
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides, torch_type,
                                                  device_type, device_index, &handle));
  Tensor result(handle);
  if (large) advise_huge_pages(result.mutable_data_ptr(), bytes);
  return result;
}

}  // namespace hetkern
