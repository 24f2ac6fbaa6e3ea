// A sequence through one layer in one direction on the CPU: forward.                          (the contract: csrc/rnn.h)
//
//   h_t = cell(x_gates_t, W_hh h~_{t-1} + b_hh, h_{t-1}, c_{t-1})
//
// Work:    a register tile is all gates of U vectors of units and some rows (gemm.h), its epilogue their step. Tasks take rows
//          and never wait, or units and wait for one another after each step.
// Traffic: W_hh is packed once a call and read once a step (and task, where rows are split); x_gates is read once, y written
//          once, and with them, where they are saved, gates and cells.
// Edges:   rows stand in slices with the longest first; padding is zeros, written before the walk.
#include "rnn_walk.h"

namespace hetkern::cpu {
namespace {

template <class C, class E, class P, int U>
struct Forward {
  using A = AccumulatorOf<E>;
  using Left = typename P::Left;
  static constexpr int NV = C::G * U;
  const SequenceForward& p;
  Walk w;
  typename P::Word* panels;
  Left* left;  // two of (B, stride)
  int64_t words, stride;

  int64_t blocks() const { return (p.H + U * W<A> - 1) / (U * W<A>); }

  void pack(int64_t b) const {
    typename P::Word* const panel = panels + b * words * NV * W<A>;
    for (int g = 0; g < C::G; ++g)
      for (int u = 0; u < U; ++u) {
        const int64_t j = (b * U + u) * W<A>;
        const E* const rows = static_cast<const E*>(p.w_hh) + (g * p.H + (j < p.H ? j : 0)) * p.H;
        pack_rows<P, A>(rows, p.H - j, p.H, panel, g * U + u, NV);
      }
  }

  // The first states, and the left operands of every row's first step.
  void begin() const {
    for (int64_t r = 0; r < p.B; ++r) {
      const int64_t b = w.order[r];
      const bool anew = w.length[b] > 0 && w.anew(w.first_step(b), b);
      for (Left* row : {left + r * stride, left + (p.B + r) * stride})
        std::memset(row, 0, static_cast<size_t>(stride) * sizeof(Left));
      for (int64_t j = 0; j < p.H; j += W<A>) {
        const int64_t n = p.H - j;
        const Vec<A> h = load_first<A>(static_cast<const E*>(p.h0) + b * p.H + j, n);
        store_first<A>(static_cast<E*>(p.h_n) + b * p.H + j, h, n);
        if constexpr (C::has_c)
          store_first<A>(static_cast<A*>(p.c_n) + b * p.H + j,
                         load_first<A>(static_cast<const A*>(p.c0) + b * p.H + j, n), n);
        for (Left* row : {left + r * stride, left + (p.B + r) * stride})
          if (!anew) store_left<P, A, E>(row, j, masked(h, b, j, n), n);
      }
    }
  }
  template <class Lanes>
  Vec<A> masked(Vec<A> h, int64_t b, int64_t j, Lanes n) const {
    return p.h_mask ? h * load_first<A>(static_cast<const E*>(p.h_mask) + b * p.H + j, n) : h;
  }

  // Blocks whose tiles precede their epilogues: of one or two rows, so that the gates' long chains of one vector overlap the
  // next one's, which a tile between them would put out of the processor's sight.
  static constexpr int kTogether = 4;

  // Some blocks of units at a step of some rows, and where their tiles' sums lie: vector i of row r.
  struct Part {
    int64_t block[kTogether];
    int blocks;
    int64_t first;
    int rows;
    int64_t t;
    int parity;
    int64_t unit(int i) const { return (block[i / U] * U + i % U) * W<A>; }
    int sums(int i, int r) const { return ((i / U * rows + r) * NV + i % U) * W<A>; }
    int acts(int i, int r) const { return (i * rows + r) * C::N * W<A>; }
  };

  // x_gates, asked for before the tiles that they are added to.
  void ask(const Part& part) const {
    for (int r = 0; r < part.rows; ++r) {
      const E* const x_row = w.row<const E>(p.x_gates, part.t, w.order[part.first + r]);
      for (int i = 0; i < part.blocks * U; ++i)
        for (int g = 0; g < C::G; ++g) prefetch(x_row + g * p.H + part.unit(i));
    }
  }

  // The first half of an epilogue: sums to gates, and cells.
  void open(const Part& part, const A* tiles, A* acts) const {
    const int64_t H = p.H, t = part.t;
    const E* const b_hh = static_cast<const E*>(p.b_hh);
    for (int r = 0; r < part.rows; ++r) {
      const int64_t b = w.order[part.first + r];
      const E* const x_row = w.row<const E>(p.x_gates, t, b);
      const E* const x_soon = w.row<const E>(p.x_gates, w.soon(t, b, w.ahead, w.reverse), b);
      A* const cells_row = C::has_c ? w.row<A>(p.cells, t, b) : nullptr;
      A* const c_row = C::has_c ? static_cast<A*>(p.c_n) + b * H : nullptr;
      const bool anew = C::has_c && w.anew(t, b);
      const auto unit = [&](const A* sums, A* to, int64_t j, auto n) {
        Vec<A> x[C::G], h[C::G], act[C::N], c{};
        for (int g = 0; g < C::G; ++g) {
          prefetch_to_l2(x_soon + g * H + j);
          x[g] = load_first<A>(x_row + g * H + j, n);
          h[g] = load<A>(sums + g * U * W<A>);
          if (b_hh) h[g] += load_first<A>(b_hh + g * H + j, n);
        }
        if (C::has_c && !anew) c = load_first<A>(c_row + j, n);
        C::open(x, h, act, c);
        for (int k = 0; k < C::N; ++k) store<A>(to + k * W<A>, act[k]);
        if constexpr (C::has_c) {
          store_first<A>(c_row + j, c, n);
          if (cells_row) store_first<A>(cells_row + j, c, n);
        }
      };
      for (int i = 0; i < part.blocks * U; ++i) {
        const int64_t j = part.unit(i);
        with_lanes<A>(H - j, [&](auto n) { unit(tiles + part.sums(i, r), acts + part.acts(i, r), j, n); });
      }
    }
  }

