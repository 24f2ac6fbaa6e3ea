// What one step does behind its products, a unit at a time: one struct a cell.           (equations: csrc/rnn.h; the CPU's: cpu/rnn_cells.h)
//
//   G       column blocks of x_gates and h_gates; S what a sequence saves; D what its backward gives
//   activate(x, h, act)          x, h: G numbers; act: the gates after their functions (gru: and h'_n)
//   next(act, h, c) -> h_next    c in and out
//   backward(act, h_before, c_before, c_next, dh, dc, d)     d: D numbers, as dgates; gives what of dh does not pass W_hh; dc in, out
//   second(…)                    derivatives of backward
#pragma once
#include "../../rnn.h"
#include "numbers.cuh"

namespace hetkern::cuda {

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (A(1) + exp_one(-x));
}
// 1 - y^2, with all its digits where y is near 1.
template <class A>
__device__ __forceinline__ A slope_of_tanh(A y) {
  return (A(1) - y) * (A(1) + y);
}

// What the second derivative works on: gradients g of backward's outputs, and dh, dc, which entered it.
template <class A>
struct Second {
  A gx[4], gh[4], g_dh, g_dc, dh, dc;                  // in
  A by_dh, by_dc, by_x[4], by_h_gates[4], by_h, by_c;  // out
};

template <class A_>
struct PlainCell {
  using A = A_;
  static constexpr int G = 1, S = 0, D = 1;
  static constexpr bool has_c = false, reads_h = false;
  bool relu;
  __device__ explicit PlainCell(Cell cell) : relu(cell == Cell::relu) {}

  __device__ __forceinline__ void activate(const A* x, const A* h, A* act) const {
    const A both = x[0] + h[0];
    act[0] = relu ? (both <= A(0) ? A(0) : both) : tanh_one(both);  // NaN stays
  }
  __device__ __forceinline__ A next(const A* act, A, A&) const { return act[0]; }
  __device__ __forceinline__ A backward(const A* act, A, A, A, A dh, A&, A* d) const {
    d[0] = relu ? (act[0] <= A(0) ? A(0) : dh) : dh * slope_of_tanh(act[0]);
    return A(0);
  }
  __device__ __forceinline__ void second(const A* act, A, A, A, Second<A>& s) const {
    const A y = act[0];
    s.by_dh = relu ? (y <= A(0) ? A(0) : s.gx[0]) : s.gx[0] * slope_of_tanh(y);
    s.by_x[0] = relu ? A(0) : A(-2) * y * s.by_dh * s.dh;
  }
};

template <class A_>
struct LstmCell {
  using A = A_;
  static constexpr int G = 4, S = 4, D = 4;
  static constexpr bool has_c = true, reads_h = false;
  __device__ explicit LstmCell(Cell) {}

  __device__ __forceinline__ void activate(const A* x, const A* h, A* act) const {
    act[0] = sigmoid(x[0] + h[0]), act[1] = sigmoid(x[1] + h[1]);
    act[2] = tanh_one(x[2] + h[2]), act[3] = sigmoid(x[3] + h[3]);
  }
  __device__ __forceinline__ A next(const A* act, A, A& c) const {
    c = act[1] * c + act[0] * act[2];
    return act[3] * tanh_one(c);
  }
  __device__ __forceinline__ A backward(const A* act, A, A c, A c_next, A dh, A& dc, A* d) const {
    const A i = act[0], f = act[1], g = act[2], o = act[3], one = A(1), t = tanh_one(c_next);
    const A D_ = dh * o * slope_of_tanh(t) + dc;
    d[0] = D_ * g * i * (one - i);
    d[1] = D_ * c * f * (one - f);
    d[2] = D_ * i * slope_of_tanh(g);
    d[3] = dh * t * o * (one - o);
    dc = D_ * f;
    return A(0);
  }
  // With M = the tangent of c_next in the direction g: sum g d = D M + g_o dh t o (1 - o), D = dc + dh o (1 - t^2).
  __device__ __forceinline__ void second(const A* act, A, A c, A c_next, Second<A>& s) const {
    const A i = act[0], f = act[1], g = act[2], o = act[3], one = A(1), two = A(2), t = tanh_one(c_next);
    const A si = i * (one - i), sf = f * (one - f), sg = slope_of_tanh(g), so = o * (one - o), st = slope_of_tanh(t);
    const A D_ = s.dh * o * st + s.dc;
    const A M = s.gx[0] * g * si + s.gx[1] * c * sf + s.gx[2] * i * sg + s.g_dc * f;
    s.by_dc = M;
    s.by_dh = M * o * st + s.gx[3] * t * so;
    const A Q = s.gx[3] * s.dh * so * st - two * M * s.dh * o * t * st;  // by c_next, through t
    s.by_x[0] = D_ * si * (s.gx[0] * g * (one - two * i) + s.gx[2] * sg) + Q * g * si;
    s.by_x[1] = D_ * sf * (s.gx[1] * c * (one - two * f) + s.g_dc) + Q * c * sf;
    s.by_x[2] = D_ * sg * (s.gx[0] * si - two * g * s.gx[2] * i) + Q * i * sg;
    s.by_x[3] = so * s.dh * (M * st + s.gx[3] * t * (one - two * o));
    s.by_c = D_ * s.gx[1] * sf + Q * f;
  }
};

