// What stands around the walk of a layer on the CPU.                                    (the contract: csrc/rnn_layer.h)
//
// Work:    products by the walk's register tile (gemm.h). Of x_gates and dx tasks take chunks of rows; of the weights' gradients
//          they take rows of the gradient, and go through all rows of the sequence in chunks.
// Traffic: weights are packed once a call. For the weights' gradients each chunk of dgates is transposed once, each chunk of x
//          and h~ packed once a task; dgates is read once for both products and both sums.
#include "../rnn_layer.h"

#include "rnn_walk.h"

namespace hetkern::cpu {
namespace {

// Rows of a sequence whose products are added before they go to memory. With them a panel's half, which a tile of 16 registers
// takes at a time, or the panel of wide vectors, fits into the first cache.
constexpr int64_t kChunk = kRegisters == 32 ? 128 : 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors in a panel: as many as waste no more than fewer would.
template <class A>
int panel_vectors(int64_t columns) {
  const int64_t vectors = ceil_div(columns, W<A>);
  return vectors % 4 == 0 || vectors > 12 ? 4 : vectors % 2 == 0 || vectors > 6 ? 2 : 1;
}
template <class A>
int64_t padded(int64_t columns) {
  const int64_t lanes = panel_vectors<A>(columns) * W<A>;
  return ceil_div(columns, lanes) * lanes;
}

// ---- Rows times weights. --------------------------------------------------------------------------------------------------

// Rows of a chunk: some for each task, a multiple of every tile's.
int64_t chunk_rows(int64_t rows, int tasks) {
  const int64_t share = ceil_div(rows, 4 * tasks);
  return (share < 48 ? 48 : share > 192 ? 192 : ceil_div(share, 24) * 24);
}

template <class A>
int64_t product_bytes(const LayerProduct& p) {
  const int64_t words = words_of<Fma<A>>(p.K);
  const int64_t copies = p.tasks * chunk_rows(p.rows, p.tasks) * words;
  return (padded<A>(p.N) * words + copies) * static_cast<int64_t>(sizeof(A)) + 3 * 64;
}

template <class A, int NV>
void product(const LayerProduct& p) {
  using P = Fma<A>;
  const int64_t words = words_of<P>(p.K), blocks = ceil_div(p.N, NV * W<A>), many = chunk_rows(p.rows, p.tasks);
  Carver carver{static_cast<char*>(p.workspace)};
  A* const panels = carver.take<A>(blocks * words * NV * W<A>);
  A* const copies = carver.take<A>(p.tasks * many * words);

  // Pack the weights.
  const A* const w = static_cast<const A*>(p.w);
  run_tasks(p.tasks, [&](int task) {
    const Share share(blocks, task, p.tasks);
    for (int64_t b = share.begin; b < share.end; ++b)
      for (int v = 0; v < NV; ++v) {
        const int64_t j = (b * NV + v) * W<A>, n = p.N - j;
        A* const panel = panels + b * words * NV * W<A>;
        if (p.w_by_columns)
          pack_columns<P, A>([&](int64_t k) { return k < p.K && n > 0 ? w + k * p.N + j : nullptr; }, n, words, panel,
                             v, NV);
        else
          pack_rows<P, A>(w + (n > 0 ? j * p.K : 0), n, p.K, panel, v, NV);
      }
  });

  // A chunk of rows times each panel. Rows that do not lie evenly, or end within a part of k, are copied before.
  const bool copied = words != p.K || !p.left.evenly();
  const A* const bias = static_cast<const A*>(p.bias);
  run_items(p.tasks, ceil_div(p.rows, many), [&](int task, int64_t chunk) {
    alignas(64) A tile[kMostTileRows * 4 * W<A>];
    const int64_t begin = chunk * many, end = begin + many < p.rows ? begin + many : p.rows;
    const A* left = static_cast<const A*>(p.left.data) + p.left.at(begin);
    int64_t stride = p.left.row;
    if (copied) {
      A* const copy = copies + task * many * words;
      for (int64_t m = begin; m < end; ++m) {
        A* const row = copy + (m - begin) * words;
        std::memcpy(row, static_cast<const A*>(p.left.data) + p.left.at(m), static_cast<size_t>(p.K) * sizeof(A));
        for (int64_t k = p.K; k < words; ++k) row[k] = 0;
      }
      left = copy, stride = words;
    }
    for (int64_t b = 0; b < blocks; ++b)
      row_groups(0, end - begin, most_rows<P>(NV), [&](int64_t first, int rows) {
        kTiles<P, NV>.of[rows - 1](left + first * stride, stride, panels + b * words * NV * W<A>, words, tile);
        for (int r = 0; r < rows; ++r) {
          A* const out = static_cast<A*>(p.out.data) + p.out.at(begin + first + r);
          for (int v = 0; v < NV; ++v) {
            const int64_t j = (b * NV + v) * W<A>, n = p.N - j;
            Vec<A> sum = load<A>(tile + (r * NV + v) * W<A>);
            if (bias) sum += load_first<A>(bias + j, n);
            store_first<A>(out + j, sum, n);
          }
        }
      });
  });
}

// ---- Gradients of weights and biases. --------------------------------------------------------------------------------------

// Where in units of H a block of dgates goes; -1: nowhere.
struct Blocks {
  int count;
  int to_x[4], to_h[4];
};
Blocks blocks_of(Cell cell) {
  if (cell == Cell::gru) return {4, {-1, 0, 1, 2}, {2, 0, 1, -1}};  // dn r, dr, dz, dn
  return {gradient_gates_of(cell), {0, 1, 2, 3}, {0, 1, 2, 3}};
}

template <class A>
struct Sizes {
  static constexpr int64_t panel = kChunk * 4 * W<A>;  // elements of the largest panel
  int64_t vectors;                                     // of dgates
  explicit Sizes(const LayerGradients& p) : vectors(blocks_of(p.walk.cell).count * ceil_div(p.walk.H, W<A>)) {}
};

template <class A>
int64_t gradients_bytes(const LayerGradients& p) {
  const auto size = static_cast<int64_t>(sizeof(A));
  const Sizes<A> sizes(p);
  const int64_t walk = (3 * p.walk.B + p.walk.T + 2) * 8 + 4 * 64;
  return walk + p.rows * 8 + sizes.vectors * W<A> * kChunk * size + p.tasks * (sizes.panel * size + 64) + 4 * 64;
}

// The state before each row, null where it is zeros or nothing.
template <class A>
void find_before(const SequenceBackward& p, const Walk& w, int64_t rows, const A** before) {
  for (int64_t m = 0; m < rows; ++m) before[m] = nullptr;
  for (int64_t t = 0; t < p.T; ++t) {
    const int64_t there = p.batch_sizes ? p.batch_sizes[t] : p.B, row = p.batch_sizes ? w.offset[t] : t * p.B;
    const int64_t last = p.reverse ? t + 1 : t - 1;
    for (int64_t b = 0; b < there; ++b) {
      if (t >= w.length[b] || w.anew(t, b)) continue;
      if (!w.begins(t, b))
        before[row + b] = w.row<const A>(p.y, last, b);
      else if (p.h0)
        before[row + b] = static_cast<const A*>(p.h0) + b * p.H;
    }
  }
}

// Rows of a sequence, of which a product takes `words`: those behind the end are zeros.
struct Chunk {
  int64_t begin, end, words;
  Chunk(int64_t begin, int64_t rows)
      : begin(begin), end(begin + kChunk < rows ? begin + kChunk : rows), words(ceil_div(end - begin, 16) * 16) {}
};

// A panel of a chunk's rows, columns of dw from `column` on: its product with transposed rows of dgates, added to dw.
template <class A, int NV>
void add_panel(const A* panel, int64_t column, int64_t columns, const A* left, int64_t rows, A* dw,
               const Chunk& chunk) {
  using P = Fma<A>;
  alignas(64) A tile[kMostTileRows * 4 * W<A>];
  row_groups(0, rows, most_rows<P>(NV), [&](int64_t first, int many) {
    for (int r = 0; r < many; ++r)  // rows of dw are too far apart for the processor to foresee
      for (int v = 0; v < NV; ++v) prefetch_to_write(dw + (first + r) * columns + column + v * W<A>);
    kTiles<P, NV>.of[many - 1](left + first * kChunk, kChunk, panel, chunk.words, tile);
    for (int r = 0; r < many; ++r)
      for (int v = 0; v < NV; ++v) {
        const int64_t j = column + v * W<A>, n = columns - j;
        A* const to = dw + (first + r) * columns + j;
        const Vec<A> sum = load<A>(tile + (r * NV + v) * W<A>);
        store_first<A>(to, chunk.begin == 0 ? sum : sum + load_first<A>(to, n), n);
      }
  });
}

template <class A>
struct Gradients {
  const LayerGradients& p;
  const A* const* before;
  A* transposed;  // (vectors, W, kChunk)
  A* panels;      // one a task
  const int64_t H = p.walk.H, units = ceil_div(H, W<A>), D = blocks_of(p.walk.cell).count;

