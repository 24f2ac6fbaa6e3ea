// What softmax and the losses share: a row's scores, its maximum and its sum of exponentials.      (the CPU's: cpu/row.h)
//
//   z_j = softcap tanh(scale x_j / softcap) + bias_j, -inf where masked         m = max_j z_j         s = sum_j exp(z_j - m) - 1
//
// s leaves out one term that equals the maximum: log1p(s) is right to rounding where a confident row has s near 0.
#pragma once
#include <cstring>

#include "../../rows.h"
#include "numbers.cuh"
#include "planted.cuh"
#include "ptx.cuh"

namespace hetkern::cuda {

// ---- Elements of a row. ---------------------------------------------------------------------------------------------------

constexpr int kWords16 = 16;  // bytes that a thread moves at a time, at most
template <class T, int V>
struct alignas(V * sizeof(T) < kWords16 ? V * sizeof(T) : kWords16) Vector {
  T e[V];
};

// row_index and offset of csrc/rows.h with their loops unrolled, so that an index lives in registers.
__device__ __forceinline__ RowIndex index_of(const Rows& rows, int64_t row) {
  RowIndex index;
#pragma unroll
  for (int d = kMaxOuter - 1; d > 0; --d) {
    index.at[d] = 0;
    if (d >= rows.outer_dims) continue;
    const int64_t size = rows.size[d], above = (row | size) >> 32 ? row / size : uint32_t(row) / uint32_t(size);
    index.at[d] = row - above * size;
    row = above;
  }
  index.at[0] = row;
  return index;
}

template <class T>
__device__ __forceinline__ T* row_of(const Rows& rows, const Operand& operand, const RowIndex& index) {
  if (!operand) return nullptr;
  T* at = static_cast<T*>(operand.data);
#pragma unroll
  for (int d = 0; d < kMaxOuter; ++d)
    if (d < rows.outer_dims) at += index.at[d] * operand.stride[d];
  return at;
}

// 16 bytes from `offset` on of the 32 in two vectors.
template <class Raw>
__device__ __forceinline__ Raw window(const Raw& low, const Raw& high, int offset) {
  uint32_t word[8], result[4];
  memcpy(word, &low, 16), memcpy(word + 4, &high, 16);
#pragma unroll
  for (int by = 2; by > 0; by /= 2)
    if (offset / 4 & by)
#pragma unroll
      for (int i = 0; i + by < 8; ++i) word[i] = word[i + by];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    result[i] = static_cast<uint32_t>((uint64_t{word[i + 1]} << 32 | word[i]) >> (offset % 4 * 8));
  Raw raw;
  memcpy(&raw, result, 16);
  return raw;
}

// `raw` of the thread `distance` lanes further on.
template <class Raw>
__device__ __forceinline__ Raw of_lane(const Raw& raw, int distance) {
  uint32_t word[4];
  memcpy(word, &raw, 16);
#pragma unroll
  for (uint32_t& w : word)
    w = distance > 0 ? __shfl_down_sync(0xffffffffu, w, distance) : __shfl_up_sync(0xffffffffu, w, -distance);
  Raw other;
  memcpy(&other, word, 16);
  return other;
}

// One tensor's part of a row. V elements move at once where they lie side by side on a 16-byte boundary. In a row that starts
// elsewhere a thread moves the 16 bytes that begin before its elements, and trades the ends with its neighbours; what nobody can
// move so, at the row's ends and over other strides, goes one by one. Either way a thread has the same elements.
// Whole warps call fetch and store together.
template <class T, int V>
struct Span {
  using Element = std::remove_const_t<T>;
  using Raw = Vector<Element, V>;
  static constexpr bool kTrades = sizeof(Raw) == 16 && sizeof(Element) < 8;
  T* at;
  int64_t step;
  bool whole;          // on the boundary
  bool trade = false;  // some row of this warp is not
  __device__ Span(const Rows& rows, const Operand& operand, const RowIndex& index)
      : at(row_of<T>(rows, operand, index)),
        step(operand.step),
        whole(step == 1 && reinterpret_cast<uintptr_t>(at) % alignof(Raw) == 0) {
    if constexpr (kTrades) trade = __any_sync(0xffffffffu, at && step == 1 && !whole);
  }
  __device__ explicit operator bool() const { return at != nullptr; }

  // Elements [j, j + count); nothing sensible in the others.
  __device__ __forceinline__ Raw fetch(int64_t j, int count) const {
    Raw raw{};
    int first = 0, last = count;  // those to load one by one
    if constexpr (kTrades)
      if (trade) {
        const auto address = static_cast<unsigned>(reinterpret_cast<uintptr_t>(at + j));
        const int before = step == 1 ? address % 16 : 0, mine = V - before / static_cast<int>(sizeof(T));  // elements
        const bool moves = before > 0 && j > 0 && count >= mine;
        if (moves)
          raw = ptx::load_16_once(reinterpret_cast<const Raw*>(reinterpret_cast<const char*>(at + j) - before));
        const unsigned next = __shfl_down_sync(0xffffffffu, moves ? address : 1u, 1);
        const Raw after = of_lane(raw, 1);
        raw = window(raw, after, before);
        if (moves) first = mine;
        if (before > 0 && next == address + 16) last = count < mine ? count : mine;
      }
    if (whole && count == V) {
      const auto* const from = reinterpret_cast<const Raw*>(at + j);
      if constexpr (sizeof(Raw) == 16)
        raw = ptx::load_16_once(from);
      else
        raw = *from;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (i >= first && i < last) raw.e[i] = at[(j + i) * step];
    }
    return raw;
  }

