// Element types and the functions of their accumulators: float, double for double.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <limits>

#include "launch.cuh"

namespace hetkern::cuda {

using f16 = __half;
using bf16 = __nv_bfloat16;

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <class A>
constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();

template <class A>
__device__ __forceinline__ A get(float v) {
  return v;
}
template <class A>
__device__ __forceinline__ A get(double v) {
  return v;
}
template <class A>
__device__ __forceinline__ A get(f16 v) {
  return __half2float(v);
}
template <class A>
__device__ __forceinline__ A get(bf16 v) {
  return __bfloat162float(v);
}

template <class T>
struct To;
template <>
struct To<float> {
  static __device__ __forceinline__ float from(float v) { return v; }
};
template <>
struct To<double> {
  static __device__ __forceinline__ double from(double v) { return v; }
};
template <>
struct To<f16> {
  static __device__ __forceinline__ f16 from(float v) { return __float2half_rn(v); }
};
template <>
struct To<bf16> {
  static __device__ __forceinline__ bf16 from(float v) { return __float2bfloat16_rn(v); }
};

// Half of exp_one's instructions, for a softmax's outputs: the error of x log2(e) falls on terms that vanish beside their row's
// largest, |x| exp(x) 2^-24 at most. A sum of small terms that is a loss itself shows it.
__device__ __forceinline__ float exp_nonpositive(float x) { return exp2f(x * 1.44269504f); }
__device__ __forceinline__ double exp_nonpositive(double x) { return exp(x); }
__device__ __forceinline__ float exp_one(float x) { return expf(x); }
__device__ __forceinline__ double exp_one(double x) { return exp(x); }
__device__ __forceinline__ float log1p_one(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_one(double x) { return log1p(x); }
__device__ __forceinline__ float log_one(float x) { return logf(x); }
__device__ __forceinline__ double log_one(double x) { return log(x); }
__device__ __forceinline__ float expm1_one(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_one(double x) { return expm1(x); }
__device__ __forceinline__ float tanh_one(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_one(double x) { return tanh(x); }
// The larger; the one that is not NaN.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

}  // namespace hetkern::cuda
