// Parts of a row's keys: what each gave is put together in the parts' order.                           (the contract: csrc/attention.h)
//
//   m' = max(m, m_part)      o' = o exp(m - m') + o_part exp(m_part - m')      l' likewise
//
// Parts begin at fixed keys. A block that takes them one after another and blocks that take one each do the same arithmetic, so
// that a query alone, over a cache, gets the bits that it has among others. Between parts a row's numbers lie in the workspace,
// where each lane keeps what stood in its registers.
#pragma once
#include "attention_scores.cuh"

namespace hetkern::cuda {

// A lane's part of two rows of the output, W columns wide: the sums, each row's maximum, and the lane's part of its sum.
template <class A, int W>
struct Partial {
  A o[W / 8][4], m[2], l[2];

  __device__ __forceinline__ void reset() {
    clear(o);
    m[0] = m[1] = -kInfinity<A>, l[0] = l[1] = A(0);
  }
};

// Numbers that lie beside each other.
template <class A>
struct alignas(2 * sizeof(A)) Couple {
  A a, b;
};

// Where the rows x and x + 8 stand in the workspace: a sequence's rows beside each other, of each its heads, or groups of them.
template <class A, int W>
struct Aside {
  Couple<A>* first;
  const AttentionTiles& tiles;
  int have;  // rows from x on

  // `rows`: of the head h, or of the group that it begins.
  __device__ __forceinline__ Aside(const AttentionForward& p, const AttentionTiles& tiles, const Sequence& seq, int h,
                                   int x, int rows, int slice, int part)
      : tiles(tiles), have(rows - x) {
    const int64_t before = p.cu_seqlens_q ? seq.q0 : seq.b * p.Lq;
    const int64_t row = before * p.Hq + static_cast<int64_t>(h) * seq.Lq + x;
    const int64_t at = (part * tiles.rows + row) * tiles.slices + slice;
    first = static_cast<Couple<A>*>(p.workspace) + at * (kAsideWords<W> / 2);
  }
  // Null: there is no such row.
  __device__ __forceinline__ Couple<A>* row_of(int half) const {
    return 8 * half < have ? first + half * (tiles.slices * (8 * kAsideWords<W> / 2)) : nullptr;
  }

  // Of a row: W sums, then the four lanes' maxima and sums.
  static __device__ __forceinline__ int place(int u) { return 4 * u + lane_of_warp() % 4; }

  // The warps' barriers keep apart what would else be fetched at once, into registers that are not there.
  __device__ __forceinline__ void put(const Partial<A, W>& from) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Couple<A>* const row = row_of(half);
#pragma unroll
      for (int u = 0; u < W / 8; ++u) {
        __syncwarp();
        if (row) row[place(u)] = {from.o[u][2 * half], from.o[u][2 * half + 1]};
      }
      if (row) row[place(W / 8)] = {from.m[half], from.l[half]};
    }
  }

  // held = held and what lies here together; kHeldIsLater: the keys of what is held come behind.
  template <bool kHeldIsLater>
  __device__ __forceinline__ void add_to(Partial<A, W>& held) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Couple<A>* const row = row_of(half);
      const Couple<A> here = row ? row[place(W / 8)] : Couple<A>{-kInfinity<A>, A(0)};
      const A top = larger(held.m[half], here.a), shift = top == -kInfinity<A> ? A(0) : top;
      const A of_held = exp_nonpositive(held.m[half] - shift), of_here = exp_nonpositive(here.a - shift);
      const auto sum = [&](A of_h, A of_m) {
        return kHeldIsLater ? fma(of_h, of_held, of_m * of_here) : fma(of_m, of_here, of_h * of_held);
      };
      held.m[half] = top, held.l[half] = sum(held.l[half], here.b);
#pragma unroll
      for (int u = 0; u < W / 8; ++u) {
        __syncwarp();
        const Couple<A> o = row ? row[place(u)] : Couple<A>{A(0), A(0)};
        held.o[u][2 * half] = sum(held.o[u][2 * half], o.a);
        held.o[u][2 * half + 1] = sum(held.o[u][2 * half + 1], o.b);
      }
    }
  }
};

}  // namespace hetkern::cuda
