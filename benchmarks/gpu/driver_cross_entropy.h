// Cross-entropy by its launchers: forward with every statistic and backward against the formulas of cross_entropy.h in double.
#pragma once
#include "cross_entropy.h"
#include "driver_rows.h"

namespace hetkern::gpu_day {

struct CrossEntropyCase {
  Shape shape;
  bool probabilities, features;  // features: scale, softcap, weights, label smoothing and z-loss together
};

template <class X>
class CrossEntropyRun {
 public:
  using A = Sum<X>;
  explicit CrossEntropyRun(const CrossEntropyCase& c) : c_(c), kernels_(cuda::cross_entropy_kernels()) {
    x_ = normal<X>(M() * N(), 1, 3), q_ = normal<X>(M() * N(), 2, 0.1);
    Random random(3);
    for (double& q : q_) q = value(rounded<X>(std::fabs(q)));
    for (int64_t j = 0; j < N(); ++j) weights_.push_back(value(rounded<A>(0.5 + random.unit())));
    for (int64_t i = 0; i < M(); ++i) index_.push_back(i == 1 ? kIgnored : static_cast<int64_t>(random.unit() * N()));
    exact();
  }

  std::string forward() {
    const Tensor<X> x(s(), &x_), q(s(), &q_);
    const Buffer<A> weights(as<A>(weights_));
    const Buffer<int64_t> index(index_);
    const Shape one = one_a_row(M());
    const Tensor<A> saved({M(), saved_elements(c_.probabilities), false, 0});
    const Tensor<A> row(one), lse(one), z_loss(one), entropy(one), log_prob(one);
    const Tensor<uint8_t> correct(one);
    CrossEntropyForward p{};
    p.rows = s().rows(), p.x = x.operand(), p.target = target(q, index, weights), p.saved = saved.operand();
    p.scale = scale(), p.softcap = cap(), p.z_loss_factor = z_factor(), p.x_type = kType<X>;
    p.reduction = Reduction::mean;
    const Buffer<A> terms(p.term_planes() * M(), 0xff), reduced(1, 0xff), divisors(2, 0xff);
    p.terms = terms.data(), p.reduced = reduced.data(), p.divisors = divisors.data();
    p.row_loss = row.operand(), p.lse = lse.operand(), p.z_loss = z_loss.operand();
    p.entropy = entropy.operand(), p.log_prob = log_prob.operand(), p.correct = correct.operand();
    const CrossEntropyPlan plan = plan_for();
    kernels_.forward(p, plan, nullptr);

    const double limit = 256 * kSumEps<X>;
    compare("row_loss", row.read("row_loss"), row_loss_, 1, limit, terms_);
    compare("lse", lse.read("lse"), lse_, 1, limit);
    compare("z_loss", z_loss.read("z_loss"), z_loss_, 1, limit);
    compare("entropy", entropy.read("entropy"), entropy_, 1, limit, lse_);
    compare("log_prob", log_prob.read("log_prob"), log_prob_, 1, limit, terms_);
    compare("correct", correct.read("correct"), correct_, 1, 0);
    compare("divisors", numbers(divisors.read()), {divisor_[0], divisor_[1]}, 1, limit);
    compare("loss", numbers(reduced.read()), {loss_}, 1, limit, {loss_terms_});
    saved_ = saved.read("saved"), divisors_ = divisors.read();
    return "cross-entropy forward, " + path_of(plan, true);
  }

  std::string backward() {
    const Tensor<X> x(s(), &x_), q(s(), &q_), dx(s()), dq(s());
    const Buffer<A> weights(as<A>(weights_)), divisors(divisors_), d_loss(std::vector<A>{A(0.75)});
    const Buffer<int64_t> index(index_);
    const Tensor<A> saved({M(), saved_elements(c_.probabilities), false, 0}, &saved_);
    CrossEntropyBackward p{};
    p.rows = s().rows(), p.x = x.operand(), p.target = target(q, index, weights), p.saved = saved.operand();
    p.divisors = {divisors.data(), 1, {0}}, p.d_loss = {d_loss.data(), 0, {0}};
    p.dx = dx.operand();
    if (c_.probabilities) p.d_target = dq.operand();
    p.scale = scale(), p.softcap = cap(), p.z_loss_factor = z_factor(), p.x_type = kType<X>;
    const CrossEntropyPlan plan = plan_for();
    kernels_.backward(p, plan, nullptr);
    const double limit = 2 * kEps<X> + 4096 * kSumEps<X>;
    compare("dx", dx.read("dx"), dx_, N(), limit);
    if (c_.probabilities) compare("d_target", dq.read("d_target"), dq_, N(), limit);
    return "cross-entropy backward, " + path_of(plan, true);
  }

  // A target that is no class: on a GPU the kernel traps, in the emulation the launcher throws.
  void forward_with_a_bad_target() {
    index_[0] = N();
    forward();
  }

 private:
  static constexpr int64_t kIgnored = -100;
  const Shape& s() const { return c_.shape; }
  int64_t M() const { return s().M; }
  int64_t N() const { return s().N; }
  size_t at(int64_t i, int64_t j) const { return static_cast<size_t>(i * N() + j); }
  double scale() const { return c_.features ? 0.5 : 1; }
  double cap() const { return c_.features ? 3 : 0; }
  double z_factor() const { return c_.features ? value(rounded<A>(0.01)) : 0; }
  double smoothing() const { return c_.features ? 0.125 : 0; }
  double weight(int64_t j) const { return c_.features ? weights_[j] : 1; }
  double target_at(int64_t i, int64_t j) const { return c_.probabilities ? q_[at(i, j)] : index_[i] == j; }

