// One step of a sequence on a GPU, behind or before torch's product: forward, backward.        (the contract: csrc/rnn.h)
//
//   h_t = cell(x_gates_t, product + b_hh, h_{t-1}, c_{t-1})        dh_t = dy_t + passed + product h_mask
//
// Work:    a thread takes 16 bytes of c: four units of a row, or two doubles, with all their gates.
// Traffic: forward reads x_gates and the product, writes y and, where they are saved, gates and cells: each once. h is read from
//          the y of the step before (gru), c from its cells. Backward reads what was saved and dy, writes dgates: each once.
// Edges:   whether a row has a step is asked here, of lengths on the device; outside its length y, gates and dgates are zeros.
//          The begin of a walk copies the first states to the last, and so does what a row without steps ends with.
#include "device/check.cuh"
#include "device/rnn_cells.cuh"
#include "device/units.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

__device__ __forceinline__ bool has_row(const StepRows& at, int64_t b, int64_t length) {
  return at.t >= 0 && b < at.rows && at.t < length;
}
template <class T>
__device__ __forceinline__ T* row_of(const Steps& s, const StepRows& at, int64_t b) {
  return s ? static_cast<T*>(s.data) + at.t * s.step + (at.offset + b) * s.row : nullptr;
}
template <class T>
__device__ __forceinline__ T* state_of(const void* data, int64_t b, int64_t H) {
  return data ? static_cast<T*>(const_cast<void*>(data)) + b * H : nullptr;
}
// Whether row b begins the step at zeros.
__device__ __forceinline__ bool anew(const Steps& reset, const StepRows& at, int64_t b) {
  return reset && *row_of<const uint8_t>(reset, at, b);
}

// As it will be read.
template <class T, class A, int V>
__device__ __forceinline__ void round_to(A (&value)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] = get<A>(To<T>::from(value[i]));
}
template <class A, int V>
__device__ __forceinline__ void clear(A (&value)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] = A(0);
}

// The length of row b, from which no address follows.
template <class Params>
__device__ __forceinline__ int64_t length_of(const Params& p, int64_t b) {
  return p.lengths ? p.lengths[b] : p.T;
}

// A kernel of its own, before the walk: a check's message costs registers.
__global__ void __launch_bounds__(kUnitThreads, 1)
    lengths_kernel(const int64_t* const lengths, const int64_t B, const int64_t T, const bool backward) {
  for (int64_t b = int64_t{blockIdx.x} * kUnitThreads + threadIdx.x; b < B; b += int64_t{gridDim.x} * kUnitThreads)
    HETKERN_DEVICE_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= T,
                               "hetkern::rnn_sequence%s: lengths: wanted values in [0, %lld], got %lld for row %lld\n",
                               backward ? "_backward" : "", static_cast<long long>(T),
                               static_cast<long long>(lengths[b]), static_cast<long long>(b));
}

// ---- Forward. -------------------------------------------------------------------------------------------------------------

template <class C, class T>
struct ForwardStep {
  using A = typename C::A;
  static constexpr int V = Units<A>::V;
  const SequenceForward& p;
  const SequenceStep& s;
  const C cell;

  // Row b's step; h: the state after it, as it was rounded.
  __device__ __forceinline__ void step(const Units<A>& units, int64_t b, bool was, bool last, A (&h)[V]) const {
    const bool zeros = anew(p.reset, s.now, b);
    A x[C::G][V], product[C::G][V], c[V] = {};
    units.load_blocks(row_of<const T>(p.x_gates, s.now, b), x);
    units.load_blocks(state_of<const T>(s.product, b, C::G * p.H), product);
    if (p.b_hh) {
      A bias[C::G][V];
      units.load_blocks(static_cast<const T*>(p.b_hh), bias);
#pragma unroll
      for (int g = 0; g < C::G; ++g)
#pragma unroll
        for (int i = 0; i < V; ++i) product[g][i] += bias[g][i];
    }
    if constexpr (C::reads_h)
      units.load(zeros ? nullptr : was ? row_of<const T>(p.y, s.before, b) : state_of<const T>(p.h0, b, p.H), h);
    A* const c_n = state_of<A>(p.c_n, b, p.H);
    if constexpr (C::has_c) {
      const A* const behind = p.cells ? row_of<const A>(p.cells, s.before, b) : c_n;
      units.load(zeros ? nullptr : was ? behind : state_of<const A>(p.c0, b, p.H), c);
    }
    A act[C::S > 0 ? C::S : 1][V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A one_x[C::G], one_h[C::G], one[4];
      of_unit(x, i, one_x), of_unit(product, i, one_h);
      cell.activate(one_x, one_h, one);
      h[i] = cell.next(one, h[i], c[i]);
      to_unit(act, i, one);
    }
    units.store(row_of<T>(p.y, s.now, b), h);
    if (last) units.store(state_of<T>(p.h_n, b, p.H), h);
    if constexpr (C::S > 0)
      if (p.gates) units.store_blocks(row_of<T>(p.gates, s.now, b), act);
    if constexpr (C::has_c) {
      if (p.cells) units.store(row_of<A>(p.cells, s.now, b), c);
      if (last || !p.cells) units.store(c_n, c);
    }
    round_to<T>(h);
  }

