// The largest error of simd_math.h's functions over a range, in ulp of the exact result (of 1 for shares): `ulp NAME FROM TO`.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cpu/rnn_cells.h"

using namespace hetkern::cpu;

template <class A, class F, class Exact>
double worst(A from, A to, bool of_one, F f, Exact exact) {
  constexpr int steps = 1 << 20;
  double most = 0;
  for (int i = 0; i <= steps; i += W<A>) {
    Vec<A> x;
    for (int k = 0; k < W<A>; ++k) x[k] = from + (to - from) * static_cast<A>((i + k) / (1.0 * steps));
    const Vec<A> y = f(x);
    for (int k = 0; k < W<A>; ++k) {
      const long double wanted = exact(static_cast<long double>(x[k]));
      const A size = of_one ? A(1) : static_cast<A>(wanted < 0 ? -wanted : wanted);
      int exponent;
      std::frexp(size, &exponent);
      const A ulp = std::ldexp(std::numeric_limits<A>::epsilon(), exponent - 1);
      const auto error = static_cast<double>((static_cast<long double>(y[k]) - wanted) / ulp);
      most = std::fabs(error) > most ? std::fabs(error) : most;
    }
  }
  return most;
}

int main(int count, char** words) {
  if (count != 4) return 2;
  const char* const name = words[1];
  const double from = std::atof(words[2]), to = std::atof(words[3]);
  const auto is = [&](const char* wanted) { return !std::strcmp(name, wanted); };
  const auto e = [](long double x) { return std::exp(x); };
  const auto t = [](long double x) { return std::tanh(x); };
  const auto f = static_cast<float>(from), g = static_cast<float>(to);
  double most = -1;
  if (is("exp")) most = worst(f, g, false, [](Vec<float> x) { return hetkern::cpu::exp(x); }, e);
  if (is("exp64")) most = worst(from, to, false, [](Vec<double> x) { return hetkern::cpu::exp(x); }, e);
  if (is("exp_nonpositive")) most = worst(f, g, false, [](Vec<float> x) { return exp_nonpositive(x); }, e);
  if (is("share")) most = worst(f, g, true, [](Vec<float> x) { return exp_of_share<false>(x); }, e);
  if (is("share_relative")) most = worst(f, g, false, [](Vec<float> x) { return exp_of_share<false>(x); }, e);
  if (is("coarse_share")) most = worst(f, g, true, [](Vec<float> x) { return exp_of_share<true>(x); }, e);
  if (is("tanh")) most = worst(f, g, false, [](Vec<float> x) { return hetkern::cpu::tanh(x); }, t);
  if (is("tanh_of_gate")) most = worst(f, g, false, [](Vec<float> x) { return tanh_of_gate(x); }, t);
  const auto l = [](long double x) { return std::log1p(x); };
  if (is("log1p")) most = worst(f, g, false, [](Vec<float> x) { return hetkern::cpu::log1p(x); }, l);
  const auto one_by_one = [](Vec<float> x) {
    const Vec<float> all = in_double<float>(log1p_to<float>, x);
    for (int i = 0; i < W<float>; ++i) x[i] = log1p_one<float>(x[i]) == all[i] ? all[i] : -1;  // the same bits
    return x;
  };
  if (is("log1p_one")) most = worst(f, g, false, one_by_one, l);
  const auto expm1_lanes = [](Vec<float> x) { return expm1_nonpositive(x); };
  if (is("expm1")) most = worst(f, g, false, expm1_lanes, [](long double x) { return std::expm1(x); });
  std::printf("%.3f\n", most);
  return most < 0;
}
