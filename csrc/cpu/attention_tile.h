// The products of attention, and how rows get into the form that they read.
//
// Everything a product reads and writes has rows of kPanel numbers: a block of keys or values is cut into segments of kPanel
// columns, [segment][kBlock][kPanel]; a panel is kPanel queries, as rows [segment][rows][kPanel] and turned [column][kPanel]; scores
// stand as S^T [key][kPanel]. So one tile, whose strides are a constant, is the arithmetic of all five products:
//
//   c[m][n] = start + sum_i a(m, i) b[i][n]        a by rows (a[m][i]) or by columns (a[i][m])
//
// Bits:  a sum goes over i in its order from 0 and is added to what was there once, at the end: no chain is longer than a block.
// Speed: as in gemm.h, a tile is never inlined. With a stride that varies six row pointers do not fit beside the rest.
#pragma once
#include "attention_plan.h"
#include "gemm.h"

namespace hetkern::cpu {
namespace {

constexpr int kTileRows = 6;
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;

enum class Start { zero, sum, scaled };  // nothing, c, c times alpha[m]

// c[m][n] = start + s[m][n]
template <class A, int M, int N, Start start>
inline void end_tile(A* c, Vec<A> (&s)[M][N], const A* alpha) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      A* const at = c + m * kPanel + v * W<A>;
      if (start == Start::sum) s[m][v] = load<A>(at) + s[m][v];
      if (start == Start::scaled) s[m][v] = fma(load<A>(at), splat(alpha[m]), s[m][v]);
      store<A>(at, s[m][v]);
    }
}

template <class A, int M, int N, bool by_columns, Start start>
__attribute__((noinline)) void attention_tile(A* c, const A* a, const A* b, int64_t k, const A* alpha) {
  Vec<A> s[M][N] = {};
  for (int64_t i = 0; i < k; ++i, b += kPanel) {
    Vec<A> w[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      w[v] = load<A>(b + v * W<A>);
      if (M > 1) hold(w[v]);
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const Vec<A> x = splat(by_columns ? a[i * kPanel + m] : a[m * kPanel + i]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) s[m][v] = fma(x, w[v], s[m][v]);
    }
  }
  end_tile<A, M, N, start>(c, s, alpha);
}

template <class A>
using AttentionTile = void (*)(A* c, const A* a, const A* b, int64_t k, const A* alpha);

// By vectors less one, and by rows less one.
template <class A, bool by_columns, Start start>
struct AttentionTiles {
  AttentionTile<A> of[kTileVectors][kTileRows] = {};
  constexpr AttentionTiles() { fill(std::make_integer_sequence<int, kTileVectors>()); }
  template <int... N>
  constexpr void fill(std::integer_sequence<int, N...>) {
    (fill_rows<N>(std::make_integer_sequence<int, kTileRows>()), ...);
  }
  template <int N, int... M>
  constexpr void fill_rows(std::integer_sequence<int, M...>) {
    ((of[N][M] = attention_tile<A, M + 1, N + 1, by_columns, start>), ...);
  }
};
template <class A, bool by_columns, Start start>
constexpr AttentionTiles<A, by_columns, start> kAttentionTiles{};

// A tile of some rows and the vectors begin … end - 1. By rows k may take several segments, each a sum of its own: a chain over
// all of a wide head's columns would cost scores and gradients of keys a digit.
template <class A, bool by_columns, Start start>
inline void product(A* c, const A* a, const A* b, int64_t k, int rows, int begin, int end, const A* alpha = nullptr) {
  for (int n = begin; n < end; n += kTileVectors) {
    const int vectors = end - n < kTileVectors ? end - n : kTileVectors;
    const int64_t first = by_columns || k < kPanel ? k : kPanel;
    A* const to = c + n * W<A>;
    kAttentionTiles<A, by_columns, start>.of[vectors - 1][rows - 1](to, a, b + n * W<A>, first, alpha);
    if constexpr (!by_columns)
      for (int64_t i = kPanel; i < k; i += kPanel)
        kAttentionTiles<A, false, Start::sum>.of[vectors - 1][rows - 1](to, a + i * kBlock, b + i * kPanel + n * W<A>,
                                                                        k - i < kPanel ? k - i : kPanel, alpha);
  }
}

// Vectors that a segment's columns, or a panel's rows, take.
template <class A>
constexpr int vectors_of(int64_t numbers) {
  return static_cast<int>(numbers >= kPanel ? kPanel / W<A> : (numbers + W<A> - 1) / W<A>);
}

