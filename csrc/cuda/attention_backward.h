// What the files of attention's kernels share on the host.
#pragma once
#include <type_traits>

#include "attention_plan.h"
#include "device/numbers.cuh"

namespace hetkern::cuda {

// Refuses, on the device, sequences that do not lie within their tensors, before anything reads by them.
void check_attention_lengths(const AttentionProblem& p, bool backward, void* stream);
void attention_backward(const AttentionBackward& p, AttentionPlan plan, void* stream);
// delta, in the workspace.
void attention_deltas(const AttentionBackward& p, void* delta, void* stream);
// dsink, and dslopes from every row's own sum.
void attention_sums(const AttentionBackward& p, const void* delta, const void* slope_sums, void* stream);
void attention_dbias(const AttentionBackward& p, const void* delta, void* stream);

// Rows of all heads in row_max.
inline int64_t attention_rows(const AttentionProblem& p) { return p.Hq * (p.cu_seqlens_q ? p.stat_head : p.B * p.Lq); }

// Whether every row begins on 16 bytes and its elements are neighbours.
inline bool moves_by_16(const Heads& t, int64_t bytes) {
  const int64_t all = t.batch | t.head | t.row;
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.step == 1 && all % (16 / bytes) == 0;
}
inline void meet_inputs(AttentionTiles& tiles, const AttentionProblem& p) {
  const int64_t bytes = size_of(p.type);
  tiles.q = moves_by_16(p.q, bytes), tiles.k = moves_by_16(p.k, bytes), tiles.v = moves_by_16(p.v, bytes);
}

// Calls f(T(), a constant width) for the widths that a type is compiled for.
template <class F>
void with_type_and_width(DType type, int width, const F& f) {
  using W64 = std::integral_constant<int, 64>;
  using W128 = std::integral_constant<int, 128>;
  using W256 = std::integral_constant<int, 256>;
  const auto sixteen_bits = [&](auto t) { width == 64 ? f(t, W64()) : width == 128 ? f(t, W128()) : f(t, W256()); };
  switch (type) {
    case DType::f64:
      return f(double(), W64());
    case DType::f32:
      return width == 64 ? f(float(), W64()) : f(float(), W128());
    case DType::bf16:
      return sixteen_bits(bf16());
    case DType::f16:
      return sixteen_bits(f16());
  }
}

}  // namespace hetkern::cuda
