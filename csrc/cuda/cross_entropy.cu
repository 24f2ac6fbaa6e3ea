// Row cross-entropy on a GPU: forward and backward.                             (the contract: csrc/cross_entropy.h)
//
//   m_i   = max_j z_ij         d_i = log1p(sum_{j != argmax} exp(z_ij - m_i))
//   row_i = w_t (m_i - z_it + d_i)                              dx_ij = (exp(z_ij - m_i - d_i) a_i - ...) dz/dx
//
// x, dx: M rows of N; float, double, half or bfloat16; m, d, losses and statistics are A: float, double for double.
// Work:    a block takes several short rows, one, or (sm_90) a cluster of blocks takes one; over an inner dimension, a thread is
//          a row. One block adds up the rows' terms. Backward reduces nothing: its blocks take pieces of all rows.
// Traffic: forward reads MN elements (and the probabilities) once; backward reads MN and writes MN.
// Edges:   a class out of range is skipped and trapped; nothing counted gives a mean of NaN.
#include "../cross_entropy.h"
#include "device/loss.cuh"
#include "device/team.cuh"
#include "gpu.h"

namespace hetkern::cuda {
namespace {

// ---- Forward. -------------------------------------------------------------------------------------------------------------

// What every loss needs: the row's maximum and sum. `Sum` is RowSum for class indices without smoothing and without statistics,
// else LossSum.
template <class A_, class X, bool with_statistics>
struct LossRows {
  using A = A_;
  using Params = CrossEntropyForward;
  using Total = std::conditional_t<with_statistics, LossSum<A>, RowSum<A>>;
  static constexpr int V = vector_of(sizeof(X)), kPlanes = 0;
  struct Row {
    Span<const X, V> x, q;
    int64_t index;
  };
  struct Terms {
    OnlineSum<A> exp;
    LossSum<A> more;  // without its exp
  };
  const Params& p;
  Score<A> score;
  TargetTerm<A> term;
  const A* weight;
  __device__ explicit LossRows(const Params& params)
      : p(params),
        score(p.scale, p.softcap),
        term(p.target, p.rows.N),
        weight(static_cast<const A*>(p.target.weight)) {}

  __device__ Row row(int64_t r) const {
    const RowIndex at = index_of(p.rows, r);
    return {{p.rows, p.x, at}, {p.rows, p.target.probability, at}, r};
  }

  __device__ __forceinline__ void add(Terms& terms, const Row& row, int64_t j, int count, Kept) const {
    A z[V];
    unpack(row.x.fetch(j, count), z);
#pragma unroll
    for (int i = 0; i < V; ++i) z[i] = i < count ? score(z[i]) : -kInfinity<A>;
    if constexpr (with_statistics) {
      add_targets(terms, row, j, count, z);
    } else {
      terms.exp.add(z);
    }
  }