// ---- Rows of memory. ------------------------------------------------------------------------------------------------------

// Truth values, as numbers 0 and 1.
struct Kept {
  uint8_t byte;
};
template <class A>
struct Packed<A, Kept> {
  typename VectorOf<uint8_t, W<A>>::type v;
  Vec<A> unpack() const { return __builtin_convertvector(__builtin_convertvector(v, Mask<A>), Vec<A>); }
};

// Rows at data + offset[r] elements, whose elements are `step` apart.
struct RowsAt {
  const void* data;
  const int64_t* offset;
  int64_t step;
};

// Whether a block of rows is in memory what it would be packed.
template <class A>
inline bool lies_as_packed(const Heads& t, int64_t size, int64_t columns) {
  return size == sizeof(A) && t.step == 1 && t.row == kPanel && columns <= kPanel && columns % W<A> == 0;
}
// Whether the products of some numbers and 0 are numbers.
template <class A, int N>
inline bool all_finite(const Vec<A> (&zeros)[N]) {
  Vec<A> sum{};
  for (int i = 0; i < N; ++i) sum += zeros[i];
  for (int i = 0; i < W<A>; ++i)
    if (!(sum[i] == A(0))) return false;
  return true;
}

// Of rows as they are packed, of one segment.
template <class A>
bool all_finite(const A* rows, int n, int64_t columns) {
  Vec<A> zeros[1] = {};
  for (int r = 0; r < n; ++r)
    for (int64_t c = 0; c < columns; c += W<A>) zeros[0] = fma(load<A>(rows + r * kPanel + c), Vec<A>{}, zeros[0]);
  return all_finite<A>(zeros);
}

// To segments of `room` rows, [segment][room][kPanel], with zeros up to a whole vector. Returns whether all are finite.
// Speed: whole vectors of numbers that lie side by side take a few instructions each, so that the processor sees rows ahead and
// waits for several at once.
template <class A, class T>
bool pack_segments(A* to, int64_t room, const RowsAt& from, int rows, int64_t columns) {
  constexpr int U = kPanel / W<A> / 2;
  Vec<A> zeros[U] = {};
  for (int r = 0; r < rows; ++r) {
    const T* const row = static_cast<const T*>(from.data) + from.offset[r];
    for (int64_t first = 0; first < columns; first += kPanel) {
      A* const at = to + (first / kPanel * room + r) * kPanel;
      const int64_t n = columns - first < kPanel ? columns - first : kPanel;
      int64_t c = 0;
      if (from.step == 1)
        for (; c + U * W<A> <= n; c += U * W<A>)
#pragma GCC unroll 16
          for (int u = 0; u < U; ++u) {
            const Vec<A> v = load<A>(row + first + c + u * W<A>);
            zeros[u] = fma(v, Vec<A>{}, zeros[u]);
            store<A>(at + c + u * W<A>, v);
          }
      for (; c < n; c += W<A>) {
        Vec<A> v{};
        if (from.step == 1)
          v = load_first<A>(row + first + c, n - c);
        else
          for (int i = 0; i < W<A> && c + i < n; ++i) v[i] = get<A>(row + (first + c + i) * from.step);
        zeros[0] = fma(v, Vec<A>{}, zeros[0]);
        store<A>(at + c, v);
      }
    }
  }
  return all_finite<A>(zeros);
}

// W rows of W columns to [column][kPanel]. Loaded in pairs that are exchanged at once, or GCC puts all of them on the stack.
template <class A>
inline void turn_square(A* to, const A* from, const int64_t* offset) {
  constexpr int half = W<A> / 2;
  Vec<A> v[W<A>];
#pragma GCC unroll 8
  for (int i = 0; i < half; ++i) {
    v[i] = load<A>(from + offset[i]), v[i + half] = load<A>(from + offset[i + half]);
    exchange<Vec<A>, half>(v[i], v[i + half], std::make_integer_sequence<int, W<A>>());
  }
  transpose<A, half / 2>(v);
#pragma GCC unroll 16
  for (int i = 0; i < W<A>; ++i) store<A>(to + i * kPanel, v[i]);
}

