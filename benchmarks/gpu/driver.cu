// Every family's launchers without torch, for compute-sanitizer on a GPU and for the emulation: all paths, odd sizes, odd addresses.
//
// Prints a line for each call, then the paths met; fails if a result is wrong.
// driver bad-target: a target that is no class must end the program with a message; fails if it is let pass.
#include "driver_rows.h"

#if __has_include("cuda/softmax.cu")
#include "driver_softmax.h"
#define HETKERN_SOFTMAX(...) __VA_ARGS__
#else
#define HETKERN_SOFTMAX(...)
#endif
#if __has_include("cuda/cross_entropy.cu")
#include "driver_cross_entropy.h"
#define HETKERN_CROSS_ENTROPY(...) __VA_ARGS__
#else
#define HETKERN_CROSS_ENTROPY(...)
#endif

int main(int count, char** words) {
  using namespace hetkern::gpu_day;
  if (count > 1 && std::string(words[1]) == "bad-target") {
    try {
      HETKERN_CROSS_ENTROPY(CrossEntropyRun<float>({{3, 100, false, 0}, false, false}).forward_with_a_bad_target());
    } catch (const std::exception& e) {
      std::printf("refused %s\n", e.what());
      return 0;
    }
    std::printf("FAILED  a target that is no class was let pass\n");
    return 1;
  }
  Log log;
  HETKERN_SOFTMAX(run_softmax(log));
  HETKERN_CROSS_ENTROPY(run_cross_entropy(log));
  for (const std::string& path : log.paths) std::printf("path    %s\n", path.c_str());
  std::printf("calls   %d, failed %d\n", log.calls, log.failed);
  return log.failed || log.calls == 0;
}
