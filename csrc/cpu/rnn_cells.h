// What one step does behind its products, a vector of units at a time: one struct a cell.      (equations: csrc/rnn.h)
//
//   G       column blocks of x_gates and h_gates; S what a sequence saves; D what its backward gives
//   open(x, h, act, c)           x, h: G vectors; act, c: all that waits for no other function's result
//   close(act, h, c) -> h_next   act: now the gates after their functions (gru: and h'_n), N of them
//                                (in two, so that rows' long chains of operations can overlap)
//   backward(act, h_before, c_before, c_next, dh, dc, d)     d: D vectors, as dgates; gives what of dh does not pass W_hh; dc in, out
//   second(…)                    derivatives of backward
#pragma once
#include "../rnn.h"
#include "simd_math.h"

namespace hetkern::cpu {
namespace {

// In which gates of storage E are computed, and c.
template <class E>
using AccumulatorOf = std::conditional_t<std::is_same_v<E, double>, double, float>;

inline Vec<double> sigmoid(Vec<double> x) { return 1.0 / (1.0 + exp(-x)); }
// Error below 2.3 ulp; 0 below -88, where the quotient would be denormal. A clamp and this end cost less than an exp of any number.
inline Vec<float> sigmoid(Vec<float> x) {
  const Exponential of = exponential(max(splat(-87.0f), -x));  // NaN passes
  const Vec<float> power = bit_cast<Vec<float>>((of.exponent << 23) + (127 << 23));
  const Vec<float> s = 1.0f / (1.0f + fma(power, of.less_1, power));
  return x < -88.0f ? Vec<float>{} : s;
}

// tanh at half the cost, with e = exp(-2|x|) and t = e - 1: -t / (1 + e) near 0, below 2.3 ulp, and 1 - 2 e / (1 + e) from 0.6,
// below 1.4 ulp: gradients multiply by 1 - y^2, which a y near 1 leaves few digits.
inline Vec<float> tanh_of_gate(Vec<float> x) {
  const Vec<uint32_t> bits = bit_cast<Vec<uint32_t>>(x), sign = bits & 0x80000000u;
  const Vec<float> negative = bit_cast<Vec<float>>(bits | 0x80000000u);
  const Exponential of = exponential(max(splat(-80.0f), 2.0f * negative));  // NaN passes
  const Vec<float> power = bit_cast<Vec<float>>((of.exponent << 23) + (127 << 23));
  const Vec<float> e = fma(power, of.less_1, power), t = fma(power, of.less_1, power - 1.0f);
  const Vec<float> sum = 1.0f + e, inverse = 1.0f / sum, q = -t * inverse;
  const Vec<float> y = negative < -0.6f ? fma(-2.0f * e, inverse, splat(1.0f)) : fma(fma(-q, sum, -t), inverse, q);
  return bit_cast<Vec<float>>((bit_cast<Vec<uint32_t>>(y) & 0x7fffffffu) | sign);
}
inline Vec<double> tanh_of_gate(Vec<double> x) { return tanh(x); }

// What the second derivative works on: gradients g of backward's outputs, and dh, dc, which entered it.
template <class A>
struct Second {
  Vec<A> gx[4], gh[4], g_dh, g_dc, dh, dc;                  // in
  Vec<A> by_dh, by_dc, by_x[4], by_h_gates[4], by_h, by_c;  // out
};

template <class A, bool relu>
struct PlainCell {
  static constexpr Cell cell = relu ? Cell::relu : Cell::tanh;
  static constexpr int G = 1, N = 1, S = 0, D = 1;
  static constexpr bool has_c = false, reads_h = false;
  using V = Vec<A>;
  static void open(const V* x, const V* h, V* act, V&) { act[0] = x[0] + h[0]; }
  static V close(V* act, V, V) { return act[0] = relu ? max(V{}, act[0]) : tanh_of_gate(act[0]); }
  static V slope(V y) { return fma(-y, y, splat(A(1))); }
  static V backward(const V* act, V, V, V, V dh, V&, V* d) {
    if constexpr (relu)
      d[0] = act[0] <= V{} ? V{} : dh;
    else
      d[0] = dh * slope(act[0]);
    return V{};
  }
  static void second(const V* act, V, V, V, Second<A>& s) {
    const V y = act[0];
    if constexpr (relu) {
      s.by_dh = y <= V{} ? V{} : s.gx[0], s.by_x[0] = V{};
    } else {
      s.by_dh = s.gx[0] * slope(y), s.by_x[0] = A(-2) * y * s.by_dh * s.dh;
    }
  }
};

template <class A>
struct LstmCell {
  static constexpr Cell cell = Cell::lstm;
  static constexpr int G = 4, N = 4, S = 4, D = 4;
  static constexpr bool has_c = true, reads_h = false;
  using V = Vec<A>;
  static void open(const V* x, const V* h, V* act, V& c) {
    act[0] = sigmoid(x[0] + h[0]), act[1] = sigmoid(x[1] + h[1]);
    act[2] = tanh_of_gate(x[2] + h[2]), act[3] = sigmoid(x[3] + h[3]);
    c = fma(act[1], c, act[0] * act[2]);
  }
  static V close(const V* act, V, V c) { return act[3] * tanh_of_gate(c); }
  static V backward(const V* act, V, V c, V c_next, V dh, V& dc, V* d) {
    const V i = act[0], f = act[1], g = act[2], o = act[3], one = splat(A(1)), t = tanh_of_gate(c_next);
    const V D_ = fma(dh * o, fma(-t, t, one), dc);
    d[0] = D_ * g * i * (one - i);
    d[1] = D_ * c * f * (one - f);
    d[2] = D_ * i * fma(-g, g, one);
    d[3] = dh * t * o * (one - o);
    dc = D_ * f;
    return V{};
  }
  // With M = the tangent of c_next in the direction g: sum g d = D M + g_o dh t o (1 - o), D = dc + dh o (1 - t^2).
  static void second(const V* act, V, V c, V c_next, Second<A>& s) {
    const V i = act[0], f = act[1], g = act[2], o = act[3], one = splat(A(1)), two = splat(A(2)),
            t = tanh_of_gate(c_next);
    const V si = i * (one - i), sf = f * (one - f), sg = fma(-g, g, one), so = o * (one - o), st = fma(-t, t, one);
    const V D_ = fma(s.dh * o, st, s.dc);
    const V M = s.gx[0] * g * si + s.gx[1] * c * sf + s.gx[2] * i * sg + s.g_dc * f;
    s.by_dc = M;
    s.by_dh = M * o * st + s.gx[3] * t * so;
    const V Q = s.gx[3] * s.dh * so * st - two * M * s.dh * o * t * st;  // by c_next, through t
    s.by_x[0] = D_ * si * (s.gx[0] * g * (one - two * i) + s.gx[2] * sg) + Q * g * si;
    s.by_x[1] = D_ * sf * (s.gx[1] * c * (one - two * f) + s.g_dc) + Q * c * sf;
    s.by_x[2] = D_ * sg * (s.gx[0] * si - two * g * s.gx[2] * i) + Q * i * sg;
    s.by_x[3] = so * s.dh * (M * st + s.gx[3] * t * (one - two * o));
    s.by_c = D_ * s.gx[1] * sf + Q * f;
  }
};

template <class A>
struct GruCell {
  static constexpr Cell cell = Cell::gru;
  static constexpr int G = 3, N = 4, S = 4, D = 4;
  static constexpr bool has_c = false, reads_h = true;
  using V = Vec<A>;
  static void open(const V* x, const V* h, V* act, V&) {
    act[0] = sigmoid(x[0] + h[0]), act[1] = sigmoid(x[1] + h[1]);
    act[2] = fma(act[0], h[2], x[2]), act[3] = h[2];
  }
  static V close(V* act, V h, V) {
    act[2] = tanh_of_gate(act[2]);
    return fma(act[1], h - act[2], act[2]);
  }
  static V backward(const V* act, V h, V, V, V dh, V&, V* d) {
    const V r = act[0], z = act[1], n = act[2], hn = act[3], one = splat(A(1));
    const V dn = dh * (one - z) * fma(-n, n, one);
    d[0] = dn * r;
    d[1] = dn * hn * r * (one - r);
    d[2] = dh * (h - n) * z * (one - z);
    d[3] = dn;
    return dh * z;
  }
  // gx: g by (dr, dz, dn) of x_gates, gh: of h_gates. P = the tangent of n's argument in the direction g.
  static void second(const V* act, V h, V, V, Second<A>& s) {
    const V r = act[0], z = act[1], n = act[2], hn = act[3], one = splat(A(1)), two = splat(A(2));
    const V sr = r * (one - r), sz = z * (one - z), sn = fma(-n, n, one);
    const V gr = s.gx[0] + s.gh[0], gz = s.gx[1] + s.gh[1], by_r = s.gh[2] + gr * hn * (one - two * r);
    const V P = s.gx[2] + s.gh[2] * r + gr * hn * sr, away = one - z;
    s.by_dh = away * sn * P + gz * (h - n) * sz + s.g_dh * z;
    const V Y = s.dh * (A(-2) * away * n * sn * P - gz * sz * sn);  // by n's argument
    const V E = s.dh * away * sn;
    s.by_x[0] = s.by_h_gates[0] = Y * hn * sr + E * sr * by_r;
    s.by_x[1] = s.by_h_gates[1] = s.dh * sz * (gz * (h - n) * (one - two * z) + s.g_dh - sn * P);
    s.by_x[2] = Y;
    s.by_h_gates[2] = Y * r + E * gr * sr;
    s.by_h = s.dh * gz * sz;
  }
};

// Calls use(a cell's struct, an element) for a cell and a type.
template <class E, class A, class Use>
void with_cell(Cell cell, const Use& use) {
  switch (cell) {
    case Cell::tanh:
      return use(PlainCell<A, false>{}, E{});
    case Cell::relu:
      return use(PlainCell<A, true>{}, E{});
    case Cell::lstm:
      return use(LstmCell<A>{}, E{});
    case Cell::gru:
      return use(GruCell<A>{}, E{});
  }
}
template <class Use>
void with_cell_and_type(Cell cell, DType type, const Use& use) {
  switch (type) {
    case DType::f32:
      return with_cell<float, float>(cell, use);
    case DType::f64:
      return with_cell<double, double>(cell, use);
    case DType::bf16:
      return with_cell<bf16, float>(cell, use);
    case DType::f16:
      return with_cell<f16, float>(cell, use);
  }
}

}  // namespace
}  // namespace hetkern::cpu
