// How rows are shared out: every kernel that reduces rows is a job of three steps, and runs whole or split over threads.
//
//   Row row(int64_t r)                 where row r (or vector of neighbouring rows) lies
//   Total sum(Row&, int64_t chunk)     the reduction of one chunk
//   Total finish(Row&, Total)          what follows the last chunk
//   void write(Row&, int64_t chunk, Total)   absent where a row's results are few: finish writes them
//
// Chunks are combined in their order either way, so both ways give the same bits. Where nothing is reduced there is only
// write(Row&, int64_t chunk), and the tasks take chunks of all rows.
#pragma once
#include <cstdlib>
#include <type_traits>

#include "planted.h"
#include "row.h"

namespace hetkern::cpu {
namespace {

// Where a row of an operand begins.
template <class T>
inline T* row_of(const Rows& rows, const Operand& operand, const RowIndex& at) {
  return operand ? static_cast<T*>(operand.data) + offset(rows, operand, at) : nullptr;
}

inline float combine(float a, float b) { return a + b; }
inline double combine(double a, double b) { return a + b; }

template <class Job, class = void>
constexpr bool kWrites = false;
template <class Job>
constexpr bool kWrites<Job, std::void_t<decltype(&Job::write)>> = true;

template <class Job>
void run_whole_rows(const Job& job, int64_t rows, int64_t chunks, int tasks) {
  run_tasks(tasks, [&](int task) {
    Share share(rows, task, tasks);
    if (planted(Bug::race) && task > 0) --share.begin;  // the last row of the task before
    for (int64_t r = share.begin; r < share.end; ++r) {
      typename Job::Row row = job.row(r);
      typename Job::Total total = job.sum(row, 0);
      for (int64_t c = 1; c < chunks; ++c) total = combine(total, job.sum(row, c));
      total = job.finish(row, total);
      if constexpr (kWrites<Job>)
        for (int64_t c = 0; c < chunks; ++c) job.write(row, c, total);
    }
  });
}

template <class Job>
void run_split_rows(const Job& job, int64_t rows, int64_t chunks, int tasks) {
  using Total = typename Job::Total;
  auto* const parts = static_cast<Total*>(std::malloc(static_cast<size_t>(chunks) * sizeof(Total)));
  if (!parts) return run_whole_rows(job, rows, chunks, 1);
  for (int64_t r = 0; r < rows; ++r) {
    run_tasks(tasks, [&](int task) {
      typename Job::Row row = job.row(r);
      const Share share(chunks, task, tasks);
      for (int64_t c = share.begin; c < share.end; ++c) parts[c] = job.sum(row, c);
    });
    typename Job::Row whole = job.row(r);
    Total total = parts[0];
    for (int64_t c = 1; c < chunks; ++c) total = combine(total, parts[c]);
    total = job.finish(whole, total);
    if constexpr (kWrites<Job>)
      run_tasks(tasks, [&](int task) {
        typename Job::Row row = job.row(r);
        const Share share(chunks, task, tasks);
        for (int64_t c = share.begin; c < share.end; ++c) job.write(row, c, total);
      });
  }
  std::free(parts);
}

template <class Job>
void run_chunks(const Job& job, int64_t rows, int64_t chunks, int tasks) {
  run_tasks(tasks, [&](int task) {
    const Share share(rows * chunks, task, tasks);
    for (int64_t i = share.begin; i < share.end;) {
      const int64_t r = i / chunks, end = (r + 1) * chunks < share.end ? (r + 1) * chunks : share.end;
      typename Job::Row row = job.row(r);
      for (; i < end; ++i) job.write(row, i - r * chunks);
    }
  });
}

}  // namespace
}  // namespace hetkern::cpu
