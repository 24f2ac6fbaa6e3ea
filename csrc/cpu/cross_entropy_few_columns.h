// Cross-entropy of class indices over a few columns: cross_entropy_columns.h's bits, a vector of rows at a time. Softcaps,
// statistics, their gradients, class probabilities and the square of lse stay there.                                (how: few_columns.h)
#pragma once
#include "cross_entropy_math.h"
#include "few_columns.h"

namespace hetkern::cpu {
namespace {

// ---- A vector of targets. -------------------------------------------------------------------------------------------

// The classes of a vector of rows; -1 in the lanes that do not count, which `met` is told of.
template <class A>
inline Mask<A> classes_of(const Rows& rows, const Targets& target, const int64_t* from, int64_t row, int64_t count,
                          Met& met) {
  typedef typename Bits<A>::type Lane;
  constexpr int parts = static_cast<int>(sizeof(int64_t) / sizeof(Lane));
  constexpr int lanes = W<A> / parts;
  typedef int64_t Long __attribute__((vector_size(kVectorBytes)));
  typedef Lane Part __attribute__((vector_size(kVectorBytes / parts)));
  Part both[parts];
  for (int k = 0; k < parts; ++k) {
    const int64_t left = count - k * lanes;
    Long t = {};
    if (left >= lanes)
      t = load_vector<Long>(from + k * lanes);
    else
      for (int64_t i = 0; i < lanes; ++i) t[i] = i < left ? from[k * lanes + i] : -1;
    both[k] = __builtin_convertvector((t >= 0) & (t < rows.N) & (t != target.ignore_index) ? t : Long{} - 1, Part);
  }
  const Mask<A> classes = bit_cast<Mask<A>>(both);
  uint32_t out = lane_bits(classes < 0) & static_cast<uint32_t>((uint64_t{1} << count) - 1);
  if (__builtin_expect(out != 0, 0)) {
    __atomic_fetch_add(&met.ignored, __builtin_popcount(out), __ATOMIC_RELAXED);
    for (; out != 0; out &= out - 1)
      if (const int i = __builtin_ctz(out); from[i] != target.ignore_index) meet_bad(met, row + i);
  }
  return classes;
}

// ---- Forward. -------------------------------------------------------------------------------------------------------

template <class A, class X>
struct LossFewColumns {
  struct Row {  // a block of rows, the first one's
    const X* x;
    const int64_t* target;
    A *saved, *loss;
    int64_t first, rows;
  };
  const CrossEntropyForward& p;
  Met& met;
  ColumnBlocks blocks{p.rows};
  Vec<A> scale = splat(static_cast<A>(p.scale));
  TargetTerm<A> share{p.target, p.rows.N};
  const A* weight = static_cast<const A*>(p.target.weight);
  bool smooth = p.target.label_smoothing > 0;

  Row row(int64_t block) const {
    const int64_t first = blocks.first_row(block);
    const RowIndex at = row_index(p.rows, first);
    return {row_of<const X>(p.rows, p.x, at),
            row_of<const int64_t>(p.rows, p.target.index, at),
            row_of<A>(p.rows, p.saved, at),
            row_of<A>(p.rows, p.loss, at),
            first,
            blocks.rows(block)};
  }

  void write(const Row& row, int64_t) const {
    for_each_step<A, kStepVectors<A, X>>(row.rows,
                                         [&](auto vectors, int64_t i, auto count) { step<vectors>(row, i, count); });
  }