  // The same, and sum_j t_j (z_j - max), sum_j t_j and the like.
  __device__ __forceinline__ void add_targets(Terms& terms, const Row& row, int64_t j, int count,
                                              const A (&z)[V]) const {
    LossSum<A>& more = terms.more;
    const A before = terms.exp.max;
    A largest = z[0];
#pragma unroll
    for (int i = 1; i < V; ++i) largest = larger(largest, z[i]);
    const A all = terms.exp.sum + static_cast<A>(terms.exp.equal), by = terms.exp.raise(largest);
    if (by != 0) {
      more.target.shift(by), more.plain.shift(by);
      if (before > -kInfinity<A>) more.moment = exp_one(by) * (more.moment + by * all);
      more.first_max = INT64_MAX;
    }
    terms.exp.add(z);
    const A top = terms.exp.shift();
    A s[V], w[V], q[V];
    const bool smooth = p.target.label_smoothing > 0, weighted = weight && (row.q || smooth);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      s[i] = z[i] - top;
      w[i] = weighted && i < count ? weight[j + i] : A(1);
      if (i >= count) continue;
      if (z[i] == terms.exp.max && j + i < more.first_max) more.first_max = j + i;
      if (p.correct) more.moment += exp_one(s[i]) * bounded_below(s[i]);
    }
    if (!row.q) {
      if (smooth) more.target.add(w, s, count);
      return;
    }
    unpack(row.q.fetch(j, count), q);
    more.plain.add(q, s, count);
    Largest<A> most{more.target_max, more.target_first_max};
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i < count) most.add(q[i], j + i);
      w[i] = term(q[i], w[i]);
    }
    more.target_max = most.value, more.target_first_max = most.first;
    if (!same_as_probabilities(p.target)) more.target.add(w, s, count);
  }

  __device__ Total total(const Terms& terms) const {
    RowSum<A> exp = terms.exp.total();
    exp.kept = 1;
    if constexpr (with_statistics) {
      LossSum<A> all = terms.more;
      all.exp = exp;
      if (same_as_probabilities(p.target)) all.target = all.plain;
      return all;
    } else {
      return exp;
    }
  }

  __device__ Total finish(const Row& row, const Total& total, bool leader) const {
    if (!leader) return total;
    if constexpr (with_statistics) {
      finish_loss(row, total);
    } else {
      LossSum<A> whole;
      whole.exp = total;
      finish_loss(row, whole);
    }
    return total;
  }

  __device__ __forceinline__ void finish_loss(const Row& row, const LossSum<A>& total) const {
    const RowIndex at = index_of(p.rows, row.index);
    const RowSum<A> sum = finished(total.exp);
    const A m = sum.max, d = sum.log_all(), lse = m + d;

    // The row's term.
    bool counted = true, correct = false;
    A loss, log_prob, w = 1;
    if (p.target.index) {
      const int64_t t = *row_of<const int64_t>(p.rows, p.target.index, at);
      if (t != p.target.ignore_index) HETKERN_CHECK_TARGET("hetkern::cross_entropy", t, p.rows, p.target, row.index);
      counted = class_of(p.rows, p.target, at) >= 0;
      loss = log_prob = w = 0;
      if (counted) {
        const A z = score(get<A>(row.x.at[t * row.x.step]));
        w = weight ? weight[t] : A(1);
        log_prob = (z - m) - d;
        loss = -(w * log_prob);
        if (p.target.label_smoothing > 0)
          loss = static_cast<A>(term.keep * loss + term.spread * (total.target.weight * d - total.target.dot));
        correct = t == total.first_max;
      }
    } else {
      loss = static_cast<A>(total.target.weight * d - total.target.dot);
      log_prob = static_cast<A>(total.plain.dot - total.plain.weight * d);
      correct = total.target_first_max == total.first_max;
    }
    const A z_term = counted && p.z_loss_factor != 0 ? static_cast<A>(p.z_loss_factor) * (lse * lse) : A(0);

    // What backward needs, and what the reduction adds up.
    A* const saved = row_of<A>(p.rows, p.saved, at);
    saved[0] = m, saved[p.saved.step] = d;
    if (p.target.probability)
      saved[2 * p.saved.step] = static_cast<A>(total.target.weight),
                saved[3 * p.saved.step] = static_cast<A>(total.plain.weight);
    if (p.terms) {
      A* plane = static_cast<A*>(p.terms) + row.index;
      *plane = loss;
      if (p.z_loss_factor != 0) *(plane += p.rows.M) = z_term;
      if (weight && p.target.index) *(plane += p.rows.M) = w;
    }
    put(p.rows, p.loss, at, loss + z_term);

    // Statistics.
    if (!p.correct) return;
    put(p.rows, p.row_loss, at, loss + z_term), put(p.rows, p.lse, at, lse), put(p.rows, p.z_loss, at, z_term);
    put(p.rows, p.entropy, at, d - total.moment / sum.all()), put(p.rows, p.log_prob, at, log_prob);
    put(p.rows, p.correct, at, correct && lse == lse);
  }
};

// ---- The reduction. -------------------------------------------------------------------------------------------------------

struct TermSums {
  double loss = 0, z_loss = 0, weight = 0;
  int64_t counted = 0;
};
__device__ __forceinline__ TermSums combine(const TermSums& a, const TermSums& b) {
  return {a.loss + b.loss, a.z_loss + b.z_loss, a.weight + b.weight, a.counted + b.counted};
}

constexpr int kReduceThreads = 512;

