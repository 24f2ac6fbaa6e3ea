// Softmax by its launchers: forward, backward and double backward against the formulas of softmax.h in double.
#pragma once
#include "driver_rows.h"
#include "softmax.h"

namespace hetkern::gpu_day {

struct SoftmaxCase {
  Shape shape;
  bool log, features;  // features: scale, softcap, bias, mask, causal and sink together
};

template <class X, class Y>
class SoftmaxRun {
 public:
  explicit SoftmaxRun(const SoftmaxCase& c) : c_(c), kernels_(cuda::softmax_kernels()) {}

  std::string forward() {
    const Numbers exact = exact_forward();
    const Tensor<X> x(s(), &x_), bias({1, N(), false, 0}, &bias_), sink(one_a_row(M()), &sink_);
    const Tensor<uint8_t> mask(s(), &mask_);
    const Tensor<Y> y(s());
    const Tensor<Sum<X>> y_sink(one_a_row(M()));
    SoftmaxForward p{};
    p.rows = s().rows(), p.x = x.operand(), p.y = y.operand();
    if (c_.features) {
      p.bias = bias.operand(), p.bias.stride[0] = 0;
      p.mask = mask.operand(), p.sink = sink.operand(), p.y_sink = y_sink.operand();
      p.queries = M();
    }
    p.scale = scale(), p.softcap = cap(), p.x_type = kType<X>, p.y_type = kType<Y>, p.log = c_.log;
    const SoftmaxPlan plan = plan_for(1);
    kernels_.forward(p, plan, nullptr);
    y_ = y.read("y");
    compare("y", y_, exact, N(), 2 * kEps<Y> + 64 * kSumEps<X>);
    if (c_.features) compare("y_sink", y_sink.read("y_sink"), exact_sink_, 1, 256 * kSumEps<X>);
    return "softmax forward, " + path_of(plan, plan.keep);
  }

  std::string backward() {
    const Tensor<Y> dy(s(), &dy_), y(s(), &y_);
    const Tensor<X> x(s(), &x_), dx(s());
    const Tensor<uint8_t> mask(s(), &mask_);
    const Tensor<Sum<X>> y_sink(one_a_row(M()), &exact_sink_);
    SoftmaxBackward p{};
    p.rows = s().rows(), p.dy = dy.operand(), p.y = y.operand(), p.dx = dx.operand();
    if (c_.features) p.x = x.operand(), p.mask = mask.operand(), p.queries = M();
    if (c_.features && !c_.log) p.y_sink = y_sink.operand();
    p.scale = scale(), p.softcap = cap(), p.x_type = kType<X>, p.y_type = kType<Y>, p.log = c_.log;
    Numbers exact;
    for (int64_t i = 0; i < M(); ++i) {
      double sum = 0, all = c_.features ? exact_sink_[i] : 0;
      for (int64_t j = 0; j < N(); ++j) {
        sum += c_.log ? dy_[at(i, j)] : kept(i, j) ? dy_[at(i, j)] * y_[at(i, j)] : 0;
        all += kept(i, j) ? y_[at(i, j)] : 0;
      }
      if (!c_.log) sum /= all;  // the rounded y do not add up to 1
      for (int64_t j = 0; j < N(); ++j) {
        const double v = dy_[at(i, j)], w = y_[at(i, j)];
        exact.push_back(kept(i, j) ? (c_.log ? v - std::exp(w) * sum : w * (v - sum)) * slope(x_[at(i, j)]) : 0);
      }
    }
    const SoftmaxPlan plan = plan_for(2);
    kernels_.backward(p, plan, nullptr);
    compare("dx", dx.read("dx"), exact, N(), 2 * kEps<X> + 4096 * kSumEps<X>);
    return "softmax backward, " + path_of(plan, plan.keep);
  }

  std::string double_backward() {
    const Numbers g_ = normal<X>(M() * N(), 7);
    const Tensor<X> g(s(), &g_);
    const Tensor<Y> dy(s(), &dy_), y(s(), &y_), g_dy(s()), g_y(s());
    SoftmaxDoubleBackward p{};
    p.rows = s().rows(), p.g = g.operand(), p.dy = dy.operand(), p.y = y.operand();
    p.g_dy = g_dy.operand(), p.g_y = g_y.operand();
    p.scale = scale(), p.x_type = kType<X>, p.y_type = kType<Y>, p.log = c_.log;
    Numbers exact_dy, exact_y, terms;
    for (int64_t i = 0; i < M(); ++i) {
      double sum_dy = 0, sum_g = 0, most_g = 0, all_dy = 0;
      for (int64_t j = 0; j < N(); ++j) {
        const double e = c_.log ? std::exp(y_[at(i, j)]) : y_[at(i, j)];
        sum_g += g_[at(i, j)] * e;
        sum_dy += dy_[at(i, j)] * (c_.log ? 1 : e);
        all_dy += std::fabs(dy_[at(i, j)]) * (c_.log ? 1 : e);
        most_g = std::max(most_g, std::fabs(g_[at(i, j)]) * (c_.log ? e : 1));
      }
      terms.push_back(most_g * all_dy);
      for (int64_t j = 0; j < N(); ++j) {
        const double g = g_[at(i, j)], v = dy_[at(i, j)], w = y_[at(i, j)];
        exact_dy.push_back(scale() * (c_.log ? g - sum_g : w * (g - sum_g)));
        exact_y.push_back(scale() * (c_.log ? -g * std::exp(w) * sum_dy : g * (v - sum_dy) - v * sum_g));
      }
    }
    const SoftmaxPlan plan = plan_for(3);
    kernels_.double_backward(p, plan, nullptr);
    compare("g_dy", g_dy.read("g_dy"), exact_dy, N(), 2 * kEps<Y> + 4096 * kSumEps<X>);
    compare("g_y", g_y.read("g_y"), exact_y, N(), 2 * kEps<Y> + 4096 * kSumEps<X>, terms);
    return "softmax double backward, " + path_of(plan, plan.keep);
  }