  const A* dgates_row(int64_t m) const { return static_cast<const A*>(p.walk.dgates.data) + m * D * H; }

  // Vector q of dgates is vector q mod units of block q / units.
  void transpose_chunk(int64_t q, const Chunk& chunk) const {
    const int64_t g = q / units, j = q % units * W<A>, n = H - j;
    A* const to = transposed + q * W<A> * kChunk;
    Vec<A> total{};
    for (int64_t m = chunk.begin; m < chunk.begin + chunk.words; m += W<A>) {
      Vec<A> rows[W<A>], sum{};
      for (int i = 0; i < W<A>; ++i) {
        rows[i] = m + i < chunk.end ? load_first<A>(dgates_row(m + i) + g * H + j, n) : Vec<A>{};
        sum += rows[i];
      }
      total += sum;
      transpose<A>(rows);
      for (int i = 0; i < W<A>; ++i) store<A>(to + i * kChunk + m - chunk.begin, rows[i]);
    }
    const Blocks blocks = blocks_of(p.walk.cell);
    add_sum(p.db_ih, blocks.to_x[g], j, n, total, chunk.begin == 0);
    add_sum(p.db_hh, blocks.to_h[g], j, n, total, chunk.begin == 0);
  }
  void add_sum(void* db, int block, int64_t j, int64_t n, Vec<A> total, bool begin) const {
    if (!db || block < 0) return;
    A* const to = static_cast<A*>(db) + block * H + j;
    store_first<A>(to, begin ? total : total + load_first<A>(to, n), n);
  }

