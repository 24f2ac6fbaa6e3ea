// Row softmax on a GPU: forward, backward, double backward.                              (the contract: csrc/softmax.h)
//
//   m_i  = max_j z_ij          y_ij = exp(z_ij - m_i) / sum_j exp(z_ij - m_i)
//   dx_ij = y_ij (dy_ij - sum_k dy_ik y_ik) dz/dx
//
// x, y, dy, dx: M rows of N; float, double, half or bfloat16; m and the sums are A: float, double for double.
// Work:    a block takes several short rows, one, or (sm_90) a cluster of blocks takes one; over an inner dimension, a thread is
//          a row. Maximum and sum in one sweep (Milakov & Gimelshein 2018, Algorithm 3).
// Traffic: forward reads MN and writes MN elements: a row's scores wait in shared memory for their sum; backward reads 2MN
//          and writes MN. Rows too long for that are read twice.
// Edges:   a row of -inf gives NaN, as torch does; a row emptied by a mask gives 0, its logarithm -inf.
#include "../softmax.h"
#include "device/row.cuh"
#include "device/team.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

template <class X, class Y>
constexpr int kVector = vector_of(sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));

// Columns that row r of a causal call sees: j <= i + N - queries.
__device__ __forceinline__ int64_t kept_columns(int64_t N, int64_t queries, int64_t r) {
  if (queries == 0) return N;
  const int64_t kept = r % queries + N - queries + 1;
  return kept < 0 ? 0 : kept;
}

// ---- Forward. -------------------------------------------------------------------------------------------------------------

template <class A_, class X, class Y>
struct ForwardRows {
  using A = A_;
  using Params = SoftmaxForward;
  using Terms = OnlineSum<A>;
  using Total = RowSum<A>;
  static constexpr int V = kVector<X, Y>, kPlanes = 1;
  struct Row {
    Span<const X, V> x, bias;
    Span<const uint8_t, V> mask;
    Span<Y, V> y;
    const X* sink;
    A* y_sink;
    int64_t kept;  // columns before the causal edge
  };
  const Params& p;
  Score<A> score;
  __device__ explicit ForwardRows(const Params& params) : p(params), score(p.scale, p.softcap) {}

  __device__ Row row(int64_t r) const {
    const RowIndex at = index_of(p.rows, r);
    return {{p.rows, p.x, at},
            {p.rows, p.bias, at},
            {p.rows, p.mask, at},
            {p.rows, p.y, at},
            row_of<const X>(p.rows, p.sink, at),
            row_of<A>(p.rows, p.y_sink, at),
            kept_columns(p.rows.N, p.queries, r)};
  }

  // z, and whether any was kept.
  __device__ __forceinline__ bool scores(const Row& row, int64_t j, int count, A (&z)[V]) const {
    const int seen = clamped(row.kept - j, count);
    unpack(row.x.fetch(j, seen), z);
#pragma unroll
    for (int i = 0; i < V; ++i) z[i] = score(z[i]);
    if (row.bias) {
      A bias[V];
      unpack(row.bias.fetch(j, seen), bias);
#pragma unroll
      for (int i = 0; i < V; ++i) z[i] += bias[i];
    }
    bool kept = seen > 0 && !row.mask;
    if (row.mask) {
      const auto mask = row.mask.fetch(j, seen);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        z[i] = mask.e[i] ? z[i] : -kInfinity<A>;
        kept |= i < seen && mask.e[i];
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) z[i] = i < seen ? z[i] : -kInfinity<A>;
    return kept;
  }

  __device__ __forceinline__ void add(Terms& terms, const Row& row, int64_t j, int count, Kept keep) const {
    A z[V];
    terms.kept |= scores(row, j, count, z);
    if (keep) keep.store(0, z);
    terms.add(z);
  }
  __device__ Total total(const Terms& terms) const { return terms.total(); }

  __device__ Total finish(const Row& row, Total whole, bool leader) const {
    if (!row.sink) return finished(whole);
    const A sink = get<A>(*row.sink);
    whole = finished(combine(whole, RowSum<A>{sink}));
    if (leader) *row.y_sink = sink_output(sink, whole);
    return whole;
  }

  // What the sink's own column would have got.
  __device__ A sink_output(A sink, const Total& row) const {
    if (row.max == -kInfinity<A> && !row.kept) return p.log ? -kInfinity<A> : A(0);
    return p.log ? sink - row.max - row.log_all() : exp_one(sink - row.max) / row.all();
  }

