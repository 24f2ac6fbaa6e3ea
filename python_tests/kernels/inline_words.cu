// Inline PTX one instruction at a time: shifts, fragments, atomics, votes.      (the test: test_emulation_inline_words.py)
#include <cuda_fp16.h>

#include "cuda/device/launch.cuh"

namespace {

__global__ void shifted(const unsigned* a, const unsigned* b, const unsigned* by, unsigned* y) {
  const int t = threadIdx.x;
  asm("shf.l.wrap.b32 %0, %1, %2, %3;" : "=r"(y[4 * t]) : "r"(a[t]), "r"(b[t]), "r"(by[t]));
  asm("shf.l.clamp.b32 %0, %1, %2, %3;" : "=r"(y[4 * t + 1]) : "r"(a[t]), "r"(b[t]), "r"(by[t]));
  asm("shf.r.wrap.b32 %0, %1, %2, %3;" : "=r"(y[4 * t + 2]) : "r"(a[t]), "r"(b[t]), "r"(by[t]));
  asm("shf.r.clamp.b32 %0, %1, %2, %3;" : "=r"(y[4 * t + 3]) : "r"(a[t]), "r"(b[t]), "r"(by[t]));
}

// y = a b + c of doubles: a [8, 4], b [4, 8], c and y [8, 8].
__global__ void product_double(const double* a, const double* b, const double* c, double* y) {
  const int t = threadIdx.x, row = t / 4, at = t % 4;
  double d0, d1;
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%4, %5};"
               : "=d"(d0), "=d"(d1)
               : "d"(a[4 * row + at]), "d"(b[8 * at + row]), "d"(c[8 * row + 2 * at]), "d"(c[8 * row + 2 * at + 1]));
  y[8 * row + 2 * at] = d0, y[8 * row + 2 * at + 1] = d1;
}

// Volta's: each of the four groups of eight lanes multiplies its own a [8, 4] and b [4, 8]; a in columns.
__global__ void product_volta(const unsigned* a, const unsigned* b, float* y, int rows_b) {
  const int t = threadIdx.x;
  float d[8] = {};
#define PRODUCT(order)                                                                                          \
  asm volatile("mma.sync.aligned.m8n8k4.col." order                                                             \
               ".f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, {%0,%1,%2,%3,%4,%5,%6,%7};"     \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]) \
               : "r"(a[2 * t]), "r"(a[2 * t + 1]), "r"(b[2 * t]), "r"(b[2 * t + 1]))
  if (rows_b)
    PRODUCT("row");
  else
    PRODUCT("col");
#undef PRODUCT
  for (int i = 0; i < 8; ++i) y[8 * t + i] = d[i];
}

// Four matrices of eight rows of eight from the lanes' registers, in the order of the lanes' addresses.
struct Matrices {
  alignas(16) unsigned short rows[32][8];
};
__global__ void stored(const unsigned* x, unsigned short* y, int which) {
  HETKERN_SHARED(Matrices, s);
  const int t = threadIdx.x;
  for (int i = 0; i < 8; ++i) s.rows[t][i] = 0;
  __syncthreads();
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(s.rows[t]));
  const unsigned* r = x + 4 * t;
  switch (which) {
    case 1:
      asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(to), "r"(r[0]) : "memory");
      break;
    case 2:
      asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(r[0]), "r"(r[1])
                   : "memory");
      break;
    case 3:
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]),
                   "r"(r[1]), "r"(r[2]), "r"(r[3])
                   : "memory");
      break;
    default:
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]), "r"(r[1]),
                   "r"(r[2]), "r"(r[3])
                   : "memory");
  }
  __syncthreads();
  for (int i = 0; i < 8; ++i) y[8 * t + i] = s.rows[t][i];
}

