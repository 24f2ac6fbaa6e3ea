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
  A dot = 0, weight = 0;
  Weighted shifted(A by) const { return {by == 0 || weight == 0 ? dot : dot + weight * by, weight}; }
  friend Weighted operator+(const Weighted& a, const Weighted& b) { return {a.dot + b.dot, a.weight + b.weight}; }
};

template <class A>
struct LossSum {
  RowSum<A> exp;
  Weighted<A> target;     // of t_j (indices: of w_j, for the smoothing)
  Weighted<A> plain;      // of q_j
  A moment = 0;           // sum_j exp(z_j - max) (z_j - max)
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
  const auto moment = [](const LossSum<A>& part, A shift) {
    if (shift == 0 || part.exp.max == -kInfinity<A>) return part.moment;
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
  TargetTerm(const Targets& target, int64_t N)
      : keep(static_cast<A>(1 - target.label_smoothing)), spread(static_cast<A>(target.label_smoothing / N)) {}
  Vec<A> operator()(Vec<A> q, Vec<A> w) const { return w * (keep * q + spread); }
};

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

// The row's class, or -1 if it does not count.
inline int64_t class_of(const Rows& rows, const Targets& target, const RowIndex& at, int64_t row, Met& met) {
  const int64_t t = *row_of<const int64_t>(rows, target.index, at);
  if (t != target.ignore_index && t >= 0 && t < rows.N) return t;
  if (t != target.ignore_index) meet_bad(met, row);
  __atomic_fetch_add(&met.ignored, 1, __ATOMIC_RELAXED);
  return -1;
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
  const A m = sum.max, d = sum.log_all(), lse = m + d;

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
  put(p.rows, p.entropy, at, d - total.moment / sum.all()), put(p.rows, p.log_prob, at, log_prob);
  put(p.rows, p.correct, at, correct && lse == lse);
}

// ---- Backward. ------------------------------------------------------------------------------------------------------

// Only p and the target's own column take part: class indices without smoothing, no gradient of an entropy.
inline bool has_plain_gradient(const CrossEntropyBackward& p) {
  return p.target.index && p.target.label_smoothing == 0 && !p.d_entropy;
}

// One row's gradient in numbers:  dz_j = e_j (f0 - f1 s_j) + q_j k_j - c w_j  with s = z - m, e = exp(s), k_j = k0 - k1 w_j.
// The factor of dz/dx that is the same for all columns is in them; dq_j = (h0 - h1 w_j) (s_j - d) has none.
template <class A>
struct RowGradient {
  A m, d, f0, f1, c, k0, k1, h0, h1;
  bool nothing;  // ignored, and no statistic of it is differentiated: zeros, whatever the row holds
  int64_t at;    // the target's column, or -1
  A dx_at;       // dx there
};

template <class A>
inline A upstream(const Rows& rows, const Operand& operand, const RowIndex& at) {
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
  RowGradient<A> g{};
  g.m = saved[0], g.d = saved[p.saved.step], g.at = -1;
  const A inverse = exp_one(-g.d), lse = g.m + g.d, outer = score.cap > 0 ? A(1) : score.scale;

  // What reaches the row's two terms and its statistics.
  const int64_t t = p.target.index ? class_of(p.rows, p.target, at, row, met) : 0;
  const bool counted = t >= 0;
  A u = 0, v = 0, d_log_prob = 0;
  if (counted) {
    u = v = of(p.d_row_loss);
    if (p.d_loss) u += of(p.d_loss) / divisors[0], v += of(p.d_loss) / divisors[p.divisors.step];
    v += of(p.d_z_loss);
    d_log_prob = of(p.d_log_prob);
  }
  const A d_entropy = of(p.d_entropy);
  g.nothing = !counted && !p.d_lse && !p.d_entropy;
  A rest = of(p.d_lse);  // of a: what p_j is multiplied by, the target's own share left out
  if (p.d_entropy) rest -= d_entropy * of(p.entropy);
  if (counted && p.z_loss_factor != 0) rest += 2 * static_cast<A>(p.z_loss_factor) * lse * v;
  const A c = u * share.spread;
  A a;
  if (p.target.index) {
    const A* const weights = static_cast<const A*>(p.target.weight);
    const A w = counted && weights ? weights[t] : A(1), own = counted ? u * share.keep * w - d_log_prob : A(0);
    if (p.target.label_smoothing > 0) rest += c * weight_sum;
    a = rest + own;
    if (counted) {
      // dz_t = a p_t - own = rest p_t + own (p_t - 1), where p_t - 1 keeps its digits.
      const Vec<A> x = splat(get<A>(row_of<const X>(p.rows, p.x, at) + t * p.x.step));
      const A s = score(x)[0] - g.m, p_t = exp_one(s) * inverse;
      A dz = rest * p_t + own * std::expm1(s - g.d);
      if (p.d_entropy) dz -= d_entropy * p_t * bounded_below<A>(splat(s - g.d))[0];
      if (p.target.label_smoothing > 0) dz -= c * w;
      g.at = t, g.dx_at = dz * score.slope(x)[0];
    }
  } else {
    a = rest + u * saved[2 * p.saved.step] - d_log_prob * saved[3 * p.saved.step];
    g.h0 = d_log_prob, g.h1 = u * share.keep;
    g.k0 = g.h0 * outer, g.k1 = g.h1 * outer;
  }
  // p (a - d_entropy (s - d))
  g.f0 = (a + d_entropy * g.d) * inverse * outer, g.f1 = d_entropy * inverse * outer, g.c = c * outer;
  return g;
}

// The same on vectors: one row in all lanes, or a row a lane.
template <class A>
struct GradientFormula {
  Vec<A> m, d, f0, f1, c, k0, k1, h0, h1;
  Mask<A> nothing;
  explicit GradientFormula(const RowGradient<A>& g)
      : m(splat(g.m)),
        d(splat(g.d)),
        f0(splat(g.f0)),
        f1(splat(g.f1)),
        c(splat(g.c)),
        k0(splat(g.k0)),
        k1(splat(g.k1)),
        h0(splat(g.h0)),
        h1(splat(g.h1)),
        nothing(Mask<A>{} - g.nothing) {}
  void set(int lane, const RowGradient<A>& g) {
    m[lane] = g.m, d[lane] = g.d, f0[lane] = g.f0, f1[lane] = g.f1, c[lane] = g.c, k0[lane] = g.k0, k1[lane] = g.k1;
    h0[lane] = g.h0, h1[lane] = g.h1, nothing[lane] = -static_cast<int>(g.nothing);
  }
  // Where has_plain_gradient.
  Vec<A> plain(Vec<A> z) const { return exp_nonpositive(z - m) * f0; }
  // Any; q is 0 for class indices.
  Vec<A> full(Vec<A> z, Vec<A> q, Vec<A> w) const {
    const Vec<A> s = z - m;
    return exp_nonpositive(s) * (f0 - f1 * bounded_below<A>(s)) + (q * (k0 - k1 * w) - c * w);
  }
  Vec<A> target(Vec<A> z, Vec<A> w) const { return (h0 - h1 * w) * (z - m - d); }
};

}  // namespace
}  // namespace hetkern::cpu
