// The formulas of csrc/cross_entropy.h for one element, one row.                          (the CPU's: cpu/cross_entropy_math.h)
#pragma once
#include "../../cross_entropy.h"
#include "check.cuh"
#include "row.cuh"

namespace hetkern::cuda {

// ---- Forward: what a row's elements add up to. ----------------------------------------------------------------------------

// sum_j w_j (z_j - max) and sum_j w_j: logarithms come from scores shifted by the maximum, or digits are lost.
template <class A>
struct Weighted {
  double dot = 0, weight = 0;  // a float would round vector by vector: 128257 equal terms lose 6 eps
  __device__ void shift(A by) {
    if (by != 0 && weight != 0) dot += weight * by;
  }
  // A vector's terms: w_j and z_j - max.
  template <int V>
  __device__ __forceinline__ void add(const A (&w)[V], const A (&s)[V], int count) {
    A d = 0, t = 0;
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (i < count) d += w[i] * s[i], t += w[i];
    dot += d, weight += t;
  }
};

// The largest of what came, and where it first stood.
template <class A>
struct Largest {
  A value = -kInfinity<A>;
  int64_t first = 0;
  __device__ void add(A v, int64_t j) {
    if (v > value || (v == value && j < first)) value = v, first = j;
  }
};

template <class A>
struct LossSum {
  RowSum<A> exp;
  Weighted<A> target;  // of t_j (indices: of w_j, for the smoothing)
  Weighted<A> plain;   // of q_j
  A moment = 0;        // sum_j exp(z_j - max) (z_j - max)
  A target_max = -kInfinity<A>;
  int64_t first_max = 0;  // the first column whose score is max
  int64_t target_first_max = 0;
};

template <class A>
__device__ __forceinline__ LossSum<A> combine(const LossSum<A>& a, const LossSum<A>& b) {
  LossSum<A> both;
  both.exp = combine(a.exp, b.exp);
  const A max = both.exp.max;
  const A a_shift = a.exp.max == max ? A(0) : a.exp.max - max, b_shift = b.exp.max == max ? A(0) : b.exp.max - max;
  const auto add = [&](Weighted<A> left, Weighted<A> right) {
    left.shift(a_shift), right.shift(b_shift);
    return Weighted<A>{left.dot + right.dot, left.weight + right.weight};
  };
  both.target = add(a.target, b.target);
  both.plain = add(a.plain, b.plain);
  const auto moment = [](const LossSum<A>& part, A shift) {
    if (shift == 0 || part.exp.max == -kInfinity<A>) return part.moment;
    return exp_one(shift) * (part.moment + shift * part.exp.all());
  };
  both.moment = moment(a, a_shift) + moment(b, b_shift);
  Largest<A> z{a.exp.max, a.first_max}, q{a.target_max, a.target_first_max};
  z.add(b.exp.max, b.first_max), q.add(b.target_max, b.target_first_max);
  both.first_max = z.first, both.target_max = q.value, both.target_first_max = q.first;
  return both;
}

// exp underflows to 0 long before this; a product with it must not be NaN where z is -inf.
template <class A>
__device__ __forceinline__ A bounded_below(A s) {
  return s < A(-1e4) ? A(-1e4) : s;
}

// t_j of class probabilities, from q_j and w_j.
template <class A>
struct TargetTerm {
  A keep, spread;  // 1 - eps, eps / N
  __device__ TargetTerm(const Targets& target, int64_t N)
      : keep(static_cast<A>(1 - target.label_smoothing)),
        spread(static_cast<A>(target.label_smoothing / static_cast<double>(N))) {}
  __device__ A operator()(A q, A w) const { return w * (keep * q + spread); }
};

// Whether t_j is q_j: the row's term is then -log_prob.
__device__ __forceinline__ bool same_as_probabilities(const Targets& target) {
  return target.probability && !target.weight && target.label_smoothing == 0;
}

// ---- A row's target. ------------------------------------------------------------------------------------------------------

#define HETKERN_CHECK_TARGET(op, t, rows, target, row)                                                          \
  HETKERN_DEVICE_CHECK((t) >= 0 && (t) < (rows).N,                                                              \
                       op ": target: wanted a class in [0, %lld) or ignore_index %lld, got %lld in row %lld\n", \
                       static_cast<long long>((rows).N), static_cast<long long>((target).ignore_index),         \
                       static_cast<long long>(t), static_cast<long long>(row))

// The row's class, or -1 if it does not count.
__device__ __forceinline__ int64_t class_of(const Rows& rows, const Targets& target, const RowIndex& at) {
  const int64_t t = *row_of<const int64_t>(rows, target.index, at);
  return t != target.ignore_index && t >= 0 && t < rows.N ? t : -1;
}

template <class A>
__device__ __forceinline__ void put(const Rows& rows, const Operand& operand, const RowIndex& at, A value) {
  if (operand) *row_of<A>(rows, operand, at) = value;
}

// ---- Backward. ------------------------------------------------------------------------------------------------------------

// Only p and the target's own column take part: class indices without smoothing, no gradient of an entropy.
__device__ __forceinline__ bool has_plain_gradient(const CrossEntropyBackward& p) {
  return p.target.index && p.target.label_smoothing == 0 && !p.d_entropy;
}

// One row's gradient in numbers, with s = z - m and p = exp(s) inverse:
//   dz_j = p_j (f0 - f1 s_j) + u (T p_j - t_j) - g (Q p_j - q_j)          dq_j = g log p_j - u (1 - eps) w_j log p_j
// For class indices t_j is w_j, T their sum and u has the factor eps / N; the target's own term is `dx_at`. The differences
// are not multiplied out: they vanish where p is the target.
template <class A>
struct RowGradient {
  A m, d, inverse, f0, f1, u, T, g, Q;
  bool nothing;  // ignored, and no statistic of it is differentiated: zeros, whatever the row holds
  int64_t at;    // the target's column, or -1
  A dx_at;       // dx there
  // dz where has_plain_gradient.
  __device__ __forceinline__ A plain(A z) const { return exp_one(z - m) * (inverse * f0); }
  // dz anywhere; q is 0 for class indices.
  __device__ __forceinline__ A full(A z, A t, A q) const {
    const A s = z - m, p = exp_one(s) * inverse;
    return p * (f0 - f1 * bounded_below(s)) + (u * (T * p - t) - g * (Q * p - q));
  }
  // dq. Two terms add up, of opposite infinities to NaN, as torch's; `with_g` where there are two.
  __device__ __forceinline__ A target(A z, A w, A keep, bool with_g) const {
    const A log_p = z - m - d, own = -(u * keep * w) * log_p;
    return with_g ? g * log_p + own : own;
  }
};

// weight_sum: of the class weights; t, x: the row's class and its logit, where it has one (else t is negative).
template <class A>
__device__ __forceinline__ RowGradient<A> row_gradient(const CrossEntropyBackward& p, const Score<A>& score,
                                                       const RowIndex& at, A weight_sum, int64_t t, A x) {
  const A* const saved = row_of<const A>(p.rows, p.saved, at);
  const A* const divisors = row_of<const A>(p.rows, p.divisors, at);
  const auto of = [&](const Operand& operand) { return operand ? *row_of<const A>(p.rows, operand, at) : A(0); };
  const TargetTerm<A> share(p.target, p.rows.N);
  RowGradient<A> r{};
  r.m = saved[0], r.d = saved[p.saved.step], r.inverse = exp_one(-r.d), r.at = -1;

  // What reaches the row's two terms and its statistics.
  const bool counted = t >= 0 || p.target.probability;
  A u = 0, v = 0;
  if (counted) {
    u = of(p.d_row_loss), v = u + of(p.d_z_loss);
    if (p.d_loss) {
      const A d_loss = of(p.d_loss);
      u += d_loss / divisors[0], v += d_loss / divisors[p.divisors.step];
    }
    r.g = of(p.d_log_prob);
  }
  r.nothing = !counted && !p.d_lse && !p.d_entropy;
  r.f0 = of(p.d_lse), r.f1 = of(p.d_entropy);
  if (p.d_entropy) r.f0 += r.f1 * (r.d - of(p.entropy));  // p (f0 - d_entropy (log p + H)), log p = s - d
  if (counted && p.z_loss_factor != 0) r.f0 += 2 * static_cast<A>(p.z_loss_factor) * (r.m + r.d) * v;
  if (p.target.probability) {
    if (same_as_probabilities(p.target)) u -= r.g, r.g = 0;
    r.u = u, r.T = saved[2 * p.saved.step], r.Q = saved[3 * p.saved.step];
    return r;
  }
  r.u = u * share.spread, r.T = weight_sum;
  if (!counted) return r;

  // dz_t has own (p_t - 1), where p_t - 1 keeps its digits; the other columns have own p_j.
  const auto* const weights = static_cast<const A*>(p.target.weight);
  const A w = weights ? weights[t] : A(1), own = u * share.keep * w - r.g;
  const A s = score(x) - r.m, p_t = exp_one(s) * r.inverse;
  const A dz = p_t * (r.f0 - r.f1 * bounded_below(s)) + r.u * (r.T * p_t - w) + own * expm1_one(s - r.d);
  r.at = t, r.dx_at = dz * score.slope(x);
  r.f0 += own, r.g = 0;
  return r;
}

}  // namespace hetkern::cuda