  // One of the two operands: its panels, one after another, times a task's vectors of dgates.
  template <int NV, class RowOf>
  void add_operand(const RowOf& row_of, int64_t columns, void* dw, const int* to, Share vectors, A* panel,
                   const Chunk& chunk) const {
    for (int64_t column = 0; column < columns; column += NV * W<A>) {
      for (int v = 0; v < NV; ++v) {
        const int64_t j = column + v * W<A>;
        pack_columns<Fma<A>, A>(
            [&](int64_t k) {
              const A* const row = row_of(k);
              return row && j < columns ? row + j : nullptr;
            },
            columns - j, chunk.words, panel, v, NV);
      }
      for (int64_t q = vectors.begin; q < vectors.end;) {  // the vectors of one block at a time
        const int64_t g = q / units, block_end = (g + 1) * units,
                      last = vectors.end < block_end ? vectors.end : block_end;
        const int64_t unit = (q - g * units) * W<A>, to_unit = (last - g * units) * W<A>;
        if (to[g] >= 0)
          add_panel<A, NV>(panel, column, columns, transposed + q * W<A> * kChunk, (to_unit < H ? to_unit : H) - unit,
                           static_cast<A*>(dw) + (to[g] * H + unit) * columns, chunk);
        q = last;
      }
    }
  }
  template <class RowOf>
  void add(const RowOf& row_of, int64_t columns, void* dw, const int* to, Share vectors, A* panel,
           const Chunk& chunk) const {
    with_vectors(panel_vectors<A>(columns),
                 [&](auto NV) { add_operand<decltype(NV)::value>(row_of, columns, dw, to, vectors, panel, chunk); });
  }

  void run(int task) const {
    const Share vectors(D * units, task, p.tasks);
    A* const panel = panels + task * Sizes<A>::panel;
    const Blocks blocks = blocks_of(p.walk.cell);
    for (int64_t begin = 0; begin < p.rows; begin += kChunk) {
      const Chunk chunk(begin, p.rows);
      for (int64_t q = vectors.begin; q < vectors.end; ++q) transpose_chunk(q, chunk);
      const auto x_row = [&](int64_t k) {
        return begin + k < chunk.end ? static_cast<const A*>(p.x.data) + p.x.at(begin + k) : nullptr;
      };
      const auto h_row = [&](int64_t k) { return begin + k < chunk.end ? before[begin + k] : nullptr; };
      if (p.dw_ih) add(x_row, p.I, p.dw_ih, blocks.to_x, vectors, panel, chunk);
      if (p.dw_hh) add(h_row, H, p.dw_hh, blocks.to_h, vectors, panel, chunk);
    }
  }
};

template <class A>
void gradients(const LayerGradients& p) {
  Carver carver{static_cast<char*>(p.workspace)};
  const Walk w = make_walk(p.walk, carver, 1);
  auto* const before = carver.take<const A*>(p.rows);
  if (p.dw_hh) find_before(p.walk, w, p.rows, before);
  const Sizes<A> sizes(p);
  A* const transposed = carver.take<A>(sizes.vectors * W<A> * kChunk);
  A* const panels = carver.take<A>(p.tasks * sizes.panel);
  const Gradients<A> all{p, before, transposed, panels};
  run_tasks(p.tasks, [&](int task) { all.run(task); });
}

// ---- By type. --------------------------------------------------------------------------------------------------------------

template <class Use>
auto with_type(DType type, const Use& use) {
  return type == DType::f64 ? use(double{}) : use(float{});
}
int64_t product_workspace(const LayerProduct& p) {
  return with_type(p.type, [&](auto a) { return product_bytes<decltype(a)>(p); });
}
void run_product(const LayerProduct& p) {
  with_type(p.type, [&](auto a) {
    using A = decltype(a);
    with_vectors(panel_vectors<A>(p.N), [&](auto NV) { product<A, decltype(NV)::value>(p); });
  });
}
int64_t gradients_workspace(const LayerGradients& p) {
  return with_type(p.walk.type, [&](auto a) { return gradients_bytes<decltype(a)>(p); });
}
void run_gradients(const LayerGradients& p) {
  with_type(p.walk.type, [&](auto a) { gradients<decltype(a)>(p); });
}

}  // namespace

namespace HETKERN_ISA {
extern const LayerKernels layer;
const LayerKernels layer{product_workspace, run_product, gradients_workspace, run_gradients};
}  // namespace HETKERN_ISA

}  // namespace hetkern::cpu