  template <int vectors, class Count>
  void step(const Row& row, int64_t i, Count count) const {
    constexpr int64_t stride = vectors * W<A>;
    const int64_t N = p.rows.N;
    const X* const x = row.x + i;
    A* const z = static_cast<A*>(scratch());
    A* const e = z + N * stride;
    // Scores, their maximum, and the target's.
    Vec<A> largest[vectors], shift[vectors], z_t[vectors] = {}, w_t[vectors];
    Mask<A> classes[vectors], equal[vectors] = {};
    for (int u = 0; u < vectors; ++u) {
      const int64_t at = i + u * W<A>;
      classes[u] = classes_of<A>(p.rows, p.target, row.target + at, row.first + at, count, met);
      largest[u] = splat(-kInfinity<A>);
      w_t[u] = classes[u] < 0 ? Vec<A>{} : splat(A(1));
    }
    for (int64_t j = 0; j < N; ++j)
      for (int u = 0; u < vectors; ++u) {
        const Vec<A> v = load_rows<A>(x + j * p.x.step + u * W<A>, count) * scale;
        store<A>(z + j * stride + u * W<A>, v);
        largest[u] = max(v, largest[u]);
        z_t[u] = is_class(classes[u], j) ? v : z_t[u];
      }
    for (int u = 0; u < vectors; ++u) shift[u] = largest[u] == -kInfinity<A> ? Vec<A>{} : largest[u];
    if (weight)
      for (int64_t j = 0; j < N; ++j)
        for (int u = 0; u < vectors; ++u) w_t[u] = is_class(classes[u], j) ? splat(weight[j]) : w_t[u];
    // Exponentials and their sum.
    for (int64_t j = 0; j < N; ++j) {
      prefetch(x + j * p.x.step + kPrefetchBytes / sizeof(X));
      for (int u = 0; u < vectors; ++u) {
        const Vec<A> v = load<A>(z + j * stride + u * W<A>);
        const Mask<A> is_max = v == shift[u];
        equal[u] += is_max;
        store<A>(e + j * stride + u * W<A>, is_max ? Vec<A>{} : exp_nonpositive(v - shift[u]));
      }
    }
    for (int u = 0; u < vectors; ++u) {
      const Vec<A> all = tree_sum(e + u * W<A>, N, stride), m = largest[u];
      const Vec<A> sum = m == kInfinity<A> || m == -kInfinity<A> ? splat(kNaN<A>) : all;
      const Vec<A> d = log1p(sum + (counted<A>(equal[u]) - A(1)));
      // The row's term.
      const Mask<A> out = classes[u] < 0;
      Vec<A> term = -(w_t[u] * ((z_t[u] - m) - d));
      if (smooth) term = smoothed(term, d, z + u * W<A>, e + u * W<A>, stride, shift[u]);
      term = out ? Vec<A>{} : term;
      // What backward needs, and what the reduction adds up.
      const int64_t at = i + u * W<A>;
      store_rows<A, false>(row.saved + at, m, count), store_rows<A, false>(row.saved + at + p.saved.step, d, count);
      if (p.terms) {
        A* plane = static_cast<A*>(p.terms) + row.first + at;
        store_rows<A, false>(plane, term, count);
        if (weight) store_rows<A, false>(plane + p.rows.M, w_t[u], count);
      }
      if (row.loss) store_rows<A, false>(row.loss + at, term + A(0), count);
    }
  }

  static Mask<A> is_class(Mask<A> classes, int64_t j) { return classes == static_cast<typename Bits<A>::type>(j); }

  // The term with the smoothing's share of all classes.
  Vec<A> smoothed(Vec<A> term, Vec<A> d, const A* z, A* terms, int64_t stride, Vec<A> shift) const {
    const auto w = [&](int64_t j) { return splat(weight ? weight[j] : A(1)); };
    for (int64_t j = 0; j < p.rows.N; ++j) store<A>(terms + j * stride, w(j));
    const Vec<A> all = tree_sum(terms, p.rows.N, stride);
    for (int64_t j = 0; j < p.rows.N; ++j) store<A>(terms + j * stride, w(j) * (load<A>(z + j * stride) - shift));
    const Vec<A> dot = tree_sum(terms, p.rows.N, stride);
    const double spread = share.spread;
    return in_double<A>([&](Vec<double> own, Vec<double> d_, Vec<double> all_,
                            Vec<double> dot_) { return own + spread * (all_ * d_ - dot_); },
                        share.keep * term, d, all, dot);
  }
};

// ---- Backward. ------------------------------------------------------------------------------------------------------

template <class A, class X>
struct GradientFewColumns {
  struct Row {
    const X* x;
    X* dx;
    const int64_t* target;
    const A *saved, *d_loss;
    double divisor, upstream;  // u, where all rows have the same
    int64_t first, rows;
  };
  const CrossEntropyBackward& p;
  Met& met;
  A weight_sum;
  ColumnBlocks blocks{p.rows};
  Vec<A> scale = splat(static_cast<A>(p.scale));
  TargetTerm<A> share{p.target, p.rows.N};
  const A* weight = static_cast<const A*>(p.target.weight);
  bool one = p.d_loss.stride[p.rows.outer_dims - 1] == 0;  // gradient of a reduction: the same for all rows of a block

