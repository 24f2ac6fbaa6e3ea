// A sequence through one layer in one direction on the CPU: backward.                         (the contract: csrc/rnn.h)
//
//   dh_t = dy_t + what the next step passes on + (dgates_{t+1} W_hh) h_mask;   dgates_t = the cell's gradient of dh_t, dc_t
//
// Work:    as forward: a register tile is U vectors of units and some rows, its epilogue their step back.
// Traffic: gates (or y), cells and dy are read once, dgates is written once; W_hh is packed once and read once a step.
// Edges:   a row joins at its last step, with dh_n and dc_n, and leaves at its first, with dh0 and dc0; dgates in the padding
//          are zeros, written before the walk.
#include "rnn_walk.h"

namespace hetkern::cpu {
namespace {

template <class C, class E, class P, int U>
struct Backward {
  using A = AccumulatorOf<E>;
  using Left = typename P::Left;
  const SequenceBackward& p;
  Walk w;
  typename P::Word* panels;
  Left* left;  // two of (B, stride): dgates as W_hh meets them
  A* dh;       // (B, H): what does not pass W_hh
  int64_t words, stride;

  int64_t blocks() const { return (p.H + U * W<A> - 1) / (U * W<A>); }

  // Row k of W_hh in the order of dgates: a GRU's begin with n.
  int64_t weight_row(int64_t k) const { return C::reads_h ? (k + 2 * p.H) % (3 * p.H) : k; }
  void pack(int64_t b) const {
    const auto* const w_hh = static_cast<const E*>(p.w_hh);
    for (int u = 0; u < U; ++u) {
      const int64_t j = (b * U + u) * W<A>;
      pack_columns<P, A>(
          [&](int64_t k) { return k < C::G * p.H && j < p.H ? w_hh + weight_row(k) * p.H + j : nullptr; }, p.H - j,
          words, panels + b * words * U * W<A>, u, U);
    }
  }

  // The last states' gradients, which are the first states' for a row without steps.
  void begin() const {
    std::memset(left, 0, static_cast<size_t>(2 * p.B * stride) * sizeof(Left));
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t j = 0; j < p.H; j += W<A>) {
        const int64_t at = b * p.H + j, n = p.H - j;
        const Vec<A> d = p.dh_n ? load_first<A>(static_cast<const E*>(p.dh_n) + at, n) : Vec<A>{};
        store_first<A>(dh + at, d, n);
        store_first<A>(static_cast<E*>(p.dh0) + at, d, n);
        if constexpr (C::has_c)
          store_first<A>(static_cast<A*>(p.dc0) + at,
                         p.dc_n ? load_first<A>(static_cast<const A*>(p.dc_n) + at, n) : Vec<A>{}, n);
      }
  }

  // What reached row b's state from the step behind it.
  template <class Lanes>
  Vec<A> passed(const A* product, int64_t b, int64_t j, Lanes n) const {
    const int64_t at = b * p.H + j;
    Vec<A> d{};
    if (C::reads_h || !product) d = load_first<A>(dh + at, n);
    if (product) {
      Vec<A> through = load<A>(product);
      if (p.h_mask) through *= load_first<A>(static_cast<const E*>(p.h_mask) + at, n);
      d += through;
    }
    return d;
  }

  // Row r of the slice has left its first step behind.
  void leave(const A* product, int64_t block, int64_t b) const {
    for (int u = 0; u < U; ++u) {
      const int64_t j = (block * U + u) * W<A>, n = p.H - j;
      if (n > 0) store_first<A>(static_cast<E*>(p.dh0) + b * p.H + j, passed(product + u * W<A>, b, j, n), n);
    }
  }

