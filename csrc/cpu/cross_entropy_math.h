// The formulas of csrc/cross_entropy.h: the same for rows and for columns.
#pragma once
#include "../cross_entropy.h"
#include "row_job.h"

namespace hetkern::cpu {
namespace {

// ---- Forward: what a row's chunks add up to. ------------------------------------------------------------------------

// sum_j w_j (z_j - max) and sum_j w_j: logarithms come from scores shifted by the maximum, or digits are lost.
template <class A>
struct Weighted {
  double dot = 0, weight = 0;  // a float would round chunk by chunk: 128257 equal terms lose 6 eps
  Weighted shifted(A by) const { return {by == 0 || weight == 0 ? dot : dot + weight * by, weight}; }
  friend Weighted operator+(const Weighted& a, const Weighted& b) { return {a.dot + b.dot, a.weight + b.weight}; }
  friend Weighted operator*(double factor, const Weighted& a) { return {factor * a.dot, factor * a.weight}; }
};

template <class A>
struct LossSum {
  RowSum<A> exp;
  Weighted<A> target;     // of t_j (indices: of w_j, for the smoothing)
  Weighted<A> plain;      // of q_j
  double moment = 0;      // sum_j exp(z_j - max) (z_j - max)
  bool stats = false;     // moment and first_max are wanted
  int64_t first_max = 0;  // the first column whose score is max
  A target_max = -kInfinity<A>;
  int64_t target_first_max = 0;
};

// b follows a in the row.
template <class A>
inline LossSum<A> combine(const LossSum<A>& a, const LossSum<A>& b) {
  LossSum<A> both;
  both.exp = combine(a.exp, b.exp);
  const A a_shift = a.exp.max == both.exp.max ? A(0) : a.exp.max - both.exp.max;
  const A b_shift = b.exp.max == both.exp.max ? A(0) : b.exp.max - both.exp.max;
  both.target = a.target.shifted(a_shift) + b.target.shifted(b_shift);
  both.plain = a.plain.shifted(a_shift) + b.plain.shifted(b_shift);
  both.stats = a.stats || b.stats;
  const auto moment = [&](const LossSum<A>& part, A shift) {
    if (!both.stats || shift == 0 || part.exp.max == -kInfinity<A>) return part.moment;
    return exp_one(shift) * (part.moment + shift * part.exp.all());
  };
  both.moment = moment(a, a_shift) + moment(b, b_shift);
  both.first_max = b_shift == 0 && a_shift != 0 ? b.first_max : a.first_max;
  both.target_max = b.target_max > a.target_max ? b.target_max : a.target_max;
  both.target_first_max = b.target_max > a.target_max ? b.target_first_max : a.target_first_max;
  return both;
}

// exp underflows to 0 long before this; a product with it must not be NaN where z is -inf.
template <class A>
inline Vec<A> bounded_below(Vec<A> s) {
  return max(splat(A(-1e4)), s);
}

// t_j of class probabilities, from q_j and w_j.
template <class A>
struct TargetTerm {
  A keep, spread;  // 1 - eps, eps / N
  double label_smoothing;
  int64_t N;
  TargetTerm(const Targets& target, int64_t N_)
      : keep(static_cast<A>(1 - target.label_smoothing)),
        spread(static_cast<A>(target.label_smoothing / N_)),
        label_smoothing(target.label_smoothing),
        N(N_) {}
  Vec<A> operator()(Vec<A> q, Vec<A> w) const { return w * (keep * q + spread); }
  // Whether the two parts are added up apart. A single t_j is its own sum, to the last bit.
  bool splits() const { return label_smoothing > 0 && N > 1; }
  // The sums of t_j, from those of w_j q_j and of w_j: beside a q_j near 1 the small equal terms of a float's sum round all
  // the same way.
  Weighted<A> sums(const Weighted<A>& of_q, const Weighted<A>& of_w) const {
    const Weighted<A> spread_evenly = (label_smoothing / static_cast<double>(N)) * of_w;
    return label_smoothing == 1 ? spread_evenly : (1 - label_smoothing) * of_q + spread_evenly;  // of_q may be infinite
  }
};

// Whether t_j is q_j: the row's term is then -log_prob.
inline bool same_as_probabilities(const Targets& target) {
  return target.probability && !target.weight && target.label_smoothing == 0;
}

// ---- A row's target. ------------------------------------------------------------------------------------------------

// What tasks report of the targets they met: the result does not depend on their order.
struct Met {
  int64_t first_bad = -1;  // row
  int64_t ignored = 0;     // rows
};

inline void meet_bad(Met& met, int64_t row) {
  int64_t seen = __atomic_load_n(&met.first_bad, __ATOMIC_RELAXED);
  while ((seen < 0 || row < seen) &&
         !__atomic_compare_exchange_n(&met.first_bad, &seen, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// The row's class t, or -1 if it does not count.
inline int64_t class_of(const Rows& rows, const Targets& target, int64_t t, int64_t row, Met& met) {
  if (t != target.ignore_index && t >= 0 && t < rows.N) return t;
  if (t != target.ignore_index) meet_bad(met, row);
  __atomic_fetch_add(&met.ignored, 1, __ATOMIC_RELAXED);
  return -1;
}

inline int64_t class_of(const Rows& rows, const Targets& target, const RowIndex& at, int64_t row, Met& met) {
  return class_of(rows, target, *row_of<const int64_t>(rows, target.index, at), row, met);
}

inline BadTarget bad_target(const Rows& rows, const Targets& target, const Met& met) {
  if (met.first_bad < 0) return {};
  return {met.first_bad, *row_of<const int64_t>(rows, target.index, row_index(rows, met.first_bad))};
}

// ---- Forward: the row's results. ------------------------------------------------------------------------------------

template <class A>
inline void put(const Rows& rows, const Operand& operand, const RowIndex& at, A value) {
  if (operand) *row_of<A>(rows, operand, at) = value;
}

template <class A, class X>
inline void finish_loss(const CrossEntropyForward& p, const Score<A>& score, Met& met, int64_t row,
                        const LossSum<A>& total) {
  const RowIndex at = row_index(p.rows, row);
  const RowSum<A> sum = finished(total.exp);
  const A m = sum.max, d = sum.log_all();
  const bool wants_lse = p.correct || p.z_loss_factor != 0;
  const double exact_d = wants_lse ? std::log1p(sum.sum) : 0;  // lse and entropy may be near 0
  const A lse = static_cast<A>(m + exact_d);

  // The row's term.
  bool counted = true, correct = false;
  A term, log_prob, weight = 1;
  if (p.target.index) {
    const int64_t t = class_of(p.rows, p.target, at, row, met);
    counted = t >= 0;
    term = log_prob = weight = 0;
    if (counted) {
      const A z = score(splat(get<A>(row_of<const X>(p.rows, p.x, at) + t * p.x.step)))[0];
      weight = p.target.weight ? static_cast<const A*>(p.target.weight)[t] : A(1);
      log_prob = (z - m) - d;
      term = -(weight * log_prob);
      if (p.target.label_smoothing > 0) {
        const TargetTerm<A> share(p.target, p.rows.N);
        term = share.keep * term + share.spread * (total.target.weight * d - total.target.dot);
      }
      correct = t == total.first_max;
    }
  } else {
    term = total.target.weight * d - total.target.dot;
    log_prob = total.plain.dot - total.plain.weight * d;
    correct = total.target_first_max == total.first_max;
  }
  const A z_term = counted && p.z_loss_factor != 0 ? static_cast<A>(p.z_loss_factor) * (lse * lse) : A(0);

  // What backward needs, and what the reduction adds up.
  A* const saved = row_of<A>(p.rows, p.saved, at);
  saved[0] = m, saved[p.saved.step] = d;
  if (p.target.probability) saved[2 * p.saved.step] = total.target.weight, saved[3 * p.saved.step] = total.plain.weight;
  if (p.terms) {
    A* plane = static_cast<A*>(p.terms) + row;
    *plane = term;
    if (p.z_loss_factor != 0) *(plane += p.rows.M) = z_term;
    if (p.target.weight && p.target.index) *(plane += p.rows.M) = weight;
  }
  put(p.rows, p.loss, at, term + z_term);

  // Statistics.
  if (!p.correct) return;
  put(p.rows, p.row_loss, at, term + z_term), put(p.rows, p.lse, at, lse), put(p.rows, p.z_loss, at, z_term);
  put(p.rows, p.entropy, at, static_cast<A>(exact_d - total.moment / sum.all())), put(p.rows, p.log_prob, at, log_prob);
  put(p.rows, p.correct, at, correct && lse == lse);
}

// ---- Backward. ------------------------------------------------------------------------------------------------------

// Only p and the target's own column take part: class indices without smoothing, no gradient of an entropy.
inline bool has_plain_gradient(const CrossEntropyBackward& p) {
  return p.target.index && p.target.label_smoothing == 0 && !p.d_entropy;
}

// One row's gradient in numbers, with s = z - m and p = exp(s) inverse:
//   dz_j = p_j (f0 - f1 s_j) + u (T p_j - t_j) - g (Q p_j - q_j)          dq_j = g log p_j - u (1 - eps) w_j log p_j
// For class indices t_j is w_j, T their sum and u has the factor eps / N; the target's own term is `dx_at`. The differences
// are not multiplied out: they vanish where p is the target. A p above a half is the maximum's, and may be nearly all, as t_j
// of T: p - 1 keeps its digits in T p_j - t_j = T (p_j - 1) + (T - t_j). What gradients from above add up to may cancel: once a
// row, doubles take their sums.
template <class A>
struct RowGradient {
  A m, d, inverse, f0, f1, u, T, g, Q;
  A max_less_1;  // p - 1 of the maximum; unless has_plain_gradient
  bool nothing;  // ignored, and no statistic of it is differentiated: zeros, whatever the row holds
  int64_t at;    // the target's column, or -1
  A dx_at;       // dx there
};

template <class A>
inline double upstream(const Rows& rows, const Operand& operand, const RowIndex& at) {
  return operand ? *row_of<const A>(rows, operand, at) : A(0);
}

// weight_sum: of the class weights.
template <class A, class X>
inline RowGradient<A> row_gradient(const CrossEntropyBackward& p, const Score<A>& score, Met& met, int64_t row,
                                   A weight_sum) {
  const RowIndex at = row_index(p.rows, row);
  const A* const saved = row_of<const A>(p.rows, p.saved, at);
  const A* const divisors = row_of<const A>(p.rows, p.divisors, at);
  const auto of = [&](const Operand& operand) { return upstream<A>(p.rows, operand, at); };
  const TargetTerm<A> share(p.target, p.rows.N);
  RowGradient<A> r{};
  r.m = saved[0], r.d = saved[p.saved.step], r.inverse = exp_one(-r.d), r.at = -1;
  if (!has_plain_gradient(p)) r.max_less_1 = expm1_one(-r.d);

  // What reaches the row's two terms and its statistics.
  const int64_t t = p.target.index ? class_of(p.rows, p.target, at, row, met) : 0;
  const bool counted = t >= 0;
  double u = 0, v = 0, g = 0, f0 = of(p.d_lse);
  const double f1 = of(p.d_entropy);
  if (counted) {
    u = of(p.d_row_loss), v = u + of(p.d_z_loss), g = of(p.d_log_prob);
    if (p.d_loss) u += of(p.d_loss) / divisors[0], v += of(p.d_loss) / divisors[p.divisors.step];
  }
  r.nothing = !counted && !p.d_lse && !p.d_entropy;
  if (p.d_entropy) f0 += f1 * (r.d - of(p.entropy));  // p (f0 - d_entropy (log p + H)), log p = s - d
  if (counted && p.z_loss_factor != 0) f0 += 2 * p.z_loss_factor * (r.m + static_cast<double>(r.d)) * v;
  r.f0 = static_cast<A>(f0), r.f1 = static_cast<A>(f1);
  if (p.target.probability) {
    if (same_as_probabilities(p.target)) u -= g, g = 0;
    r.u = static_cast<A>(u), r.g = static_cast<A>(g), r.T = saved[2 * p.saved.step], r.Q = saved[3 * p.saved.step];
    return r;
  }
  r.u = static_cast<A>(u * share.spread), r.T = weight_sum;
  if (!counted) return r;

  // dz_t has own (p_t - 1), where p_t - 1 keeps its digits; the other columns have own p_j.
  const auto* const weights = static_cast<const A*>(p.target.weight);
  const A w = weights ? weights[t] : A(1);
  const double own = u * share.keep * w - g;
  const Vec<A> x = splat(get<A>(row_of<const X>(p.rows, p.x, at) + t * p.x.step)), s = score(x) - r.m;
  const A p_t = exp_one(s[0]) * r.inverse;
  const double dz = p_t * (f0 - f1 * bounded_below<A>(s)[0]) + r.u * (r.T * p_t - w) + own * expm1_one(s[0] - r.d);
  r.at = t, r.dx_at = static_cast<A>(dz * score.slope(x)[0]);
  r.f0 = static_cast<A>(f0 + own), r.g = 0;
  return r;
}

// The same on vectors: one row in all lanes, or a row a lane.
template <class A>
struct GradientFormula {
  Vec<A> m, d, inverse, f0, f1, u, T, g, Q, max_less_1;
  Mask<A> nothing;
  explicit GradientFormula(const RowGradient<A>& r) {
    for (int i = 0; i < W<A>; ++i) set(i, r);
  }
  void set(int i, const RowGradient<A>& r) {
    m[i] = r.m, d[i] = r.d, inverse[i] = r.inverse, max_less_1[i] = r.max_less_1, f0[i] = r.f0, f1[i] = r.f1;
    u[i] = r.u, T[i] = r.T, g[i] = r.g, Q[i] = r.Q, nothing[i] = -static_cast<int>(r.nothing);
  }
  // dz where has_plain_gradient.
  Vec<A> plain(Vec<A> z) const { return exp_nonpositive(z - m) * (inverse * f0); }
  // dz anywhere; q is 0 for class indices.
  Vec<A> full(Vec<A> z, Vec<A> t, Vec<A> q) const {
    const Vec<A> s = z - m, p = exp_nonpositive(s) * inverse;
    const auto less = [&](Vec<A> sum, Vec<A> part) {
      return p > A(0.5) ? sum * max_less_1 + (sum - part) : sum * p - part;
    };
    return p * (f0 - f1 * bounded_below<A>(s)) + (u * less(T, t) - g * less(Q, q));
  }
  // dq. Two terms add up, of opposite infinities to NaN, as torch's; `with_g` where there are two.
  Vec<A> target(Vec<A> z, Vec<A> w, A keep, bool with_g) const {
    const Vec<A> log_p = z - m - d, own = -(u * keep * w) * log_p;
    return with_g ? g * log_p + own : own;
  }
};

}  // namespace
}  // namespace hetkern::cpu