  __device__ __forceinline__ void outside(const Units<A>& units, int64_t b) const {
    A nothing[V] = {};
    units.store(row_of<T>(p.y, s.now, b), nothing);
    if constexpr (C::S > 0)
      if (p.gates)
#pragma unroll
        for (int g = 0; g < C::S; ++g) units.store(row_of<T>(p.gates, s.now, b), nothing, g);
    if constexpr (C::has_c)
      if (p.cells) units.store(row_of<A>(p.cells, s.now, b), nothing);
  }

  __device__ __forceinline__ void operator()(const Units<A>& units) const {
    const int64_t b = units.row, length = length_of(p, b);
    const bool begins = s.now.t < 0, here = has_row(s.now, b, length), next = has_row(s.after, b, length);
    A h[V] = {};
    if (here)
      step(units, b, has_row(s.before, b, length), !next, h);
    else if (begins || (s.left && next))
      units.load(state_of<const T>(p.h0, b, p.H), h);
    if (!here && b < s.now.rows) outside(units, b);
    if (begins) {
      units.store(state_of<T>(p.h_n, b, p.H), h);
      if constexpr (C::has_c) {
        A c[V];
        units.load(state_of<const A>(p.c0, b, p.H), c), units.store(state_of<A>(p.c_n, b, p.H), c);
      }
    }
    // What the next product reads.
    if (!s.left || !(next || begins)) return;
    if (p.h_mask) {
      A mask[V];
      units.load(state_of<const T>(p.h_mask, b, p.H), mask);
#pragma unroll
      for (int i = 0; i < V; ++i) h[i] *= mask[i];
    }
    if (next && anew(p.reset, s.after, b)) clear(h);
    units.store(state_of<T>(s.left, b, p.H), h);
  }
};

template <class C, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    step_kernel(const __grid_constant__ SequenceForward p, const __grid_constant__ SequenceStep s,
                const __grid_constant__ UnitShares shares) {
  const ForwardStep<C, T> step{p, s, C(p.cell)};
  for_units<typename C::A>(shares, step);
}

// ---- Backward. ------------------------------------------------------------------------------------------------------------

template <class C, class T>
struct BackwardStep {
  using A = typename C::A;
  static constexpr int V = Units<A>::V;
  const SequenceBackward& p;
  const SequenceStep& s;
  const C cell;

  // What reached row b's state from the step handled before, or the walk's begin.
  __device__ __forceinline__ void reached(const Units<A>& units, int64_t b, bool was, A (&dh)[V]) const {
    units.load(was ? state_of<const T>(s.product, b, p.H) : state_of<const T>(p.dh_n, b, p.H), dh);
    if (!was) return;
    if (p.h_mask) {
      A mask[V];
      units.load(state_of<const T>(p.h_mask, b, p.H), mask);
#pragma unroll
      for (int i = 0; i < V; ++i) dh[i] *= mask[i];
    }
    if (anew(p.reset, s.before, b)) clear(dh);
    if constexpr (C::reads_h) {
      A passed[V];
      units.load(state_of<const A>(s.passed, b, p.H), passed);
#pragma unroll
      for (int i = 0; i < V; ++i) dh[i] += passed[i];
    }
  }

  __device__ __forceinline__ void step(const Units<A>& units, int64_t b, bool goes_on, A (&dh)[V]) const {
    const bool zeros = anew(p.reset, s.now, b);
    A dy[V], act[C::S > 0 ? C::S : 1][V], h[V] = {}, c[V] = {}, c_next[V] = {}, dc[V] = {}, d[C::D][V];
    units.load(row_of<const T>(p.dy, s.now, b), dy);
    units.load_blocks(row_of<const T>(C::S > 0 ? p.gates : p.y, s.now, b), act);
    if constexpr (C::reads_h)
      units.load(zeros ? nullptr : goes_on ? row_of<const T>(p.y, s.after, b) : state_of<const T>(p.h0, b, p.H), h);
    if constexpr (C::has_c) {
      units.load(zeros ? nullptr : goes_on ? row_of<const A>(p.cells, s.after, b) : state_of<const A>(p.c0, b, p.H), c);
      units.load(row_of<const A>(p.cells, s.now, b), c_next);
      units.load(state_of<const A>(p.dc0, b, p.H), dc);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A one[4], one_d[4];
#pragma unroll
      for (int g = 0; g < (C::S > 0 ? C::S : 1); ++g) one[g] = act[g][i];
      dh[i] = cell.backward(one, h[i], c[i], c_next[i], dh[i] + dy[i], dc[i], one_d);
      to_unit(d, i, one_d);
    }
    if (zeros) clear(dh), clear(dc);
    units.store_blocks(row_of<T>(p.dgates, s.now, b), d);
    if constexpr (C::reads_h) units.store(state_of<A>(s.passed, b, p.H), dh);
    if constexpr (C::has_c) units.store(state_of<A>(p.dc0, b, p.H), dc);
  }

