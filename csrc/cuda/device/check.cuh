// HETKERN_DEVICE_CHECK(condition, "format", values...): what a kernel must not go on without, in release builds too.
// HETKERN_DEVICE_CHECK_VALUE: the same for what is a ValueError and no IndexError on the CPU.
//
// On a GPU it prints and traps, without a synchronisation: the next call to the driver reports the failed launch. In the
// emulation the launcher throws std::out_of_range (std::invalid_argument) with the same text. assert is gone under NDEBUG, hence this.
#pragma once
#include "launch.cuh"

#ifdef __CUDACC__
#include <cstdio>
#define HETKERN_DEVICE_CHECK(condition, ...)         \
  do {                                               \
    if (!(condition)) printf(__VA_ARGS__), __trap(); \
  } while (0)
#define HETKERN_DEVICE_CHECK_VALUE HETKERN_DEVICE_CHECK
#else
#define HETKERN_DEVICE_CHECK(condition, ...)                         \
  do {                                                               \
    if (!(condition)) ::hetkern::emulation::fail_check(__VA_ARGS__); \
  } while (0)
#define HETKERN_DEVICE_CHECK_VALUE(condition, ...)                   \
  do {                                                               \
    if (!(condition)) ::hetkern::emulation::fail_value(__VA_ARGS__); \
  } while (0)
#endif
