// Calls any launcher from a list of values: how the test kit runs a kernel file that it knows nothing of.
//
// A launcher is an extern "C" function that returns nothing and takes raw pointers, numbers and last a stream (void* or
// cudaStream_t). The kit's generated file includes the kernel's and hands the launcher to parameters() and call().
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace hetkern::emulation {

template <class T>
constexpr const char* element() {
  if constexpr (std::is_same_v<T, void>) return "any";
  if constexpr (std::is_same_v<T, bool>) return "bool";
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, __half>) return "float16";
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return "bfloat16";
  if constexpr (std::is_integral_v<T> && std::is_signed_v<T>)
    return sizeof(T) == 8 ? "int64" : sizeof(T) == 4 ? "int32" : sizeof(T) == 2 ? "int16" : "int8";
  if constexpr (std::is_integral_v<T> && std::is_unsigned_v<T>)
    return sizeof(T) == 8 ? "uint64" : sizeof(T) == 4 ? "uint32" : sizeof(T) == 2 ? "uint16" : "uint8";
  return "other";
}

template <class P>
std::string parameter() {
  using Pointee = std::remove_pointer_t<P>;
  std::string text = element<std::remove_const_t<Pointee>>();
  if (std::is_pointer_v<P>) text += std::is_const_v<Pointee> ? " const*" : "*";
  return text;
}

// The launcher's parameter types, one a line, in torch's words.
template <class... P>
const char* parameters(void (*)(P...)) {
  static const std::string text = ((parameter<P>() + "\n") + ... + std::string());
  return text.c_str();
}

template <class P>
P value_at(const unsigned char* slot) {
  P value;
  static_assert(sizeof value <= 8, "a launcher takes pointers and numbers of up to eight bytes");
  std::memcpy(&value, slot, sizeof value);
  return value;
}

// What was thrown: 0 nothing, 1 std::out_of_range, 2 std::invalid_argument, 3 anything else.
template <class... P, size_t... i>
int call(void (*launcher)(P...), const unsigned char* slots, char* error, size_t error_size,
         std::index_sequence<i...>) {
  const auto failed = [&](int kind, const char* what) {
    std::snprintf(error, error_size, "%s", what);
    return kind;
  };
  try {
    launcher(value_at<P>(slots + 8 * i)...);
    return 0;
  } catch (const std::out_of_range& e) {
    return failed(1, e.what());
  } catch (const std::invalid_argument& e) {
    return failed(2, e.what());
  } catch (const std::exception& e) {
    return failed(3, e.what());
  }
}

template <class... P>
int call(void (*launcher)(P...), const unsigned char* slots, char* error, size_t error_size) {
  return call(launcher, slots, error, error_size, std::index_sequence_for<P...>());
}

}  // namespace hetkern::emulation
