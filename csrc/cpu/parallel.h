// Threads and scratch memory for kernels. No torch here; parallel.cpp puts torch's pool behind it, sanitizer builds std::thread.
#pragma once
#include <cstdint>

namespace hetkern::cpu {

int num_threads();

// The caller's way with denormal numbers, held on another thread while this lives: torch.set_flush_denormal reaches one thread,
// and a row has the same bits on each.
class FloatMode {
 public:
  FloatMode();  // made where the call comes from
  class Held {  // made on each thread that works for it
   public:
    explicit Held(const FloatMode& mode);
    ~Held();

   private:
    unsigned before_;
    bool other_;
  };

 private:
  unsigned flushes_;
};

// Runs body(context, 0 … tasks - 1), in parallel where threads are free; the caller's thread takes part. Never throws.
void run_tasks(int tasks, void (*body)(const void* context, int task), const void* context);

template <class Body>
void run_tasks(int tasks, const Body& body) {
  run_tasks(tasks, [](const void* context, int task) { (*static_cast<const Body*>(context))(task); }, &body);
}

// Calls body(context, task, item) for the items 0 … items - 1, each taken by whichever task is free: for items of unequal
// work, none of which depends on another. Of items in order those that take long come first.
void run_items(int tasks, int64_t items, void (*body)(const void* context, int task, int64_t item),
               const void* context);

template <class Body>
void run_items(int tasks, int64_t items, const Body& body) {
  run_items(
      tasks, items,
      [](const void* context, int task, int64_t item) { (*static_cast<const Body*>(context))(task, item); }, &body);
}

// The part [begin, end) of n things that a task of many takes.
struct Share {
  int64_t begin, end;
  Share(int64_t n, int task, int tasks) : begin(n * task / tasks), end(n * (task + 1) / tasks) {}
};

// The widest vector of any instruction set: what a plan may count on, whichever is in force.
constexpr int64_t kWidestVectorBytes = 64;

// Memory of the calling thread, 64-byte aligned, kept between calls: a row's exponentials wait here for its sum.
constexpr int64_t kScratchBytes = int64_t{1} << 18;
void* scratch();

}  // namespace hetkern::cpu
