// Calls any launcher from a list of values: how the test kit runs a kernel file that it knows nothing of.
//
// A launcher is an extern "C" function that returns nothing and takes raw pointers, numbers and last a stream (void* or
// cudaStream_t). The kit ends the kernel's file with a table of its launchers, which foreign.cpp calls.
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

struct Parameter {
  const char* element;
  bool pointer, constant;
};
// The types in torch's words, one a line. (Compiled once, in foreign.cpp, and not with each kernel.)
std::string listed(const Parameter* first, size_t count);

template <class... P>
const char* parameters(void (*)(P...)) {
  static constexpr Parameter all[] = {{element<std::remove_const_t<std::remove_pointer_t<P>>>(), std::is_pointer_v<P>,
                                       std::is_const_v<std::remove_pointer_t<P>>}...,
                                      {nullptr, false, false}};
  static const std::string text = listed(all, sizeof...(P));
  return text.c_str();
}

template <class P>
P value_at(const unsigned char* slot) {
  P value{};
  if constexpr (sizeof value <= 8) std::memcpy(&value, slot, sizeof value);
  return value;
}

// A launcher as the kit's table has it: what it wants, and how it is called.
struct Entry {
  const char* name;
  const char* (*parameters)() = nullptr;
  void (*call)(const unsigned char* slots) = nullptr;
};

template <auto launcher, class... P, size_t... i>
void call_with(const unsigned char* slots, void (*)(P...), std::index_sequence<i...>) {
  if constexpr (((sizeof(P) <= 8) && ...))
    launcher(value_at<P>(slots + 8 * i)...);
  else
    throw std::invalid_argument("a launcher takes pointers and numbers of up to eight bytes");
}
template <class... P>
std::index_sequence_for<P...> places(void (*)(P...)) {
  return {};
}

template <auto launcher>
constexpr Entry entry(const char* name) {
  return {name, [] { return parameters(launcher); },
          [](const unsigned char* slots) { call_with<launcher>(slots, launcher, places(launcher)); }};
}

}  // namespace hetkern::emulation
