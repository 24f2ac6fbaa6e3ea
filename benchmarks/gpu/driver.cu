// Every family's launchers without torch, for compute-sanitizer on a GPU and for the emulation: all paths, odd sizes, odd addresses.
//
// Prints a line for each call, then the paths met; fails if a result is wrong.  (driver [FAMILY...])
#if __has_include("cuda/softmax.cu")
#include "driver_softmax.h"
#define HETKERN_SOFTMAX(...) __VA_ARGS__
#else
#define HETKERN_SOFTMAX(...)
#endif
#include "driver_rows.h"

int main(int, char**) {
  hetkern::gpu_day::Log log;
  HETKERN_SOFTMAX(run_softmax(log));
  for (const std::string& path : log.paths) std::printf("path    %s\n", path.c_str());
  std::printf("calls   %d, failed %d\n", log.calls, log.failed);
  return log.failed || log.calls == 0;
}