  // The second half: gates and cells to the next state.
  void close(const Part& part, const A* acts) const {
    const int64_t H = p.H, t = part.t, next = w.reverse ? t - 1 : t + 1;
    for (int r = 0; r < part.rows; ++r) {
      const int64_t b = w.order[part.first + r];
      E* const y_row = w.row<E>(p.y, t, b);
      E* const gates_row = w.row<E>(p.gates, t, b);
      E* const h_row = static_cast<E*>(p.h_n) + b * H;
      const A* const c_row = C::has_c ? static_cast<const A*>(p.c_n) + b * H : nullptr;
      Left* const left_row = left + ((part.parity ^ 1) * p.B + part.first + r) * stride;
      const bool anew = C::reads_h && w.anew(t, b);
      const bool anew_next = w.reset && next >= 0 && next < w.length[b] && w.anew(next, b);
      const auto unit = [&](const A* from, int64_t j, auto n) {
        Vec<A> act[C::N], before{}, c{};
        for (int k = 0; k < C::N; ++k) act[k] = load<A>(from + k * W<A>);
        if (C::reads_h && !anew) before = load_first<A>(h_row + j, n);
        if constexpr (C::has_c) c = load_first<A>(c_row + j, n);
        const Vec<A> h_next = C::close(act, before, c);
        store_first<A>(y_row + j, h_next, n);
        store_first<A>(h_row + j, h_next, n);
        if (C::S > 0 && gates_row)
          for (int g = 0; g < C::S; ++g) store_first<A>(gates_row + g * H + j, act[g], n);
        const Vec<A> read = masked(rounded<A, E>(h_next), b, j, n);
        store_left<P, A, E>(left_row, j, anew_next ? Vec<A>{} : read, n);
      };
      for (int i = 0; i < part.blocks * U; ++i) {
        const int64_t j = part.unit(i);
        with_lanes<A>(H - j, [&](auto n) { unit(acts + part.acts(i, r), j, n); });
      }
    }
  }

  // Step s of a slice's rows and some blocks of units.
  void step(Slice& slice, Share of_blocks, int64_t s) const {
    alignas(64) A tiles[kMostTileRows * 4 * W<A>], acts[kMostTileRows * 4 * W<A>];
    Part part{};
    part.t = w.reverse ? p.T - 1 - s : s, part.parity = static_cast<int>(s & 1);
    slice.move_to(w, part.t);
    const int together = U == 1 && slice.rows <= 2 ? kTogether : 1;
    for (int64_t i = of_blocks.begin; i < of_blocks.end; i += together) {
      part.blocks = 0;
      for (int& n = part.blocks; n < together && i + n < of_blocks.end; ++n)
        part.block[n] = to_and_fro(i + n, of_blocks.begin, of_blocks.end, s);
      row_groups(slice.begin, slice.begin + slice.rows, most_rows<P>(NV), [&](int64_t first, int rows) {
        part.first = first, part.rows = rows;
        ask(part);
        const Left* const rows_left = left + (part.parity * p.B + first) * stride;
        for (int k = 0; k < part.blocks; ++k)
          kTiles<P, NV>.of[rows - 1](rows_left, stride, panels + part.block[k] * words * NV * W<A>, words,
                                     tiles + k * rows * NV * W<A>);
        open(part, tiles, acts);
        close(part, acts);
      });
    }
  }
  int64_t steps() const { return p.T; }
};

template <class C, class E, class P, int U>
void run(const SequenceForward& p, const RnnPlan& plan) {
  using F = Forward<C, E, P, U>;
  using A = typename F::A;
  Carver carver{static_cast<char*>(p.workspace)};
  const int64_t words = words_of<P>(p.H), stride = words * P::per_word;
  const int slices = plan.path == RnnPath::split_rows ? plan.tasks : 1;
  F f{p, make_walk(p, carver, slices), nullptr, nullptr, words, stride};
  f.panels = carver.take<typename P::Word>(f.blocks() * words * F::NV * W<A>);
  f.left = carver.take<typename P::Left>(2 * p.B * stride);
  f.begin();
  if (p.lengths) {
    clear_padding<E>(f.w, p.y, p.H, plan.tasks);
    clear_padding<E>(f.w, p.gates, C::S * p.H, plan.tasks);
    if (C::has_c) clear_padding<A>(f.w, p.cells, p.H, plan.tasks);
  }
  run_walk(f, p.B, plan);
}

}  // namespace

namespace HETKERN_ISA {
void rnn_sequence(const SequenceForward& p, RnnPlan plan, void* stream);
void rnn_sequence(const SequenceForward& p, RnnPlan plan, void*) {
  with_cell_and_type(p.cell, p.type, [&](auto cell, auto element) {
    using C = decltype(cell);
    using E = decltype(element);
    with_product<E>(plan.product, [&](auto product) {
      if constexpr (C::G == 1)
        with_vectors(plan.unit_vectors, [&](auto vectors) { run<C, E, decltype(product), vectors>(p, plan); });
      else
        run<C, E, decltype(product), 1>(p, plan);
    });
  });
}
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