  // One row's step back; product: null where the row joins.
  void row_step(const A* product, int64_t block, int64_t row, int64_t t, int parity) const {
    const int64_t b = w.order[row], H = p.H, before = w.reverse ? t + 1 : t - 1;
    const bool begins = w.begins(t, b), anew = w.anew(t, b);
    const E* const dy_row = w.row<const E>(p.dy, t, b);
    const E* const saved = w.row<const E>(C::S > 0 ? p.gates : p.y, t, b);
    const A* const c_row = C::has_c ? w.row<const A>(p.cells, t, b) : nullptr;
    const E* h_before = nullptr;  // null: zeros
    const A* c_before = nullptr;
    if (!anew) {
      if (C::reads_h) h_before = begins ? static_cast<const E*>(p.h0) + b * H : w.row<const E>(p.y, before, b);
      if (C::has_c) c_before = begins ? static_cast<const A*>(p.c0) + b * H : w.row<const A>(p.cells, before, b);
    }
    E* const d_row = w.row<E>(p.dgates, t, b);
    Left* const left_row = left + ((parity ^ 1) * p.B + row) * stride;
    const int64_t soon = w.soon(t, b, w.ahead, !w.reverse), behind = w.soon(t, b, w.ahead + 1, !w.reverse);
    const E* const saved_soon = w.row<const E>(C::S > 0 ? p.gates : p.y, soon, b);
    const E* const dy_soon = w.row<const E>(p.dy, soon, b);
    const E* const h_behind = C::reads_h ? w.row<const E>(p.y, behind, b) : nullptr;
    const A* const c_behind = C::has_c ? w.row<const A>(p.cells, behind, b) : nullptr;
    const auto unit = [&](const A* sums, int64_t j, auto n) {
      for (int g = 0; g < C::N; ++g) prefetch_to_l2(saved_soon + g * H + j);
      if (dy_row) prefetch_to_l2(dy_soon + j);
      if (C::reads_h) prefetch_to_l2(h_behind + j);
      if (C::has_c) prefetch_to_l2(c_behind + j);
      Vec<A> total = passed(sums, b, j, n);
      if (dy_row) total += load_first<A>(dy_row + j, n);
      Vec<A> act[4], d[4], dc{}, c{}, c_prev{}, h_prev{};
      for (int g = 0; g < C::N; ++g) act[g] = load_first<A>(saved + g * H + j, n);
      if (C::reads_h && h_before) h_prev = load_first<A>(h_before + j, n);
      if constexpr (C::has_c) {
        c = load_first<A>(c_row + j, n), dc = load_first<A>(static_cast<A*>(p.dc0) + b * H + j, n);
        if (c_before) c_prev = load_first<A>(c_before + j, n);
      }
      const Vec<A> kept = C::backward(act, h_prev, c_prev, c, total, dc, d);
      if (C::reads_h) store_first<A>(dh + b * H + j, anew ? Vec<A>{} : kept, n);
      if constexpr (C::has_c) store_first<A>(static_cast<A*>(p.dc0) + b * H + j, anew ? Vec<A>{} : dc, n);
      for (int g = 0; g < C::D; ++g) store_first<A>(d_row + g * H + j, d[g], n);
      for (int g = 0; g < C::G; ++g) store_left<P, A, E>(left_row, g * H + j, anew ? Vec<A>{} : d[g], n);
    };
    for (int u = 0; u < U; ++u) {
      const int64_t j = (block * U + u) * W<A>;
      with_lanes<A>(H - j, [&](auto n) { unit(product ? product + u * W<A> : nullptr, j, n); });
    }
  }

  // Step s of a slice's rows and some blocks of units.
  void step(Slice& slice, Share of_blocks, int64_t s) const {
    alignas(64) A tile[kMostTileRows * 4 * W<A>];
    const int64_t pending = s > 0 ? slice.move_to(w, at(s - 1)) : 0, t = at(s);
    const int64_t here = s < p.T ? slice.move_to(w, t) : 0;
    const int parity = static_cast<int>(s & 1);
    for (int64_t i = of_blocks.begin; i < of_blocks.end; ++i) {
      const int64_t block = to_and_fro(i, of_blocks.begin, of_blocks.end, s);
      const auto* const panel = panels + block * words * U * W<A>;
      row_groups(slice.begin, slice.begin + pending, most_rows<P>(U), [&](int64_t first, int rows) {
        kTiles<P, U>.of[rows - 1](left + (parity * p.B + first) * stride, stride, panel, words, tile);
        for (int r = 0; r < rows; ++r) {
          const A* const product = tile + r * U * W<A>;
          if (first + r < slice.begin + here)
            row_step(product, block, first + r, t, parity);
          else
            leave(product, block, w.order[first + r]);
        }
      });
      for (int64_t r = pending; r < here; ++r) row_step(nullptr, block, slice.begin + r, t, parity);
    }
  }
  int64_t at(int64_t s) const { return w.reverse ? s : p.T - 1 - s; }
  int64_t steps() const { return p.T + 1; }  // in the last one every row that is left leaves
};

template <class C, class E, class P, int U>
void run(const SequenceBackward& p, const RnnPlan& plan) {
  using F = Backward<C, E, P, U>;
  using A = typename F::A;
  Carver carver{static_cast<char*>(p.workspace)};
  const int64_t words = words_of<P>(C::G * p.H), stride = words * P::per_word;
  const int slices = plan.path == RnnPath::split_rows ? plan.tasks : 1;
  F f{p, make_walk(p, carver, slices), nullptr, nullptr, nullptr, words, stride};
  f.panels = carver.take<typename P::Word>(f.blocks() * words * U * W<A>);
  f.left = carver.take<typename P::Left>(2 * p.B * stride);
  f.dh = carver.take<A>(p.B * p.H);
  f.begin();
  if (p.lengths) clear_padding<E>(f.w, p.dgates, C::D * p.H, plan.tasks);
  run_walk(f, p.B, plan);
}

}  // namespace

namespace HETKERN_ISA {
void rnn_sequence_backward(const SequenceBackward& p, RnnPlan plan, void* stream);
void rnn_sequence_backward(const SequenceBackward& p, RnnPlan plan, void*) {
  with_cell_and_type(p.cell, p.type, [&](auto cell, auto element) {
    using C = decltype(cell);
    using E = decltype(element);
    with_product<E>(plan.product, [&](auto product) {
      with_vectors(plan.unit_vectors, [&](auto vectors) { run<C, E, decltype(product), vectors>(p, plan); });
    });
  });
}
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