  Row row(int64_t block) const {
    const int64_t first = blocks.first_row(block);
    const RowIndex at = row_index(p.rows, first);
    const A* const d_loss = row_of<const A>(p.rows, p.d_loss, at);
    const double divisor = *row_of<const A>(p.rows, p.divisors, at);
    return {row_of<const X>(p.rows, p.x, at),
            row_of<X>(p.rows, p.dx, at),
            row_of<const int64_t>(p.rows, p.target.index, at),
            row_of<const A>(p.rows, p.saved, at),
            d_loss,
            divisor,
            *d_loss / divisor,
            first,
            blocks.rows(block)};
  }

  void write(const Row& row, int64_t) const {
    const bool plain = has_plain_gradient(p);
    for_each_step<A, kStepVectors<A, X>>(row.rows, [&](auto vectors, int64_t i, auto count) {
      plain ? step<vectors, true>(row, i, count) : step<vectors, false>(row, i, count);
    });
  }

  // Factors of the gradients of a vector of rows: row_gradient's. own is u (1 - eps) w_t.
  struct Factors {
    Vec<A> f0, u;
    Vec<A> dx_at;  // dx at the target
  };

  // s: z_t - m. The target's own column keeps more digits.
  template <class Count>
  Factors factors(const Row& row, int64_t i, Count count, Vec<A> s, Vec<A> d, Vec<A> inverse, Vec<A> w) const {
    const Vec<A> less_1 = expm1_nonpositive(s - d);
    const double keep = share.keep, spread = share.spread, factor = static_cast<A>(p.scale);
    if (one && !weight && share.spread == 0) {
      const double own = row.upstream * keep;
      const Vec<A> dx_at = in_double<A>([&](Vec<double> less) { return (0.0 + own * less) * factor; }, less_1);
      return {splat(static_cast<A>(0.0 + own)), splat(static_cast<A>(row.upstream * spread)), dx_at};
    }
    const Vec<A> d_loss = one ? Vec<A>{} : load_rows<A>(row.d_loss + i, count);
    const auto upstream = [&](Vec<double> g) { return one ? splat(row.upstream) : g / row.divisor; };
    const Vec<A> u = in_double<A>([&](Vec<double> g) { return upstream(g) * spread; }, d_loss);
    const Vec<A> rest = u * (weight_sum * (exp(s) * inverse) - w);
    return {in_double<A>([&](Vec<double> g, Vec<double> w_) { return 0.0 + upstream(g) * keep * w_; }, d_loss, w), u,
            in_double<A>([&](Vec<double> g, Vec<double> w_, Vec<double> rest_,
                             Vec<double> less) { return (0.0 + rest_ + upstream(g) * keep * w_ * less) * factor; },
                         d_loss, w, rest, less_1)};
  }

