// The gates of one RNN step on a GPU: forward, backward, double backward.                     (the contract: csrc/rnn.h)
//
// x_gates, h_gates (B, G H), h (B, H): T; c (B, H) and all arithmetic: A, float, or double for double.
// Work:    a thread takes 16 bytes of c: four units, or two doubles, with all their gates.
// Traffic: forward reads 2 G H a row and writes H (lstm: reads and writes c as well); backward reads that again and writes G H
//          (gru: 2 G H): what a saved copy of the gates would cost to write and read. Everything is read once.
// Edges:   B = 0 is the host side's affair; a missing gradient is 0.
#include "device/rnn_cells.cuh"
#include "device/units.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

template <class T>
__device__ __forceinline__ T* row_at(const RowsOf& rows, int64_t b) {
  return rows ? static_cast<T*>(rows.data) + b * rows.stride : nullptr;
}

// ---- Forward. -------------------------------------------------------------------------------------------------------------

template <class C, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    gates_kernel(const __grid_constant__ GatesForward p, const __grid_constant__ UnitShares shares) {
  using A = typename C::A;
  constexpr int V = Units<A>::V;
  const C cell(p.cell);
  for_units<A>(shares, [&](const Units<A>& units) {
    const int64_t b = units.row;
    A x[C::G][V], h_gates[C::G][V], h[V] = {}, c[V] = {}, h_next[V];
    units.load_blocks(row_at<const T>(p.x_gates, b), x);
    units.load_blocks(row_at<const T>(p.h_gates, b), h_gates);
    if constexpr (C::reads_h) units.load(row_at<const T>(p.h, b), h);
    if constexpr (C::has_c) units.load(row_at<const A>(p.c, b), c);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A one_x[C::G], one_h[C::G], act[4];
      of_unit(x, i, one_x), of_unit(h_gates, i, one_h);
      cell.activate(one_x, one_h, act);
      h_next[i] = cell.next(act, h[i], c[i]);
    }
    units.store(row_at<T>(p.h_next, b), h_next);
    if constexpr (C::has_c) units.store(row_at<A>(p.c_next, b), c);
  });
}

// ---- Backward. ------------------------------------------------------------------------------------------------------------

template <class C, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    gates_backward_kernel(const __grid_constant__ GatesBackward p, const __grid_constant__ UnitShares shares) {
  using A = typename C::A;
  constexpr int V = Units<A>::V;
  const C cell(p.cell);
  for_units<A>(shares, [&](const Units<A>& units) {
    const int64_t b = units.row;
    A x[C::G][V], h_gates[C::G][V], h[V] = {}, c[V] = {}, dh[V], dc[V] = {}, dx[C::G][V], dh_gates[C::G][V];
    units.load_blocks(row_at<const T>(p.x_gates, b), x);
    units.load_blocks(row_at<const T>(p.h_gates, b), h_gates);
    units.load(row_at<const T>(p.dh_next, b), dh);
    if constexpr (C::reads_h) units.load(row_at<const T>(p.h, b), h);
    if constexpr (C::has_c) units.load(row_at<const A>(p.c, b), c), units.load(row_at<const A>(p.dc_next, b), dc);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A one_x[C::G], one_h[C::G], act[4], d[4], c_next = c[i];
      of_unit(x, i, one_x), of_unit(h_gates, i, one_h);
      cell.activate(one_x, one_h, act);
      cell.next(act, h[i], c_next);
      dh[i] = cell.backward(act, h[i], c[i], c_next, dh[i], dc[i], d);
      if constexpr (C::reads_h) {  // gru: dn r, dr, dz, dn
        const A through_h[3] = {d[1], d[2], d[0]};
        to_unit(dx, i, d + 1), to_unit(dh_gates, i, through_h);
      } else {
        to_unit(dx, i, d);
      }
    }
    units.store_blocks(row_at<T>(p.dx_gates, b), dx);
    if constexpr (C::reads_h)
      units.store_blocks(row_at<T>(p.dh_gates, b), dh_gates), units.store(row_at<T>(p.dh, b), dh);
    if constexpr (C::has_c) units.store(row_at<A>(p.dc, b), dc);
  });
}

// ---- Double backward. -----------------------------------------------------------------------------------------------------

