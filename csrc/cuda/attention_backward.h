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
  tiles.scale = static_cast<float>(p.scale), tiles.softcap = static_cast<float>(p.softcap);
  tiles.kept = static_cast<float>(1 / (1 - p.dropout_p));
  const int64_t bytes = size_of(p.type);
  tiles.q = moves_by_16(p.q, bytes), tiles.k = moves_by_16(p.k, bytes), tiles.v = moves_by_16(p.v, bytes);
}

template <class F>
void with_type(DType type, const F& f) {
  switch (type) {
    case DType::f32:
      return f(float());
    case DType::f64:
      return f(double());
    case DType::bf16:
      return f(bf16());
    case DType::f16:
      return f(f16());
  }
}

// Calls f(T(), a constant width) for the widths that a pass is compiled for.
template <AttentionPass pass, class F>
void with_type_and_width(DType type, int width, const F& f) {
  const auto with = [&](auto t) {
    using T = decltype(t);
    constexpr int kWidest = attention_widest(pass, sizeof(T));
    const auto at_most = [&](auto w) {
      if constexpr (w.value <= kWidest && (w.value >= 64 || w.value == kWidest)) f(t, w);
    };
    if (width == 32) at_most(std::integral_constant<int, 32>());
    if (width == 64) at_most(std::integral_constant<int, 64>());
    if (width == 128) at_most(std::integral_constant<int, 128>());
    if (width == 256) at_most(std::integral_constant<int, 256>());
  };
  with_type(type, with);
}

}  // namespace hetkern::cuda