  template <int vectors, bool plain, class Count>
  void step(const Row& row, int64_t i, Count count) const {
    const X* const x = row.x + i;
    X* const dx = row.dx + i;
    const auto is_class = [](Mask<A> classes, int64_t j) { return classes == static_cast<typename Bits<A>::type>(j); };
    // The target's scores and weights.
    Mask<A> classes[vectors];
    Vec<A> z_t[vectors] = {}, w_t[vectors];
    for (int k = 0; k < vectors; ++k) {
      const int64_t at = i + k * W<A>;
      classes[k] = classes_of<A>(p.rows, p.target, row.target + at, row.first + at, count, met);
      w_t[k] = splat(A(1));
    }
    for (int64_t j = 0; j < p.rows.N; ++j) {
      prefetch(x + j * p.x.step + kPrefetchBytes / sizeof(X));
      for (int k = 0; k < vectors; ++k) {
        const Vec<A> z = load_rows<A>(x + j * p.x.step + k * W<A>, count) * scale;
        z_t[k] = is_class(classes[k], j) ? z : z_t[k];
      }
    }
    if (weight)
      for (int64_t j = 0; j < p.rows.N; ++j)
        for (int k = 0; k < vectors; ++k) w_t[k] = is_class(classes[k], j) ? splat(weight[j]) : w_t[k];
    // What a row's columns share.
    Vec<A> m[vectors], inverse[vectors], factor[vectors], u[vectors], max_less_1[vectors], dx_at[vectors];
    for (int k = 0; k < vectors; ++k) {
      const A* const saved = row.saved + i + k * W<A>;
      m[k] = load_rows<A>(saved, count);
      const Vec<A> d = load_rows<A>(saved + p.saved.step, count);
      inverse[k] = exp(-d);
      const Factors of = factors(row, i + k * W<A>, count, z_t[k] - m[k], d, inverse[k], w_t[k]);
      factor[k] = plain ? inverse[k] * of.f0 : of.f0;
      u[k] = of.u, dx_at[k] = of.dx_at;
      if (!plain) max_less_1[k] = expm1_nonpositive(-d);
    }
    // The columns.
    for (int64_t j = 0; j < p.rows.N; ++j) {
      prefetch_to_write(dx + j * p.dx.step + kPrefetchBytes / sizeof(X));
      const Vec<A> w = splat(weight ? weight[j] : A(1));
      for (int k = 0; k < vectors; ++k) {
        const Vec<A> e = exp_nonpositive(load_rows<A>(x + j * p.x.step + k * W<A>, count) * scale - m[k]);
        Vec<A> dz;
        if constexpr (plain) {
          dz = e * factor[k];
        } else {
          const Vec<A> q = e * inverse[k], T = splat(weight_sum);
          dz = q * factor[k] + u[k] * (q > A(0.5) ? T * max_less_1[k] + (T - w) : T * q - w);
        }
        const Vec<A> other = classes[k] < 0 ? Vec<A>{} : dz * scale;
        store_rows<A, false>(dx + j * p.dx.step + k * W<A>, is_class(classes[k], j) ? dx_at[k] : other, count);
      }
    }
  }
};

// ---- Whether the columns were few and the call plain enough, and it is done. ----------------------------------------

template <class A, class X>
bool run_few_columns(const CrossEntropyForward& p, int tasks, Met& met) {
  const bool plain = p.target.index && !p.correct && p.z_loss_factor == 0 && !(p.softcap > 0) &&
                     side_by_side(p.rows, p.x) && side_by_side(p.rows, p.target.index) &&
                     side_by_side(p.rows, p.saved) && side_by_side(p.rows, p.loss);
  if (!has_few_columns(p.rows) || !plain) return false;
  const LossFewColumns<A, X> job{p, met};
  run_chunks(job, job.blocks.count(), 1, tasks);
  return true;
}

template <class A, class X>
bool run_few_columns(const CrossEntropyBackward& p, int tasks, Met& met, A weight_sum) {
  const int last = p.rows.outer_dims - 1;
  const bool statistics = p.d_row_loss || p.d_lse || p.d_z_loss || p.d_entropy || p.d_log_prob || p.z_loss_factor != 0;
  const bool plain = p.target.index && p.d_loss && !statistics && !(p.softcap > 0) && side_by_side(p.rows, p.x) &&
                     side_by_side(p.rows, p.dx) && side_by_side(p.rows, p.target.index) &&
                     side_by_side(p.rows, p.saved) && (p.d_loss.stride[last] == 0 || p.d_loss.stride[last] == 1) &&
                     p.divisors.stride[last] == 0;
  if (!has_few_columns(p.rows) || !plain) return false;
  const GradientFewColumns<A, X> job{p, met, weight_sum};
  run_chunks(job, job.blocks.count(), 1, tasks);
  return true;
}

}  // namespace
}  // namespace hetkern::cpu