 private:
  const Shape& s() const { return c_.shape; }
  int64_t M() const { return s().M; }
  int64_t N() const { return s().N; }
  size_t at(int64_t i, int64_t j) const { return static_cast<size_t>(i * N() + j); }
  double scale() const { return c_.features ? 0.5 : 1; }
  double cap() const { return c_.features ? 3 : 0; }
  SoftmaxPlan plan_for(int reads) const {
    SoftmaxShape shape{};
    shape.M = M(), shape.N = N(), shape.columns = s().columns, shape.x_type = kType<X>, shape.y_type = kType<Y>;
    shape.reads = reads;
    return kernels_.plan(shape);
  }
  // Row i sees columns up to i + N - M, of those the mask's.
  bool kept(int64_t i, int64_t j) const { return !c_.features || (mask_[at(i, j)] != 0 && j <= i + N() - M()); }
  double slope(double x) const {
    const double t = cap() > 0 ? std::tanh(scale() * x / cap()) : 0;
    return scale() * (1 - t * t);
  }

  Numbers exact_forward() {
    x_ = normal<X>(M() * N(), 1, 4), dy_ = normal<Y>(M() * N(), 2);
    bias_ = normal<X>(N(), 3), sink_ = normal<X>(M(), 4);
    Random random(5);
    for (int64_t k = 0; k < M() * N(); ++k) mask_.push_back(random.unit() < 0.8);
    for (int64_t j = 0; j < N(); ++j) mask_[at(M() / 2, j)] = 0;  // an emptied row
    Numbers exact;
    for (int64_t i = 0; i < M(); ++i) {
      Numbers z;
      double m = c_.features ? sink_[i] : -INFINITY, d = 0;
      for (int64_t j = 0; j < N(); ++j) {
        double v = scale() * x_[at(i, j)];
        if (c_.features) v = cap() * std::tanh(v / cap()) + bias_[j];
        z.push_back(kept(i, j) ? v : -INFINITY);
        m = std::max(m, z.back());
      }
      for (const double v : z) d += std::exp(v - m);
      if (c_.features) d += std::exp(sink_[i] - m);
      for (const double v : z) exact.push_back(c_.log ? v - m - std::log(d) : std::exp(v - m) / d);
      const double sink = c_.features ? sink_[i] - m : 0;
      exact_sink_.push_back(c_.log ? sink - std::log(d) : std::exp(sink) / d);
    }
    return exact;
  }

  SoftmaxCase c_;
  const SoftmaxKernels& kernels_;
  Numbers x_, y_, dy_, bias_, sink_, mask_, exact_sink_;
};

template <class X, class Y>
void run_softmax(Log& log, const char* types, const SoftmaxCase& c) {
  SoftmaxRun<X, Y> run(c);
  const std::string name = std::string(types) + " " + std::to_string(c.shape.M) + "x" + std::to_string(c.shape.N) +
                           (c.shape.columns ? " columns" : "") + (c.shape.pad ? " unaligned" : "") +
                           (c.log ? " log" : "") + (c.features ? " features" : "");
  log.run(name, [&] { return run.forward(); });
  log.run(name, [&] { return run.backward(); });
  if (!c.features) log.run(name, [&] { return run.double_backward(); });  // of scores without an emptied row
}

inline void run_softmax(Log& log) {
  const Shape shapes[] = {{37, 100, false, 0}, {6, 101, false, 1}, {3, 1, false, 0},    {3, 4096, false, 0},
                          {2, 4099, false, 3}, {70, 37, true, 0},  {2, 70000, false, 0}};
  for (const Shape& shape : shapes)
    for (const bool features : {false, true}) {
      run_softmax<__nv_bfloat16, __nv_bfloat16>(log, "bf16", {shape, false, features});
      if (shape.N > 10000) continue;
      run_softmax<float, float>(log, "f32", {shape, features, features});
      run_softmax<__half, float>(log, "f16 to f32", {shape, true, features});
      run_softmax<double, double>(log, "f64", {shape, false, features});
    }
  run_softmax<float, float>(log, "f32", {{1, 500000, false, 0}, false, false});
  run_softmax<float, float>(log, "f32", {{33, 1000, true, 1}, false, false});
}

}  // namespace hetkern::gpu_day