  template <class T>
  static std::vector<T> as(const Numbers& from) {
    std::vector<T> to;
    for (const double v : from) to.push_back(static_cast<T>(v));
    return to;
  }
  static Numbers numbers(const std::vector<A>& from) { return Numbers(from.begin(), from.end()); }

  Targets target(const Tensor<X>& q, const Buffer<int64_t>& index, const Buffer<A>& weights) const {
    Targets t{};
    if (c_.probabilities)
      t.probability = q.operand();
    else
      t.index = {index.data(), 0, {1}};
    t.weight = c_.features ? weights.data() : nullptr;
    t.ignore_index = kIgnored, t.label_smoothing = smoothing();
    return t;
  }
  CrossEntropyPlan plan_for() const { return kernels_.plan({M(), N(), s().columns, kType<X>}); }

  // The words of cross_entropy.h, in its order.
  void exact() {
    const double eps = smoothing();
    for (int64_t i = 0; i < M(); ++i) counted_.push_back(c_.probabilities || index_[i] != kIgnored);
    for (int64_t i = 0; i < M(); ++i) {
      divisor_[0] += c_.probabilities ? 1 : counted_[i] ? weight(index_[i]) : 0;
      divisor_[1] += counted_[i];
    }
    for (int64_t i = 0; i < M(); ++i) {
      Numbers z;
      double m = -INFINITY, d = 0, row = 0, entropy = 0, log_prob = 0, T = 0, terms = 0;
      for (int64_t j = 0; j < N(); ++j) {
        const double v = scale() * x_[at(i, j)];
        z.push_back(cap() > 0 ? cap() * std::tanh(v / cap()) : v);
        m = std::max(m, z.back());
      }
      for (const double v : z) d += std::exp(v - m);
      const double lse = m + std::log(d);
      int64_t best = 0, wanted = 0;
      for (int64_t j = 0; j < N(); ++j) {
        const double log_p = z[j] - lse, q = target_at(i, j);
        const double t = weight(j) * ((1 - eps) * q + eps / N());
        T += t, row -= t * log_p, entropy -= std::exp(log_p) * log_p, log_prob += q * log_p;
        terms += (t + std::fabs(q)) * (std::fabs(z[j]) + std::fabs(lse));
        if (z[j] > z[best]) best = j;
        if (q > target_at(i, wanted)) wanted = j;
      }
      const double zl = counted_[i] ? z_factor() * lse * lse : 0;
      const double u = counted_[i] ? 0.75 / divisor_[0] : 0, v = counted_[i] ? 0.75 / divisor_[1] : 0;
      const double a = u * T + 2 * z_factor() * lse * v;
      for (int64_t j = 0; j < N(); ++j) {
        const double log_p = z[j] - lse, k = -u * (1 - eps) * weight(j), slope = cap() > 0 ? z[j] / cap() : 0;
        const double dz = std::exp(log_p) * a + target_at(i, j) * k - u * eps * weight(j) / N();
        dx_.push_back(dz * scale() * (1 - slope * slope));
        dq_.push_back(k * log_p);
      }
      if (!counted_[i]) row = log_prob = 0;
      row_loss_.push_back(row + zl), z_loss_.push_back(zl), lse_.push_back(lse), entropy_.push_back(entropy);
      log_prob_.push_back(log_prob), correct_.push_back(counted_[i] && best == wanted), terms_.push_back(terms);
      loss_ += row / divisor_[0] + zl / divisor_[1];
      loss_terms_ += terms / divisor_[0];
    }
  }

  CrossEntropyCase c_;
  const CrossEntropyKernels& kernels_;
  Numbers x_, q_, weights_, saved_, dx_, dq_, row_loss_, lse_, z_loss_, entropy_, log_prob_, correct_, terms_;
  std::vector<int64_t> index_;
  std::vector<bool> counted_;
  std::vector<A> divisors_;
  double divisor_[2] = {0, 0}, loss_ = 0, loss_terms_ = 0;
};

template <class X>
void run_cross_entropy(Log& log, const char* type, const CrossEntropyCase& c) {
  CrossEntropyRun<X> run(c);
  const std::string name = std::string(type) + " " + std::to_string(c.shape.M) + "x" + std::to_string(c.shape.N) +
                           (c.shape.columns ? " columns" : "") + (c.shape.pad ? " unaligned" : "") +
                           (c.probabilities ? " probabilities" : "") + (c.features ? " features" : "");
  log.run(name, [&] { return run.forward(); });
  log.run(name, [&] { return run.backward(); });
}

inline void run_cross_entropy(Log& log) {
  const Shape shapes[] = {{37, 100, false, 0}, {6, 101, false, 1}, {3, 1, false, 0},     {3, 4096, false, 0},
                          {2, 4099, false, 3}, {70, 37, true, 0},  {2, 128257, false, 0}};
  for (const Shape& shape : shapes)
    for (const bool features : {false, true}) {
      run_cross_entropy<__nv_bfloat16>(log, "bf16", {shape, false, features});
      if (shape.N > 10000) continue;
      run_cross_entropy<__nv_bfloat16>(log, "bf16", {shape, true, features});
      run_cross_entropy<float>(log, "f32", {shape, features, features});
      run_cross_entropy<__half>(log, "f16", {shape, false, features});
      run_cross_entropy<double>(log, "f64", {shape, true, features});
    }
}

}  // namespace hetkern::gpu_day
