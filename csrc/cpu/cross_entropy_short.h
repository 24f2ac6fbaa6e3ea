// Cross-entropy of short rows, a vector of rows at a time (short_rows.h): class indices without smoothing, statistics and z-loss,
// the bits of the general path.
#pragma once
#include "cross_entropy_math.h"
#include "short_rows.h"

namespace hetkern::cpu {
namespace {

// ---- Forward. -------------------------------------------------------------------------------------------------------

template <int vectors, class A, class X>
inline void short_losses(const CrossEntropyForward& p, const Score<A>& score, Met& met, int64_t first, int count) {
  const int64_t N = p.rows.N;
  const auto x = row_starts<A, const X>(p.rows, p.x, first, count);
  const auto saved = row_starts<A, A>(p.rows, p.saved, first, count);
  const auto* const weights = static_cast<const A*>(p.target.weight);

  // Row maximum and sum.
  const ShortScores<A, vectors> scores(N, count, [&](int i) { return ScoresOf<A, X, Score<A>>{x.at[i], N, score}; });
  const Vec<A> m = scores.largest, d = scores.log_sums([](Vec<A> s) { return exp_nonpositive(s); }, ~Mask<A>{});

  // The row's term.
  LaneValues<A> z, weight;
  LaneValues<A> counts;
  const auto targets = row_starts<A, const int64_t>(p.rows, p.target.index, first, count);
  for (int i = 0; i < count; ++i) {
    const int64_t t = class_of(p.rows, p.target, *targets.at[i], first + i, met);
    counts.of[i] = t < 0 ? A(0) : A(1);
    z.of[i] = scores.at(i, 0)[t < 0 ? 0 : t];
    weight.of[i] = t < 0 ? A(0) : weights ? weights[t] : A(1);
  }
  const Vec<A> log_prob = (z.vector() - m) - d;
  const Vec<A> term = counts.vector() > A(0) ? -(weight.vector() * log_prob) : Vec<A>{};

  // What backward needs, and what the reduction adds up.
  const LaneValues<A> ms(m), ds(d);
  for (int i = 0; i < count; ++i) saved.at[i][0] = ms.of[i], saved.at[i][p.saved.step] = ds.of[i];
  if (p.terms) {
    A* const plane = static_cast<A*>(p.terms) + first;
    store_some<A>(plane, term, count);
    if (weights) store_some<A>(plane + p.rows.M, weight.vector(), count);
  }
  if (!p.loss) return;
  const auto loss = row_starts<A, A>(p.rows, p.loss, first, count);
  const LaneValues<A> terms(term + A(0));
  for (int i = 0; i < count; ++i) *loss.at[i] = terms.of[i];
}

// Whether the rows were short and plain enough, and are done.
template <class A, class X>
bool run_short_losses(const CrossEntropyForward& p, const Score<A>& score, Met& met, int tasks) {
  if (p.rows.N > kShortRow<A> || !p.target.index || p.target.label_smoothing > 0 || p.correct || p.z_loss_factor != 0)
    return false;
  for_vectors_of<A>(p.rows.N, [&](auto vectors) {
    run_groups<A>(p.rows.M, tasks,
                  [&](int64_t first, int count) { short_losses<vectors, A, X>(p, score, met, first, count); });
  });
  return true;
}

// ---- Backward. ------------------------------------------------------------------------------------------------------

// row_gradient where only the loss is differentiated, in lanes; then the rows.
template <class A, class X>
inline void gradients_of_loss(const CrossEntropyBackward& p, Met& met, A weight_sum, int64_t first, int count) {
  const int64_t N = p.rows.N;
  const auto x = row_starts<A, const X>(p.rows, p.x, first, count);
  const auto dx = row_starts<A, X>(p.rows, p.dx, first, count);
  const auto* const weights = static_cast<const A*>(p.target.weight);
  const TargetTerm<A> share(p.target, N);
  const Vec<A> scale = splat(static_cast<A>(p.scale));

  // What reaches the row.
  int64_t target[W<A>];
  LaneValues<A> m, d, x_t, w, d_loss, divisor;
  const auto targets = row_starts<A, const int64_t>(p.rows, p.target.index, first, count);
  const auto saved = row_starts<A, const A>(p.rows, p.saved, first, count);
  const auto d_losses = row_starts<A, const A>(p.rows, p.d_loss, first, count);
  const auto divisors = row_starts<A, const A>(p.rows, p.divisors, first, count);
  for (int i = 0; i < count; ++i) {
    const int64_t t = target[i] = class_of(p.rows, p.target, *targets.at[i], first + i, met);
    m.of[i] = saved.at[i][0], d.of[i] = saved.at[i][p.saved.step];
    d_loss.of[i] = *d_losses.at[i], divisor.of[i] = *divisors.at[i];
    x_t.of[i] = get<A>(x.at[i] + (t < 0 ? 0 : t)), w.of[i] = t < 0 ? A(0) : weights ? weights[t] : A(1);
  }

  // dz_t has own (p_t - 1), the other columns own p_j.
  const auto u_of = [](Vec<double> g, Vec<double> over) { return g / over; };
  const auto own_of = [&](Vec<double> g, Vec<double> over, Vec<double> weight) {
    return u_of(g, over) * static_cast<double>(share.keep) * weight;
  };
  const Vec<A> s = x_t.vector() * scale - m.vector(), inverse = exp(-d.vector()), p_t = exp(s) * inverse;
  const Vec<A> spread =
      in_double<A>([&](Vec<double> g, Vec<double> over) { return u_of(g, over) * static_cast<double>(share.spread); },
                   d_loss.vector(), divisor.vector());
  const Vec<A> f0 =
      in_double<A>([&](auto... of) { return 0.0 + own_of(of...); }, d_loss.vector(), divisor.vector(), w.vector());
  const auto dx_of = [&](Vec<double> prob, Vec<double> spread_part, Vec<double> less_1, auto... of) {
    return (prob * 0.0 + spread_part + own_of(of...) * less_1) * static_cast<double>(static_cast<A>(p.scale));
  };
  const LaneValues<A> dx_t(in_double<A>(dx_of, p_t, spread * (weight_sum * p_t - w.vector()),
                                        expm1_nonpositive(s - d.vector()), d_loss.vector(), divisor.vector(),
                                        w.vector()));

  // Write the rows.
  const LaneValues<A> factor(inverse * f0);
  for (int i = 0; i < count; ++i) {
    if (target[i] < 0) {
      write_row<A>(dx.at[i], N, [](int64_t, int64_t) { return Vec<A>{}; });
      continue;
    }
    const Vec<A> shift = splat(m.of[i]), by = splat(factor.of[i]);
    write_row<A>(dx.at[i], N, [&, from = x.at[i]](int64_t j, int64_t n) {
      return exp_nonpositive(load_at<A>(from, j, n) * scale - shift) * by * scale;
    });
    if (!planted(Bug::dropped_target)) store_some<A>(dx.at[i] + target[i], splat(dx_t.of[i]), 1);
  }
}

// Whether that is all, and every task has groups enough.
template <class A, class X>
bool run_gradients_of_loss(const CrossEntropyBackward& p, Met& met, A weight_sum, int tasks) {
  if (p.rows.N > kChunk<A> || !p.target.index || p.target.label_smoothing > 0 || p.softcap > 0 || p.z_loss_factor != 0)
    return false;
  if (!p.d_loss || p.d_row_loss || p.d_lse || p.d_z_loss || p.d_entropy || p.d_log_prob) return false;
  if (tasks > 1 && p.rows.M < 4 * W<A> * tasks) return false;
  run_groups<A>(p.rows.M, tasks,
                [&](int64_t first, int count) { gradients_of_loss<A, X>(p, met, weight_sum, first, count); });
  return true;
}

}  // namespace
}  // namespace hetkern::cpu