  __device__ __forceinline__ void write(const Row& row, int64_t j, int count, Kept keep, const Total& whole) const {
    A z[V];
    if (keep)
      keep.load(0, z);
    else
      scores(row, j, count, z);
    const A shift = whole.max == -kInfinity<A> ? A(0) : whole.max;
    const A factor = p.log ? whole.log_all() : A(1) / whole.all();
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const A s = z[i] - shift;
      const A y = p.log ? s - factor : exp_nonpositive(s) * factor;
      z[i] = whole.kept ? y : p.log ? -kInfinity<A> : A(0);  // an emptied row has nothing but its masked columns
    }
    row.y.store(j, count, z);
  }
};

// ---- Backward. ------------------------------------------------------------------------------------------------------------

template <class A_, class X, class Y>
struct BackwardRows {
  using A = A_;
  using Params = SoftmaxBackward;
  using Terms = GradientSum<A>;
  using Total = GradientSum<A>;
  static constexpr int V = kVector<X, Y>, kPlanes = 2;
  struct Row {
    Span<const Y, V> dy, y;  // dy's step is 0 where a sum's gradient is expanded
    Span<X, V> dx;
    Span<const X, V> x;
    Span<const uint8_t, V> mask;
    int64_t kept;
    A y_sink;
  };
  const Params& p;
  Score<A> score;
  __device__ explicit BackwardRows(const Params& params) : p(params), score(p.scale, p.softcap) {}

  __device__ Row row(int64_t r) const {
    const RowIndex at = index_of(p.rows, r);
    return {{p.rows, p.dy, at},
            {p.rows, p.y, at},
            {p.rows, p.dx, at},
            {p.rows, p.x, at},
            {p.rows, p.mask, at},
            kept_columns(p.rows.N, p.queries, r),
            p.y_sink ? *row_of<const A>(p.rows, p.y_sink, at) : A(0)};
  }

  __device__ __forceinline__ void fetch(const Row& row, int64_t j, int count, A (&dy)[V], A (&y)[V]) const {
    const int seen = clamped(row.kept - j, count);
    const auto raw_dy = row.dy.fetch(j, p.log ? count : seen);
    const auto raw_y = row.y.fetch(j, seen);
    unpack(raw_dy, dy), unpack(raw_y, y);
  }

  // sum dy y, log: sum dy.
  __device__ __forceinline__ void add(Terms& terms, const Row& row, int64_t j, int count, Kept keep) const {
    const int seen = p.log ? count : clamped(row.kept - j, count);
    A dy[V], y[V];
    fetch(row, j, count, dy, y);
    if (keep) keep.store(0, dy), keep.store(1, y);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i >= seen) continue;
      if (p.log)
        terms.rest += dy[i];
      else if (y[i] > A(0.5) && dy[i] < kInfinity<A> &&
               dy[i] > -kInfinity<A>)  // an infinite dy leaves no digits to keep
        terms.set_apart(dy[i], y[i]);
      else
        terms.rest += dy[i] * y[i], terms.y_rest += y[i];
    }
  }
  __device__ Total total(const Terms& terms) const { return terms; }
  __device__ Total finish(const Row& row, Total total, bool) const {
    if (!p.log) total.rest = total.mean(row.y_sink, p.y_type);
    return total;
  }

  // After finish, total.rest is the mean.
  __device__ __forceinline__ void write(const Row& row, int64_t j, int count, Kept keep, const Total& total) const {
    const int seen = clamped(row.kept - j, count);
    A dy[V], y[V];
    if (keep)
      keep.load(0, dy), keep.load(1, y);
    else
      fetch(row, j, count, dy, y);
    A dx[V], slope[V];
    if (row.x) unpack(row.x.fetch(j, seen), slope);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      dx[i] = p.log ? dy[i] - exp_one(y[i]) * total.rest : y[i] * (dy[i] - total.top_dy - total.rest);
      dx[i] *= row.x ? score.slope(slope[i]) : score.scale;
    }
    if (row.mask) {  // a masked x may be NaN
      const auto mask = row.mask.fetch(j, seen);
#pragma unroll
      for (int i = 0; i < V; ++i) dx[i] = mask.e[i] ? dx[i] : A(0);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) dx[i] = i < seen ? dx[i] : A(0);
    row.dx.store(j, count, dx);
  }
};

// ---- Double backward. -----------------------------------------------------------------------------------------------------