// One block adds up the planes of terms, always in the same order.
template <class A>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const __grid_constant__ CrossEntropyForward p, const BlockShape shape) {
  HETKERN_SHARED(Exchange, exchange);
  const int64_t M = p.rows.M;
  const bool with_z = p.z_loss_factor != 0, with_weight = p.target.weight && p.target.index;
  const A* const losses = static_cast<const A*>(p.terms);
  const A* const z_losses = losses + M;
  const A* const weights = with_z ? z_losses + M : z_losses;
  TermSums sums;
  for (int64_t r = threadIdx.x; p.reduced && r < M; r += kReduceThreads) {
    sums.loss += losses[r];
    if (with_z) sums.z_loss += z_losses[r];
    if (with_weight) sums.weight += weights[r];
    sums.counted += !p.target.index || class_of(p.rows, p.target, index_of(p.rows, r)) >= 0;
  }
  sums = combine_team(sums, shape, exchange, 0);
  if (threadIdx.x != 0) return;
  A* const divisors = static_cast<A*>(p.divisors);
  divisors[0] = divisors[1] = 1;
  if (!p.reduced) return;
  if (p.reduction == Reduction::mean) {
    const auto counted = static_cast<double>(sums.counted), weight = with_weight ? sums.weight : counted;
    sums.loss /= weight;
    if (with_z) sums.z_loss /= counted;
    divisors[0] = static_cast<A>(weight), divisors[1] = static_cast<A>(counted);
  }
  *static_cast<A*>(p.reduced) = static_cast<A>(sums.loss + sums.z_loss);
}

// ---- Backward. ------------------------------------------------------------------------------------------------------------

template <class A>
struct TargetLogits {
  A of[kColumnRows];
};

// Pieces of rows: `lanes` threads a row, kBackwardVectors each. Over columns a thread is a row, and its block's warps are lanes:
// the targets' logits lie in 32 places of memory, which one warp fetches for all. Doubles would spill at two blocks (sm_100).
template <class A, class X>
__global__ void __launch_bounds__(kMaxThreads, sizeof(A) == 8 ? 1 : 2)
    gradient_kernel(const __grid_constant__ CrossEntropyBackward p, const int lanes, const int rows,
                    const int64_t chunks, const bool columns) {
  HETKERN_SHARED(TargetLogits<A>, logits);  // over columns
  constexpr int V = vector_of(sizeof(X));
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = columns ? thread / rows : thread % lanes, place = columns ? thread % rows : thread / lanes;
  const int64_t pieces = divided_up(p.rows.M, rows) * chunks;
  const Score<A> score(p.scale, p.softcap);
  const TargetTerm<A> term(p.target, p.rows.N);
  const A* const weight = static_cast<const A*>(p.target.weight);
  const bool plain = has_plain_gradient(p), with_g = p.d_log_prob && !same_as_probabilities(p.target);

  A weight_sum = static_cast<A>(p.rows.N);
  if (weight && p.target.label_smoothing > 0) {  // each warp for itself, once
    double sum = 0;
    for (int64_t j = thread % 32; j < p.rows.N; j += 32) sum += weight[j];
    weight_sum = static_cast<A>(combine_lanes(sum, 32));
  }

  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    int64_t r = piece / chunks * rows + place;
    const int64_t c = piece % chunks, n = r < p.rows.M ? p.rows.N : 0;
    if (n == 0) r = 0;  // nothing to do but to keep one's warp company
    const RowIndex at = index_of(p.rows, r);
    if (p.target.index && c == 0 && lane == 0 && n > 0) {
      const int64_t t = *row_of<const int64_t>(p.rows, p.target.index, at);
      if (t != p.target.ignore_index) HETKERN_CHECK_TARGET("hetkern::cross_entropy_backward", t, p.rows, p.target, r);
    }
    const Span<const X, V> x(p.rows, p.x, at), q(p.rows, p.target.probability, at);
    const int64_t t = p.target.index ? class_of(p.rows, p.target, at) : -1;
    A logit = 0;
    if (t >= 0 && (!columns || lane == 0)) logit = get<A>(x.at[t * x.step]);
    if (columns) {
      if (lane == 0) logits.of[place] = logit;
      __syncthreads();
      logit = logits.of[place];
      __syncthreads();  // for the next piece
    }
    const RowGradient<A> gradient = row_gradient(p, score, at, weight_sum, t, logit);
    const Span<X, V> dx(p.rows, p.dx, at), dq(p.rows, p.d_target, at);

    for (int k = 0; k < kBackwardVectors; ++k) {
      const int64_t j = ((c * kBackwardVectors + k) * lanes + lane) * V;
      const int count = clamped(n - j, V);
      A z[V], slope[V] = {}, d[V], probability[V] = {}, w[V];
      unpack(x.fetch(j, gradient.nothing && !dq ? 0 : count), slope);
      if (q) unpack(q.fetch(j, count), probability);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        w[i] = weight && i < count && !plain ? weight[j + i] : A(1);
        z[i] = score(slope[i]), slope[i] = score.slope(slope[i]);
        const A dz = plain ? gradient.plain(z[i])
                           : gradient.full(z[i], q ? term(probability[i], w[i]) : w[i], q ? probability[i] : A(0));
        d[i] = gradient.nothing ? A(0) : dz * slope[i];
        if (j + i == gradient.at) d[i] = gradient.dx_at;  // the target's own column keeps more digits
      }
      dx.store(j, count, d);
      if (!dq) continue;
#pragma unroll
      for (int i = 0; i < V; ++i) d[i] = gradient.target(z[i], w[i], term.keep, with_g);
      dq.store(j, count, d);
    }
  }
}

