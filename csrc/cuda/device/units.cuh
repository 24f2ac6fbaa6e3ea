// How threads share out rows of units: the states of an RNN.
//
// A thread takes 16 bytes of A, and as many elements of T. They lie side by side where every row begins on a boundary for that;
// else they are as far apart as the row has threads. Either way neighbouring threads have neighbouring units.
#pragma once
#include "../plan.h"
#include "row.cuh"

namespace hetkern::cuda {

struct UnitShares {
  int64_t H;
  int64_t per_row;  // threads a row
  int64_t pieces;   // threads' shares in all
  bool whole;       // units lie side by side

  UnitShares(int64_t rows, int64_t H_, int64_t accumulator)
      : H(H_),
        per_row(divided_up(H_, vector_of(accumulator))),
        pieces(rows * per_row),
        whole(H_ % vector_of(accumulator) == 0) {}
  // Another tensor, element by element `bytes` wide, whose rows lie `stride` elements apart.
  void meets(const void* data, int64_t bytes, int64_t accumulator, std::initializer_list<int64_t> strides) {
    const int64_t boundary = vector_of(accumulator) * bytes;
    if (data && reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(boundary) != 0) whole = false;
    for (const int64_t stride : strides)
      if (data && stride * bytes % boundary != 0) whole = false;
  }
};

// V units of one row.
template <class A>
struct Units {
  static constexpr int V = vector_of(sizeof(A));
  int64_t row, first, step, H;
  bool whole;
  __device__ Units(const UnitShares& s, int64_t piece)
      : row((piece | s.per_row) >> 32 ? piece / s.per_row : uint32_t(piece) / uint32_t(s.per_row)),
        H(s.H),
        whole(s.whole) {
    const int64_t place = piece - row * s.per_row;
    first = whole ? place * V : place, step = whole ? 1 : s.per_row;
  }

  // Units of a row; zeros where there is none. `block`: a column block of H.
  template <class T>
  __device__ __forceinline__ void load(const T* from, A (&to)[V], int block = 0) const {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = A(0);
    if (!from) return;
    from += block * H + first;
    if (whole) {
      Vector<T, V> raw;
      const auto* const at = reinterpret_cast<const Vector<T, V>*>(from);
      if constexpr (sizeof(raw) == 16)
        raw = ptx::load_16(at);
      else
        raw = *at;
      unpack(raw, to);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (first + i * step < H) to[i] = get<A>(from[i * step]);
    }
  }
  template <class T>
  __device__ __forceinline__ void store(T* to, const A (&from)[V], int block = 0) const {
    to += block * H + first;
    if (whole) {
      Vector<T, V> raw;
#pragma unroll
      for (int i = 0; i < V; ++i) raw.e[i] = To<T>::from(from[i]);
      *reinterpret_cast<Vector<T, V>*>(to) = raw;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (first + i * step < H) to[i * step] = To<T>::from(from[i]);
    }
  }
  template <int N, class T>
  __device__ __forceinline__ void load_blocks(const T* from, A (&to)[N][V]) const {
#pragma unroll
    for (int g = 0; g < N; ++g) load(from, to[g], g);
  }
  template <int N, class T>
  __device__ __forceinline__ void store_blocks(T* to, const A (&from)[N][V]) const {
#pragma unroll
    for (int g = 0; g < N; ++g) store(to, from[g], g);
  }
};

// Unit i of each block.
template <int N, class A, int V>
__device__ __forceinline__ void of_unit(const A (&blocks)[N][V], int i, A (&to)[N]) {
#pragma unroll
  for (int g = 0; g < N; ++g) to[g] = blocks[g][i];
}
template <int N, class A, int V>
__device__ __forceinline__ void to_unit(A (&blocks)[N][V], int i, const A* from) {
#pragma unroll
  for (int g = 0; g < N; ++g) blocks[g][i] = from[g];
}

// The thread's pieces of all rows, one after another.
template <class A, class Body>
__device__ __forceinline__ void for_units(const UnitShares& s, const Body& body) {
  for (int64_t piece = int64_t{blockIdx.x} * kUnitThreads + threadIdx.x; piece < s.pieces;
       piece += int64_t{gridDim.x} * kUnitThreads)
    body(Units<A>(s, piece));
}

}  // namespace hetkern::cuda