template <class A>
struct TwoSums {
  A dy = 0, g = 0;
};
template <class A>
__device__ __forceinline__ TwoSums<A> combine(const TwoSums<A>& a, const TwoSums<A>& b) {
  return {a.dy + b.dy, a.g + b.g};
}

template <class A_, class X, class Y>
struct DoubleBackwardRows {
  using A = A_;
  using Params = SoftmaxDoubleBackward;
  using Terms = TwoSums<A>;
  using Total = TwoSums<A>;
  static constexpr int V = kVector<X, Y>, kPlanes = 3;
  struct Row {
    Span<const X, V> g;
    Span<const Y, V> dy, y;
    Span<Y, V> g_dy, g_y;
  };
  const Params& p;
  A scale;
  __device__ explicit DoubleBackwardRows(const Params& params) : p(params), scale(static_cast<A>(p.scale)) {}

  __device__ Row row(int64_t r) const {
    const RowIndex at = index_of(p.rows, r);
    return {{p.rows, p.g, at}, {p.rows, p.dy, at}, {p.rows, p.y, at}, {p.rows, p.g_dy, at}, {p.rows, p.g_y, at}};
  }

  __device__ __forceinline__ void fetch(const Row& row, int64_t j, int count, A (&g)[V], A (&dy)[V], A (&y)[V]) const {
    const auto raw_g = row.g.fetch(j, count);
    const auto raw_dy = row.dy.fetch(j, count), raw_y = row.y.fetch(j, count);
    unpack(raw_g, g), unpack(raw_dy, dy), unpack(raw_y, y);
  }

  // sum dy y (log: sum dy) and sum g y (log: sum g exp(y)).
  __device__ __forceinline__ void add(Terms& terms, const Row& row, int64_t j, int count, Kept keep) const {
    A g[V], dy[V], y[V];
    fetch(row, j, count, g, dy, y);
    if (keep) keep.store(0, g), keep.store(1, dy), keep.store(2, y);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i >= count) continue;
      terms.dy += p.log ? dy[i] : dy[i] * y[i];
      terms.g += g[i] * (p.log ? exp_one(y[i]) : y[i]);
    }
  }
  __device__ Total total(const Terms& terms) const { return terms; }
  __device__ Total finish(const Row&, Total total, bool) const { return total; }

  __device__ __forceinline__ void write(const Row& row, int64_t j, int count, Kept keep, const Total& sum) const {
    A g[V], dy[V], y[V];
    if (keep)
      keep.load(0, g), keep.load(1, dy), keep.load(2, y);
    else
      fetch(row, j, count, g, dy, y);
    A g_dy[V], g_y[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      g_dy[i] = p.log ? scale * (g[i] - sum.g) : scale * y[i] * (g[i] - sum.g);
      g_y[i] = p.log ? -scale * sum.dy * (g[i] * exp_one(y[i])) : scale * (g[i] * (dy[i] - sum.dy) - dy[i] * sum.g);
    }
    row.g_dy.store(j, count, g_dy);
    row.g_y.store(j, count, g_y);
  }
};

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

// The pairs of types: the same for x and y, or float32 y for 16-bit x.
template <template <class, class, class> class Job, class Params>
void run(const Params& p, SoftmaxPlan plan, void* stream) {
  switch (p.x_type) {
    case DType::f32:
      return launch_rows<Job<float, float, float>>(p, plan, plan.keep, stream);
    case DType::f64:
      return launch_rows<Job<double, double, double>>(p, plan, plan.keep, stream);
    case DType::bf16:
      return p.y_type == DType::f32 ? launch_rows<Job<float, bf16, float>>(p, plan, plan.keep, stream)
                                    : launch_rows<Job<float, bf16, bf16>>(p, plan, plan.keep, stream);
    case DType::f16:
      return p.y_type == DType::f32 ? launch_rows<Job<float, f16, float>>(p, plan, plan.keep, stream)
                                    : launch_rows<Job<float, f16, f16>>(p, plan, plan.keep, stream);
  }
}

SoftmaxPlan plan(const SoftmaxShape& shape) { return softmax_plan(shape, gpu()); }

}  // namespace

const SoftmaxKernels& softmax_kernels() {
  static const SoftmaxKernels kernels{plan, run<ForwardRows>, run<BackwardRows>, run<DoubleBackwardRows>};
  return kernels;
}

}  // namespace hetkern::cuda