  __device__ __forceinline__ void operator()(const Units<A>& units) const {
    const int64_t b = units.row, length = length_of(p, b);
    const bool was = has_row(s.before, b, length), here = has_row(s.now, b, length);
    const bool begins = s.before.t < 0 && s.now.t < 0;
    A dh[V];
    if (was || here || begins) reached(units, b, was, dh);
    if (here) return step(units, b, has_row(s.after, b, length), dh);
    if (was || begins) units.store(state_of<T>(p.dh0, b, p.H), dh);  // its first step is behind it
    if (begins) {
      if constexpr (C::has_c) {
        A dc[V];
        units.load(state_of<const A>(p.dc_n, b, p.H), dc), units.store(state_of<A>(p.dc0, b, p.H), dc);
      }
    } else if (b < s.now.rows) {
      A nothing[V] = {};
#pragma unroll
      for (int g = 0; g < C::D; ++g) units.store(row_of<T>(p.dgates, s.now, b), nothing, g);
    }
  }
};

template <class C, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    step_backward_kernel(const __grid_constant__ SequenceBackward p, const __grid_constant__ SequenceStep s,
                         const __grid_constant__ UnitShares shares) {
  const BackwardStep<C, T> step{p, s, C(p.cell)};
  for_units<typename C::A>(shares, step);
}

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

// Whether units lie side by side: what a row of each tensor begins on.
template <class T, class A>
void meet_states(UnitShares& shares, int64_t H, std::initializer_list<const void*> of_t,
                 std::initializer_list<const void*> of_a) {
  for (const void* data : of_t) shares.meets(data, sizeof(T), sizeof(A), {H});
  for (const void* data : of_a) shares.meets(data, sizeof(A), sizeof(A), {H});
}
template <class T, class A>
void meet_steps(UnitShares& shares, std::initializer_list<Steps> of_t, const Steps& of_a) {
  for (const Steps& steps : of_t) shares.meets(steps.data, sizeof(T), sizeof(A), {steps.step, steps.row});
  shares.meets(of_a.data, sizeof(A), sizeof(A), {of_a.step, of_a.row});
}

void check_lengths(const int64_t* lengths, int64_t B, int64_t T, bool backward, void* stream) {
  if (lengths)
    HETKERN_LAUNCH(lengths_kernel, unit_blocks(B, 1, 4, gpu().processors), kUnitThreads, 0, stream, lengths, B, T,
                   backward);
}

int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

void rnn_step(const SequenceForward& p, const SequenceStep& s, void* stream) {
  const int64_t rows = s.now.t < 0 ? p.B : larger_of(s.now.rows, s.left ? s.after.rows : 0);
  if (rows == 0) return;
  if (s.now.t < 0) check_lengths(p.lengths, p.B, p.T, false, stream);
  with_cell_and_type(p.cell, p.type, [&](auto* of_cell, auto of_type) {
    using C = std::remove_pointer_t<decltype(of_cell)>;
    using A = typename C::A;
    using T = decltype(of_type);
    UnitShares shares(rows, p.H, sizeof(A));
    meet_states<T, A>(shares, p.H, {s.product, p.b_hh, p.h0, p.h_mask, p.h_n, s.left}, {p.c0, p.c_n});
    meet_steps<T, A>(shares, {p.x_gates, p.y, p.gates}, p.cells);
    HETKERN_LAUNCH((step_kernel<C, T>), unit_blocks(rows, p.H, sizeof(A), gpu().processors), kUnitThreads, 0, stream, p,
                   s, shares);
  });
}

void rnn_step_backward(const SequenceBackward& p, const SequenceStep& s, void* stream) {
  const bool begins = s.before.t < 0 && s.now.t < 0;
  const int64_t rows = begins ? p.B : larger_of(s.now.rows, s.before.rows);
  if (rows == 0) return;
  if (begins) check_lengths(p.lengths, p.B, p.T, true, stream);
  with_cell_and_type(p.cell, p.type, [&](auto* of_cell, auto of_type) {
    using C = std::remove_pointer_t<decltype(of_cell)>;
    using A = typename C::A;
    using T = decltype(of_type);
    UnitShares shares(rows, p.H, sizeof(A));
    meet_states<T, A>(shares, p.H, {s.product, p.dh_n, p.h_mask, p.h0, p.dh0}, {s.passed, p.dc_n, p.c0, p.dc0});
    meet_steps<T, A>(shares, {p.dy, p.y, p.gates, p.dgates}, p.cells);
    HETKERN_LAUNCH((step_backward_kernel<C, T>), unit_blocks(rows, p.H, sizeof(A), gpu().processors), kUnitThreads, 0,
                   stream, p, s, shares);
  });
}

}  // namespace hetkern::cuda
