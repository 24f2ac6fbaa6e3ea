#include "parallel.h"

#include <atomic>

#include "planted.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
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

namespace {
#if defined(__x86_64__)
constexpr unsigned kFlushes = _MM_FLUSH_ZERO_MASK | _MM_DENORMALS_ZERO_MASK;
unsigned float_mode() { return _mm_getcsr(); }
void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
#else  // torch.set_flush_denormal is of x86
constexpr unsigned kFlushes = 0;
unsigned float_mode() { return 0; }
void set_float_mode(unsigned) {}
#endif
}  // namespace

FloatMode::FloatMode() : flushes_(float_mode() & kFlushes) {}

FloatMode::Held::Held(const FloatMode& mode) : before_(float_mode()), other_((before_ & kFlushes) != mode.flushes_) {
  if (other_) set_float_mode((before_ & ~kFlushes) | mode.flushes_);
}

FloatMode::Held::~Held() {
  if (other_) set_float_mode(before_);
}

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
  const FloatMode mode;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const FloatMode::Held held(mode);
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
