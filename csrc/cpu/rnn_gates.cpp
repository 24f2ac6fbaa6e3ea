// The gates of one step on the CPU: forward, backward, double backward.                       (the contract: csrc/rnn.h)
//
// x_gates, h_gates (B, G H), h (B, H): T; c (B, H) and all arithmetic: A, float, or double for double.
// Work:    a task takes rows.
// Traffic: forward reads 2 G H a row and writes H (lstm: reads and writes c as well); backward reads that again and writes G H
//          (gru: 2 G H): what a saved copy of the gates would cost to write and read.
// Edges:   B = 0 is the host side's affair; a missing gradient is 0.
#include "../rnn.h"
#include "gemm.h"
#include "parallel.h"
#include "plan.h"
#include "rnn_cells.h"
#include "rnn_plan.h"

namespace hetkern::cpu {
namespace {

template <class T>
inline T* row_at(const RowsOf& rows, int64_t b) {
  return rows ? static_cast<T*>(rows.data) + b * rows.stride : nullptr;
}
template <class A, class T>
inline Vec<A> read(const T* row, int64_t j, int64_t n) {
  return row ? load_first<A>(row + j, n) : Vec<A>{};
}
template <int N, class A, class T>
inline void read_blocks(const T* row, int64_t H, int64_t j, int64_t n, Vec<A>* to) {
  for (int g = 0; g < N; ++g) to[g] = read<A>(row, g * H + j, n);
}
template <int N, class A, class T>
inline void write_blocks(T* row, int64_t H, int64_t j, int64_t n, const Vec<A>* from) {
  for (int g = 0; g < N; ++g) store_first<A>(row + g * H + j, from[g], n);
}

// Calls body(row, unit, units from it in a vector) for all rows, shared out over tasks.
template <class A, class Body>
void for_units(int64_t B, int64_t H, int64_t numbers, const Body& body) {
  const int64_t worth = B * H * numbers / kElementsPerTask, threads = num_threads();
  const int64_t tasks = worth < 2 ? 1 : worth < threads ? worth : threads;
  run_tasks(static_cast<int>(tasks < B ? tasks : B), [&](int task) {
    const Share share(B, task, static_cast<int>(tasks < B ? tasks : B));
    for (int64_t b = share.begin; b < share.end; ++b)
      for (int64_t j = 0; j < H; j += W<A>) body(b, j, H - j);
  });
}

// ---- Forward. -------------------------------------------------------------------------------------------------------------

template <class C, class A, class E>
void forward(const GatesForward& p) {
  for_units<A>(p.B, p.H, 2 * C::G + 2, [&](int64_t b, int64_t j, int64_t n) {
    Vec<A> x[C::G], h[C::G], act[4];
    read_blocks<C::G, A>(row_at<const E>(p.x_gates, b), p.H, j, n, x);
    read_blocks<C::G, A>(row_at<const E>(p.h_gates, b), p.H, j, n, h);
    Vec<A> c = read<A>(row_at<const A>(p.c, b), j, n);
    C::open(x, h, act, c);
    const Vec<A> h_next = C::close(act, read<A>(row_at<const E>(p.h, b), j, n), c);
    store_first<A>(row_at<E>(p.h_next, b) + j, h_next, n);
    if constexpr (C::has_c) store_first<A>(row_at<A>(p.c_next, b) + j, c, n);
  });
}

// ---- Backward. ------------------------------------------------------------------------------------------------------------

template <class C, class A, class E>
void backward(const GatesBackward& p) {
  for_units<A>(p.B, p.H, 4 * C::G + 2, [&](int64_t b, int64_t j, int64_t n) {
    Vec<A> x[C::G], hg[C::G], act[4], d[4];
    read_blocks<C::G, A>(row_at<const E>(p.x_gates, b), p.H, j, n, x);
    read_blocks<C::G, A>(row_at<const E>(p.h_gates, b), p.H, j, n, hg);
    const Vec<A> h = read<A>(row_at<const E>(p.h, b), j, n), c = read<A>(row_at<const A>(p.c, b), j, n);
    Vec<A> c_next = c, dc = read<A>(row_at<const A>(p.dc_next, b), j, n);
    C::open(x, hg, act, c_next);
    C::close(act, h, c_next);
    const Vec<A> dh = C::backward(act, h, c, c_next, read<A>(row_at<const E>(p.dh_next, b), j, n), dc, d);
    if constexpr (C::reads_h) {  // gru: dn r, dr, dz, dn
      const Vec<A> through_h[3] = {d[1], d[2], d[0]};
      write_blocks<3, A>(row_at<E>(p.dx_gates, b), p.H, j, n, d + 1);
      write_blocks<3, A>(row_at<E>(p.dh_gates, b), p.H, j, n, through_h);
      store_first<A>(row_at<E>(p.dh, b) + j, dh, n);
    } else {
      write_blocks<C::G, A>(row_at<E>(p.dx_gates, b), p.H, j, n, d);
    }
    if constexpr (C::has_c) store_first<A>(row_at<A>(p.dc, b) + j, dc, n);
  });
}

// ---- Double backward. -----------------------------------------------------------------------------------------------------

template <class C, class A, class E>
void double_backward(const GatesDoubleBackward& p) {
  for_units<A>(p.B, p.H, 6 * C::G + 4, [&](int64_t b, int64_t j, int64_t n) {
    Vec<A> x[C::G], hg[C::G], act[4];
    read_blocks<C::G, A>(row_at<const E>(p.x_gates, b), p.H, j, n, x);
    read_blocks<C::G, A>(row_at<const E>(p.h_gates, b), p.H, j, n, hg);
    const Vec<A> h = read<A>(row_at<const E>(p.h, b), j, n), c = read<A>(row_at<const A>(p.c, b), j, n);
    Vec<A> c_next = c;
    C::open(x, hg, act, c_next);
    C::close(act, h, c_next);
    Second<A> s{};
    read_blocks<C::G, A>(row_at<const E>(p.g_dx_gates, b), p.H, j, n, s.gx);
    read_blocks<C::G, A>(row_at<const E>(p.g_dh_gates, b), p.H, j, n, s.gh);
    s.g_dh = read<A>(row_at<const E>(p.g_dh, b), j, n), s.g_dc = read<A>(row_at<const A>(p.g_dc, b), j, n);
    s.dh = read<A>(row_at<const E>(p.dh_next, b), j, n), s.dc = read<A>(row_at<const A>(p.dc_next, b), j, n);
    C::second(act, h, c, c_next, s);
    store_first<A>(row_at<E>(p.by_dh_next, b) + j, s.by_dh, n);
    write_blocks<C::G, A>(row_at<E>(p.by_x_gates, b), p.H, j, n, s.by_x);
    if constexpr (C::reads_h) {
      write_blocks<C::G, A>(row_at<E>(p.by_h_gates, b), p.H, j, n, s.by_h_gates);
      store_first<A>(row_at<E>(p.by_h, b) + j, s.by_h, n);
    }
    if constexpr (C::has_c) {
      store_first<A>(row_at<A>(p.by_dc_next, b) + j, s.by_dc, n);
      store_first<A>(row_at<A>(p.by_c, b) + j, s.by_c, n);
    }
  });
}

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

void launch_forward(const GatesForward& p, void*) {
  with_cell_and_type(p.cell, p.type, [&](auto cell, auto element) {
    using E = decltype(element);
    forward<decltype(cell), AccumulatorOf<E>, E>(p);
  });
}
void launch_backward(const GatesBackward& p, void*) {
  with_cell_and_type(p.cell, p.type, [&](auto cell, auto element) {
    using E = decltype(element);
    backward<decltype(cell), AccumulatorOf<E>, E>(p);
  });
}
void launch_double_backward(const GatesDoubleBackward& p, void*) {
  with_cell_and_type(p.cell, p.type, [&](auto cell, auto element) {
    using E = decltype(element);
    double_backward<decltype(cell), AccumulatorOf<E>, E>(p);
  });
}

}  // namespace

namespace HETKERN_ISA {
void rnn_sequence(const SequenceForward& p, RnnPlan plan, void* stream);            // rnn_forward.cpp
void rnn_sequence_backward(const SequenceBackward& p, RnnPlan plan, void* stream);  // rnn_backward.cpp
extern const RnnKernels rnn;
const RnnKernels rnn{rnn_plan,     launch_forward,       launch_backward, launch_double_backward,
                     rnn_sequence, rnn_sequence_backward};
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