template <class A_>
struct GruCell {
  using A = A_;
  static constexpr int G = 3, S = 4, D = 4;
  static constexpr bool has_c = false, reads_h = true;
  __device__ explicit GruCell(Cell) {}

  __device__ __forceinline__ void activate(const A* x, const A* h, A* act) const {
    act[0] = sigmoid(x[0] + h[0]), act[1] = sigmoid(x[1] + h[1]);
    act[2] = tanh_one(x[2] + act[0] * h[2]), act[3] = h[2];
  }
  __device__ __forceinline__ A next(const A* act, A h, A&) const { return act[2] + act[1] * (h - act[2]); }
  __device__ __forceinline__ A backward(const A* act, A h, A, A, A dh, A&, A* d) const {
    const A r = act[0], z = act[1], n = act[2], hn = act[3], one = A(1);
    const A dn = dh * (one - z) * slope_of_tanh(n);
    d[0] = dn * r;
    d[1] = dn * hn * r * (one - r);
    d[2] = dh * (h - n) * z * (one - z);
    d[3] = dn;
    return dh * z;
  }
  // gx: g by (dr, dz, dn) of x_gates, gh: of h_gates. P = the tangent of n's argument in the direction g.
  __device__ __forceinline__ void second(const A* act, A h, A, A, Second<A>& s) const {
    const A r = act[0], z = act[1], n = act[2], hn = act[3], one = A(1), two = A(2);
    const A sr = r * (one - r), sz = z * (one - z), sn = slope_of_tanh(n);
    const A gr = s.gx[0] + s.gh[0], gz = s.gx[1] + s.gh[1], by_r = s.gh[2] + gr * hn * (one - two * r);
    const A P = s.gx[2] + s.gh[2] * r + gr * hn * sr, away = one - z;
    s.by_dh = away * sn * P + gz * (h - n) * sz + s.g_dh * z;
    const A Y = s.dh * (A(-2) * away * n * sn * P - gz * sz * sn);  // by n's argument
    const A E = s.dh * away * sn;
    s.by_x[0] = s.by_h_gates[0] = Y * hn * sr + E * sr * by_r;
    s.by_x[1] = s.by_h_gates[1] = s.dh * sz * (gz * (h - n) * (one - two * z) + s.g_dh - sn * P);
    s.by_x[2] = Y;
    s.by_h_gates[2] = Y * r + E * gr * sr;
    s.by_h = s.dh * gz * sz;
  }
};

// Calls use(a pointer to a cell's struct, an element) for a cell and a type.
template <class A, class T, class Use>
void with_cell(Cell cell, const Use& use) {
  if (cell == Cell::lstm) return use(static_cast<LstmCell<A>*>(nullptr), T{});
  if (cell == Cell::gru) return use(static_cast<GruCell<A>*>(nullptr), T{});
  use(static_cast<PlainCell<A>*>(nullptr), T{});
}
template <class Use>
void with_cell_and_type(Cell cell, DType type, const Use& use) {
  switch (type) {
    case DType::f32:
      return with_cell<float, float>(cell, use);
    case DType::f64:
      return with_cell<double, double>(cell, use);
    case DType::bf16:
      return with_cell<float, bf16>(cell, use);
    case DType::f16:
      return with_cell<float, f16>(cell, use);
  }
}

}  // namespace hetkern::cuda