// To [column][kPanel], with zeros behind the last row up to a whole vector.
template <class A, class T>
void pack_turned(A* to, const RowsAt& from, int rows, int64_t columns) {
  for (int r = 0; r < rows; r += W<A>)
    for (int64_t c = 0; c < columns; c += W<A>) {
      if constexpr (sizeof(T) == sizeof(A))  // 16 bits and truth values are widened first
        if (from.step == 1 && rows - r >= W<A> && columns - c >= W<A>) {
          turn_square<A>(to + c * kPanel + r, static_cast<const T*>(from.data) + c, from.offset + r);
          continue;
        }
      Vec<A> v[W<A>];
      for (int i = 0; i < W<A>; ++i) {
        v[i] = Vec<A>{};
        if (r + i >= rows) continue;
        const T* const row = static_cast<const T*>(from.data) + from.offset[r + i];
        if (from.step == 1)
          v[i] = load_first<A>(row + c, columns - c);
        else
          for (int j = 0; j < W<A> && c + j < columns; ++j) v[i][j] = get<A>(row + (c + j) * from.step);
      }
      transpose<A>(v);
      for (int i = 0; i < W<A> && c + i < columns; ++i) store<A>(to + (c + i) * kPanel + r, v[i]);
    }
}

// From segments of `room` rows, each times its factor, to neighbouring elements. A zero is 0, not -0: sums that were put together of
// parts have no other.
template <class A, class T>
void store_segments(void* data, const int64_t* offset, const A* from, int64_t room, int rows, int64_t columns,
                    const A* factor) {
  for (int r = 0; r < rows; ++r) {
    T* const row = static_cast<T*>(data) + offset[r];
    const Vec<A> by = splat(factor[r]);
    for (int64_t first = 0; first < columns; first += kPanel) {
      const A* const at = from + (first / kPanel * room + r) * kPanel;
      const int64_t n = columns - first < kPanel ? columns - first : kPanel, whole = n / W<A> * W<A>;
      for (int64_t c = 0; c < whole; c += W<A>) store<A>(row + first + c, fma(load<A>(at + c), by, Vec<A>{}));
      if (n > whole) store_first<A>(row + first + whole, fma(load<A>(at + whole), by, Vec<A>{}), n - whole);
    }
  }
}

// sum_c x[c] y[c] of two rows.
template <class A, class T>
A dot_rows(const RowsAt& x, const RowsAt& y, int64_t columns) {
  Vec<A> s{};
  const T *const a = static_cast<const T*>(x.data) + *x.offset, *const b = static_cast<const T*>(y.data) + *y.offset;
  for (int64_t c = 0; c < columns; c += W<A>) {
    if (x.step == 1 && y.step == 1) {
      s = fma(load_first<A>(a + c, columns - c), load_first<A>(b + c, columns - c), s);
    } else {
      for (int i = 0; i < W<A> && c + i < columns; ++i)
        s[i] = fma(splat(get<A>(a + (c + i) * x.step)), splat(get<A>(b + (c + i) * y.step)), splat(s[i]))[0];
    }
  }
  for (int half = W<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
}

// What depends on the type of elements, chosen once a call: kernels are compiled for A alone.
template <class A>
struct Elements {
  int64_t size;
  bool (*pack_segments)(A* to, int64_t room, const RowsAt& from, int rows, int64_t columns);
  void (*pack_turned)(A* to, const RowsAt& from, int rows, int64_t columns);
  void (*store_segments)(void* data, const int64_t* offset, const A* from, int64_t room, int rows, int64_t columns,
                         const A* factor);
  A (*dot_rows)(const RowsAt& x, const RowsAt& y, int64_t columns);
  A (*read)(const void* data, int64_t i);
  void (*write)(void* data, int64_t i, A value);
};
template <class A, class T>
constexpr Elements<A> elements_of() {
  return {static_cast<int64_t>(sizeof(T)),
          pack_segments<A, T>,
          pack_turned<A, T>,
          store_segments<A, T>,
          dot_rows<A, T>,
          [](const void* data, int64_t i) { return get<A>(static_cast<const T*>(data) + i); },
          [](void* data, int64_t i, A value) { store_some<A>(static_cast<T*>(data) + i, splat(value), 1); }};
}
template <class A>
inline Elements<A> elements_for(DType type) {
  if constexpr (std::is_same_v<A, double>) {
    static_cast<void>(type);
    return elements_of<double, double>();
  } else {
    return type == DType::f32   ? elements_of<float, float>()
           : type == DType::f16 ? elements_of<float, f16>()
                                : elements_of<float, bf16>();
  }
}

}  // namespace
}  // namespace hetkern::cpu
