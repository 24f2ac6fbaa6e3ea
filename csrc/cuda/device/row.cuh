// What softmax and the losses share: a row's scores, its maximum and its sum of exponentials.      (the CPU's: cpu/row.h)
//
//   z_j = softcap tanh(scale x_j / softcap) + bias_j, -inf where masked         m = max_j z_j         s = sum_j exp(z_j - m) - 1
//
// s leaves out one term that equals the maximum: log1p(s) is right to rounding where a confident row has s near 0.
#pragma once
#include "../../rows.h"
#include "numbers.cuh"
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

// One tensor's part of a row. V elements move at once where they lie side by side on their own boundary, one by one elsewhere;
// either way the same thread takes the same elements.
template <class T, int V>
struct Span {
  using Element = std::remove_const_t<T>;
  using Raw = Vector<Element, V>;
  T* at;
  int64_t step;
  bool whole;
  __device__ Span(const Rows& rows, const Operand& operand, const RowIndex& index)
      : at(row_of<T>(rows, operand, index)),
        step(operand.step),
        whole(step == 1 && reinterpret_cast<uintptr_t>(at) % alignof(Raw) == 0) {}
  __device__ explicit operator bool() const { return at != nullptr; }

  // Elements [j, j + count); nothing sensible in the others.
  __device__ __forceinline__ Raw fetch(int64_t j, int count) const {
    Raw raw;
    if (whole && count == V) {
      const auto* const from = reinterpret_cast<const Raw*>(at + j);
      if constexpr (sizeof(Raw) == 16)
        raw = ptx::load_16_once(from);
      else
        raw = *from;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) raw.e[i] = i < count ? at[(j + i) * step] : Element{};
    }
    return raw;
  }
  template <class A>
  __device__ __forceinline__ void store(int64_t j, int count, const A (&value)[V]) const {
    Raw raw;
#pragma unroll
    for (int i = 0; i < V; ++i) raw.e[i] = To<T>::from(value[i]);
    if (whole && count == V) {
      *reinterpret_cast<Raw*>(at + j) = raw;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (i < count) at[(j + i) * step] = raw.e[i];
    }
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