// ---- Launchers. -----------------------------------------------------------------------------------------------------------

template <class A, class X>
void forward(const CrossEntropyForward& p, const CrossEntropyPlan& plan, void* stream) {
  if (p.rows.M > 0) {
    if (p.correct || p.target.probability || p.target.label_smoothing > 0)
      launch_rows<LossRows<A, X, true>>(p, plan, false, stream);
    else
      launch_rows<LossRows<A, X, false>>(p, plan, false, stream);
  }
  const BlockShape one{kReduceThreads, kReduceThreads, 1, kExchangeHeader};
  HETKERN_LAUNCH((reduce_kernel<A>), 1, one.threads, one.shared, stream, p, one);
}

template <class A, class X>
void backward(const CrossEntropyBackward& p, const CrossEntropyPlan& plan, void* stream) {
  const bool columns = plan.path == RowPath::columns;
  const int threads = plan.block.threads;
  const int lanes = columns ? threads / kColumnRows : plan.block.lanes < threads ? plan.block.lanes : threads;
  const int rows = threads / lanes;
  const int64_t chunks = divided_up(p.rows.N, int64_t{lanes} * vector_of(sizeof(X)) * kBackwardVectors);
  const int64_t pieces = divided_up(p.rows.M, rows) * chunks, most = int64_t{kBackwardBlocks} * gpu().processors;
  HETKERN_LAUNCH((gradient_kernel<A, X>), pieces < most ? pieces : most, threads, sizeof(TargetLogits<A>), stream, p,
                 lanes, rows, chunks, columns);
}

template <class Run>
BadTarget typed(DType x_type, const Run& run) {
  switch (x_type) {
    case DType::f32:
      run(float{}, float{});
      break;
    case DType::f64:
      run(double{}, double{});
      break;
    case DType::bf16:
      run(float{}, bf16{});
      break;
    case DType::f16:
      run(float{}, f16{});
      break;
  }
  return {};
}

BadTarget launch_forward(const CrossEntropyForward& p, CrossEntropyPlan plan, void* stream) {
  return typed(p.x_type, [&](auto a, auto x) { forward<decltype(a), decltype(x)>(p, plan, stream); });
}

BadTarget launch_backward(const CrossEntropyBackward& p, CrossEntropyPlan plan, void* stream) {
  return typed(p.x_type, [&](auto a, auto x) { backward<decltype(a), decltype(x)>(p, plan, stream); });
}

CrossEntropyPlan plan(const CrossEntropyShape& shape) { return cross_entropy_plan(shape, gpu()); }

}  // namespace

const CrossEntropyKernels& cross_entropy_kernels() {
  static const CrossEntropyKernels kernels{plan, launch_forward, launch_backward};
  return kernels;
}

}  // namespace hetkern::cuda