template <class C, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    gates_double_backward_kernel(const __grid_constant__ GatesDoubleBackward p,
                                 const __grid_constant__ UnitShares shares) {
  using A = typename C::A;
  constexpr int V = Units<A>::V;
  const C cell(p.cell);
  for_units<A>(shares, [&](const Units<A>& units) {
    const int64_t b = units.row;
    A x[C::G][V], h_gates[C::G][V], gx[C::G][V], gh[C::G][V] = {};
    A h[V] = {}, c[V] = {}, g_dh[V] = {}, g_dc[V] = {}, dh[V], dc[V] = {};
    units.load_blocks(row_at<const T>(p.x_gates, b), x);
    units.load_blocks(row_at<const T>(p.h_gates, b), h_gates);
    units.load_blocks(row_at<const T>(p.g_dx_gates, b), gx);
    units.load(row_at<const T>(p.dh_next, b), dh);
    if constexpr (C::reads_h) {
      units.load_blocks(row_at<const T>(p.g_dh_gates, b), gh);
      units.load(row_at<const T>(p.g_dh, b), g_dh), units.load(row_at<const T>(p.h, b), h);
    }
    if constexpr (C::has_c) {
      units.load(row_at<const A>(p.g_dc, b), g_dc), units.load(row_at<const A>(p.dc_next, b), dc);
      units.load(row_at<const A>(p.c, b), c);
    }
    // Results take their inputs' places.
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A one_x[C::G], one_h[C::G], act[4], c_next = c[i];
      of_unit(x, i, one_x), of_unit(h_gates, i, one_h);
      cell.activate(one_x, one_h, act);
      cell.next(act, h[i], c_next);
      Second<A> s;
#pragma unroll
      for (int g = 0; g < C::G; ++g) s.gx[g] = gx[g][i], s.gh[g] = gh[g][i];
      s.g_dh = g_dh[i], s.g_dc = g_dc[i], s.dh = dh[i], s.dc = dc[i];
      cell.second(act, h[i], c[i], c_next, s);
      dh[i] = s.by_dh;
      to_unit(gx, i, s.by_x);
      if constexpr (C::reads_h) to_unit(gh, i, s.by_h_gates), h[i] = s.by_h;
      if constexpr (C::has_c) dc[i] = s.by_dc, c[i] = s.by_c;
    }
    units.store(row_at<T>(p.by_dh_next, b), dh);
    units.store_blocks(row_at<T>(p.by_x_gates, b), gx);
    if constexpr (C::reads_h) units.store_blocks(row_at<T>(p.by_h_gates, b), gh), units.store(row_at<T>(p.by_h, b), h);
    if constexpr (C::has_c) units.store(row_at<A>(p.by_dc_next, b), dc), units.store(row_at<A>(p.by_c, b), c);
  });
}

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

template <class T, class A>
UnitShares shares_of(int64_t B, int64_t H, std::initializer_list<RowsOf> of_t, std::initializer_list<RowsOf> of_a) {
  UnitShares s(B, H, sizeof(A));
  for (const RowsOf& rows : of_t) s.meets(rows.data, sizeof(T), sizeof(A), {rows.stride});
  for (const RowsOf& rows : of_a) s.meets(rows.data, sizeof(A), sizeof(A), {rows.stride});
  return s;
}

void launch_forward(const GatesForward& p, void* stream) {
  with_cell_and_type(p.cell, p.type, [&](auto* of_cell, auto of_type) {
    using C = std::remove_pointer_t<decltype(of_cell)>;
    using T = decltype(of_type);
    const auto s = shares_of<T, typename C::A>(p.B, p.H, {p.x_gates, p.h_gates, p.h, p.h_next}, {p.c, p.c_next});
    HETKERN_LAUNCH((gates_kernel<C, T>), unit_blocks(p.B, p.H, sizeof(typename C::A), gpu().processors), kUnitThreads,
                   0, stream, p, s);
  });
}
void launch_backward(const GatesBackward& p, void* stream) {
  with_cell_and_type(p.cell, p.type, [&](auto* of_cell, auto of_type) {
    using C = std::remove_pointer_t<decltype(of_cell)>;
    using T = decltype(of_type);
    const auto s = shares_of<T, typename C::A>(
        p.B, p.H, {p.dh_next, p.x_gates, p.h_gates, p.h, p.dx_gates, p.dh_gates, p.dh}, {p.dc_next, p.c, p.dc});
    HETKERN_LAUNCH((gates_backward_kernel<C, T>), unit_blocks(p.B, p.H, sizeof(typename C::A), gpu().processors),
                   kUnitThreads, 0, stream, p, s);
  });
}
void launch_double_backward(const GatesDoubleBackward& p, void* stream) {
  with_cell_and_type(p.cell, p.type, [&](auto* of_cell, auto of_type) {
    using C = std::remove_pointer_t<decltype(of_cell)>;
    using T = decltype(of_type);
    const auto s = shares_of<T, typename C::A>(p.B, p.H,
                                               {p.g_dx_gates, p.g_dh_gates, p.g_dh, p.dh_next, p.x_gates, p.h_gates,
                                                p.h, p.by_dh_next, p.by_x_gates, p.by_h_gates, p.by_h},
                                               {p.g_dc, p.dc_next, p.c, p.by_dc_next, p.by_c});
    HETKERN_LAUNCH((gates_double_backward_kernel<C, T>), unit_blocks(p.B, p.H, sizeof(typename C::A), gpu().processors),
                   kUnitThreads, 0, stream, p, s);
  });
}

RnnPlan plan(const RnnShape& shape) { return rnn_plan(shape, gpu()); }

}  // namespace

// rnn_steps.cu
void rnn_step(const SequenceForward& p, const SequenceStep& step, void* stream);
void rnn_step_backward(const SequenceBackward& p, const SequenceStep& step, void* stream);

const RnnKernels& rnn_kernels() {
  static const RnnKernels kernels{plan,    launch_forward, launch_backward, launch_double_backward,
                                  nullptr, nullptr,        rnn_step,        rnn_step_backward};
  return kernels;
}

}  // namespace hetkern::cuda
