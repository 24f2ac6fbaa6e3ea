#include "parallel.h"

#include <atomic>

#include "planted.h"

#ifdef HETKERN_PLANTED_BUGS
#include <cstdlib>
#include <cstring>
#endif
#ifdef HETKERN_STD_THREADS
#include <thread>
#include <vector>
#else
#include <torch/csrc/stable/ops.h>
#endif

namespace hetkern::cpu {

#ifdef HETKERN_STD_THREADS  // the thread sanitizer reports races that are none through libgomp, and knows std::thread

int num_threads() { return 4; }

void run_tasks(int tasks, void (*body)(const void*, int), const void* context) {
  std::vector<std::thread> threads;
  for (int task = 1; task < tasks; ++task) threads.emplace_back(body, context, task);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

#else

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void run_tasks(int tasks, void (*body)(const void*, int), const void* context) {
  if (tasks == 1) return body(context, 0);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(context, static_cast<int>(task));
  });
}

#endif

void run_items(int tasks, int64_t items, void (*body)(const void*, int, int64_t), const void* context) {
  std::atomic<int64_t> next{0};
  run_tasks(tasks, [&](int task) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(context, task, item);
  });
}

#ifdef HETKERN_PLANTED_BUGS
bool planted(Bug bug) {
  const char* wanted = std::getenv("HETKERN_PLANT");
  constexpr const char* names[] = {"out_of_bounds", "misaligned",  "race",
                                   "dropped_tail",  "zero_output", "dropped_target"};
  return wanted && std::strcmp(wanted, names[static_cast<int>(bug)]) == 0;
}
#endif

void* scratch() {
  alignas(64) static thread_local char memory[kScratchBytes];
  return memory;
}

}  // namespace hetkern::cpu