// Each lane once, at words of its own kind; old: what three of them found.
__global__ void counted(unsigned* w, float* f, unsigned long long* wide, unsigned* old) {
  struct Shared {
    int least;
  };
  HETKERN_SHARED(Shared, s);
  const int t = threadIdx.x;
  unsigned before;
  if (t == 0) s.least = 100;
  __syncthreads();
  asm volatile("atom.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(w), "r"(t) : "memory");
  old[t] = before;
  asm volatile("atom.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(w + 1), "r"(4) : "memory");
  old[32 + t] = before;
  asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], %2, %3;"
               : "=r"(before)
               : "l"(w + 2), "r"(0), "r"(t + 1)
               : "memory");
  old[64 + t] = before;
  asm volatile("red.global.max.s32 [%0], %1;" ::"l"(w + 3), "r"(t - 40) : "memory");
  asm volatile("red.global.max.u32 [%0], %1;" ::"l"(w + 4), "r"(t - 40) : "memory");
  asm volatile("red.global.or.b32 [%0], %1;" ::"l"(w + 5), "r"(1 << t) : "memory");
  asm volatile("red.global.xor.b32 [%0], %1;" ::"l"(w + 6), "r"(t) : "memory");
  asm volatile("red.release.gpu.global.add.f32 [%0], %1;" ::"l"(f), "f"(0.5f) : "memory");
  asm volatile("red.global.add.u64 [%0], %1;" ::"l"(wide), "l"(1ull << t) : "memory");
  asm volatile("red.global.min.s64 [%0], %1;" ::"l"(wide + 1), "l"(static_cast<long long>(-t)) : "memory");
  asm volatile("red.shared.min.s32 [%0], %1;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(&s.least))), "r"(-t)
               : "memory");
  __syncthreads();
  if (t == 0) w[7] = static_cast<unsigned>(s.least);
}

__global__ void voted(const int* x, unsigned* y) {
  const int t = threadIdx.x;
  unsigned any, all, ballot, none;
  asm volatile(
      "{ .reg .pred p, q;\n setp.gt.s32 p, %1, 0;\n vote.sync.any.pred q, p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(any)
      : "r"(x[t]));
  asm volatile(
      "{ .reg .pred p, q;\n setp.gt.s32 p, %1, 0;\n vote.sync.all.pred q, p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(all)
      : "r"(x[t]));
  asm volatile("{ .reg .pred p;\n setp.gt.s32 p, %1, 0;\n vote.sync.ballot.b32 %0, p, 0xffffffff; }"
               : "=r"(ballot)
               : "r"(x[t]));
  asm volatile(
      "{ .reg .pred p, q;\n setp.gt.s32 p, %1, 0;\n vote.sync.all.pred q, !p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(none)
      : "r"(x[t]));
  y[4 * t] = any, y[4 * t + 1] = all, y[4 * t + 2] = ballot, y[4 * t + 3] = none;
}

}  // namespace

extern "C" {
void go_shifted(const unsigned* a, const unsigned* b, const unsigned* by, unsigned* y, void* stream) {
  HETKERN_LAUNCH(shifted, 1, 32, 0, stream, a, b, by, y);
}
void go_product_double(const double* a, const double* b, const double* c, double* y, void* stream) {
  HETKERN_LAUNCH(product_double, 1, 32, 0, stream, a, b, c, y);
}
void go_product_volta(const unsigned* a, const unsigned* b, float* y, int rows_b, void* stream) {
  HETKERN_LAUNCH(product_volta, 1, 32, 0, stream, a, b, y, rows_b);
}
void go_stored(const unsigned* x, unsigned short* y, int which, void* stream) {
  HETKERN_LAUNCH(stored, 1, 32, sizeof(Matrices), stream, x, y, which);
}
void go_counted(unsigned* w, float* f, unsigned long long* wide, unsigned* old, void* stream) {
  HETKERN_LAUNCH(counted, 1, 32, 16, stream, w, f, wide, old);
}
void go_voted(const int* x, unsigned* y, void* stream) { HETKERN_LAUNCH(voted, 1, 32, 0, stream, x, y); }
}