  template <class A>
  __device__ __forceinline__ void store(int64_t j, int count, const A (&value)[V]) const {
    Raw raw;
#pragma unroll
    for (int i = 0; i < V; ++i) raw.e[i] = To<T>::from(value[i]);
    int first = 0, last = count;  // those to store one by one
    if constexpr (kTrades)
      if (trade) {
        const auto address = static_cast<unsigned>(reinterpret_cast<uintptr_t>(at + j));
        const int before = step == 1 ? address % 16 : 0, mine = V - before / static_cast<int>(sizeof(T));
        const unsigned previous = __shfl_up_sync(0xffffffffu, count == V ? address : 1u, 1);
        const bool moves = before > 0 && previous + 16 == address && count >= mine;
        const Raw all = window(of_lane(raw, -1), raw, 16 - before);
        if (moves) *reinterpret_cast<Raw*>(reinterpret_cast<char*>(at + j) - before) = all;
        const unsigned next = __shfl_down_sync(0xffffffffu, moves ? address : 1u, 1);
        if (moves) first = mine;
        if (before > 0 && next == address + 16) last = mine;
      }
    if (whole && count == V) {
      *reinterpret_cast<Raw*>(at + j) = raw;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (i >= first && i < last) at[(j + i) * step] = raw.e[i];
    }
    if (planted(Bug::out_of_bounds) && count > 0) at[(j + count) * step] = raw.e[0];
    if (planted(Bug::misaligned) && count > 0) *reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(at + j) + 1) = 0;
  }
};

template <class A, class T, int V>
__device__ __forceinline__ void unpack(const Vector<T, V>& raw, A (&value)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] = get<A>(raw.e[i]);
}

__device__ __forceinline__ int clamped(int64_t n, int most) {
  return n < 0 ? 0 : n > most ? most : static_cast<int>(n);
}

// ---- Scores. --------------------------------------------------------------------------------------------------------------

// z of x alone: the part of the score that a loss has, too.
template <class A>
struct Score {
  A scale;
  A cap, inverse_cap;  // 0: none
  __device__ Score(double scale_, double softcap)
      : scale(static_cast<A>(scale_)),
        cap(static_cast<A>(softcap)),
        inverse_cap(softcap > 0 ? static_cast<A>(1 / softcap) : A(0)) {}
  __device__ __forceinline__ A operator()(A x) const {
    const A z = x * scale;
    return cap > 0 ? tanh_one(z * inverse_cap) * cap : z;
  }
  // dz/dx.
  __device__ __forceinline__ A slope(A x) const {
    if (!(cap > 0)) return scale;
    const A t = tanh_one(x * scale * inverse_cap);
    return (A(1) - t * t) * scale;
  }
};

// ---- Row maximum and sum. -------------------------------------------------------------------------------------------------

// sum = the terms but one that equals max; a row without a finite or +inf score has max = -inf.
template <class A>
struct RowSum {
  A max = -kInfinity<A>;
  A sum = 0;
  int kept = 0;  // some column was not masked
  __device__ A all() const { return A(1) + sum; }
  __device__ A log_all() const { return log1p_one(sum); }
};

// Two parts of a row, or a row and one more score.
template <class A>
__device__ __forceinline__ RowSum<A> combine(RowSum<A> a, RowSum<A> b) {
  if (a.max < b.max) {
    const RowSum<A> swap = a;
    a = b, b = swap;
  }
  // A part of -inf adds nothing, but its NaN.
  a.sum += b.max == -kInfinity<A> ? b.sum : exp_one(b.max - a.max) * b.all();
  a.kept |= b.kept;
  return a;
}
__device__ __forceinline__ float combine(float a, float b) { return a + b; }
__device__ __forceinline__ double combine(double a, double b) { return a + b; }

// NaN where torch gives NaN: the row holds +inf, or nothing but -inf though something was kept.
template <class A>
__device__ __forceinline__ RowSum<A> finished(RowSum<A> row) {
  if (row.max == kInfinity<A> || (row.max == -kInfinity<A> && row.kept)) row.sum = kNaN<A>;
  return row;
}

// A RowSum that takes one vector after another (Milakov & Gimelshein 2018, Algorithm 3).
template <class A>
struct OnlineSum {
  A max = -kInfinity<A>;
  A sum = 0;      // of the terms below max
  int equal = 0;  // the others
  int kept = 0;
  __device__ __forceinline__ A shift() const { return max == -kInfinity<A> ? A(0) : max; }

  // Makes `to` the maximum, if it is larger; returns by how much the terms sink.
  __device__ __forceinline__ A raise(A to) {
    if (!(to > max)) return 0;
    const A by = max - to;
    if (max > -kInfinity<A>) sum = exp_one(by) * (sum + static_cast<A>(equal));
    max = to, equal = 0;
    return by;
  }
  template <int V>
  __device__ __forceinline__ void add(const A (&z)[V]) {
    A largest = z[0];
#pragma unroll
    for (int i = 1; i < V; ++i) largest = larger(largest, z[i]);
    if (largest < max) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum += exp_one(z[i] - max);
    } else {
      raise(largest);
      const A top = shift();
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const bool is_max = z[i] == top;
        sum += is_max ? A(0) : exp_one(z[i] - top);
        equal += is_max;
      }
    }
  }
  __device__ RowSum<A> total() const {
    return {max, max == -kInfinity<A> ? sum : sum + static_cast<A>(equal - 1), kept};
  }
};

}  // namespace hetkern::cuda
